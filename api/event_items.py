"""The events of an output item: a message or a call of a function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from storage import output_items, scores
from storage.models import Json
from storage.react import Opened
from storage.scores import Entry

ITEM_ADDED = "response.output_item.added"
ITEM_DONE = "response.output_item.done"


@dataclass(frozen=True, slots=True)
class Seen:
    """The deltas that callers see, of the first `known` of an answer: all, or those behind its opening."""

    deltas: Sequence[str]
    known: int
    opened: Opened | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return self.known if self.opened is None else self.known - self.opened.deltas + bool(self.opened.rest)

    def __getitem__(self, place: int) -> str:
        if self.opened is None:
            return self.deltas[place]
        if self.opened.rest and place == 0:
            return self.opened.rest
        return self.deltas[self.opened.deltas + place - bool(self.opened.rest)]

    @property
    def text(self) -> str:
        """All of them together."""
        return "".join(self[place] for place in range(self.count))


@dataclass(frozen=True, slots=True)
class Message:
    """A text. `logprobs` are those of each delta, where they were asked for."""

    item_id: str
    seen: Seen
    logprobs: Sequence[Sequence[Entry]]
    begun: bool

    @property
    def count(self) -> int:
        """How many deltas there are."""
        return self.seen.count

    def head(self) -> list[Json]:
        """Return the events before the first delta."""
        item = {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        return [
            {"type": ITEM_ADDED, "output_index": 0, "item": item},
            self._of_part("response.content_part.added", part=_part("")),
        ]

    def delta(self, place: int) -> Json:
        """Return the event of a delta."""
        logprobs = _logprobs(self.logprobs[place : place + 1])
        return self._of_part("response.output_text.delta", delta=self.seen[place], logprobs=logprobs)

    def end(self) -> list[Json]:
        """Return the events behind the last delta."""
        text = self.seen.text
        return [
            self._of_part("response.output_text.done", text=text, logprobs=_logprobs(self.logprobs)),
            self._of_part("response.content_part.done", part=_part(text, self.logprobs)),
        ]

    def _of_part(self, kind: str, **fields: Any) -> Json:  # noqa: ANN401 - JSON
        return {"type": kind, "item_id": self.item_id, "output_index": 0, "content_index": 0, **fields}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the function `name`. `message_id`: what its item would be called if it were a message."""

    message_id: str
    name: str
    seen: Seen
    begun: bool = True

    @property
    def count(self) -> int:
        """How many deltas there are."""
        return self.seen.count

    @property
    def body(self) -> Json:
        """The item as it begins."""
        return output_items.body(self.message_id, self.name, "", "in_progress")

    def head(self) -> list[Json]:
        """Return the event before the first delta."""
        return [{"type": ITEM_ADDED, "output_index": 0, "item": {"id": self._id, **self.body}}]

    def delta(self, place: int) -> Json:
        """Return the event of a delta."""
        return self._of_arguments("delta", delta=self.seen[place])

    def end(self) -> list[Json]:
        """Return the event behind the last delta."""
        return [self._of_arguments("done", name=self.name, arguments=self.seen.text)]

    @property
    def _id(self) -> str:
        return output_items.item_id(self.message_id, self.name)

    def _of_arguments(self, what: str, **fields: Any) -> Json:  # noqa: ANN401 - JSON
        kind = f"response.function_call_arguments.{what}"
        return {"type": kind, "item_id": self._id, "output_index": 0, **fields}


def _part(text: str, logprobs: Sequence[Sequence[Entry]] = ()) -> Json:
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": scores.shown(chain(*logprobs)),
    }


def _logprobs(of: Sequence[Sequence[Entry]]) -> list[Json]:
    """Return the entries as events show them, which is without the tokens' bytes."""
    return [
        {**_token(shown), "top_logprobs": [_token(other) for other in shown["top_logprobs"]]}
        for shown in scores.shown(chain(*of))
    ]


def _token(shown: Json) -> Json:
    return {"token": shown["token"], "logprob": shown["logprob"]}
