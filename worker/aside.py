"""Log lines of a signal handler.

A handler may have interrupted the main thread while it was writing a line of its own, and a stream that is written to
from within its own write raises RuntimeError: the process would end with a failure because it was asked to end.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

import structlog

log = structlog.get_logger(__name__)


class Aside:
    """Takes lines from anywhere, signal handlers too, and has a thread write them."""

    def __init__(self) -> None:
        # Its `put` is the one of the library's queues that may interrupt itself.
        self._lines: SimpleQueue[tuple[str, dict[str, float]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="aside", daemon=True)
        self._thread.start()

    def info(self, event: str, **fields: float) -> None:
        """Have `event` logged soon. Returns at once and never raises."""
        self._lines.put((event, fields))

    def stop(self) -> None:
        """Wait until all lines are written, and end the thread."""
        self._lines.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            event, fields = line
            log.info(event, **fields)
