"""Registered receivers of a project's events. Secrets come in and are kept sealed (`storage.crypto`)."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from storage import clock, ids, paging
from storage.database import changed
from storage.errors import NotFound
from storage.models import WebhookDelivery, WebhookEndpoint

OLD_SECRET_SECONDS = 24 * 3600.0
# Why a delivery was given up, as its page says it.
SWITCHED_OFF = "the endpoint is switched off"
DELETED = "the endpoint was deleted"
GONE = "the receiver answered 410 Gone"


def create(
    session: Session, project_id: str, *, name: str, url: str, event_types: Sequence[str], secret: str
) -> WebhookEndpoint:
    """Store an enabled endpoint. `secret` is sealed."""
    now = clock.read(session)
    endpoint = WebhookEndpoint(
        id=ids.new("wh"),
        project_id=project_id,
        name=name,
        url=url,
        event_types=list(event_types),
        secret=secret,
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get(session: Session, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Return the endpoint.

    Raises:
        NotFound: there is none in this project, or it was deleted.
    """
    endpoint = session.scalar(
        select(WebhookEndpoint).where(
            WebhookEndpoint.id == endpoint_id,
            WebhookEndpoint.project_id == project_id,
            WebhookEndpoint.deleted_at.is_(None),
        )
    )
    if endpoint is None:
        raise NotFound("webhook endpoint", endpoint_id)
    return endpoint


def list_page(
    session: Session, project_id: str, *, limit: int, after: str | None, newest_first: bool
) -> list[WebhookEndpoint]:
    """Return up to `limit` endpoints of the project, beginning behind `after`.

    Raises:
        NotFound: `after` is not an endpoint of this project.
    """
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.project_id == project_id, WebhookEndpoint.deleted_at.is_(None)
    )
    cursor = None if after is None else get(session, project_id, after)
    return list(
        session.scalars(
            paging.page(
                query,
                WebhookEndpoint.created_at,
                WebhookEndpoint.id,
                cursor=cursor,
                limit=limit,
                newest_first=newest_first,
            )
        )
    )


def change(
    session: Session,
    project_id: str,
    endpoint_id: str,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    enabled: bool | None = None,
) -> WebhookEndpoint:
    """Change what is given and return the endpoint; enabling it forgets why it was switched off.

    Raises:
        NotFound: there is none in this project.
    """
    endpoint = get(session, project_id, endpoint_id)
    session.refresh(endpoint, with_for_update=True)
    if name is not None:
        endpoint.name = name
    if url is not None and url != endpoint.url:
        endpoint.url = url
        endpoint.failing_since = None  # what failed was another receiver
    if event_types is not None:
        endpoint.event_types = list(event_types)
    if enabled:
        endpoint.enabled, endpoint.disabled_reason, endpoint.failing_since = True, None, None
    off = enabled is False and endpoint.enabled
    if session.is_modified(endpoint) or off:
        endpoint.updated_at = clock.read(session)
    if off:
        switch_off(session, endpoint, "switched off through the API")
    session.flush()
    return endpoint


def switch_off(session: Session, endpoint: WebhookEndpoint, reason: str) -> None:
    """Send an endpoint nothing more until it is enabled again; the caller holds its row.

    Its pending deliveries fail now, and what happens from now on is kept as failed too: `recover` sends all of
    it once the receiver is well. A try that is under way ends by itself.
    """
    endpoint.enabled, endpoint.disabled_reason, endpoint.failing_since = False, reason, None
    _give_up(session, endpoint.id, SWITCHED_OFF)


def rotate_secret(
    session: Session, project_id: str, endpoint_id: str, *, secret: str, keep_old: bool
) -> WebhookEndpoint:
    """Sign with `secret` (sealed) from now on, and for 24 hours with the old one too when `keep_old`.

    Raises:
        NotFound: there is none in this project.
    """
    endpoint = get(session, project_id, endpoint_id)
    moment = clock.read(session)
    endpoint.previous_secret = endpoint.secret if keep_old else None
    endpoint.previous_secret_expires_at = moment + OLD_SECRET_SECONDS if keep_old else None
    endpoint.secret = secret
    endpoint.updated_at = moment
    session.flush()
    return endpoint


def delete_endpoint(session: Session, project_id: str, endpoint_id: str) -> None:
    """Delete an endpoint; deliveries still on their way to it fail.

    Raises:
        NotFound: there is none in this project.
    """
    gone = changed(
        session,
        update(WebhookEndpoint)
        .where(
            WebhookEndpoint.id == endpoint_id,
            WebhookEndpoint.project_id == project_id,
            WebhookEndpoint.deleted_at.is_(None),
        )
        .values(deleted_at=clock.now(), enabled=False),
    )
    if gone != 1:
        raise NotFound("webhook endpoint", endpoint_id)
    _give_up(session, endpoint_id, DELETED)


def _give_up(session: Session, endpoint_id: str, failure: str) -> None:
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.status == "pending",
            or_(
                WebhookDelivery.lease_expires_at.is_(None),
                WebhookDelivery.lease_expires_at < clock.now(),
            ),
        )
        .values(
            status="failed",
            failure=failure,
            finished_at=clock.now(),
            next_attempt_at=None,
            lease_expires_at=None,
            waiting=False,
        )
        .execution_options(synchronize_session=False)
    )
