"""The callers' own parts: what a seed draws, and how a stream's blocks are read."""

from __future__ import annotations

import pytest

from tests.faults import load, run


def test_a_seed_draws_the_same_load_again() -> None:
    assert load.talks(1, 10, 100) == load.talks(1, 10, 100)
    assert load.talks(1, 10, 100) != load.talks(2, 10, 100)
    assert sum(len(talk.turns) for talk in load.talks(1, 7, 100)) == 100


def test_blocks_of_a_stream() -> None:
    assert load.lines('event: a\ndata: {"sequence_number": 3}\n') == [("a", {"sequence_number": 3})]
    assert load.lines("data: [DONE]\n") == [("[DONE]", {})]
    assert load.lines(": ping\n") == []


def test_a_standstill_counts_only_while_all_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    still = run.Standstill()
    assert not still.look("a", True)
    clock[0] = run.STALL_SECONDS + 1
    assert not still.look("a", False)
    clock[0] += run.STALL_SECONDS
    assert not still.look("a", True)
    assert not still.look("b", True)
    clock[0] += run.STALL_SECONDS + 1
    assert still.look("b", True)
    assert not still.look("c", True)
    clock[0] += 5 * run.STALL_SECONDS + 1
    assert still.look("c", False)
