"""A worker that is told to go while it writes a line of its own."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Iterator

import pytest
import structlog
from typing_extensions import Buffer

from worker import aside
from worker import runtime as process
from worker.runtime import Runtime

WRITTEN = logging.getLogger("tests.worker.written")


class Interrupted(io.RawIOBase):
    """Sends this process a signal from within its first write."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        line = bytes(data)
        self.lines.append(line)
        if len(self.lines) == 1:
            signal.raise_signal(signal.SIGUSR1)
        return len(line)


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupted]:
    """Where everything is logged to, as a worker logs to its standard error."""
    raw = Interrupted()
    handler = logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True))
    root = logging.getLogger()
    level = root.level
    # Through the standard library, as `storage.logging` has it.
    told = structlog.wrap_logger(
        logging.getLogger("worker.aside"),
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    monkeypatch.setattr(aside, "log", told)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield raw
    root.removeHandler(handler)
    root.setLevel(level)


def test_the_signal_may_come_in_the_middle_of_a_line(
    runtime: Runtime, stderr: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_current", runtime)
    before = signal.signal(signal.SIGUSR1, lambda *_: process.drain())
    try:
        WRITTEN.info("ready")
    finally:
        signal.signal(signal.SIGUSR1, before)
    runtime.aside.stop()
    assert runtime.draining
    assert b"ready" in stderr.lines[0]
    assert b"draining" in b"".join(stderr.lines[1:])
