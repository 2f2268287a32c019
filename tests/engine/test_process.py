"""The parts of the engine process that a healthy one never shows."""

import logging
import time

import pytest

from worker.engine import process
from worker.engine.stats import EngineStats


def test_a_loop_that_does_not_come_round_stops_the_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = process.Pulse()
    assert pulse.regular, "while the model loads there is no loop yet"
    pulse.mark(EngineStats())
    assert pulse.regular
    later = time.monotonic() + process.TURN_LIMIT_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later + 1)
    assert not pulse.regular
    pulse.mark(EngineStats())
    assert pulse.regular


def test_a_traceback_takes_one_line_of_the_log() -> None:
    record = logging.LogRecord("worker.engine", logging.ERROR, "", 0, "request %s failed", ("a",), None)
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    line = process.OneLine("%(message)s").format(record)
    assert line.startswith("request a failed | Traceback")
    assert line.endswith("RuntimeError: two | lines")
    assert "\n" not in line
