"""A clock that somebody sets: `time.time` of one program and its engine jumps to where a file says.

The file `clock-NAME` in the run's folder of orders holds the seconds to add; a program without one has the right time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.faults import deaths

NAME = "QWENQ_FAULTS_NAME"
# How often the file is looked at: `time.time` is called all the time.
LOOK_SECONDS = 0.1


def set_clock(directory: Path, name: str, seconds: float) -> None:
    """Put the clock of the program so many seconds ahead, or back when they are negative."""
    order = directory / f"clock-{name}"
    order.with_suffix(".new").write_text(str(seconds))
    order.with_suffix(".new").rename(order)


def install() -> None:
    """Give this process a clock that can be set. Comes before all imports that take `time.time` for themselves."""
    order = Path(os.environ[deaths.VARIABLE]) / f"clock-{os.environ[NAME]}"
    right, offset, next_look = time.time, 0.0, 0.0

    def shifted() -> float:
        nonlocal offset, next_look
        now = time.monotonic()
        if now >= next_look:
            next_look = now + LOOK_SECONDS
            offset = float(order.read_text()) if order.exists() else 0.0
        return right() + offset

    time.time = shifted
