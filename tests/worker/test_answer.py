"""The tokens of a running answer, which one thread adds and another stores."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from storage.leases import Chunk
from worker.answer import RunningAnswer
from worker.engine.request import Tokens
from worker.generation import Attempt


def test_it_grows_at_its_end_and_nowhere_else() -> None:
    answer = RunningAnswer()
    answer.take(Chunk(0, [1, 2], ["a", "b"], logprobs=[]))
    answer.take(Chunk(2, [3], ["c"]))
    assert len(answer) == 3
    assert answer.since(1, "end") == Chunk(1, [2, 3], ["b", "c"], "end", [])
    with pytest.raises(RuntimeError, match="token 5 came after 3"):
        answer.take(Chunk(5, [6], ["f"]))


@pytest.mark.parametrize("followed", [True, False])
def test_a_closed_attempt_takes_and_shows_nothing_more(followed: bool) -> None:
    """What the engine still says after that would be shown, and then be missing in what is stored."""
    shown: list[Chunk] = []
    tail = SimpleNamespace(add=lambda _id, _attempt, chunk: shown.append(chunk))
    response = SimpleNamespace(id="resp_a", attempt=1, request={"followed": followed})
    attempt = Attempt(
        cast(Any, None), cast(Any, SimpleNamespace(tail=tail)), cast(Any, response), deadline=0.0
    )
    attempt._take(Tokens("resp_a/1/0", 0, [1], ["a"]))
    attempt.close()
    attempt._take(Tokens("resp_a/1/0", 1, [2], ["b"]))
    assert attempt.answer.since(0) == Chunk(0, [1], ["a"])
    assert shown == ([Chunk(0, [1], ["a"])] if followed else [])


def test_while_what_was_shown_is_being_stored_no_more_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away for seconds must not leave readers seconds ahead of it: Redis may be lost too."""
    shown: list[Chunk] = []
    tail = SimpleNamespace(add=lambda _id, _attempt, chunk: shown.append(chunk))
    response = SimpleNamespace(id="resp_a", attempt=1, request={})
    settings = SimpleNamespace(lease_seconds=30.0, checkpoint_seconds=1.0)
    runtime = SimpleNamespace(settings=settings, busy=1, database=SimpleNamespace(begin=nullcontext))
    generator = SimpleNamespace(tail=tail, settings=settings)
    attempt = Attempt(cast(Any, runtime), cast(Any, generator), cast(Any, response), deadline=0.0)
    stored: list[Chunk] = []

    def renew(_session: object, _id: str, _attempt: int, _lease: float, chunk: Chunk) -> bool:
        attempt._take(Tokens("resp_a/1/0", 1, [2], ["b"]))
        assert [each.end for each in shown] == [1]
        stored.append(chunk)
        return False

    monkeypatch.setattr("storage.leases.renew", renew)
    attempt._take(Tokens("resp_a/1/0", 0, [1], ["a"]))
    attempt._checkpoint("resp_a/1/0")
    assert stored == [Chunk(0, [1], ["a"])]
    assert shown == [Chunk(0, [1], ["a"]), Chunk(1, [2], ["b"])]
