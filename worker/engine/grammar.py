"""Which tokens an answer may go on with when a grammar says what it must look like. No torch.

llguidance walks a parser over the vocabulary as a trie of bytes: a token is allowed when its bytes go on with some text
of the grammar, wherever tokens begin and end. A control token is never text, so none can stand in an answer; the
three that end a turn are allowed exactly where the text is complete.

What it costs, measured with JSON schemas of a few fields on one core of a Xeon server: compiling a grammar 0.7 ms; a
mask 13 us of 49,000 tokens and 35 us of 152,000 on average, at most 80 and 250 us. Rows without a grammar pay nothing.
docs/decisions/0010-grammars.md compares the libraries.
"""

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from worker.model.tokenizer import Tokenizer


class GrammarError(ValueError):
    """The grammar cannot be used, or tokens do not belong to any text of it."""


class Grammars:
    """Makes matchers over one vocabulary; building it takes 0.2 s for 49,000 tokens and 0.5 s for 152,000."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._n_vocab = tokenizer.n_vocab
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=tokenizer.n_vocab,
            eos_token=[tokenizer.endoftext, tokenizer.im_start, tokenizer.im_end],
            slices=LLTokenizer.json_slices(),
        )

    def matcher(self, grammar: str, answer: Sequence[int] = ()) -> "Matcher":
        """Begin an answer, or go on behind the tokens of it that there are.

        GrammarError when the grammar does not compile or the tokens do not fit it.
        """
        matcher = Matcher(LLMatcher(self._tokenizer, grammar, log_level=0), self._n_vocab)
        matcher.accept(*answer)
        return matcher


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, inner: LLMatcher, n_vocab: int) -> None:
        self._inner, self._n_vocab = inner, n_vocab
        self._check()

    @property
    def complete(self) -> bool:
        """Whether the text is one of the grammar and nothing can follow it, so that only its end is left."""
        return self._inner.is_stopped()

    def mask(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each id of the vocabulary whether it may come next. GrammarError when the parser gives up."""
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)

    def accept(self, *token_ids: int) -> None:
        """Take the next tokens of the answer. GrammarError when the grammar does not allow them."""
        self._inner.consume_tokens(list(token_ids))
        self._check()

    def _check(self) -> None:
        if self._inner.is_error():
            raise GrammarError(self._inner.get_error().partition("\n")[0])


class _Vocabulary:
    """The tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.im_end
        self.special_token_ids = range(tokenizer.endoftext, tokenizer.n_vocab)
        # It wants names of the special ones; no text matches them.
        self.tokens = [
            tokenizer.token_bytes(token_id) or b"<|%d|>" % token_id for token_id in range(tokenizer.n_vocab)
        ]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())
