"""The engine's loop, one turn of it at a time: requests in, events out. It knows no pipe and no process.

One step computes all that the scheduler has planned, answers and pieces of prompts together. Cancelling takes effect
at once, deadlines are looked at each step, and a request that cannot be answered fails alone.

Where the runner may lag, a step is launched before the outcomes of the one before it are taken: the device goes on
while texts and events are made. Sequences then have a token that is pending. One that ends meanwhile, for whatever
reason, has its row in a step that is under way already; what comes of it is dropped.
"""

import logging
import time
from array import array
from collections.abc import Callable

import numpy as np
import torch

from worker.engine.grammar import GrammarError, Grammars
from worker.engine.request import Event, Failed, Finished, GenerationRequest
from worker.engine.runner import Landed, Launched, Outcome, Read, Runner
from worker.engine.sampler import NonFiniteLogits, Scored
from worker.engine.scheduler import Scheduler, Work
from worker.engine.sequence import Sequence
from worker.engine.stats import EngineStats
from worker.model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class EngineCore:
    """Not thread-safe: one thread calls it.

    `context_length` is the most tokens that prompt and answer may have together: the model's, or the KV cache's
    where that is smaller. `now` is the clock against which deadlines are held.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner, self.scheduler = runner, scheduler
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer)
        self._now = now
        self._open: dict[str, Sequence] = {}  # all that have not ended, in order of arrival
        self._events: list[Event] = []
        self._flying: tuple[list[Work], Launched] | None = None
        self._steps = self._prefill_tokens = self._decode_tokens = 0
        self._host_seconds = self._device_seconds = 0.0

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._open or self._events)

    @property
    def stats(self) -> EngineStats:
        """The counters as they stand."""
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.blocks.free,
            total_blocks=scheduler.blocks.total,
            steps=self._steps,
            preemptions=scheduler.preemptions,
            cached_tokens=scheduler.cached_tokens,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            host_seconds=self._host_seconds,
            device_seconds=self._device_seconds,
        )

    def submit(self, request: GenerationRequest) -> None:
        """Take a request in. An invalid one, or one whose resumed tokens end it, is answered in the next step."""
        try:
            ids = array("q", request.prompt_ids + request.resumed_ids)
        except OverflowError:
            ids = array("q", [-1])  # as far outside the vocabulary
        problem = self._problem(request, ids)
        if problem is not None:
            logger.warning("request %s refused: %s", request.request_id, problem)
            self._events.append(Failed(request.request_id, "invalid_prompt", problem))
            return
        try:
            sequence = self._begin(request, ids)
        except GrammarError as problem:
            logger.warning("request %s has a grammar that fails: %s", request.request_id, problem)
            self._events.append(Failed(request.request_id, "server_error", f"The answer's format: {problem}"))
            return
        self._open[request.request_id] = sequence
        self.scheduler.add(sequence)
        self._finish_if_ended(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request and free its memory. One that has ended already, or is not known, is left alone."""
        if sequence := self._open.get(request_id):
            self._close(sequence, sequence.finish("cancelled"))

    def step(self) -> list[Event]:
        """Compute one step; its events and those of whatever happened since the last one.

        Raises what makes the whole process useless (`torch.AcceleratorError`: the device's context is lost).
        """
        begin, waited = time.perf_counter(), self._device_seconds
        now = self._now()
        for sequence in list(self._open.values()):
            if sequence.request.deadline is not None and sequence.request.deadline <= now:
                self._close(sequence, sequence.finish("deadline"))
        if not self.runner.may_lag(self.scheduler.running):
            self._land()
        if plan := self.scheduler.plan():
            launched = self._launch(plan)
            for work in plan:
                self.scheduler.launched(work)
            self._steps += 1
        self._land()
        if plan:
            self._flying = plan, launched
            if isinstance(launched, Landed) or not self.runner.may_lag(self.scheduler.running):
                self._land()
        self._host_seconds += time.perf_counter() - begin - (self._device_seconds - waited)
        events, self._events = self._events, []
        return events

    def _launch(self, plan: list[Work]) -> Launched:
        """Launch a plan; where that fails, run its works one by one, so that only the guilty ones fail."""
        begin = time.perf_counter()
        try:
            return self.runner.launch(plan)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            logger.exception("a step of %d requests failed", len(plan))
            if len(plan) == 1:
                return Landed([error])
        finally:
            self._device_seconds += time.perf_counter() - begin
        self._land()
        return Landed([outcome for work in plan for outcome in self._launch([work]).outcomes()])

    def _land(self) -> None:
        """Take the outcomes of the step that is under way, if there is one."""
        if self._flying is None:
            return
        (plan, launched), self._flying = self._flying, None
        begin = time.perf_counter()
        outcomes = launched.outcomes()
        self._device_seconds += time.perf_counter() - begin
        for work, outcome in zip(plan, outcomes, strict=True):
            # Others have ended since: by a stop that was found late, by a cancellation, by their deadline.
            if self._open.get(work.sequence.request.request_id) is work.sequence:
                self._take(work, outcome)

    def _take(self, work: Work, outcome: Outcome) -> None:
        sequence = work.sequence
        if isinstance(outcome, Exception):
            failed = Failed(sequence.request.request_id, "server_error", _explain(outcome))
            # What it wrote may be what broke it: nobody else shall find it.
            self._close(sequence, failed, forget=True)
            return
        if work.count == 1 and work.completes:
            self._decode_tokens += 1
        else:
            self._prefill_tokens += work.count
        self.scheduler.done(work)
        if isinstance(outcome, Read):
            sequence.score(outcome.first, outcome.logprobs)
            outcome = outcome.choice
        if outcome is None:
            return
        token = outcome if isinstance(outcome, Scored) else Scored(outcome, None)
        if sequence.ended:  # only its prompt was still to be scored
            self._finish_if_ended(sequence)
        elif token.token_id in sequence.request.sampling.stop_token_ids:
            stopped_by = None if token.logprobs is None else (token.token_id, token.logprobs)
            self._close(sequence, sequence.finish("stop", stopped_by))
        else:
            self._events.append(sequence.append(token.token_id, token.logprobs))
            self._finish_if_ended(sequence)

    def _begin(self, request: GenerationRequest, ids: "array[int]") -> Sequence:
        return Sequence(
            request,
            ids=ids,
            token_bytes=self._tokenizer.token_bytes,
            capacity=self.context_length,
            grammar=self._grammars.matcher(request.grammar, request.resumed_ids) if request.grammar else None,
        )

    def _finish_if_ended(self, sequence: Sequence) -> None:
        if reason := sequence.ended:
            self._close(sequence, sequence.finish(reason))

    def _close(self, sequence: Sequence, last: Finished | Failed, *, forget: bool = False) -> None:
        """Free what the sequence holds; `last` is its last event."""
        del self._open[sequence.request.request_id]
        self.scheduler.remove(sequence, forget=forget)
        self._events.append(last)
        logger.info(
            "request %s %s: prompt %d, of it %d cached, answer %d tokens, of them %d resumed, %.2f s",
            last.request_id,
            last.reason if isinstance(last, Finished) else last.code,
            len(sequence.request.prompt_ids),
            sequence.cached_tokens or 0,
            sequence.output_tokens,
            len(sequence.request.resumed_ids),
            time.monotonic() - sequence.submitted,
        )

    def _problem(self, request: GenerationRequest, ids: "array[int]") -> str | None:
        """Why the request cannot be run, if it cannot. `ids`: all of it, int64; Python is slow on thousands."""
        length, context = len(request.prompt_ids), self.context_length
        if length == 0:
            return "The prompt is empty."
        if length >= context:
            return f"The prompt is {length} tokens long; the model's context of {context} leaves no room for an answer."
        values = np.frombuffer(ids, np.int64)
        if values.min() < 0 or values.max() >= self._tokenizer.n_vocab:
            return f"The prompt holds ids outside the vocabulary of {self._tokenizer.n_vocab} tokens."
        if any(not 0 <= token_id < self._tokenizer.n_vocab for token_id, _ in request.sampling.logit_bias):
            return f"The bias names ids outside the vocabulary of {self._tokenizer.n_vocab} tokens."
        return None


def _explain(error: Exception) -> str:
    if isinstance(error, NonFiniteLogits):
        return "The model's arithmetic broke down on this request (NaN or infinity in its output)."
    # torch has a class for a full GPU; for full main memory it raises RuntimeError with this text.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "There was not enough memory for this request."
    return f"The engine failed on this request ({type(error).__name__})."
