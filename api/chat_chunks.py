"""The stream of a chat completion: chunks, each of one choice, with what that choice has gained.

    for each choice    {"delta": {"role": "assistant", "content": ""}}     once a worker has taken it
                       {"delta": {"content": "..."}}                       one for each token that released text
                       {"delta": {"tool_calls": [...]}}                    or, of a call: its name, then its arguments
                       {"delta": {}, "finish_reason": "stop"}
    at the end         {"choices": [], "usage": {...}}                     with `stream_options.include_usage`

A choice that comes to no answer ends the stream with an `error`, which the SDKs raise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api import chat_objects, chat_tools, choices, events, sse
from api.errors import ApiError, Failed, NoSuchObject, Unavailable
from api.event_items import Call, Message
from api.events import Answer
from storage import scores
from storage.models import Json


class Chunks(ABC):
    """A `streaming.Script` of several choices, for this endpoint and for Completions.

    Args:
        object_id: of the object that the chunks are of.
        input_: the parameter that holds what is answered, for errors.
        include_usage: is there a chunk with the usage at the end, and `usage: null` in all others?
        answers_per_prompt: how many choices in a row share a prompt; None: all of them do.
    """

    def __init__(
        self, object_id: str, input_: str, *, include_usage: bool, answers_per_prompt: int | None = None
    ) -> None:
        self.id = object_id
        self.complete = False
        self.no_usage: Json = {"usage": None} if include_usage else {}
        self._input = input_
        self._include_usage = include_usage
        self._answers_per_prompt = answers_per_prompt

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> Iterator[bytes]:
        """Return what is new of one choice."""

    @abstractmethod
    def frame(self, answer: Answer) -> Json:
        """Return what all chunks have."""

    def lines(self, answers: Sequence[Answer | None]) -> Iterator[bytes]:
        """Return the chunks that were not sent yet."""
        known = [answer for answer in answers if answer is not None]
        for index, answer in enumerate(answers):
            if answer is None:
                continue
            if answer.ended and answer.shown["status"] not in chat_objects.FINISH_REASONS:
                yield _error(choices.failure(answer.shown["error"], self._input))
                self.complete = True
                return
            yield from self.choice(index, answer)
        if len(known) == len(answers) and all(answer.ended for answer in known):
            if self._include_usage:
                each = [answer.shown["usage"] for answer in known]
                used = chat_objects.usage(each, self._answers_per_prompt)
                yield sse.data({**self.frame(known[0]), "choices": [], "usage": used})
            self.complete = True

    def deleted(self) -> bytes:
        """Return the error of an object that somebody deleted."""
        return _error(NoSuchObject("The completion was deleted."))

    def restarting(self) -> bytes:
        """Return the error of a service that is going away."""
        return _error(Unavailable(choices.RESTARTING, code="restarting"))

    def broken(self) -> bytes:
        """Return the error of a defect."""
        return _error(Failed("The server had an error.", code="internal_error"))


@dataclass(slots=True)
class _Sent:
    """What was sent of a choice."""

    opened: bool = False
    called: bool = False
    deltas: int = 0
    finished: bool = False


class ChatChunks(Chunks):
    """The chunks of a chat completion; with `logprobs` each text has its tokens' log-probabilities."""

    def __init__(self, completion_id: str, *, include_usage: bool, logprobs: bool) -> None:
        super().__init__(completion_id, "messages", include_usage=include_usage)
        self._logprobs = logprobs
        self._sent: dict[int, _Sent] = {}

    def choice(self, index: int, answer: Answer) -> Iterator[bytes]:
        """Return what is new of one choice."""
        sent = self._sent.setdefault(index, _Sent())
        if not sent.opened and (answer.started or answer.ended):
            sent.opened = True
            yield self._chunk(index, answer, {"role": "assistant", "content": "", "refusal": None})
        item = events.item_of(answer)
        if isinstance(item, Call) and not sent.called:
            sent.called = True
            yield self._chunk(index, answer, {"tool_calls": [{"index": 0, **chat_tools.shown(item.body)}]})
        for place in range(sent.deltas, item.count):
            sent.deltas = place + 1
            told = scores.shown(answer.logprobs[place]) if self._logprobs else None
            yield self._chunk(index, answer, _delta(item, place), told)
        if answer.ended and not sent.finished:
            sent.finished = True
            reason = chat_objects.finish_reason(answer.shown["status"], calls=isinstance(item, Call))
            yield self._chunk(index, answer, {}, reason=reason)

    def frame(self, answer: Answer) -> Json:
        """Return what all chunks have."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": answer.shown["created_at"],
            "model": answer.shown["model"],
            "service_tier": answer.shown["service_tier"],
            "system_fingerprint": None,
        }

    def _chunk(
        self,
        index: int,
        answer: Answer,
        delta: Json,
        tokens: Sequence[Json] | None = None,
        *,
        reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": chat_objects.logprobs(tokens),
            "finish_reason": reason,
        }
        return sse.data({**self.frame(answer), "choices": [choice], **self.no_usage})


def _delta(item: Message | Call, place: int) -> Json:
    if isinstance(item, Call):
        return {"tool_calls": [{"index": 0, "function": {"arguments": item.seen[place]}}]}
    return {"content": item.seen[place]}


def _error(error: ApiError) -> bytes:
    return sse.data({"error": error.shown})
