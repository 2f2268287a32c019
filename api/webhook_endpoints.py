"""/v1/webhook_endpoints: where a project's events go, and which events there are."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from api import objects, pages, receivers, route
from api.errors import BadRequest, Refused, Unavailable
from api.schemas import CreateEndpoint, Page, Recover, RotateSecret, TestEndpoint, UpdateEndpoint
from api.services import Held, Project, Services
from storage import webhook_deliveries, webhook_endpoints, webhook_secret, webhooks
from storage.models import WebhookAttempt

routes = route.router("webhooks")

# A try has 15 seconds; the rest is for the way to the worker.
TEST_SECONDS = 20.0
TEST_POLL_SECONDS = 0.2


@routes.get("/webhook_event_types")
async def event_types() -> JSONResponse:
    """List the events that the service sends."""
    return JSONResponse({"object": "list", "data": [*webhooks.RESPONSE_EVENTS, *webhooks.BATCH_EVENTS]})


@routes.post("/webhook_endpoints")
async def create(services: Held, project_id: Project, body: CreateEndpoint) -> JSONResponse:
    """Register an endpoint. Its signing secret is in this answer and in no other."""
    await receivers.check(body.url, "url", services)
    secret = webhook_secret.new_secret()

    def store() -> dict[str, object]:
        with services.database.begin() as session:
            row = webhook_endpoints.create(
                session,
                project_id,
                name=body.name,
                url=body.url,
                event_types=body.event_types,
                secret=services.secrets.seal(secret),
            )
        return objects.endpoint(row, services.secrets)

    return JSONResponse({**await run_in_threadpool(store), "signing_secret": secret})


@routes.get("/webhook_endpoints")
def list_endpoints(services: Held, project_id: Project, query: Annotated[Page, Query()]) -> JSONResponse:
    """List the project's endpoints."""
    with services.database.read() as session:
        rows = webhook_endpoints.list_page(
            session, project_id, limit=query.limit + 1, after=query.after, newest_first=query.order == "desc"
        )
    shown = [objects.endpoint(row, services.secrets) for row in rows]
    return JSONResponse(pages.page(shown, query.limit))


@routes.get("/webhook_endpoints/{endpoint_id}")
def retrieve(services: Held, project_id: Project, endpoint_id: str) -> JSONResponse:
    """Show an endpoint."""
    with services.database.read() as session:
        row = webhook_endpoints.get(session, project_id, endpoint_id)
    return JSONResponse(objects.endpoint(row, services.secrets))


@routes.post("/webhook_endpoints/{endpoint_id}")
async def update(services: Held, project_id: Project, endpoint_id: str, body: UpdateEndpoint) -> JSONResponse:
    """Change what is given; `"enabled": true` (an extension) switches a failed endpoint on again."""
    if body.url is not None:
        await receivers.check(body.url, "url", services)

    def store() -> dict[str, object]:
        with services.database.begin() as session:
            row = webhook_endpoints.change(session, project_id, endpoint_id, **body.model_dump())
        return objects.endpoint(row, services.secrets)

    return JSONResponse(await run_in_threadpool(store))


@routes.delete("/webhook_endpoints/{endpoint_id}")
def delete(services: Held, project_id: Project, endpoint_id: str) -> JSONResponse:
    """Delete an endpoint; what was on its way to it is not sent any more."""
    with services.database.begin() as session:
        webhook_endpoints.delete_endpoint(session, project_id, endpoint_id)
    return JSONResponse({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@routes.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    services: Held, project_id: Project, endpoint_id: str, body: RotateSecret | None = None
) -> JSONResponse:
    """Sign with a new secret from now on, and for a day with the old one too when asked."""
    secret = webhook_secret.new_secret()
    keep_old = body is not None and bool(body.keep_old_secret_active_for_24_hours)
    with services.database.begin() as session:
        row = webhook_endpoints.rotate_secret(
            session, project_id, endpoint_id, secret=services.secrets.seal(secret), keep_old=keep_old
        )
    return JSONResponse({**objects.endpoint(row, services.secrets), "signing_secret": secret})


@routes.post("/webhook_endpoints/{endpoint_id}/recover")
def recover(services: Held, project_id: Project, endpoint_id: str, body: Recover) -> JSONResponse:
    """Send every event since a time that the endpoint has not taken. An extension."""
    count = webhook_deliveries.recover(services.database, project_id, endpoint_id, body.since)
    return JSONResponse(
        {
            "object": "webhook_endpoint.recovery",
            "webhook_endpoint_id": endpoint_id,
            "since": body.since,
            "count": count,
        }
    )


@routes.post("/webhook_endpoints/{endpoint_id}/test")
async def test(services: Held, project_id: Project, endpoint_id: str, body: TestEndpoint) -> JSONResponse:
    """Send a sample event through the webhook worker and show what the endpoint said to it."""
    event_id = await run_in_threadpool(_send_test, services, project_id, endpoint_id, body.event_type)
    attempt = await _first_try(services, event_id)
    if attempt is None:
        raise Unavailable(
            f"No webhook worker has sent the test within {TEST_SECONDS:.0f} seconds. It stays in the queue.",
            code="webhook_not_sent",
            retry_after=None,
        )
    if attempt.status_code is None:
        raise BadRequest(f"The endpoint could not be reached: {attempt.error}.", code="webhook_unreachable")
    return JSONResponse(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": endpoint_id,
            "event_type": body.event_type,
            "status_code": attempt.status_code,
            "success": True,
        }
    )


def _send_test(services: Services, project_id: str, endpoint_id: str, event_type: str) -> str:
    with services.database.begin() as session:
        row = webhook_endpoints.get(session, project_id, endpoint_id)
        if not row.enabled:
            raise Refused(
                f"Webhook endpoint '{endpoint_id}' is switched off ({row.disabled_reason}). "
                'Update it with "enabled": true first.'
            )
        return str(webhooks.send_test(session, row, event_type).id)


async def _first_try(services: Services, event_id: str) -> WebhookAttempt | None:
    def look() -> WebhookAttempt | None:
        with services.database.read() as session:
            return webhooks.first_try(session, event_id)

    try:
        async with asyncio.timeout(TEST_SECONDS):
            while (attempt := await run_in_threadpool(look)) is None:
                await asyncio.sleep(TEST_POLL_SECONDS)
            return attempt
    except TimeoutError:
        return None
