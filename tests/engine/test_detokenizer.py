"""Text out of tokens: whole characters, stop strings, and no more held back than must be."""

import base64
import json
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.engine.detokenizer import Detokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "qwen-golden-tokens.json").read_text())


@pytest.fixture(scope="module")
def qwen_bytes() -> dict[int, bytes]:
    """Qwen's ordinary tokens, from the rank file that the dashscope package carries."""
    package = find_spec("dashscope")
    assert package is not None
    assert package.origin is not None
    ranks = Path(package.origin).parent / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in ranks.read_text().splitlines() if line.strip())
    return {int(rank): base64.b64decode(token) for token, rank in lines}


@pytest.mark.parametrize("vector", GOLDEN["streaming"], ids=lambda vector: vector["name"])
def test_golden_streaming(vector: dict, qwen_bytes: dict[int, bytes]) -> None:
    detokenizer = Detokenizer(qwen_bytes.__getitem__)
    pieces = [detokenizer.push(token_id) for token_id in vector["ids"]]
    assert [*pieces, detokenizer.flush()] == vector["incremental_deltas_then_final_flush"]


def run(tokens: Sequence[bytes], stop_strings: Sequence[str]) -> tuple[list[str], str, bool]:
    """Pieces until the stop string, tail, and whether a stop string was met."""
    detokenizer = Detokenizer(tokens.__getitem__, stop_strings)
    pieces = []
    for token_id in range(len(tokens)):
        pieces.append(detokenizer.push(token_id))
        if detokenizer.stopped:
            break
    return pieces, detokenizer.flush(), detokenizer.stopped


def cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """The definition: read on character by character until the text ends with a stop string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def whole_characters(data: bytes) -> str:
    """The text of `data` without the character it ends in the middle of.

    Python's decoder waits for the third byte of an encoded surrogate too, before it says that it is no character.
    """
    if len(data) >= 2 and data[-2] == 0xED and 0xA0 <= data[-1] <= 0xBF:
        return data[:-2].decode(errors="replace")
    for start in range(max(0, len(data) - 3), len(data)):
        try:
            data[start:].decode()
        except UnicodeDecodeError as error:
            if error.start == 0 and error.reason == "unexpected end of data":
                return data[:start].decode(errors="replace")
    return data.decode(errors="replace")


# Two letters make stop strings that overlap one another; the other symbols are split between tokens.
STOPS = st.lists(st.text("aé", min_size=1, max_size=4), max_size=3)
TOKENS = st.lists(
    st.one_of(
        st.text("aé😀", max_size=4).map(str.encode),
        st.sampled_from([b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80", b"\xff", b""]),
        st.binary(max_size=3),
    ),
    max_size=12,
)


@settings(max_examples=500, deadline=None)
@given(TOKENS, STOPS)
def test_pieces_and_tail_are_the_text_up_to_the_first_stop_string(
    tokens: list[bytes], stops: list[str]
) -> None:
    pieces, tail, _ = run(tokens, stops)
    assert "".join(pieces) + tail == cut(b"".join(tokens).decode(errors="replace"), stops)[0]


@settings(max_examples=500, deadline=None)
@given(TOKENS, STOPS)
@example([b"\xed", b"\xa9", b"a"], [])
def test_released_is_all_that_cannot_belong_to_a_stop_string_and_no_more(
    tokens: list[bytes], stops: list[str]
) -> None:
    pieces, _, stopped = run(tokens, stops)
    read = list(accumulate(tokens))
    for released, so_far in zip(accumulate(pieces), read, strict=False):
        text, cut_here = cut(whole_characters(so_far), stops)
        beginnings = [stop[:n] for stop in stops for n in range(len(stop))]
        held = 0 if cut_here else max((len(b) for b in beginnings if text.endswith(b)), default=0)
        assert released == text[: len(text) - held]
    assert stopped == any(stop in b"".join(tokens).decode(errors="replace") for stop in stops)


def test_a_stop_string_is_found_across_tokens_and_its_beginning_is_never_shown() -> None:
    assert run([b"The answer", b" is 4.\n", b"Obs", b"erva", b"tion: more"], ["\nObservation:"]) == (
        ["The answer", " is 4.", "", "", ""],
        "",
        True,
    )


def test_what_only_looked_like_a_stop_string_comes_out_later_or_as_tail() -> None:
    assert run([b"a#", b"#", b"b#"], ["###"]) == (["a", "", "##b"], "#", False)


def test_nothing_comes_after_a_stop_string() -> None:
    detokenizer = Detokenizer([b"one. ", b"two"].__getitem__, ["."])
    assert [detokenizer.push(0), detokenizer.push(1), detokenizer.flush()] == ["one", "", ""]
    assert detokenizer.stopped
