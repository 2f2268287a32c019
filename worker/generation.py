"""One job in a worker, once it is claimed (`worker.claims`): render, submit, stream, finish.

`Attempt.run` reads as its story.

The answer's tokens go two ways while it runs: to the live tail in Redis at once, in the engine's thread, where the
caller streams or may come to; and to SQL at each checkpoint, which renews the lease in the same transaction. An attempt
that follows another goes on behind the longer of the two, so that nothing a caller has seen is taken back.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import OperationalError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from storage import answer_format, history, leases, stream, terminal
from storage.errors import LeaseLost
from storage.leases import Chunk
from storage.models import Json, Response
from storage.scores import Entry, shown, told
from worker import metrics, prompt, scores
from worker.answer import RunningAnswer
from worker.engine.client import EventStream
from worker.engine.errors import EngineDied
from worker.engine.request import Failed, Finished, GenerationRequest, Tokens
from worker.model.chat import Prompt
from worker.model.errors import PromptTooLong
from worker.runtime import Generator, Runtime

log = structlog.get_logger(__name__)

# How long a thread waits for an event before it looks at the clock, the lease and the drain again.
POLL_SECONDS = 0.5
# Of all answers of a worker together: with many of them each is stored a little less often.
CHECKPOINTS_A_SECOND = 8
# An engine that dies under an answer is given it once more; after that the attempt counts as lost.
ENGINE_DEATHS = 2


class GivenBack(Exception):
    """The worker is going away; the job is queued again with its checkpoint."""


def run(attempt: Attempt) -> None:
    """Bring the attempt to an end of its own: whatever goes wrong is logged here."""
    generator, response = attempt.generator, attempt.response
    try:
        with generator.cancels.watch(response.id, attempt.ask_to_cancel):
            attempt.run()
    except LeaseLost:
        metrics.LEASES_LOST.inc()
        log.warning("lease lost, another attempt has the job")
    except GivenBack:
        log.info("given back", tokens=len(attempt.answer))
    except OperationalError as trouble:
        log.error("database unreachable, the lease will run out", cause=str(trouble.orig))
    except Exception:
        log.exception("attempt failed")
        attempt.lose()
    finally:
        attempt.close()
        generator.engine.cancel(attempt.request_id)
        if attempt.abandoned:
            generator.tail.forget(response.id, response.attempt)


@dataclass(slots=True)
class Attempt:
    """The state of one attempt: the whole answer so far, how much of it SQL has and how much the live tail.

    `closed`: nothing that the engine still says of it counts. `abandoned`: somebody else brings the job to its end.
    """

    runtime: Runtime
    generator: Generator
    response: Response
    deadline: float  # time.monotonic
    answer: RunningAnswer = field(default_factory=RunningAnswer)
    stored: int = 0
    next_checkpoint: float = 0.0
    shown: int = 0
    storing: bool = False
    closed: bool = False
    taking: threading.Lock = field(default_factory=threading.Lock)
    abandoned: bool = True
    claimed_at: float = field(default_factory=time.monotonic)
    told: bool = False  # whether this attempt has produced a token
    deaths: int = 0
    cancel_asked: threading.Event = field(default_factory=threading.Event)
    events: EventStream | None = None

    @property
    def request_id(self) -> str:
        """The engine's name for this attempt; a new one after each death of the engine."""
        return f"{self.response.id}/{self.response.attempt}/{self.deaths}"

    @property
    def followed(self) -> bool:
        """Whether anybody may read the answer while it grows; else it has no live tail."""
        return bool(self.response.request.get("followed", True))  # older versions did not say

    def run(self) -> None:
        """Bring the answer to its end, or raise why that is for another attempt to do."""
        items = self._load()
        if items is None:
            return
        request = self.response.request
        try:
            built = prompt.build(
                items,
                request,
                tokenizer=self.generator.tokenizer,
                defaults=self.generator.defaults,
                context_length=self.generator.info.context_length,
            )
            sampling = prompt.sampling(
                request,
                built,
                self.response.seed,
                tokenizer=self.generator.tokenizer,
                defaults=self.generator.defaults,
            )
        except (PromptTooLong, prompt.HistoryTooLong) as too_long:
            self._fail(terminal.Failure("invalid_prompt", "context_length_exceeded", str(too_long)))
            return
        except prompt.Unusable as wrong:
            self._fail(terminal.Failure("invalid_prompt", wrong.cause, str(wrong)))
            return
        log.info(
            "started",
            prompt_tokens=len(built.ids),
            dropped_messages=built.dropped_messages,
            resumed_tokens=len(self.answer),
        )
        while True:
            try:
                ended = self._generate(
                    GenerationRequest(
                        request_id=self.request_id,
                        prompt_ids=tuple(built.ids),
                        resumed_ids=tuple(self.answer.since(0).token_ids),
                        sampling=sampling,
                        deadline=self.deadline,
                        cache_salt=self.response.project_id,
                        grammar=answer_format.grammar(request),
                        followed=self.followed,
                    )
                )
                break
            except EngineDied:
                self.deaths += 1
                if self.deaths == ENGINE_DEATHS:
                    raise
                log.warning("the engine died, going on with a new one", tokens=len(self.answer))
        self._finish(ended, built)

    def close(self) -> None:
        """Take nothing more: what the engine still says is in neither copy of the log."""
        with self.taking:
            self.closed = True

    def lose(self) -> None:
        """Count the attempt as lost now instead of when its lease runs out."""
        self.close()  # what is taken behind what is stored here would have been shown and taken back
        try:
            with self.runtime.database.begin() as session:
                ended = leases.lose(
                    session,
                    self.response.id,
                    self.response.attempt,
                    self.runtime.settings.max_attempts,
                    self._unstored(),
                )
        except (LeaseLost, OperationalError):
            return  # another has it, or the sweeper will see to it
        if ended:
            self.generator.tail.end(self.response.id, self.response.attempt, tailed=self.followed)
            self.abandoned = False

    def _load(self) -> list[history.Said] | None:
        """Fence the live tail, take over what is known of the answer, and return the items of the prompt."""
        live, known = self._fence(), Chunk(0, [], [])
        try:
            with self.runtime.database.read() as session:
                if self.response.attempt > 1:
                    known = leases.output(session, self.response.id)
                items = history.load(session, self.response)
        except history.HistoryGone as gone:
            self._fail(terminal.Failure("invalid_prompt", "history_gone", str(gone)))
            return None
        self.stored = known.end
        self.answer.take(stream.join(known, live))
        self.shown = len(self.answer)
        self._mend(live)
        return items

    def _mend(self, live: Chunk) -> None:
        """Write what the live tail lacks of the answer so far, so that its log has no gap before this attempt.

        Its writer may have died with tokens that only SQL has, or Redis has lost what it had.
        """
        begin = live.end if live.first_index == 0 else 0
        if self.followed and begin < len(self.answer):
            self.generator.tail.add(self.response.id, self.response.attempt, self.answer.since(begin))

    def _fence(self) -> Chunk:
        nothing = Chunk(0, [], [])
        if not self.followed:
            return nothing
        try:
            stream.fence(self.runtime.redis, self.response.id, self.response.attempt)
            if self.response.attempt == 1:
                return nothing
            return stream.tail(self.runtime.redis, self.response.id).chunk
        except stream.StaleAttempt:
            raise LeaseLost(self.response.id, self.response.attempt) from None
        except RedisError as trouble:
            log.warning("redis unreachable, going on from SQL alone", cause=str(trouble))
            return nothing

    def _generate(self, request: GenerationRequest) -> Finished | Failed:
        self._plan_checkpoint()
        if self.stored < len(self.answer):
            self.next_checkpoint = time.monotonic()  # at once: the live tail had what SQL has not
        self.events = self.generator.engine.submit(request, self._take)
        giving_back = False
        while True:
            event = self.events.next_event(
                min(POLL_SECONDS, max(0.0, self.next_checkpoint - time.monotonic()))
            )
            if isinstance(event, Finished) and giving_back and event.reason == "cancelled":
                self._give_back()
            elif isinstance(event, Finished | Failed):
                return event
            if time.monotonic() >= self.next_checkpoint or self.cancel_asked.is_set():
                self.cancel_asked.clear()
                self._checkpoint(request.request_id)
            if self.runtime.drained_out and not giving_back:
                giving_back = True
                self.generator.engine.cancel(request.request_id)

    def _take(self, event: Tokens) -> None:
        # In the engine's thread.
        with self.taking:
            if not self.closed:
                self._append(event)

    def _append(self, event: Tokens) -> None:
        if not self.told:
            self.told = True
            metrics.FIRST_TOKEN.observe(time.monotonic() - self.claimed_at)
        logprobs: list[Entry] = []
        if event.logprobs is not None:
            logprobs = scores.entries(event.token_ids, event.logprobs, self.generator.tokenizer)
        self.answer.take(Chunk(event.index, event.token_ids, event.pieces, logprobs=logprobs))
        if not self.storing:
            self._show()

    def _show(self) -> None:
        """Tell what the live tail lacks; `taking` is held."""
        if self.followed and self.shown < len(self.answer):
            chunk = self.answer.since(self.shown)
            self.generator.tail.add(self.response.id, self.response.attempt, chunk)
            self.shown = chunk.end

    def ask_to_cancel(self) -> None:
        """Have the next checkpoint, which learns of a cancellation, made now. May be called by any thread."""
        self.cancel_asked.set()
        if self.events is not None:
            self.events.wake()

    def _checkpoint(self, request_id: str) -> None:
        # While the database does not take what was shown, no more is shown: a reader is never far ahead of it.
        with self.taking:
            self.storing, chunk = True, self._unstored()
        lease = self.runtime.settings.lease_seconds
        cancelled = False
        # A database that restarts costs a pause; one that stays away longer than the lease costs the job's hold.
        for retry in Retrying(
            retry=retry_if_exception_type(OperationalError),
            stop=stop_after_delay(lease),
            wait=wait_random_exponential(0.1, max=2),
            reraise=True,
        ):
            with retry, self.runtime.database.begin() as session:
                cancelled = leases.renew(session, self.response.id, self.response.attempt, lease, chunk)
        if chunk is not None:
            self.stored = chunk.end
        with self.taking:
            self.storing = False
            self._show()
        self._plan_checkpoint()
        if cancelled:
            self.generator.engine.cancel(request_id)

    def _plan_checkpoint(self) -> None:
        wanted = max(self.generator.settings.checkpoint_seconds, self.runtime.busy / CHECKPOINTS_A_SECOND)
        self.next_checkpoint = time.monotonic() + min(wanted, self.runtime.settings.lease_seconds / 3)

    def _unstored(self, tail: str = "") -> Chunk | None:
        chunk = self.answer.since(self.stored, tail)
        return chunk if chunk.token_ids or tail else None

    def _give_back(self) -> None:
        with self.runtime.database.begin() as session:
            leases.give_back(session, self.response.id, self.response.attempt, self._unstored())
        raise GivenBack

    def _finish(self, ended: Finished | Failed, built: Prompt) -> None:
        if isinstance(ended, Failed):
            cause = "context_length_exceeded" if ended.code == "invalid_prompt" else "engine_error"
            self._fail(terminal.Failure(ended.code, cause, ended.message))
            return
        if ended.reason == "deadline":
            self._fail(terminal.TOO_LONG)
            return
        whole = self.answer.since(0, ended.tail)
        with self.runtime.database.begin() as session:
            if ended.reason == "cancelled":
                terminal.close_cancelled(session, self.response.id, self.response.attempt)
            else:
                answer = terminal.Answer(
                    text="".join(whole.pieces) + whole.tail,
                    usage=_usage(ended),
                    incomplete_reason="max_output_tokens" if ended.reason == "length" else None,
                    logprobs=shown(told(whole.logprobs, whole.pieces, whole.tail)),
                    raw=scores.raw(built, self.response.request, ended, self.generator.tokenizer),
                )
                terminal.close_answered(session, self.response.id, self.response.attempt, answer)
            rest = self._unstored(ended.tail)
            if rest is not None:
                leases.add_chunk(session, self.response.id, self.response.attempt, rest)
        self._ended(ended.reason, ended.output_tokens)

    def _fail(self, failure: terminal.Failure) -> None:
        with self.runtime.database.begin() as session:
            terminal.close_failed(session, self.response.id, self.response.attempt, failure)
            rest = self._unstored()
            if rest is not None:  # a reader has seen it
                leases.add_chunk(session, self.response.id, self.response.attempt, rest)
        self._ended(failure.cause, len(self.answer))

    def _ended(self, reason: str, output_tokens: int) -> None:
        self.abandoned = False
        self.generator.tail.end(self.response.id, self.response.attempt, tailed=self.followed)
        log.info("ended", reason=reason, output_tokens=output_tokens)


def _usage(ended: Finished) -> Json:
    return {
        "input_tokens": ended.prompt_tokens,
        "input_tokens_details": {"cached_tokens": ended.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": ended.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": ended.prompt_tokens + ended.output_tokens,
    }
