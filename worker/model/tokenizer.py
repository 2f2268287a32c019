"""Text to token ids and back: tiktoken byte-pair encoding over the checkpoint's rank file. No torch.

Ids in order: the ranks of the file (0 up to its number of lines), then Qwen's control tokens `<|endoftext|>`,
`<|im_start|>`, `<|im_end|>` and 205 `<|extra_N|>`. The weights may have more rows than that; those ids mean nothing.

The encoder underneath knows the ranks alone. So text can never become a control token, whatever is typed: control ids
come from the properties below and from nowhere else.
"""

import base64
import binascii
import unicodedata
from pathlib import Path
from typing import Self

import tiktoken

from worker.model.config import read_json
from worker.model.errors import CheckpointError

TOKENIZER_CONFIG = "tokenizer_config.json"
EXTRA_TOKENS = 205

# Qwen's own: cl100k's pattern, but every digit stands alone. A checkpoint may state another as `pat_str`.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """The vocabulary of one checkpoint. Safe to use from several threads."""

    def __init__(self, tokens: list[bytes], pattern: str = QWEN_PATTERN) -> None:
        """`tokens[i]` are the bytes of id i; every single byte must be among them."""
        self._tokens = tokens
        self._encoding = tiktoken.Encoding(
            "qwen",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={},
        )

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Read the `*.tiktoken` file of a checkpoint folder. CheckpointError when it is missing or broken."""
        found = sorted(model_dir.glob("*.tiktoken"))
        if len(found) != 1:
            raise CheckpointError(f"{model_dir}: needs one rank file *.tiktoken, has {len(found)}")
        pattern = _pattern(model_dir / TOKENIZER_CONFIG)
        tokens = read_ranks(found[0])
        try:
            return cls(tokens, pattern)
        except ValueError as problem:
            raise CheckpointError(f"{model_dir / TOKENIZER_CONFIG}: pat_str: {problem}") from problem

    @property
    def n_vocab(self) -> int:
        """Ids from 0 up to here, exclusive, have a meaning."""
        return self.im_end + 1 + EXTRA_TOKENS

    @property
    def endoftext(self) -> int:
        return len(self._tokens)

    @property
    def im_start(self) -> int:
        return self.endoftext + 1

    @property
    def im_end(self) -> int:
        return self.endoftext + 2

    def encode(self, text: str) -> list[int]:
        """Ids of `text` after NFC normalisation, never a control token. A lone surrogate becomes U+FFFD."""
        ids: list[int] = self._encoding.encode_ordinary(unicodedata.normalize("NFC", text))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without control tokens; bytes that are no UTF-8 become U+FFFD. ValueError as `token_bytes`."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def spelling(self, token_id: int) -> bytes:
        """What an id is written as where tokens are listed: its bytes; of a control token its name."""
        names = {self.endoftext: b"<|endoftext|>", self.im_start: b"<|im_start|>", self.im_end: b"<|im_end|>"}
        if token_id > self.im_end:
            return b"<|extra_%d|>" % (token_id - self.im_end - 1)
        return names.get(token_id) or self.token_bytes(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that an id adds to the text: none for a control token. ValueError for an id without a meaning."""
        if 0 <= token_id < len(self._tokens):
            return self._tokens[token_id]
        if self.endoftext <= token_id < self.n_vocab:
            return b""
        raise ValueError(f"token id {token_id} is outside the vocabulary of {self.n_vocab}")


def read_ranks(file: Path) -> list[bytes]:
    """Bytes of each id from a rank file: a line a token, its bytes in base64, a space, its rank; blank lines may occur.

    CheckpointError unless ranks are 0, 1, 2 ... in any order, no two tokens are equal and every single byte is one.
    """
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            by_rank[int(rank)] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"{file}, line {number}: not a token in base64 and a rank") from None
    if set(by_rank) != set(range(len(by_rank))):
        raise CheckpointError(f"{file}: ranks must be 0 to {len(by_rank) - 1} without a gap. Is it cut off?")
    tokens = [by_rank[rank] for rank in range(len(by_rank))]
    distinct = set(tokens)
    if len(distinct) != len(tokens):
        raise CheckpointError(f"{file}: holds the same token twice")
    if absent := [value for value in range(256) if bytes([value]) not in distinct]:
        raise CheckpointError(
            f"{file}: lacks {len(absent)} of the 256 single bytes, {absent[0]:#04x} the first"
        )
    return tokens


def _pattern(config: Path) -> str:
    if not config.exists():
        return QWEN_PATTERN
    pattern = read_json(config).get("pat_str", QWEN_PATTERN)
    if not isinstance(pattern, str):
        raise CheckpointError(f"{config}: pat_str must be a string, not {pattern!r}")
    return pattern
