"""Conversations return to the worker that has them in its prefix cache, when it has room.

A job that continues what a worker has answered has that worker as its home. For a moment after it has become ready it
is its home's alone (delay scheduling: M. Zaharia et al., EuroSys 2010); another worker that hears of it calls the home
and waits that moment out. Later, when many wait, a worker takes a job of its own before the head of the queue if it is
little behind it in rank and was accepted not much later. Both are bounded, so nobody starves: a moment is a moment, and
what is accepted from some time on overtakes the head no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis
from sqlalchemy import ColumnElement, String, bindparam, or_, select, update
from sqlalchemy.orm import Session

from storage import clock, queue
from storage.models import Response

# What a home with room needs to hear of a job and claim it, several times over; a fraction of what it saves.
FRESH_SECONDS = 0.05
# In the ranks of `storage.queue`: four jobs of a line of the default tier.
AHEAD = 1.0
AHEAD_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reserved:
    """A job that is its home's alone for so long."""

    home: str
    seconds: float


def open_to(worker: str | ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that this worker may take a job now."""
    return or_(Response.home.is_(None), Response.home == worker, Response.shared_at <= clock.now())


# Built once: every thread that finds nothing to claim asks it.
RESERVED = (
    select(Response.home, Response.shared_at - clock.now())
    .where(
        queue.is_queued(),
        Response.ready,
        Response.available_at <= clock.now(),
        ~open_to(bindparam("worker", type_=String)),
    )
    .order_by(Response.rank)
    .limit(1)
)


def reserved(session: Session, worker: str) -> Reserved | None:
    """Return what another worker is to take before this one may."""
    found = session.execute(RESERVED, {"worker": worker}).one_or_none()
    return None if found is None else Reserved(found[0] or "", found[1] or 0.0)


def forget(session: Session, home: str) -> None:
    """Let anybody take what is reserved for a worker that is gone."""
    session.execute(
        update(Response).where(queue.is_queued(), Response.ready, Response.home == home).values(home=None)
    )


def channel(worker: str) -> str:
    """Return where a worker listens for calls."""
    return f"qwenq:worker:{worker}"


def call(redis: Redis, home: str) -> bool:
    """Tell a worker that there is something for it; return whether it listens.

    Raises:
        redis.exceptions.RedisError: Redis is away.
    """
    return bool(redis.publish(channel(home), "come"))
