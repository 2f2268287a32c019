"""Qwen's golden vectors exactly; text never turns into control tokens; broken vocabularies are refused."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tiny import rank_file, tiny_ranks
from worker.model.errors import CheckpointError
from worker.model.tokenizer import QWEN_PATTERN, Tokenizer, read_ranks

# Text with lone surrogates too: JSON can carry them.
texts = st.text(st.characters(codec=None))


def test_tokenisation(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    for vector in golden["tokenisation"]:
        ids = qwen_tokenizer.encode(vector["text"])
        assert ids == vector["ids"], vector["name"]
        normal = unicodedata.normalize("NFC", vector["text"])
        assert (qwen_tokenizer.decode(ids) == normal) is vector["decoded_equals_nfc_text"], vector["name"]


def test_vectors_of_qwens_documentation(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    """Those that allow control tokens in text have no counterpart here: this tokenizer never does."""
    for vector in golden["upstream_doc_vectors"]:
        if vector.get("allowed_special") == "none":
            assert qwen_tokenizer.encode(vector["text"]) == vector["ids"]
        elif "decode_ids" in vector:
            text = vector.get("text", vector.get("text_errors_replace"))
            assert qwen_tokenizer.decode(vector["decode_ids"]) == text
    # Of the five: one to encode, two to decode.
    assert len(golden["upstream_doc_vectors"]) == 5


def test_fixed_pieces(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    for text, ids in golden["fixed_pieces"].items():
        assert qwen_tokenizer.encode(text) == ids


def test_special_tokens(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    special = golden["special_tokens"]
    assert qwen_tokenizer.endoftext == special["<|endoftext|>"]
    assert qwen_tokenizer.im_start == special["<|im_start|>"]
    assert qwen_tokenizer.im_end == special["<|im_end|>"]
    assert qwen_tokenizer.n_vocab == special["<|extra_204|>"] + 1 == golden["meta"]["n_vocab_tokenizer"]
    assert golden["meta"]["pat_str"] == QWEN_PATTERN


def test_ids_without_text(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    """Control tokens add nothing to the text; padding rows of the embedding are no tokens at all."""
    assert qwen_tokenizer.decode([151644, 8948, 198, 151645, 151643, 151850]) == "system\n"
    first, last = golden["meta"]["undecodable_padding_ids"]
    for padding in (first, last, -1):
        with pytest.raises(ValueError, match=f"token id {padding} is outside the vocabulary of 151851"):
            qwen_tokenizer.token_bytes(padding)


def test_token_bytes_of_the_streaming_vectors(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    for vector in golden["streaming"]:
        hexes = [qwen_tokenizer.token_bytes(token).hex() for token in vector["ids"]]
        assert hexes == vector.get("token_bytes_hex", hexes), vector["name"]


@given(text=texts)
def test_any_text_comes_back_normalised(qwen_tokenizer: Tokenizer, text: str) -> None:
    readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = qwen_tokenizer.encode(text)
    assert all(0 <= token < qwen_tokenizer.endoftext for token in ids)
    assert qwen_tokenizer.decode(ids) == unicodedata.normalize("NFC", readable)


@given(
    names=st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>", "system", "\n"])
    )
)
def test_typed_control_tokens_stay_text(qwen_tokenizer: Tokenizer, names: list[str]) -> None:
    ids = qwen_tokenizer.encode("".join(names))
    assert all(token < qwen_tokenizer.endoftext for token in ids)
    assert qwen_tokenizer.decode(ids) == "".join(names)


def test_load_counts_control_tokens_from_the_ranks(tmp_path: Path) -> None:
    (tmp_path / "any.tiktoken").write_bytes(rank_file(tiny_ranks()))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.endoftext, tokenizer.im_start, tokenizer.im_end) == (272, 273, 274)
    assert tokenizer.n_vocab == 272 + 3 + 205
    assert [len(tokenizer.encode(word)) for word in ("system", "user", "assistant")] == [1, 1, 1]


def test_windows_line_ends_and_blank_lines(tmp_path: Path, qwen_rank_file: Path) -> None:
    copy = tmp_path / "qwen.tiktoken"
    copy.write_bytes(qwen_rank_file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_ranks(copy) == read_ranks(qwen_rank_file)


def test_the_checkpoints_own_pattern(tmp_path: Path, qwen_rank_file: Path) -> None:
    """Qwen splits digits; a checkpoint whose vocabulary was made otherwise says how."""
    shutil.copy(qwen_rank_file, tmp_path)
    assert Tokenizer.load(tmp_path).encode("\n\nx") == [271, 87]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pat_str": r"\n|[^\n]+"}))
    assert Tokenizer.load(tmp_path).encode("\n\nx") == [198, 198, 87]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks 256 of the 256 single bytes"),
        (rank_file(tiny_ranks()[1:]), "lacks 1 of the 256 single bytes, 0x00 the first"),
        (rank_file(tiny_ranks()).replace(b" 7\n", b" 1007\n"), "ranks must be 0 to 271 without a gap"),
        (rank_file([*tiny_ranks(), b"user"]), "holds the same token twice"),
        (rank_file(tiny_ranks()) + b"dXNl", "line 273: not a token in base64 and a rank"),
        (rank_file(tiny_ranks()) + b"dXN*bA== 272", "line 273: not a token"),
    ],
)
def test_broken_rank_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "qwen.tiktoken"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_no_rank_file_or_two(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs one rank file \*\.tiktoken, has 0"):
        Tokenizer.load(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.tiktoken").write_bytes(rank_file(tiny_ranks()))
    with pytest.raises(CheckpointError, match="has 2"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("value", "message"), [("(", "pat_str"), (7, "pat_str must be a string, not 7")])
def test_broken_patterns(tmp_path: Path, value: object, message: str) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(rank_file(tiny_ranks()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pat_str": value}))
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert message in str(caught.value)
    assert "tokenizer_config.json" in str(caught.value)
