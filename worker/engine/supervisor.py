"""Keeps one engine process running: starts it, hears it out, replaces it when it dies or falls silent. No torch."""

import logging
import math
import threading
import time
from collections.abc import Callable

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential,
)

from worker.engine.child import Child
from worker.engine.config import EngineConfig, EngineInfo
from worker.engine.errors import EngineDied, EngineError, EngineStartError
from worker.engine.messages import Heartbeat, StartFailed
from worker.engine.request import Event
from worker.engine.stats import EngineStats

# While the process starts, importing torch from a cold disk can keep its heartbeats back this long.
START_SILENCE_SECONDS = 120.0
# A process that was ready for so long has shown that it can run: its end is not one of a series of crashes.
STABLE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 30.0

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs in a thread of its own, in which it calls what it was given:

    `on_ready(child, info)` when a process can take requests; `on_events(events)` for what it reports;
    `on_end(error)` when it has ended, ready or not; `on_close(error)` once, when there will be no other.

    The first start is final if it fails: its reason is the configuration. Later starts are repeated with growing
    pauses, because their reasons pass (a GPU whose memory the last process still held).
    """

    def __init__(
        self,
        config: EngineConfig,
        stall_timeout: float,
        *,
        on_ready: Callable[[Child, EngineInfo], None],
        on_events: Callable[[list[Event]], None],
        on_end: Callable[[EngineDied], None],
        on_close: Callable[[EngineError], None],
    ) -> None:
        self._config = config
        self._stall_timeout = stall_timeout
        self._on_ready, self._on_events = on_ready, on_events
        self._on_end, self._on_close = on_end, on_close
        self._was_ready = False
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # so that `stop` never misses a process that is being started
        self._child: Child | None = None
        self.stats: EngineStats | None = None  # as last heard of the process that runs now
        self._thread = threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Kill the process and wait until it has ended, `timeout` seconds at most."""
        with self._starting:
            self._stopping.set()
            if self._child is not None:
                self._child.kill()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def pid(self) -> int | None:
        """The process that runs now, ready or not."""
        child = self._child
        return None if child is None else child.pid

    @property
    def silence(self) -> float:
        """Seconds since the process was heard; infinite while there is none."""
        child = self._child
        return math.inf if child is None else child.silent_for

    def _supervise(self) -> None:
        series = Retrying(
            retry=retry_if_exception_type(EngineDied),
            wait=wait_exponential(multiplier=0.1, max=LONGEST_PAUSE_SECONDS),
            stop=stop_when_event_set(self._stopping),
            sleep=sleep_using_event(self._stopping),
            reraise=True,
        )
        try:
            while True:
                series(self._run_one)
        except EngineError as error:
            self._on_close(EngineDied("the engine was stopped") if self._stopping.is_set() else error)

    def _run_one(self) -> None:
        """One process from its start to its end. Returns when it was stable, raises when it was not."""
        with self._starting:
            if self._stopping.is_set():
                raise EngineDied("the engine was stopped")
            try:
                child = self._child = Child(self._config)
            except OSError as error:
                raise self._failure(f"the engine process cannot be started: {error}") from error
        reason, ready_for = self._hear_out(child)
        how = child.reap()
        self._child = self.stats = None
        if self._stopping.is_set():
            raise EngineDied("the engine was stopped")
        if reason is None:
            when = "" if ready_for else " before its model was loaded"
            reason = f"the engine process ended with {how}{when}"
        logger.warning("engine process %d is gone: %s", child.pid, reason)
        self._on_end(EngineDied(reason))
        if ready_for < STABLE_SECONDS:
            raise self._failure(reason)

    def _failure(self, reason: str) -> EngineError:
        return EngineDied(reason) if self._was_ready else EngineStartError(reason)

    def _hear_out(self, child: Child) -> tuple[str | None, float]:
        """Pass on what the process says until it ends or stalls. Why, if that is known; how long it was ready."""
        reason, ready_since = None, math.inf
        patience = max(START_SILENCE_SECONDS, self._stall_timeout)
        while True:
            try:
                message = child.receive(patience)
            except EOFError:
                break
            match message:
                case EngineInfo():
                    logger.info("engine process %d is ready", child.pid)
                    ready_since, patience, self._was_ready = time.monotonic(), self._stall_timeout, True
                    self._on_ready(child, message)
                case Heartbeat(stats):
                    self.stats = stats
                case StartFailed(text):
                    reason = text
                case list():
                    self._on_events(message)
                case None:
                    reason = f"the engine process said nothing for {patience:g} s and was killed"
                    break
        return reason, max(0.0, time.monotonic() - ready_since)
