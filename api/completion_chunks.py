"""The stream of a completion: Completion objects, each of one choice, with what that choice has gained.

The text of an echoed prompt comes first. Where it has log-probabilities, or was given as token ids, it is known at the
end of the answer only, and that choice comes in one piece then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from api import chat_objects, sse
from api.chat_chunks import Chunks
from api.completion_objects import TokenList, prompt_tokens, stop_tokens
from api.completion_schemas import CreateCompletion
from api.events import Answer
from storage import scores
from storage.models import Json


@dataclass(slots=True)
class _Sent:
    """What was sent of a choice."""

    echoed: bool = False
    deltas: int = 0
    finished: bool = False
    tokens: TokenList = field(default_factory=TokenList)


class CompletionChunks(Chunks):
    """A `streaming.Script`."""

    def __init__(self, completion_id: str, body: CreateCompletion, *, include_usage: bool) -> None:
        super().__init__(
            completion_id, "prompt", include_usage=include_usage, answers_per_prompt=body.choices
        )
        self._body = body
        self._sent: dict[int, _Sent] = {}

    def choice(self, index: int, answer: Answer) -> Iterator[bytes]:
        """Return what is new of one choice."""
        sent = self._sent.setdefault(index, _Sent())
        prompt = self._body.prompt[index // self._body.choices]
        scored = self._body.logprobs is not None
        if self._body.echo and not sent.echoed:
            if not answer.ended and (scored or not isinstance(prompt, str)):
                return
            sent.echoed = True
            raw: Json = _raw(answer) if answer.ended else {"prompt": prompt, "prompt_logprobs": None}
            tokens = prompt_tokens(raw) if scored else None
            yield self._chunk(index, answer, raw["prompt"], tokens)
        until = len(answer.deltas)  # of a list that may grow while this is read
        for place in range(sent.deltas, until):
            sent.deltas = place + 1
            told = scores.shown(answer.logprobs[place]) if scored else None
            yield self._chunk(index, answer, answer.deltas[place], told)
        if answer.ended and not sent.finished:
            sent.finished = True
            last = stop_tokens(_raw(answer)) if scored else None
            reason = chat_objects.FINISH_REASONS[answer.shown["status"]]
            yield self._chunk(index, answer, "", last, reason=reason)

    def frame(self, answer: Answer) -> Json:
        """Return what all chunks have."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": answer.shown["created_at"],
            "model": answer.shown["model"],
            "system_fingerprint": None,
        }

    def _chunk(
        self,
        index: int,
        answer: Answer,
        text: str,
        tokens: Sequence[Json] | None,
        *,
        reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "text": text,
            "logprobs": None if tokens is None else self._sent[index].tokens.shown(tokens),
            "finish_reason": reason,
        }
        return sse.data({**self.frame(answer), "choices": [choice], **self.no_usage})


def _raw(answer: Answer) -> Json:
    raw: Json = answer.shown["output"][0]["raw"]
    return raw
