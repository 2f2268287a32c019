"""The order of the queue: fair between projects, weighted by tier, first come first served within both.

Self-clocked fair queueing (S. J. Golestani, INFOCOM 1994): a job's rank is the virtual time at which its line, a
project's jobs of one tier, would have been served up to and including it; the lowest rank is claimed first. A line's
jobs are `1 / weight` apart, and a line that was empty begins at the virtual time of now, so that a newcomer neither
waits behind another's backlog nor overtakes what is at the head, and no tier can starve another.

Ranks are computed from the rows alone, without a lock: two jobs accepted at the same moment may share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Integer, bindparam, func, literal, select
from sqlalchemy.orm import Session

from storage import clock, outbox
from storage.models import Outbox, Response

Tier = Literal["priority", "default", "flex"]
TIERS: tuple[Tier, ...] = get_args(Tier)
# While all of them wait, a project's tiers are served in these proportions.
WEIGHTS: dict[Tier, float] = {"priority": 16.0, "default": 4.0, "flex": 1.0}
# A position beyond this is not counted out: nobody plans by it, and a status costs the same however long the queue.
COUNTED = 1000
# Over this time the pace of the workers is measured.
PACE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits now: queued jobs by tier, the age of the oldest that only lacks a worker, messages left unsent."""

    queued: dict[str, int]
    oldest_seconds: float
    running: int
    outbox: int


@dataclass(frozen=True, slots=True)
class Load:
    """How much waits, and how many jobs a second came to their end lately."""

    queued: int
    per_second: float


def is_queued() -> ColumnElement[bool]:
    """Return the condition as the partial indices have it: with a parameter no planner could match them."""
    return Response.status == literal("queued", literal_execute=True)


def is_running() -> ColumnElement[bool]:
    """Return the condition as the partial index has it."""
    return Response.status == literal("in_progress", literal_execute=True)


# Built once: every submission asks these, and to build them takes longer than to answer them.
JOIN = select(
    clock.now(),
    select(func.min(Response.rank)).where(is_queued(), Response.ready).scalar_subquery(),
    select(func.max(Response.rank)).where(is_running()).scalar_subquery(),
    select(func.max(Response.rank))
    .where(is_queued(), Response.project_id == bindparam("project"), Response.tier == bindparam("tier"))
    .scalar_subquery(),
)
BEFORE = select(func.count(), clock.now()).select_from(
    select(Response.id)
    .where(is_queued(), Response.ready, Response.rank < bindparam("rank"))
    .limit(bindparam("counted", type_=Integer))
    .subquery()
)
WAITS = select(
    select(Response.id).where(is_queued(), Response.ready, Response.available_at <= clock.now()).exists()
)


def any_waits(session: Session) -> bool:
    """Return whether there is a job that some worker may claim now."""
    return bool(session.scalar(WAITS))


def join(session: Session, project_id: str, tier: Tier) -> tuple[float, float]:
    """Return the rank of a job that joins its line now, and the database's time."""
    moment, *ranks = session.execute(JOIN, {"project": project_id, "tier": tier}).one()
    now = max((float(rank) for rank in ranks if rank is not None), default=0.0)
    return now + 1 / WEIGHTS[tier], moment


def position(session: Session, response: Response) -> tuple[int, float]:
    """Return how many jobs are before this queued one, counted up to `COUNTED`, and the database's time."""
    before, moment = session.execute(BEFORE, {"rank": response.rank, "counted": COUNTED}).one()
    return before, moment


def backlog(session: Session) -> Backlog:
    """Look at everything that waits. It counts, so it is for metrics and not for requests."""
    by_tier = select(Response.tier, func.count()).where(is_queued()).group_by(Response.tier)
    queued = dict.fromkeys(TIERS, 0) | {row[0]: row[1] for row in session.execute(by_tier)}
    oldest = session.scalar(
        select(clock.now() - func.min(Response.created_at)).where(is_queued(), Response.ready)
    )
    running = session.scalar(select(func.count()).select_from(Response).where(is_running()))
    unsent = session.scalar(
        select(func.count()).where(Outbox.created_at <= clock.now() - outbox.UNSENT_SECONDS)
    )
    return Backlog(queued, max(0.0, oldest or 0.0), running or 0, unsent or 0)


def load(session: Session) -> Load:
    """Measure the queue. It counts every waiting job, so callers keep the answer for a moment."""
    queued = session.scalar(select(func.count()).select_from(Response).where(is_queued())) or 0
    ended = session.scalar(
        select(func.count()).where(Response.completed_at > clock.now() - PACE_SECONDS, Response.attempt > 0)
    )
    return Load(queued, (ended or 0) / PACE_SECONDS)
