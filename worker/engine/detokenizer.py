"""Token ids to text, one token at a time, with stop strings.

Two things keep text back. A character whose UTF-8 bytes are spread over several tokens appears with the last of
them, so U+FFFD stands only for bytes that are no character at all, never for half of one. And the end of the text
that is the beginning of a stop string waits until it is clear whether the stop string comes.

The first stop string is the one that is complete first, whatever the tokens' boundaries; of two that end
together, the longer one. The text is cut where it begins.
"""

import codecs
from collections.abc import Callable, Sequence


class Detokenizer:
    """The text of one answer. `token_bytes` gives the bytes of an id (none for a control token)."""

    def __init__(self, token_bytes: Callable[[int], bytes], stop_strings: Sequence[str] = ()) -> None:
        self._token_bytes = token_bytes
        self._stop_strings = tuple(stop_strings)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether the text contains a stop string. Nothing more comes out after that."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """Take the next token; the text that is certain now and was not before."""
        return self._take(self._decoder.decode(self._token_bytes(token_id)))

    def flush(self) -> str:
        """End the answer: what was held back, and one U+FFFD for a character that was never completed."""
        piece = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return piece + held

    def _take(self, text: str) -> str:
        if self._stopped:
            return ""
        # What is held is the longest possible beginning of a stop string, so no stop string begins before it.
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop_strings if stop in text]
        if found:
            end, minus_length = min(found)
            self._stopped, self._held = True, ""
            return text[: end + minus_length]
        certain = len(text) - max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself not counted."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
