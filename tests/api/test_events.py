"""The event log as a function, and the tail it is made of: for any tokens, in any order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api import events
from api.events import Answer
from api.tails import Tail

Log = list[dict[str, Any]]

PIECES = st.lists(
    st.sampled_from(["", "", "a", " b", "é", "\u2028", "👍", "\n"]) | st.text(max_size=3), max_size=30
)
ENDS = st.sampled_from(["completed", "incomplete", "failed", "cancelled"])


def shown(status: str, text: str = "") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    output = [{"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [part]}]
    return {
        "id": "resp_1",
        "status": status,
        "completed_at": 7,
        "output": output if status in ("completed", "incomplete") else [],
        "error": {"code": "server_error"} if status == "failed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "usage": {"total_tokens": 3} if status in ("completed", "incomplete") else None,
    }


def log(answer: Answer, number: int = -1) -> Log:
    return list(events.after(answer, number))


def stages(pieces: Sequence[str], tail: str, end: str) -> list[Answer]:
    """All that readers may know of an answer, from its acceptance to its end."""
    text = [piece for piece in pieces if piece]
    found = [Answer(shown("queued"), "msg_1", False, [])]
    for status in ("queued", "in_progress"):  # given back and not yet claimed again, and running
        found += [Answer(shown(status), "msg_1", True, text[:count]) for count in range(len(text) + 1)]
    last = [*text, tail] if tail else text
    return [*found, Answer(shown(end, "".join(last)), "msg_1", True, last)]


@given(PIECES, st.text(max_size=3), ENDS)
def test_the_log_only_grows_and_tells_the_text(pieces: list[str], tail: str, end: str) -> None:
    known = stages(pieces, tail, end)
    final = log(known[-1])
    assert [event["sequence_number"] for event in final] == list(range(len(final)))
    assert "".join(event.get("delta", "") for event in final) == "".join(pieces) + tail
    for answer in known[:-1]:
        so_far = log(answer)
        assert so_far == final[: len(so_far)]
    assert final[-1] == {
        "type": f"response.{end}",
        "response": known[-1].shown,
        "sequence_number": len(final) - 1,
    }
    assert sum("delta" in event for event in final) == len([p for p in pieces if p]) + bool(tail)
    if end in ("completed", "incomplete"):
        assert [event["type"].partition(".")[2] for event in final[-4:-1]] == [
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ]
        assert final[-4]["text"] == "".join(pieces) + tail
        assert (
            final[-3]["part"] == final[-2]["item"]["content"][0] == known[-1].shown["output"][0]["content"][0]
        )


@given(PIECES, ENDS, st.integers(-1, 60))
def test_what_follows_a_number_is_the_rest_of_the_log(pieces: list[str], end: str, number: int) -> None:
    for answer in stages(pieces, "", end):
        assert log(answer, number) == log(answer)[number + 1 :]


def test_the_first_events_know_nothing_of_the_end() -> None:
    final = log(Answer(shown("completed", "a"), "msg_1", True, ["a"]))
    blank = {**shown("queued"), **events.UNKNOWN_YET}
    assert [event["response"] for event in final[:3]] == [blank, blank, {**blank, "status": "in_progress"}]
    assert [event["type"] for event in final[:2]] == ["response.created", "response.queued"]


def test_a_response_that_nobody_took_has_a_short_log() -> None:
    for end in ("cancelled", "failed"):
        final = log(Answer(shown(end), "msg_1", False, []))
        assert [event["type"] for event in final] == [
            "response.created",
            "response.queued",
            f"response.{end}",
        ]


def test_an_answer_without_text_still_has_its_item() -> None:
    final = log(Answer(shown("completed"), "msg_1", True, []))
    assert [event["type"].removeprefix("response.") for event in final] == [
        *("created", "queued", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]


STRETCH = st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans())


@given(PIECES, st.lists(STRETCH, max_size=40))
def test_a_tail_takes_stretches_in_any_order_and_more_than_once(
    pieces: list[str], stretches: list[tuple[int, int, bool]]
) -> None:
    tail = Tail()
    for first, length, from_sql in stretches:
        first = min(first, len(pieces))
        stretch = pieces[first : first + length]
        before = tail.position
        if from_sql and first <= tail.stored:  # SQL's chunks come in order
            tail.take_stored(first, stretch, "")
        else:
            assert tail.take(first, stretch) == (first <= before)
        assert tail.position >= before
        assert tail.deltas == [piece for piece in pieces[: tail.position] if piece]
    tail.take(0, pieces)
    assert "".join(tail.deltas) == "".join(pieces)


def test_the_text_of_the_end_is_told_once() -> None:
    tail = Tail()
    for _ in range(2):  # a chunk without tokens is read again with the next question
        tail.take_stored(0, ["a", ""], "")
        tail.take_stored(2, [], "z")
    tail.close("msg_1", shown("completed", "az"))
    assert tail.deltas == ["a", "z"]
