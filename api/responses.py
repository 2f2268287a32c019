"""/v1/responses: accept a job, show it, stream it, wait for its end, cancel it, delete it."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import structlog
from fastapi import Query
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api import (
    gate,
    idempotency,
    limits,
    objects,
    pages,
    receivers,
    route,
    sse,
    streaming,
    submission,
    waiting,
)
from api.errors import BadRequest, Unavailable
from api.schemas import CreateResponse, Page, RetrieveResponse
from api.services import Calling, Held, Project, Services
from storage import cancels, models, responses, stream, terminal, webhook_endpoints
from storage.errors import NotFound
from storage.models import Json

log = structlog.get_logger(__name__)

routes = route.router("responses")

# For the OpenAPI document: the same path answers with an object or with its events.
OBJECT_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The Response object, or its event stream.", "content": {"text/event-stream": {}}}
}


@routes.post("/responses", responses=OBJECT_OR_EVENTS)
async def create(
    request: Request, services: Held, caller: Calling, project_id: Project, body: CreateResponse
) -> Response:
    """Accept a job. In the background it answers at once, otherwise when the job has ended.

    With `stream` the answer is the job's events from the first on, in the background too. A job in the foreground
    belongs to its connection: when the caller goes away it is cancelled, unless an Idempotency-Key lets the caller
    come back for it. A stream that ends because the service restarts cancels nothing.
    """
    if body.tools or body.text:  # to compile schemas takes a while
        await run_in_threadpool(submission.check, body, services.settings)
    else:
        submission.check(body, services.settings)
    patience = waiting.preference(request)
    key = await idempotency.key_of(request)
    await services.limits.charge(request, caller, limits.cost(body))
    webhook = await receivers.read(body.webhook, services)
    new = submission.job(body, webhook, services.settings)
    shown = await run_in_threadpool(_accept, services, project_id, new, key)
    request.state.response_id = shown["id"]
    if body.stream:
        owned = not shown["background"] and key is None
        return _stream(services, project_id, shown["id"], cancel_when_gone=owned)
    if shown["status"] in responses.TERMINAL:  # an Idempotency-Key found a finished one
        return JSONResponse(shown)
    if not shown["background"]:
        return await _in_foreground(request, services, project_id, shown["id"], keep=key is not None)
    if patience is None:
        return JSONResponse(shown)
    await waiting.for_end(request, services.live, [shown["id"]], patience)
    shown = await run_in_threadpool(_load, services, project_id, shown["id"])
    return JSONResponse(shown, headers={"preference-applied": f"wait={patience}"})


@routes.get("/responses")
def list_responses(services: Held, project_id: Project, query: Annotated[Page, Query()]) -> JSONResponse:
    """List the project's responses (an extension)."""
    with services.database.read() as session:
        rows = responses.list_page(
            session, project_id, limit=query.limit + 1, after=query.after, newest_first=query.order == "desc"
        )
        outputs = responses.outputs(session, [row.id for row in rows])
        shown = [objects.response(row, outputs.get(row.id, [])) for row in rows]
    return JSONResponse(pages.page(shown, query.limit))


@routes.get("/responses/{response_id}", responses=OBJECT_OR_EVENTS)
async def retrieve(
    services: Held, project_id: Project, response_id: str, query: Annotated[RetrieveResponse, Query()]
) -> Response:
    """Show a response as it stands, or with `stream` its events, however it was created.

    `starting_after` is the number of the last event that the caller has; what follows is sent, as it comes while the
    response runs. Behind the last event of an ended response there is nothing, and `[DONE]` comes at once; a number
    that a running response has not reached yet is waited for.
    """
    shown = await run_in_threadpool(_load, services, project_id, response_id)
    if not query.stream:
        return JSONResponse(shown)
    number = -1 if query.starting_after is None else query.starting_after
    return _stream(services, project_id, response_id, number)


@routes.get("/responses/{response_id}/input_items")
def input_items(
    services: Held, project_id: Project, response_id: str, query: Annotated[Page, Query()]
) -> JSONResponse:
    """List what the response was given, without its history."""
    with services.database.read() as session:
        responses.get(session, project_id, response_id)
        rows = responses.items(session, response_id, output=False)
    if query.order == "desc":
        rows.reverse()
    if query.after is not None:
        places = [place for place, row in enumerate(rows) if row.id == query.after]
        if not places:
            raise NotFound("item", query.after)
        rows = rows[places[0] + 1 :]
    return JSONResponse(pages.page([objects.item(row) for row in rows[: query.limit + 1]], query.limit))


@routes.post("/responses/{response_id}/cancel")
def cancel(services: Held, project_id: Project, response_id: str) -> JSONResponse:
    """Cancel a background response; a finished one comes back as it is, and a running one ends in a moment."""
    with services.database.read() as session:
        if not responses.get(session, project_id, response_id).request["background"]:
            raise BadRequest(
                f"Response '{response_id}' was not created with \"background\": true, "
                "so it cannot be cancelled: close its connection instead.",
                code="not_background",
            )
    return JSONResponse(_cancel(services, project_id, response_id))


@routes.delete("/responses/{response_id}")
def delete(services: Held, project_id: Project, response_id: str) -> JSONResponse:
    """Delete a finished response, its items and its events."""
    with services.database.begin() as session:
        responses.delete_response(session, project_id, response_id)
    with contextlib.suppress(RedisError):  # what cannot be removed now expires
        stream.forget(services.redis, [response_id])
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def _in_foreground(
    request: Request, services: Services, project_id: str, response_id: str, *, keep: bool
) -> Response:
    outcome = await waiting.for_result(request, services.live, response_id)
    if isinstance(outcome, waiting.Ended):
        if outcome.value is None:
            raise NotFound("response", response_id)
        return JSONResponse(outcome.value)
    if not keep:
        await run_in_threadpool(_cancel, services, project_id, response_id)
    if outcome == "gone":
        return Response(status_code=gate.CLIENT_GONE)
    raise Unavailable("The service is about to restart. Send the request again.", code="restarting")


def _stream(
    services: Services, project_id: str, response_id: str, number: int = -1, *, cancel_when_gone: bool = False
) -> sse.EventStream:
    async def cancel_it() -> None:
        try:
            await run_in_threadpool(_cancel, services, project_id, response_id)
        except (SQLAlchemyError, NotFound) as trouble:  # nobody is left to be told
            log.warning("caller gone, not cancelled", response_id=response_id, cause=type(trouble).__name__)

    events = streaming.read(services.live, response_id, number)
    return sse.EventStream(events, on_gone=cancel_it if cancel_when_gone else None)


def _accept(
    services: Services, project_id: str, new: responses.NewResponse, key: idempotency.Key | None
) -> Json:
    """Store the job, or find the key's; return the object that is shown, or what `create` needs to know of it."""

    def store(session: Session) -> tuple[str, Json]:
        if new.webhook is not None and "endpoint_id" in new.webhook:
            webhook_endpoints.get(session, project_id, new.webhook["endpoint_id"])
        services.pressure.admit(session)
        row = responses.accept(session, project_id, new)
        if new.request["background"]:
            return row.id, _show(services, session, row)
        # Nobody is shown how it waits.
        return row.id, {"id": row.id, "status": row.status, "background": False}

    def load(session: Session, response_id: str) -> Json:
        return _show(services, session, responses.get(session, project_id, response_id, unstored=True))

    try:
        return idempotency.once(services.database, project_id, key, store, load)
    except NotFound as missing:
        raise submission.missing(missing) from None


def _load(services: Services, project_id: str, response_id: str) -> Json:
    with services.database.read() as session:
        return _show(services, session, responses.get(session, project_id, response_id))


def _cancel(services: Services, project_id: str, response_id: str) -> Json:
    with services.database.begin() as session:
        row = terminal.cancel(session, responses.get(session, project_id, response_id, unstored=True))
        shown = _show(services, session, row)
    cancels.tell(services.redis, row)
    return shown


def _show(services: Services, session: Session, row: models.Response) -> Json:
    output = responses.items(session, row.id, output=True) if row.status in responses.TERMINAL else []
    waiting_at = services.pressure.place(session, row) if row.status == "queued" else None
    return objects.response(row, output, waiting_at)
