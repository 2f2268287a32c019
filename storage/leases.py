"""A worker's hold on a job: claim, renew with a checkpoint, give back, and what the sweeper takes back.

The claim takes the next attempt number, which is the fencing token: every later write names it and changes
nothing once another attempt, or the job's end, has come after it. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import (
    ColumnElement,
    Double,
    Executable,
    Integer,
    ScalarSelect,
    String,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from storage import clock, homes, metrics, outbox, queue, terminal
from storage.database import changed, loaded
from storage.errors import LeaseLost
from storage.models import OutputChunk, Response
from storage.scores import Entry

# A job whose worker vanished waits this long before the next try: 1, 2, 4, ... seconds, at most this many.
BACKOFF_SECONDS = 1.0
BACKOFF_LIMIT_SECONDS = 60.0
# A queued job that nobody claimed is announced again after this time.
KNOCK_AGAIN_SECONDS = 5.0
SWEEP_BATCH = 64


ROWS = Response.__table__.c


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of an answer from position `first_index` on, with the text of each.

    `logprobs` has one entry a token (`storage.scores`), or none at all where nobody asked for them.
    """

    first_index: int
    token_ids: Sequence[int]
    pieces: Sequence[str]
    tail: str = ""
    logprobs: Sequence[Entry] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.first_index + len(self.token_ids)

    def since(self, position: int) -> Chunk:
        """Return what of it stands at `position` and behind; it begins there or before."""
        skipped = position - self.first_index
        return Chunk(
            position, self.token_ids[skipped:], self.pieces[skipped:], self.tail, self.logprobs[skipped:]
        )

    def then(self, more: Chunk) -> Chunk:
        """Return both as one; `more` begins where this one ends."""
        return Chunk(
            self.first_index,
            [*self.token_ids, *more.token_ids],
            [*self.pieces, *more.pieces],
            self.tail + more.tail,
            [*self.logprobs, *more.logprobs],
        )


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did, as counts for the log; of jobs that have ended, the id and the attempt."""

    requeued: int
    ended: tuple[tuple[str, int], ...]
    announced: int


def _claim() -> Executable:
    """The statement of `claim`; its parameters are `worker`, `lease_seconds` and `last_attempt`."""
    worker = bindparam("worker", type_=String)
    last_attempt = bindparam("last_attempt", type_=Integer)
    suspect = and_(Response.failures > 0, Response.failures >= last_attempt)
    other = aliased(Response)
    suspect_here = exists().where(
        other.status == literal("in_progress", literal_execute=True),
        other.worker == worker,
        other.failures > 0,
        other.failures >= last_attempt,
    )
    eligible = and_(
        queue.is_queued(), Response.ready, Response.available_at <= clock.now(), or_(~suspect, ~suspect_here)
    )

    def first(*conditions: ColumnElement[bool]) -> ScalarSelect[str]:
        return (
            select(Response.id)
            .where(eligible, *conditions)
            .order_by(Response.rank, Response.id)
            .limit(1)
            # PostgreSQL: two workers that look at once take different jobs. SQLite has one writer anyway.
            .with_for_update(skip_locked=True, of=Response)
            .scalar_subquery()
        )

    def head(column: InstrumentedAttribute[float]) -> ScalarSelect[float]:
        return select(column).where(eligible).order_by(Response.rank, Response.id).limit(1).scalar_subquery()

    own = first(
        Response.home == worker,
        Response.rank <= head(Response.rank) + homes.AHEAD,
        Response.created_at <= head(Response.created_at) + homes.AHEAD_SECONDS,
    )
    # The second is looked for where there is no first.
    candidate = func.coalesce(own, first(homes.open_to(worker)))
    return loaded(
        update(Response.__table__)  # type: ignore[arg-type]
        .where(ROWS.id == candidate, queue.is_queued())
        .values(
            status="in_progress",
            attempt=ROWS.attempt + 1,
            worker=worker,
            lease_expires_at=clock.now() + bindparam("lease_seconds", type_=Double),
            started_at=func.coalesce(ROWS.started_at, clock.now()),
        )
        .returning(*ROWS)
    )


# Built once: to build it takes a worker longer than to run it, twice for each job.
CLAIM = _claim()


def claim(session: Session, worker: str, lease_seconds: float, max_attempts: int) -> Response | None:
    """Take the job that is first in the queue (`storage.queue`), or one a little behind whose history this worker has
    (`storage.homes`), or return None.

    A job on its last attempt has lost every worker it had. It may be the reason, so a worker runs no two of them at
    once: whoever kills its worker then takes no innocent job's last attempt with it. One thread of a worker claims at
    a time.
    """
    claimed: Response | None = session.scalar(
        CLAIM, {"worker": worker, "lease_seconds": lease_seconds, "last_attempt": max_attempts - 1}
    )
    if claimed is not None:
        _count_claim(session, claimed)
    return claimed


def _count_claim(session: Session, claimed: Response) -> None:
    attempt = "first" if claimed.attempt == 1 else "later"
    metrics.on_commit(session, metrics.CLAIMS.labels(attempt).inc)
    if claimed.attempt == 1 and claimed.started_at is not None:
        waited = claimed.started_at - claimed.created_at
        metrics.on_commit(session, lambda: metrics.WAITED.observe(waited))


def seconds_left(session: Session, response: Response) -> float:
    """Return how long a claimed job may still run; negative when its time is over."""
    return float(response.started_at or 0.0) + response.max_run_seconds - clock.read(session)


# Built once, and without the unit of work: each running answer sends these about every second.
RENEW = (
    update(Response.__table__)  # type: ignore[arg-type]
    .where(ROWS.id == bindparam("response"), ROWS.attempt == bindparam("held"), ROWS.status == "in_progress")
    .values(lease_expires_at=clock.now() + bindparam("seconds", type_=Double))
    .returning(ROWS.cancel_requested_at)
)
ADD_CHUNK = insert(OutputChunk.__table__)  # type: ignore[arg-type]


def renew(
    session: Session, response_id: str, attempt: int, lease_seconds: float, chunk: Chunk | None
) -> bool:
    """Extend the lease and store the tokens produced since the last checkpoint.

    Returns:
        True when the caller has asked for cancellation.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    held = session.execute(
        RENEW, {"response": response_id, "held": attempt, "seconds": lease_seconds}
    ).one_or_none()
    if held is None:
        raise LeaseLost(response_id, attempt)
    if chunk is not None:
        add_chunk(session, response_id, attempt, chunk)
    return held[0] is not None


def give_back(session: Session, response_id: str, attempt: int, chunk: Chunk | None) -> None:
    """Return a job to the queue with its checkpoint, at no cost to its attempts: the worker is going away.

    It is announced at once, and again by the next sweep that still finds it: the first announcement may reach the very
    worker that leaves, which takes it with it.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    freed = changed(
        session,
        update(Response)
        .where(Response.id == response_id, Response.attempt == attempt, Response.status == "in_progress")
        .values(
            status="queued",
            worker=None,
            home=None,
            lease_expires_at=None,
            available_at=clock.now(),
        ),
    )
    if freed != 1:
        raise LeaseLost(response_id, attempt)
    if chunk is not None:
        add_chunk(session, response_id, attempt, chunk)
    outbox.add(session, "generate", response_id)


def add_chunk(session: Session, response_id: str, attempt: int, chunk: Chunk) -> None:
    """Append a stretch of the answer. The caller holds the row, so positions cannot collide."""
    session.execute(
        ADD_CHUNK,
        {
            "response_id": response_id,
            "first_index": chunk.first_index,
            "attempt": attempt,
            "token_ids": list(chunk.token_ids),
            "pieces": list(chunk.pieces),
            "tail": chunk.tail,
            "logprobs": list(chunk.logprobs) or None,
        },
    )


def output(session: Session, response_id: str) -> Chunk:
    """Return everything stored of the answer as one chunk from position 0."""
    chunks = session.scalars(
        select(OutputChunk).where(OutputChunk.response_id == response_id).order_by(OutputChunk.first_index)
    )
    token_ids: list[int] = []
    pieces: list[str] = []
    tail = ""
    logprobs: list[Entry] = []
    for chunk in chunks:
        token_ids += chunk.token_ids
        pieces += chunk.pieces
        tail += chunk.tail
        logprobs += chunk.logprobs or []
    return Chunk(0, token_ids, pieces, tail, logprobs)


def sweep(session: Session, max_attempts: int, salvage: Callable[[Session, Response], None]) -> Swept:
    """Take back jobs whose lease ran out, end those that waited too long, announce what has waited unheard.

    `salvage` stores what a lost attempt had told of its answer and not yet checkpointed. Every step is a conditional
    update, so that two sweepers at once do no harm.
    """
    late = session.scalars(
        select(Response)
        .where(queue.is_queued(), Response.expires_at < clock.now())
        .order_by(Response.expires_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    for response in late:
        terminal.expire(session, response)
    expired = session.scalars(
        select(Response)
        .where(queue.is_running(), Response.lease_expires_at < clock.now())
        .order_by(Response.lease_expires_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    ended: list[tuple[str, int]] = []
    for response in expired:
        salvage(session, response)
        if _lose(session, response, max_attempts):
            ended.append((response.id, response.attempt))
    requeued = len(expired) - len(ended)
    ended += [(response.id, response.attempt) for response in late]
    return Swept(requeued, tuple(ended), _announce(session))


def lose(session: Session, response_id: str, attempt: int, max_attempts: int, chunk: Chunk | None) -> bool:
    """Count an attempt as lost before its lease runs out: its worker found that it cannot go on.

    `chunk` is what it has produced since its last checkpoint.

    Returns:
        True when that ended the response, False when it is queued again.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    response = session.scalar(
        select(Response)
        .where(Response.id == response_id, Response.attempt == attempt, Response.status == "in_progress")
        .with_for_update()
    )
    if response is None:
        raise LeaseLost(response_id, attempt)
    if chunk is not None:
        add_chunk(session, response_id, attempt, chunk)
    return _lose(session, response, max_attempts)


def _lose(session: Session, response: Response, max_attempts: int) -> bool:
    """End or requeue a running response whose row the caller has locked."""
    metrics.on_commit(session, metrics.ATTEMPTS_LOST.inc)
    if response.cancel_requested_at is not None:
        terminal.close_cancelled(session, response.id, response.attempt)
        return True
    if seconds_left(session, response) <= 0:
        terminal.close_failed(session, response.id, response.attempt, terminal.TOO_LONG)
        return True
    if response.failures + 1 >= max_attempts:
        failure = terminal.Failure(
            code="server_error",
            cause="attempts_exhausted",
            message=f"This response was given up after its worker was lost {max_attempts} times.",
        )
        terminal.close_failed(session, response.id, response.attempt, failure)
        return True
    # The first loss is a crash or a deployment more often than a bad job: try again at once.
    delay = BACKOFF_SECONDS * 2 ** (response.failures - 1) if response.failures else 0.0
    session.execute(
        update(Response)
        .where(Response.id == response.id, Response.attempt == response.attempt)
        .values(
            status="queued",
            failures=Response.failures + 1,
            worker=None,
            home=None,
            lease_expires_at=None,
            available_at=clock.now() + min(delay, BACKOFF_LIMIT_SECONDS),
        )
    )
    return False


def _announce(session: Session) -> int:
    waiting = session.scalars(
        select(Response.id)
        .where(
            and_(queue.is_queued(), Response.ready, Response.available_at <= clock.now()),
            or_(
                Response.knocked_at < clock.now() - KNOCK_AGAIN_SECONDS,
                # Taken back a moment ago: it has not been announced since it became available.
                Response.knocked_at < Response.available_at,
            ),
        )
        .order_by(Response.rank)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    if waiting:
        session.execute(update(Response).where(Response.id.in_(waiting)).values(knocked_at=clock.now()))
        for response_id in waiting:
            outbox.add(session, "generate", response_id)
    return len(waiting)
