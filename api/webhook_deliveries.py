"""/v1/webhook_deliveries: what was sent to whom, what they said, and sending it again. All of it is an extension."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Query
from starlette.responses import JSONResponse

from api import objects, pages, route
from api.schemas import DeliveryPage, Retrieve
from api.services import Held, Project, Services
from storage import webhook_deliveries
from storage.models import Json
from storage.webhook_deliveries import Wanted

routes = route.router("webhooks")


@routes.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_of_endpoint(
    services: Held, project_id: Project, endpoint_id: str, query: Annotated[DeliveryPage, Query()]
) -> JSONResponse:
    """List what was, or is to be, sent to an endpoint."""
    return JSONResponse(_page(services, project_id, query, endpoint_id))


@routes.get("/webhook_deliveries")
def list_deliveries(
    services: Held, project_id: Project, query: Annotated[DeliveryPage, Query()]
) -> JSONResponse:
    """List the project's deliveries, those to a request's own URL too."""
    return JSONResponse(_page(services, project_id, query, None))


@routes.get("/webhook_deliveries/{delivery_id}")
def retrieve(
    services: Held, project_id: Project, delivery_id: str, _query: Annotated[Retrieve, Query()]
) -> JSONResponse:
    """Show a delivery with the event it carries and every try so far."""
    with services.database.read() as session:
        found = webhook_deliveries.get(session, project_id, delivery_id)
        tries = webhook_deliveries.attempts(session, found)
    return JSONResponse(
        {
            **objects.delivery(found),
            "event": json.loads(found.event.body),
            "attempts": [objects.attempt(one) for one in tries],
        }
    )


@routes.post("/webhook_deliveries/{delivery_id}/replay")
def replay(services: Held, project_id: Project, delivery_id: str) -> JSONResponse:
    """Send it once more under the same webhook-id; while that is pending, asking again changes nothing."""
    with services.database.begin() as session:
        found = webhook_deliveries.replay(session, project_id, delivery_id)
    return JSONResponse(objects.delivery(found))


def _page(services: Services, project_id: str, query: DeliveryPage, endpoint_id: str | None) -> Json:
    wanted = Wanted(endpoint_id, query.status, query.event_type, query.subject)
    with services.database.read() as session:
        found = webhook_deliveries.list_page(
            session,
            project_id,
            wanted,
            limit=query.limit + 1,
            after=query.after,
            newest_first=query.order == "desc",
        )
    return pages.page([objects.delivery(one) for one in found], query.limit)
