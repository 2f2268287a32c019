"""Log-probabilities of tokens as they are stored and sent: short, and independent of any tokenizer.

A token has one entry, ``[[spelling, log-probability], [spelling, log-probability], ...]``: first the token itself,
then the most probable ones at its place, best first. A spelling is the token's bytes, one character each (Latin-1),
because a token may hold part of a character; of a control token it is its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.models import Json

Entry = list[list[object]]


def entry(tokens: Iterable[tuple[bytes, float | None]]) -> Entry:
    """Return the entry of a token: its own spelling and log-probability, then those of the others.

    The first token of a prompt has no log-probability, because nothing stands before it.
    """
    return [[spelling.decode("latin-1"), logprob] for spelling, logprob in tokens]


def told(entries: Sequence[Entry], pieces: Sequence[str], tail: str) -> list[Entry]:
    """Return the entries of the tokens that an answer's text was made of.

    Tokens behind the last released text are those that a stop string was cut out of, unless the end released it.
    """
    if tail:
        return list(entries)
    last = max((place for place, piece in enumerate(pieces) if piece), default=-1)
    return list(entries[: last + 1])


def spelling(of: object) -> bytes:
    """Return the bytes of a stored spelling."""
    return str(of).encode("latin-1")


def text(of: object) -> str:
    r"""Return a stored spelling as text; where it is no whole character, with its bytes as ``\xe2``."""
    return spelling(of).decode("utf-8", errors="backslashreplace")


def shown(entries: Iterable[Entry]) -> list[Json]:
    """Return entries as OpenAI's API shows them in messages: token, bytes, logprob and top_logprobs."""
    return [{**_token(each[0]), "top_logprobs": [_token(other) for other in each[1:]]} for each in entries]


def _token(pair: list[object]) -> Json:
    return {"token": text(pair[0]), "bytes": list(spelling(pair[0])), "logprob": pair[1]}
