"""The engine as the worker uses it: submit requests, follow their events, cancel. No torch.

The engine runs in a process of its own, and that process may die; it is then started again. Requests that were open
raise `EngineDied` where their events are waited for, and the caller submits them again with the tokens it has as
`resumed_ids`. Nothing is lost but time.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from worker.engine.child import Child
from worker.engine.config import EngineConfig, EngineInfo
from worker.engine.errors import EngineDied, EngineError, EngineStartError
from worker.engine.messages import Cancel
from worker.engine.request import Event, Failed, Finished, GenerationRequest, Tokens
from worker.engine.stats import EngineStats
from worker.engine.supervisor import Supervisor


class EventStream:
    """The events of one request, for one thread to read.

    `take` gets the tokens in place of that thread, at once and in the engine's own: with many answers at a time most
    of the work of a process would be to wake threads.
    """

    def __init__(self, take: Callable[[Tokens], None] | None = None) -> None:
        self._take = take
        self._queue: SimpleQueue[Event | Exception | None] = SimpleQueue()

    def next_event(self, timeout: float) -> Event | None:
        """The next event; None when none comes for `timeout` seconds. The last one is `Finished` or `Failed`.

        Raises `EngineDied` when the engine process ended first: no more events come then; and what `take` has raised.
        """
        try:
            event = self._queue.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    def wake(self) -> None:
        """Have `next_event` return None now, to whoever waits there or comes next."""
        self._queue.put(None)

    def _put(self, event: Event | EngineDied) -> None:
        if self._take is None or not isinstance(event, Tokens):
            self._queue.put(event)
            return
        try:
            self._take(event)
        except Exception as trouble:  # is its reader's, and must not end the engine's thread
            self._queue.put(trouble)


@dataclass
class _Open:
    """A request that has not ended."""

    request: GenerationRequest
    stream: EventStream
    cancelled: bool = False


class Engine:
    """One engine process, watched and restarted. All methods may be called from any thread.

    A process that says nothing for `stall_timeout` seconds is killed and replaced; a healthy one speaks every half
    second. As a context manager it starts on entry and stops on exit.
    """

    def __init__(self, config: EngineConfig, *, stall_timeout: float = 30.0) -> None:
        self._state = threading.Condition()  # guards the four below
        self._open: dict[str, _Open] = {}
        self._ready: Child | None = None  # the process, while it takes requests
        self._info: EngineInfo | None = None
        self._closed: EngineError | None = None  # why there will be no engine any more
        self._supervisor = Supervisor(
            config,
            stall_timeout,
            on_ready=self._on_ready,
            on_events=self._on_events,
            on_end=self._on_end,
            on_close=self._on_close,
        )

    def start(self) -> None:
        """Start the process and return at once; `wait_ready` waits for its model. To be called once."""
        self._supervisor.start()

    def wait_ready(self, timeout: float) -> EngineInfo:
        """Wait until the model is loaded. `EngineStartError` says why it cannot be; `TimeoutError` is only late."""
        with self._state:
            self._state.wait_for(lambda: self._ready or self._closed, timeout)
            if self._closed is not None:
                raise EngineStartError(str(self._closed))
            if self._ready is None or self._info is None:
                raise TimeoutError(f"the engine was not ready after {timeout:g} s")
            return self._info

    def submit(self, request: GenerationRequest, take: Callable[[Tokens], None] | None = None) -> EventStream:
        """Hand a request over. While the process starts, or starts again, the request waits for it. `take`: as
        `EventStream` says.

        Raises `EngineDied` when there will be no engine (it was stopped, or could not start), and `ValueError` when
        a request of the same id is open.
        """
        with self._state:
            if self._closed is not None:
                raise EngineDied(str(self._closed))
            if request.request_id in self._open:
                raise ValueError(f"request {request.request_id!r} is open already")
            opened = self._open[request.request_id] = _Open(request, EventStream(take))
            if self._ready is not None:
                self._ready.send(request)
        return opened.stream

    def cancel(self, request_id: str) -> None:
        """End a request within one step of the engine; its last event is `Finished(reason="cancelled")`.

        Nothing happens when it has ended already or is not known.
        """
        with self._state:
            if (opened := self._open.get(request_id)) is None:
                return
            opened.cancelled = True
            if self._ready is not None:
                self._ready.send(Cancel(request_id))

    def stop(self, timeout: float) -> None:
        """End the process, waiting `timeout` seconds at most; requests that are open raise `EngineDied`."""
        self._supervisor.stop(timeout)

    @property
    def pid(self) -> int | None:
        """The process that runs now, ready or not; None between two."""
        return self._supervisor.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs and takes requests."""
        return self._ready is not None

    @property
    def seconds_since_heartbeat(self) -> float:
        """How long the process has said nothing; infinite while there is none."""
        return self._supervisor.silence

    @property
    def stats(self) -> EngineStats | None:
        """The counters of the process that runs now, at most a second old; None while it starts."""
        return self._supervisor.stats

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(timeout=10)

    # Called by the supervisor's thread.

    def _on_ready(self, child: Child, info: EngineInfo) -> None:
        with self._state:
            self._ready, self._info = child, info
            for request_id, opened in self._open.items():
                child.send(opened.request)
                if opened.cancelled:
                    child.send(Cancel(request_id))
            self._state.notify_all()

    def _on_events(self, events: list[Event]) -> None:
        with self._state:
            streams = [self._open[event.request_id].stream for event in events]
            for event in events:
                if isinstance(event, Finished | Failed):
                    del self._open[event.request_id]
        for stream, event in zip(streams, events, strict=True):
            stream._put(event)

    def _on_end(self, error: EngineDied) -> None:
        with self._state:
            self._ready = None
            self._fail_open(error)

    def _on_close(self, error: EngineError) -> None:
        with self._state:
            self._ready, self._closed = None, error
            self._fail_open(EngineDied(str(error)))
            self._state.notify_all()

    def _fail_open(self, error: EngineDied) -> None:
        for opened in self._open.values():
            opened.stream._put(error)
        self._open.clear()
