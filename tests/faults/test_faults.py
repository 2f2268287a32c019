"""The short fault run, as `make faults SHORT=1` runs it: real processes, and every invariant holds afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import plan
from tests.faults.plan import ALSO, MUST, Lane
from tests.faults.sabotage import PROTECTIONS

SEED = 20  # a failure must be the code's, not the day's


@pytest.mark.timeout(420)
def test_a_short_run_breaks_no_promise() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--short", "--seed", str(SEED)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert f"seed {SEED}" in done.stdout


@pytest.mark.parametrize("lane", ["workers", "surroundings"])
@pytest.mark.parametrize("short", [True, False])
def test_a_seed_draws_the_same_plan_again(lane: Lane, short: bool) -> None:
    def drawn(seed: int) -> list[tuple[str, float, float]]:
        found = []
        for step in plan.steps(seed, lane, short=short):
            if step.number == 30:
                break
            found.append((step.name, step.pause, step.draw.random()))
        return found

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    must = {fault.__name__ for fault in (MUST[lane] if short else (*MUST[lane], *ALSO[lane]))}
    assert {name for name, _, _ in drawn(3)[: len(must)]} == must


def test_an_unknown_protection_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--without", "luck"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert all(name in done.stderr for name in PROTECTIONS)
