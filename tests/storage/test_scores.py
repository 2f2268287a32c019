"""Log-probabilities on their way: what is stored of a token, and what is shown of it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from storage import scores
from storage.leases import Chunk
from storage.stream import join

TOKEN = st.tuples(st.binary(min_size=1, max_size=4), st.floats(-20, 0))


@given(st.lists(TOKEN, min_size=1, max_size=4))
def test_bytes_come_back_whatever_they_are(tokens: list[tuple[bytes, float]]) -> None:
    (shown,) = scores.shown([scores.entry(tokens)])
    for one, (spelling, logprob) in zip([shown, *shown["top_logprobs"]], tokens, strict=True):
        assert (bytes(one["bytes"]), one["logprob"]) == (spelling, logprob)


def test_half_a_character_is_shown_by_its_bytes() -> None:
    (shown,) = scores.shown([scores.entry([(b"\xe5\xbe", -1.0), ("很".encode(), -2.0)])])
    assert shown == {
        "token": "\\xe5\\xbe",
        "bytes": [0xE5, 0xBE],
        "logprob": -1.0,
        "top_logprobs": [{"token": "很", "bytes": [0xE5, 0xBE, 0x88], "logprob": -2.0}],
    }


def test_a_token_that_a_stop_string_was_cut_out_of_is_not_told() -> None:
    entries = [scores.entry([(b"x", float(-place))]) for place in range(5)]
    assert scores.told(entries, ["a", "", "b", "", ""], "") == entries[:3]
    assert scores.told(entries, ["a", "", "b", "", ""], "cd") == entries
    assert scores.told(entries, [""] * 5, "") == []


@given(st.lists(st.integers(0, 9), max_size=12), st.data(), st.booleans())
def test_stretches_of_an_answer_join_to_the_whole(
    tokens: list[int], data: st.DataObject, scored: bool
) -> None:
    entries = [scores.entry([(b"%d" % token, -0.5)]) for token in tokens] if scored else []
    whole = Chunk(0, tokens, [str(token) for token in tokens], logprobs=entries)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    joined = Chunk(0, [], [])
    for begin, end in pairwise([0, *cuts, len(tokens)]):
        behind = whole.since(begin)
        part = Chunk(begin, behind.token_ids[: end - begin], behind.pieces[: end - begin])
        joined = joined.then(
            Chunk(begin, part.token_ids, part.pieces, logprobs=behind.logprobs[: end - begin])
        )
    assert joined == whole
    for cut in cuts:
        start = Chunk(0, tokens[:cut], whole.pieces[:cut], logprobs=entries[:cut])
        overlap = whole.since(data.draw(st.integers(0, cut)))
        assert join(start, overlap) == whole
