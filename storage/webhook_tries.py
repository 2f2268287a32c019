"""The tries of a delivery: claimed with a lease, recorded one by one, announced again until it is over.

A delivery row is its own outbox: it stays pending until a receiver took it or its tries are used up. Of one
receiver no more than a set number of tries run at a time; what is turned away for that waits in SQL, holds no
thread, and is announced by the try that makes room for it. Locks are taken in one order: endpoint, delivery.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from storage import clock, metrics, outbox, webhook_endpoints, webhook_receivers
from storage.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent

KNOCK_AGAIN_SECONDS = 10.0
SWEEP_BATCH = 200
# After this long without one success an endpoint is switched off, and its page says why.
DISABLE_AFTER_SECONDS = 5 * 24 * 3600.0
LOST_TRY = "the worker was lost before it could record what came of this try"


@dataclass(frozen=True, slots=True)
class DeliveryJob:
    """A claimed delivery: everything a try needs. Secrets are sealed; the first signs first."""

    id: str
    number: int  # of this try, from 1
    round: int  # its number in the retry schedule, which a replay begins anew
    event_id: str
    endpoint_id: str | None
    url: str
    body: bytes
    secrets: tuple[str, ...]
    claimed_at: float


@dataclass(frozen=True, slots=True)
class Try:
    """What came of one try. `retry_in` is None when no more shall follow; `gone` is the receiver's 410."""

    delivered: bool
    status_code: int | None
    error: str | None
    excerpt: str
    duration_ms: int
    retry_in: float | None
    gone: bool = False


def claim_delivery(
    session: Session, delivery_id: str, lease_seconds: float, *, limit: int
) -> DeliveryJob | None:
    """Take a delivery that is due, or return None: it is over, not due, held elsewhere, or its receiver is busy.

    Args:
        limit: how many tries of one receiver may run at a time.
    """
    receiver = session.scalar(select(WebhookDelivery.receiver).where(WebhookDelivery.id == delivery_id))
    if receiver is None:
        return None
    webhook_receivers.hold(session, receiver)
    delivery = session.scalar(
        select(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, _due())
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if delivery is None:
        return None
    moment = clock.read(session)
    if delivery.endpoint_id is None:
        url, secrets = str(delivery.url), [delivery.secret]
    else:
        endpoint = session.get_one(WebhookEndpoint, delivery.endpoint_id)
        if not endpoint.enabled:  # since an event that was stored while it was being switched off
            _finish(delivery, moment, webhook_endpoints.SWITCHED_OFF)
            return None
        current = (endpoint.previous_secret_expires_at or 0.0) > moment
        url, secrets = endpoint.url, [endpoint.secret, endpoint.previous_secret if current else None]
    if webhook_receivers.in_flight(session, receiver) >= limit:
        delivery.waiting = True
        return None
    if delivery.lease_expires_at is not None:
        session.add(
            WebhookAttempt(
                delivery_id=delivery.id,
                number=delivery.attempts,
                started_at=delivery.lease_expires_at - lease_seconds,
                duration_ms=round(lease_seconds * 1000),
                error=LOST_TRY,
                excerpt="",
            )
        )
    delivery.attempts += 1
    delivery.lease_expires_at = moment + lease_seconds
    delivery.waiting = False
    event = session.get_one(WebhookEvent, delivery.event_id)
    return DeliveryJob(
        id=delivery.id,
        number=delivery.attempts,
        round=delivery.attempts - delivery.replayed_after,
        event_id=event.id,
        endpoint_id=delivery.endpoint_id,
        url=url,
        body=event.body.encode(),
        secrets=tuple(secret for secret in secrets if secret is not None),
        claimed_at=moment,
    )


def record(session: Session, job: DeliveryJob, outcome: Try) -> None:
    """Store one try and what follows from it for its delivery, its endpoint and whoever waits for its place."""
    endpoint = None
    if job.endpoint_id is not None:
        endpoint = session.get_one(WebhookEndpoint, job.endpoint_id, with_for_update=True)
    delivery = session.get(WebhookDelivery, job.id, with_for_update=True)
    if delivery is None:
        return  # deleted for its age while the try ran
    moment = clock.read(session)
    # Merged, because the next claim may have noted this try as lost already.
    session.merge(
        WebhookAttempt(
            delivery_id=job.id,
            number=job.number,
            started_at=job.claimed_at,
            duration_ms=outcome.duration_ms,
            status_code=outcome.status_code,
            error=outcome.error,
            excerpt=outcome.excerpt,
        )
    )
    # Only the newest try decides; an older one, whose lease had run out, is on record and no more.
    if delivery.attempts == job.number and delivery.status == "pending":
        delivery.lease_expires_at = None
        if outcome.delivered:
            _finish(delivery, moment, None)
        elif outcome.gone:
            _finish(delivery, moment, webhook_endpoints.GONE)
        elif outcome.retry_in is None:
            _finish(delivery, moment, "every try has failed")
        elif endpoint is not None and not endpoint.enabled:
            _finish(delivery, moment, webhook_endpoints.SWITCHED_OFF)
        else:
            delivery.next_attempt_at = moment + outcome.retry_in
    session.flush()
    if endpoint is not None:
        _judge(session, endpoint, outcome, moment)
    webhook_receivers.announce(session, delivery.receiver, 1)
    metrics.on_commit(session, lambda: _count(outcome))


def _count(outcome: Try) -> None:
    metrics.TRIES.labels("delivered" if outcome.delivered else "failed").inc()
    metrics.TRY_SECONDS.observe(outcome.duration_ms / 1000)


def sweep_deliveries(session: Session, *, limit: int) -> int:
    """Announce deliveries that are due and unheard; return how many.

    Those that were turned away are left in line, unless their receiver has room now (fewer than `limit` tries).
    """
    due = session.scalars(
        select(WebhookDelivery.id)
        .where(
            _due(),
            WebhookDelivery.waiting.is_(False),
            or_(
                WebhookDelivery.knocked_at < clock.now() - KNOCK_AGAIN_SECONDS,
                # A retry that has just become due: its last announcement is of the try before.
                WebhookDelivery.knocked_at < WebhookDelivery.next_attempt_at,
            ),
        )
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(SWEEP_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    if due:
        session.execute(
            update(WebhookDelivery).where(WebhookDelivery.id.in_(due)).values(knocked_at=clock.now())
        )
        for delivery_id in due:
            outbox.add(session, "webhooks", delivery_id)
    return len(due) + webhook_receivers.announce_free(session, limit, SWEEP_BATCH)


def _due() -> ColumnElement[bool]:
    return and_(
        WebhookDelivery.status == "pending",
        WebhookDelivery.next_attempt_at <= clock.now(),
        or_(
            WebhookDelivery.lease_expires_at.is_(None),
            WebhookDelivery.lease_expires_at < clock.now(),
        ),
    )


def _finish(delivery: WebhookDelivery, moment: float, failure: str | None) -> None:
    delivery.status = "delivered" if failure is None else "failed"
    delivery.failure = failure
    delivery.finished_at, delivery.next_attempt_at = moment, None
    delivery.lease_expires_at, delivery.waiting = None, False


def _judge(session: Session, endpoint: WebhookEndpoint, outcome: Try, moment: float) -> None:
    if outcome.delivered:
        endpoint.failing_since = None
        return
    endpoint.failing_since = endpoint.failing_since or moment
    if outcome.gone:
        webhook_endpoints.switch_off(session, endpoint, webhook_endpoints.GONE)
    elif moment - endpoint.failing_since > DISABLE_AFTER_SECONDS and endpoint.enabled:
        webhook_endpoints.switch_off(session, endpoint, "every try has failed for five days")
