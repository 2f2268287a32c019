"""One response that requests of this process wait for or follow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from api.known import Question
from api.tails import Tail

BEGINNING = "0-0"
# How often SQL is asked while something is known to be missing: tokens before a gap, the row behind an end marker.
SOON_SECONDS = 0.25


@dataclass(slots=True, eq=False)
class Watch:
    """One response that requests hold on to: what is known of it, and how its two sources were read.

    Attributes:
        followers: how many of its holders want the tokens and not only the end.
        readers: how many want the Response object at the end.
        place: the id of the last entry read of its stream.
        gap: tokens are missing before the next entry; the stream waits for SQL.
        due: when SQL is asked, in the event loop's time.
        changed: set, and replaced by a new one, when more is known.
    """

    response_id: str
    tail: Tail = field(default_factory=Tail)
    holders: int = 0
    followers: int = 0
    readers: int = 0
    place: str = BEGINNING
    gap: bool = False
    hinted: bool = False
    asked: float = 0.0
    due: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake all who wait for news."""
        told, self.changed = self.changed, asyncio.Event()
        told.set()

    def read_again(self) -> None:
        """Read the stream from its beginning: what is known by now closes the gap, or shows that there is one."""
        self.place, self.gap = BEGINNING, False

    def question(self) -> Question:
        """Return what SQL is to be asked about it."""
        followed = self.followers > 0
        return Question(
            self.response_id,
            stored=self.tail.stored if followed else None,
            row=followed and self.tail.shown is None,
            result=followed or self.readers > 0,
        )

    def ask_soon(self, now: float) -> None:
        """Have SQL asked at once, but not in a tight circle."""
        self.due = min(self.due, max(now, self.asked + SOON_SECONDS))
