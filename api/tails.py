"""What this process knows of one answer that somebody follows: it grows, and nothing is taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from api.events import Answer
from storage.models import Json
from storage.scores import Entry


@dataclass(slots=True)
class Tail:
    """One answer's tokens from position 0 on, shared by all its readers.

    Pieces come from the live stream and from the checkpoints, in any order and more than once; a position that is known
    stays as it was first heard.

    Attributes:
        shown: the Response object, None until SQL was asked.
        position: tokens known without a gap.
        stored: where SQL's next chunk begins.
        deltas: the texts of these tokens, without empty ones; of an ended answer with its tail.
        logprobs: for each delta, the entries (`storage.scores`) of the tokens whose text it tells, if there are any.
        gone: the response was deleted.
    """

    shown: Json | None = None
    item_id: str = ""
    started: bool = False
    ended: bool = False
    gone: bool = False
    position: int = 0
    stored: int = 0
    deltas: list[str] = field(default_factory=list)
    logprobs: list[list[Entry]] = field(default_factory=list)
    end_text: str = ""
    _silent: list[Entry] = field(default_factory=list)  # of tokens whose text has not come out yet

    def take(self, first: int, pieces: Sequence[str], logprobs: Sequence[Entry] = ()) -> bool:
        """Take the text of tokens from position `first` on; False when a gap lies before them."""
        if first > self.position:
            return False
        skipped = self.position - first
        new = pieces[skipped:]
        for place, piece in enumerate(new, skipped):
            self._silent += logprobs[place : place + 1]
            if piece:
                self._tell(piece)
        self.position += len(new)
        self.started = True
        return True

    def take_stored(
        self, first: int, pieces: Sequence[str], end_text: str, logprobs: Sequence[Entry] = ()
    ) -> None:
        """Take a chunk from SQL, where they come in order."""
        if self.take(first, pieces, logprobs):
            self.stored = max(self.stored, first + len(pieces))
            self.end_text = self.end_text or end_text

    def open(self, item_id: str, shown: Json) -> None:
        """Take the response of an open answer.

        Its row may have ended since its chunks were read, so only what never changes is taken from it.
        """
        self.item_id, self.shown = item_id, {**shown, "status": "queued"}

    def close(self, item_id: str, shown: Json) -> None:
        """Take the ended response; everything that SQL has of its text must have been taken before."""
        self.item_id, self.shown = item_id, shown
        if self.end_text:
            self._tell(self.end_text)
        self.ended = True

    def vanish(self) -> None:
        """Note that there is nothing to read any more."""
        self.gone = self.ended = True

    def answer(self) -> Answer | None:
        """Return what the event log is made of, None until SQL was asked."""
        if self.shown is None:
            return None
        return Answer(self.shown, self.item_id, self.started, self.deltas, self.logprobs)

    def _tell(self, text: str) -> None:
        self.logprobs.append(self._silent)  # before the text: whoever counts deltas finds both
        self._silent = []
        self.deltas.append(text)
