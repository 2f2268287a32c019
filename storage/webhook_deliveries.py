"""Deliveries as their project sees them: listed, looked into, sent again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from storage import clock, outbox, paging, webhook_endpoints, webhook_receivers
from storage.database import Database
from storage.errors import Conflict, NotFound
from storage.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookEvent

# Rows of one transaction of `recover`: a few milliseconds, so that tries are recorded in between.
RECOVER_BATCH = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which deliveries a list shows; None leaves a thing open."""

    endpoint_id: str | None = None
    status: str | None = None
    event_type: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery with the event it carries."""

    row: WebhookDelivery
    event: WebhookEvent


def get(session: Session, project_id: str, delivery_id: str) -> Delivery:
    """Return the delivery.

    Raises:
        NotFound: there is none in this project.
    """
    found = session.execute(_joined(project_id).where(WebhookDelivery.id == delivery_id)).one_or_none()
    if found is None:
        raise NotFound("webhook delivery", delivery_id)
    row, event = found
    return Delivery(row, event)


def list_page(
    session: Session, project_id: str, wanted: Wanted, *, limit: int, after: str | None, newest_first: bool
) -> list[Delivery]:
    """Return up to `limit` deliveries of the project, beginning behind `after`.

    Raises:
        NotFound: `after` is not a delivery of this project, or the wanted endpoint not one of its endpoints.
    """
    query = _joined(project_id)
    if wanted.endpoint_id is not None:
        webhook_endpoints.get(session, project_id, wanted.endpoint_id)
        query = query.where(WebhookDelivery.endpoint_id == wanted.endpoint_id)
    if wanted.status is not None:
        query = query.where(WebhookDelivery.status == wanted.status)
    if wanted.event_type is not None:
        query = query.where(WebhookEvent.type == wanted.event_type)
    if wanted.subject is not None:
        query = query.where(WebhookEvent.subject == wanted.subject)
    cursor = None if after is None else get(session, project_id, after).row
    query = paging.page(
        query,
        WebhookDelivery.created_at,
        WebhookDelivery.id,
        cursor=cursor,
        limit=limit,
        newest_first=newest_first,
    )
    return [Delivery(row, event) for row, event in session.execute(query)]


def attempts(session: Session, delivery: Delivery) -> Sequence[WebhookAttempt]:
    """Return the delivery's tries in order; one that is under way is not among them."""
    return session.scalars(
        select(WebhookAttempt)
        .where(WebhookAttempt.delivery_id == delivery.row.id)
        .order_by(WebhookAttempt.number)
    ).all()


def replay(session: Session, project_id: str, delivery_id: str) -> Delivery:
    """Send an event to its receiver once more, under the same webhook-id; the retry schedule begins anew.

    A delivery that is due or under way stays as it is, so that asking twice sends once.

    Raises:
        NotFound: there is none in this project.
        Conflict: its endpoint is switched off or deleted.
    """
    delivery = get(session, project_id, delivery_id)
    row = delivery.row
    session.refresh(row, with_for_update=True)
    if row.endpoint_id is not None:
        _require_enabled(session.get_one(WebhookEndpoint, row.endpoint_id))
    moment = clock.read(session)
    if row.status != "pending" or _put_off(row, moment):
        _again(row, moment)
        row.knocked_at = moment
        session.flush()
        outbox.add(session, "webhooks", row.id)
    return delivery


def recover(database: Database, project_id: str, endpoint_id: str, since: float) -> int:
    """Send every event since `since` that the endpoint has not taken; return how many are on their way.

    Works through the backlog in transactions of its own, RECOVER_BATCH deliveries each. What it finds joins the
    receiver's line (`webhook_receivers`), so that no flood of messages comes of it. May be repeated.

    Raises:
        NotFound: there is no such endpoint in this project.
        Conflict: it is switched off.
    """
    count = 0
    behind = (since, "")
    with database.read() as session:
        until = clock.read(session)
    while True:
        with database.begin() as session:
            endpoint = webhook_endpoints.get(session, project_id, endpoint_id)
            # Before its deliveries, as everybody locks them who locks several.
            session.refresh(endpoint, with_for_update=True)
            _require_enabled(endpoint)
            moment = clock.read(session)
            found = session.scalars(_undelivered(endpoint, behind, until, moment)).all()
            for row in found:
                _again(row, moment)
                row.waiting = True
            session.flush()
            webhook_receivers.announce(session, endpoint.id, 1)
        count += len(found)
        if len(found) < RECOVER_BATCH:
            return count
        behind = (found[-1].created_at, found[-1].id)


def _joined(project_id: str) -> Select[WebhookDelivery, WebhookEvent]:
    return (
        select(WebhookDelivery, WebhookEvent)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.project_id == project_id)
    )


def _undelivered(
    endpoint: WebhookEndpoint, behind: tuple[float, str], until: float, moment: float
) -> Select[WebhookDelivery]:
    created, key = WebhookDelivery.created_at, WebhookDelivery.id
    put_off = (WebhookDelivery.status == "pending") & (WebhookDelivery.next_attempt_at > moment)
    return (
        select(WebhookDelivery)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(
            WebhookDelivery.endpoint_id == endpoint.id,
            WebhookEvent.subject != endpoint.id,  # a test event tells of nothing
            or_(created > behind[0], (created == behind[0]) & (key > behind[1])),
            created <= until,
            or_(WebhookDelivery.status == "failed", put_off),
        )
        .order_by(created, key)
        .limit(RECOVER_BATCH)
        .with_for_update(of=WebhookDelivery)
    )


def _put_off(row: WebhookDelivery, moment: float) -> bool:
    return row.lease_expires_at is None and (row.next_attempt_at or moment) > moment


def _again(row: WebhookDelivery, moment: float) -> None:
    row.status, row.failure, row.finished_at = "pending", None, None
    row.next_attempt_at, row.replayed_after = moment, row.attempts


def _require_enabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.deleted_at is not None:
        raise Conflict(f"Webhook endpoint '{endpoint.id}' was deleted, so nothing is sent to it.")
    if not endpoint.enabled:
        raise Conflict(
            f"Webhook endpoint '{endpoint.id}' is switched off ({endpoint.disabled_reason}). "
            'Update it with "enabled": true first.'
        )
