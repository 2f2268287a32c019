"""The demo's vocabulary: a GGUF byte-level BPE turned into tiktoken ranks, and the new order of its rows.

The GGUF numbers 17 control tokens first, then single bytes, then merge results in merge order. tiktoken merges by
rank alone, so the ordinary tokens keep their order as ranks from 0. It also needs every one of the 256 bytes; the
source lacks some (its encoder drops them from the text), and these are appended as the last ranks, where no merge can
produce them. Control tokens follow the ranks in Qwen's order, and rows are padded up to a multiple of 128.
"""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.model.errors import CheckpointError

GGUF_CONTROL_TOKENS = 17  # <|endoftext|> <|im_start|> <|im_end|>, then 14 that chat never uses
EXTRA_TOKENS = 205  # <|extra_0|> .. <|extra_204|>, as in Qwen
ROW_MULTIPLE = 128
# Rows without a source repeat this one (<file_sep>): an all-zero row would have an average logit, this one a low one.
FILLER_ROW = 5

# Splits text as the source's `Digits(individual_digits=True)` followed by GPT-2's byte-level pattern does.
# Qwen's own pattern differs on runs of newlines and on spaces before digits.
PAT_STR = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


class Vocabulary(NamedTuple):
    """Tokens of the new checkpoint."""

    ranks: tuple[bytes, ...]  # the bytes of ids 0..len(ranks)-1
    source_rows: NDArray[
        np.int64
    ]  # [vocab_size]: the GGUF row that each row of the embedding and the head copies

    @property
    def endoftext(self) -> int:
        """Id of `<|endoftext|>`; `<|im_start|>` and `<|im_end|>` are the next two."""
        return len(self.ranks)


def from_gguf(tokens: Sequence[str]) -> Vocabulary:
    """Reorder the GGUF's `tokenizer.ggml.tokens`. CheckpointError when it is not the expected vocabulary."""
    if list(tokens[:3]) != ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]:
        raise CheckpointError(
            f"the GGUF vocabulary starts with {list(tokens[:3])}, not with ChatML's control tokens"
        )
    byte_of = _byte_of_symbol()
    ordinary = [bytes(byte_of[symbol] for symbol in token) for token in tokens[GGUF_CONTROL_TOKENS:]]
    known = set(ordinary)
    if len(known) != len(ordinary):
        raise CheckpointError("the GGUF vocabulary holds the same bytes twice: ranks would be ambiguous")
    absent = [bytes([value]) for value in range(256) if bytes([value]) not in known]
    ranks = (*ordinary, *absent)

    used = len(ranks) + 3 + EXTRA_TOKENS
    vocab_size = -(-used // ROW_MULTIPLE) * ROW_MULTIPLE
    rows = np.full(vocab_size, FILLER_ROW, np.int64)
    rows[: len(ordinary)] = np.arange(GGUF_CONTROL_TOKENS, len(tokens))
    # The GGUF's control tokens in their own order: three of ChatML, the others become the first <|extra_i|>.
    rows[len(ranks) : len(ranks) + GGUF_CONTROL_TOKENS] = np.arange(GGUF_CONTROL_TOKENS)
    return Vocabulary(ranks=ranks, source_rows=rows)


def rank_file(vocabulary: Vocabulary) -> bytes:
    """The ranks in tiktoken's text format: one line a token, base64 of its bytes, a space, its rank."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(vocabulary.ranks))
    return b"".join(lines)


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the others count up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in set(printable)]
    return {chr(value): value for value in printable} | {
        chr(0x100 + i): value for i, value in enumerate(hidden)
    }
