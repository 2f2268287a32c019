"""The tokens of a running answer, which one thread adds and another stores."""

from __future__ import annotations

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
