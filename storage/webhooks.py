"""Webhook events: written with the change they tell of, with a delivery for each receiver.

`emit` runs inside the transaction that ends a response. The deliveries' tries are `storage.webhook_tries`.
"""

from __future__ import annotations

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import clock, ids, outbox, webhook_receivers
from storage.batch_models import Batch
from storage.models import (
    Json,
    Response,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)
from storage.webhook_endpoints import SWITCHED_OFF

# What the SDK's types know of the end of a response, and of a batch; another type would be parsed as some other class.
RESPONSE_EVENTS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
BATCH_EVENTS = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


def emit(session: Session, response: Response) -> None:
    """Store the event of a response's end and one delivery for each receiver it has."""
    event_type = f"response.{response.status}"
    receivers = _receivers(session, response, event_type)
    if not receivers:
        return
    event = _event(session, response.project_id, event_type, response.id)
    event.body = _body(event, response)
    session.add(event)
    session.flush()
    for receiver in receivers:
        _schedule(session, event, receiver)


def emit_batch(session: Session, batch: Batch) -> None:
    """Store the event of a batch's end and one delivery for each endpoint of its project that wants it."""
    event_type = f"batch.{batch.status}"
    receivers = _endpoints(session, batch.project_id, event_type)
    if not receivers:
        return
    event = _event(session, batch.project_id, event_type, batch.id)
    data: Json = {
        "id": batch.id,
        "status": batch.status,
        "metadata": batch.meta,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
    }
    event.body = _envelope(event, data)
    session.add(event)
    session.flush()
    for receiver in receivers:
        _schedule(session, event, receiver)


def send_test(session: Session, endpoint: WebhookEndpoint, event_type: str) -> WebhookEvent:
    """Send an endpoint an event of `event_type` about a response, or a batch, that does not exist."""
    event = _event(session, endpoint.project_id, event_type, endpoint.id)
    subject = ids.new("batch" if event_type in BATCH_EVENTS else "resp")
    event.body = _envelope(event, {"id": subject, "test": True})
    session.add(event)
    session.flush()
    _schedule(session, event, _to_endpoint(endpoint))
    return event


def first_try(session: Session, event_id: str) -> WebhookAttempt | None:
    """Return the first recorded try of an event that has one receiver, or None while there is none."""
    return session.scalar(
        select(WebhookAttempt)
        .join(WebhookDelivery, WebhookDelivery.id == WebhookAttempt.delivery_id)
        .where(WebhookDelivery.event_id == event_id)
        .order_by(WebhookAttempt.number)
        .limit(1)
    )


def _receivers(session: Session, response: Response, event_type: str) -> list[WebhookDelivery]:
    wanted = response.webhook or {}
    found = []
    if "url" in wanted and event_type in wanted["events"]:
        receiver = webhook_receivers.of_url(response.project_id, wanted["url"])
        found.append(
            WebhookDelivery(
                url=wanted["url"], secret=wanted["secret"], receiver=receiver, status="pending", failure=None
            )
        )
    if "endpoint_id" in wanted or response.request.get("background"):
        found += _endpoints(session, response.project_id, event_type, wanted.get("endpoint_id"))
    return found


def _endpoints(
    session: Session, project_id: str, event_type: str, endpoint_id: str | None = None
) -> list[WebhookDelivery]:
    """Return a delivery for each endpoint of the project that wants the event, or for the one named."""
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.project_id == project_id, WebhookEndpoint.deleted_at.is_(None)
    )
    if endpoint_id is not None:
        query = query.where(WebhookEndpoint.id == endpoint_id)
    return [
        _to_endpoint(endpoint) for endpoint in session.scalars(query) if event_type in endpoint.event_types
    ]


def _to_endpoint(endpoint: WebhookEndpoint) -> WebhookDelivery:
    """Return the row of a delivery; for an endpoint that is switched off one that `recover` will find."""
    return WebhookDelivery(
        endpoint_id=endpoint.id,
        receiver=endpoint.id,
        status="pending" if endpoint.enabled else "failed",
        failure=None if endpoint.enabled else SWITCHED_OFF,
    )


def _event(session: Session, project_id: str, event_type: str, subject: str) -> WebhookEvent:
    """Return an event of now, without its body."""
    return WebhookEvent(
        id=ids.new("evt"),
        project_id=project_id,
        type=event_type,
        subject=subject,
        body="",
        created_at=clock.read(session),
    )


def _schedule(session: Session, event: WebhookEvent, delivery: WebhookDelivery) -> None:
    delivery.id = ids.new("whd")
    delivery.event_id, delivery.project_id = event.id, event.project_id
    delivery.knocked_at = delivery.created_at = event.created_at
    if delivery.status == "pending":
        delivery.next_attempt_at = event.created_at
        outbox.add(session, "webhooks", delivery.id)
    else:
        delivery.finished_at = event.created_at
    session.add(delivery)
    session.flush()


def _body(event: WebhookEvent, response: Response) -> str:
    data: Json = {
        "id": response.id,
        "status": response.status,
        "conversation": response.conversation_id,
        "metadata": response.request.get("metadata") or {},
        "attempt": response.attempt,
    }
    if response.usage is not None:
        data["usage"] = response.usage
    if response.error is not None:
        data["error"] = response.error
    return _envelope(event, data)


def _envelope(event: WebhookEvent, data: Json) -> str:
    # Serialised once: these are the bytes that every try signs and sends.
    return json.dumps(
        {
            "id": event.id,
            "object": "event",
            "created_at": int(event.created_at),
            "type": event.type,
            "data": data,
        },
        separators=(",", ":"),
    )
