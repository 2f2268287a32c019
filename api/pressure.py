"""How full the queue is: new jobs are refused beyond a limit, and a queued one is told when its turn may come.

Counting what waits takes milliseconds when much does, so a process counts about once a second, in the transaction of
whoever asks then, and adds up itself what it has accepted since.
"""

from __future__ import annotations

import math
import threading
import time

from sqlalchemy.orm import Session

from api.errors import TooMany
from storage import queue
from storage.models import Json, Response

REMEMBER_SECONDS = 1.0
# Between these bounds a refused caller is told to come back. The official clients obey up to the upper one.
SOONEST_SECONDS = 1
LATEST_SECONDS = 120


class Pressure:
    """The queue's load as this process last saw it. May be used from any thread."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._load: queue.Load | None = None
        self._counted_at = 0.0
        self._accepted = 0  # by this process, since it counted

    def admit(self, session: Session) -> None:
        """Let one more job into the queue.

        Raises:
            TooMany: it is full.
        """
        load = self._current(session)
        with self._lock:
            queued = load.queued + self._accepted
            if queued < self._max_queued:
                self._accepted += 1
                return
        raise TooMany(
            f"The queue is full: {queued} jobs wait. Nothing was stored; send the request again later.",
            code="queue_full",
            retry_after=_seconds(queued - self._max_queued + 1, load.per_second),
        )

    def place(self, session: Session, response: Response) -> Json:
        """Return the `queue` of a response that waits: how many jobs are before it, and when it may begin.

        The time is None while nothing comes to an end, and for a turn that has to wait for another one.
        """
        position, now = queue.position(session, response)
        pace = self._current(session).per_second
        start = None
        if pace > 0 and response.ready:
            start = math.ceil(max(now + position / pace, response.available_at))
        return {"position": position, "expected_start": start}

    def _current(self, session: Session) -> queue.Load:
        known = self._load
        # One thread counts; the others go by the last count, which only the very first have to wait for.
        if known is None:
            self._counting.acquire()
        elif time.monotonic() - self._counted_at < REMEMBER_SECONDS or not self._counting.acquire(False):
            return known
        try:
            if self._load is not None and self._load is not known:
                return self._load  # somebody has just counted
            before = self._accepted
            found = queue.load(session)
            with self._lock:
                self._load, self._counted_at = found, time.monotonic()
                self._accepted -= before
            return found
        finally:
            self._counting.release()


def _seconds(excess: int, pace: float) -> int:
    if pace <= 0:
        return LATEST_SECONDS
    return min(LATEST_SECONDS, max(SOONEST_SECONDS, math.ceil(excess / pace)))
