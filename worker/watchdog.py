"""Sees to it that a worker with free slots works, whatever became of its messages.

A message is a hint that may be lost: Redis was flushed, is away, or the consumer has reconnected and hears nothing
(a known failure of Celery on Redis). So a worker that has heard nothing for a while asks SQL itself. One that stays
deaf while messages wait for it ends its process, and whoever started it starts it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from worker.runtime import Runtime

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
# Longer than the sweeper takes to announce a job again: with a living broker this thread finds nothing to do.
ASK_SECONDS = 8.0
DEAF_SECONDS = 45.0
# What running answers get to store their checkpoints before a deaf worker ends.
GIVE_BACK_SECONDS = 10.0


class Watchdog:
    """A thread that looks once a second. `work` runs jobs until none is left, as a message would make it."""

    def __init__(
        self, runtime: Runtime, work: Callable[[Runtime], None], leave: Callable[[int], None] = os._exit
    ) -> None:
        self._runtime = runtime
        self._work = work
        self._leave = leave
        self._slots = ThreadPoolExecutor(runtime.settings.concurrency, thread_name_prefix="asked")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs that it has begun must have ended."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._slots.shutdown(wait=True)

    def look(self) -> None:
        """Ask SQL for work if nothing was heard for long, and leave if that is for deafness."""
        silent = time.monotonic() - self._runtime.last_heard
        if (
            self._runtime.draining
            or silent < ASK_SECONDS
            or self._runtime.busy >= self._runtime.settings.concurrency
        ):
            return
        # Under a backlog every thread of the pool runs one job after the other: messages wait, and none can be heard.
        can_hear = self._runtime.in_tasks < self._runtime.settings.concurrency
        if silent > DEAF_SECONDS and can_hear and self._messages_wait():
            log.error(
                "deaf: messages wait and none arrives, leaving to be started again", silent=round(silent)
            )
            self._give_back()
            self._leave(1)
            return
        # One more slot with each look: each runs jobs until there are none.
        self._slots.submit(self._work, self._runtime)

    def call(self) -> None:
        """Somebody says that there is work for this worker above all others: run it, if there is room."""
        if not self._runtime.draining and self._runtime.busy < self._runtime.settings.concurrency:
            self._slots.submit(self._work, self._runtime)

    def _run(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            self.look()

    def _messages_wait(self) -> bool:
        try:
            return self._runtime.redis.llen("generate") > 0
        except RedisError:
            return False

    def _give_back(self) -> None:
        self._runtime.drain_now()
        deadline = time.monotonic() + GIVE_BACK_SECONDS
        while self._runtime.busy and time.monotonic() < deadline:
            self._stopping.wait(0.05)
