"""Runs the plan of a step on the device: batch, model, sampler.

`EagerRunner` makes plain calls and waits for their result. `worker.engine.graphs` stands beside it behind the same
methods: it replays CUDA graphs and does not wait.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import AttentionBackend, StepAttention
from worker.engine.batch import Batch, build
from worker.engine.kv_cache import KVCache
from worker.engine.request import TokenLogprobs
from worker.engine.sampler import NonFiniteLogits, Row, Scored, sample
from worker.engine.scheduler import Work
from worker.engine.scores import score
from worker.engine.sequence import Sequence
from worker.model.qwen import Attend, QwenModel
from worker.model.rope import rotation

# Of a prompt with log-probabilities every row goes through the head: so many at once, 150,000 logits each.
SCORED_ROWS = 128
NOT_FINITE = "the model produced logits that are not finite"


@dataclass(frozen=True, slots=True)
class Read:
    """A stretch of a prompt was read whose log-probabilities are asked for: those of its tokens from `first` on.

    `choice` is the next token, None while the prompt is still being read.
    """

    first: int
    logprobs: list[TokenLogprobs]
    choice: int | Scored | None


# What a work comes to: its sequence's next token, why there is none, or None while its prompt is still being read;
# `Read` where the work tells of the prompt too (`scores`).
Outcome = int | Scored | Read | Exception | None


def scores(work: Work) -> bool:
    """Whether log-probabilities of the prompt are asked for that this work must find."""
    unscored = work.sequence.unscored
    return unscored is not None and unscored <= work.start + work.count


class Launched(Protocol):
    """A step that is under way."""

    def outcomes(self) -> list[Outcome]:
        """One for each work of the plan; waits for the device. Raises whatever it raises."""


class Runner(Protocol):
    """Computes what the scheduler has planned. `backends`: the kernel of every kind of layer, attention too."""

    @property
    def backends(self) -> dict[str, str]: ...

    def may_lag(self, sequences: Iterable[Sequence]) -> bool:
        """Whether a step with these can be launched before the tokens of the step before it are known here."""

    def launch(self, plan: Several[Work]) -> Launched:
        """Begin a step. The plan has works of one token first.

        Raises whatever the device raises; the same plan may be launched again, whole or in parts, once no token of
        its sequences is pending.
        """


class Landed(NamedTuple):
    """A step whose outcomes are known."""

    known: list[Outcome]

    def outcomes(self) -> list[Outcome]:
        return self.known


class EagerRunner:
    """Plain calls, on any device. `by_row` calls the sampler for each row alone."""

    def __init__(
        self,
        model: QwenModel,
        cache: KVCache,
        attention: AttentionBackend,
        *,
        n_vocab: int,
        by_row: bool,
    ) -> None:
        self.model, self.cache, self.attention = model, cache, attention
        self._n_vocab, self._by_row = n_vocab, by_row
        config = model.config
        self._rotation = rotation(config.context_length, config.head_dim, config.rope_base, model.device)

    @property
    def backends(self) -> dict[str, str]:
        """As `Runner` says."""
        return self.model.backends | {"attention": self.attention.name}

    def may_lag(self, sequences: Iterable[Sequence]) -> bool:
        """Never: the tokens are fetched before `launch` returns."""
        return False

    @torch.inference_mode()
    def launch(self, plan: Several[Work]) -> Launched:
        """As `Runner` says."""
        batch = build(plan, self.cache.block_size, self.model.device)
        attend = self._attend(batch)
        if any(scores(work) for work in plan):
            hidden = self.model.hidden(batch.ids, attend)
            logits = self.model.logits(hidden[batch.chosen])
        else:
            logits = self.model.forward(batch.ids, attend, batch.chosen)
        chosen = self._sample(logits, [work for work in plan if work.completes])
        tokens, outcomes = iter(chosen), list[Outcome]()
        for work, span in zip(plan, batch.spans, strict=True):
            choice = next(tokens) if work.completes else None
            if scores(work):
                choice = self._read(work, hidden[span.row : span.row + span.count], choice)
            outcomes.append(choice)
        return Landed(outcomes)

    def _attend(self, batch: Batch) -> Attend:
        turns = self._rotation.at(batch.positions)
        if isinstance(self.attention, StepAttention):
            return self.attention.step(self.cache, batch, turns, self.model.config.num_heads)
        return lambda layer, qkv: self.attention.attend(qkv, layer, self.cache, batch, turns)

    def _sample(self, logits: Tensor, works: Several[Work]) -> list[Outcome]:
        """The next token of each of `works`, a row of `logits` each."""
        rows, chosen = [self._row(work) for work in works], list[Outcome]()
        pieces = 1 if self._by_row else max(len(rows), 1)
        for begin in range(0, len(rows), pieces):
            some = slice(begin, begin + pieces)
            chosen += sample(logits[some], rows[some], n_vocab=self._n_vocab)
        return chosen

    def _read(self, work: Work, hidden: Tensor, choice: Outcome) -> Outcome:
        """Score the prompt's tokens behind each row of the work."""
        if isinstance(choice, Read | Exception):
            return choice
        sequence = work.sequence
        prompt, count = sequence.request.prompt_ids, sequence.request.sampling.prompt_logprobs or 0
        first = work.start + 1
        follow = prompt[first : first + work.count]
        found: list[TokenLogprobs] = []
        for begin in range(0, len(follow), SCORED_ROWS):
            some = follow[begin : begin + SCORED_ROWS]
            logits = self.model.logits(hidden[begin : begin + len(some)])
            if not logits[:, : self._n_vocab].isfinite().all():
                return NonFiniteLogits(NOT_FINITE)
            found += score(logits, some, count, n_vocab=self._n_vocab)
        return Read(first, found, choice)

    def _row(self, work: Work) -> Row:
        sequence = work.sequence
        sampling = sequence.request.sampling
        context = sequence.ids if sampling.repetition_penalty != 1 else []
        penalties = sampling.presence_penalty or sampling.frequency_penalty
        answer = sequence.ids[len(sequence.request.prompt_ids) :] if penalties else None
        allowed = None
        if sequence.grammar is not None:
            allowed = torch.from_numpy(sequence.grammar.mask()).to(self.model.device)
        return Row(
            sampling,
            sequence.output_tokens,
            self._tensor(context),
            None if answer is None else self._tensor(answer),
            allowed,
        )

    def _tensor(self, ids: Several[int]) -> Tensor:
        # Copied: the ids grow, which Python forbids while a tensor looks at their memory.
        return torch.from_numpy(np.array(ids, np.int64)).to(self.model.device)
