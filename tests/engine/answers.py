"""Requests to write in one line, and the answer that a request's events add up to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.engine.core import EngineCore
from worker.engine.request import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    SamplingParams,
    TokenLogprobs,
    Tokens,
)

SAMPLED = {"temperature": 1.1, "top_p": 0.9, "top_k": 60, "repetition_penalty": 1.1, "seed": 7}


def ask(
    request_id: str = "a",
    prompt: Sequence[int] = (5, 6, 7, 8),
    *,
    resumed: Sequence[int] = (),
    deadline: float | None = None,
    salt: str = "",
    tokens: int = 12,
    stop_ids: Sequence[int] = (),
    stops: Sequence[str] = (),
    **sampling: Any,
) -> GenerationRequest:
    """A request, greedy and never stopping by itself unless told otherwise."""
    how = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 0} | sampling
    params = SamplingParams(
        **how, max_new_tokens=tokens, stop_token_ids=tuple(stop_ids), stop_strings=tuple(stops)
    )
    return GenerationRequest(request_id, tuple(prompt), tuple(resumed), params, deadline, salt)


@dataclass
class Answer:
    """What a caller has: ids, pieces and log-probabilities, and how it ended, if it did."""

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    end: Finished | Failed | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces) + (self.end.tail if isinstance(self.end, Finished) else "")

    def take(self, event: Event) -> None:
        """Add an event; fails on a gap, a repetition or anything after the end."""
        assert self.end is None
        if isinstance(event, Tokens):
            assert event.index == len(self.ids)
            assert len(event.token_ids) == len(event.pieces)
            self.ids += event.token_ids
            self.pieces += event.pieces
            self.logprobs += event.logprobs or []
        else:
            self.end = event


def gather(events: Iterable[Event], known: dict[str, Answer] | None = None) -> dict[str, Answer]:
    """Answers by request id; `known` are those of an earlier attempt, to go on with."""
    answers = {} if known is None else known
    for event in events:
        answers.setdefault(event.request_id, Answer()).take(event)
    return answers


def run(core: EngineCore, *requests: GenerationRequest) -> dict[str, Answer]:
    """Submit all, step until nothing is left to do."""
    for request in requests:
        core.submit(request)
    events: list[Event] = []
    while core.busy:
        events += core.step()
    return gather(events)
