"""Whom a delivery counts for: its receiver, and how many tries of one receiver run at a time."""

from __future__ import annotations

from urllib.parse import urlsplit

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from storage import clock, outbox
from storage.models import WebhookDelivery


def of_url(project_id: str, url: str) -> str:
    """Return the receiver of a URL that a request carried: its host, for this project alone.

    Not the host for all projects: one project's hanging server would hold up what another sends to the same host.
    """
    return f"{project_id} {urlsplit(url).hostname or url}"


def hold(session: Session, receiver: str) -> None:
    """Keep other claims for `receiver` out until the transaction ends, so that the count below stays true."""
    if session.get_bind().dialect.name == "postgresql":  # a SQLite writer is alone anyway
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": receiver})


def in_flight(session: Session, receiver: str) -> int:
    """Return how many tries of `receiver` are leased now."""
    return (
        session.scalar(
            select(func.count())
            .select_from(WebhookDelivery)
            .where(WebhookDelivery.receiver == receiver, WebhookDelivery.lease_expires_at >= clock.now())
        )
        or 0
    )


def announce(session: Session, receiver: str, places: int) -> int:
    """Announce up to `places` deliveries that were turned away and wait for `receiver`; return how many."""
    waiting = session.scalars(
        select(WebhookDelivery)
        .where(
            WebhookDelivery.waiting,
            WebhookDelivery.receiver == receiver,
            WebhookDelivery.status == "pending",
        )
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.created_at)
        .limit(places)
        .with_for_update(skip_locked=True)
    ).all()
    moment = clock.read(session)
    for delivery in waiting:
        delivery.waiting, delivery.knocked_at = False, moment
        outbox.add(session, "webhooks", delivery.id)
    return len(waiting)


def announce_free(session: Session, limit: int, receivers: int) -> int:
    """Announce what waits for receivers that have room (at most `receivers` of them); return how many.

    A try that ends announces the next one itself. This is for those whose worker never came to the end.
    """
    lines = select(WebhookDelivery.receiver).where(WebhookDelivery.waiting).distinct().subquery()
    leased = (
        select(func.count())
        .select_from(WebhookDelivery)
        .where(WebhookDelivery.receiver == lines.c.receiver, WebhookDelivery.lease_expires_at >= clock.now())
        .scalar_subquery()
    )
    found = session.execute(
        select(lines.c.receiver, leased.label("leased")).where(leased < limit).limit(receivers)
    ).all()
    return sum(announce(session, receiver, limit - count) for receiver, count in found)
