"""A promise that was not kept: which, about what, and when it can have begun to go wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """`about` is the id of a response, a conversation, an event or a process; `at` is unix seconds, None if unknown."""

    invariant: str
    about: str
    words: str
    at: float | None = None
