"""/v1/chat/completions: answer a conversation that the request brings along; keep the answer if it says so."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import Query
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api import (
    calls,
    chat_messages,
    chat_objects,
    chat_submission,
    choices,
    idempotency,
    pages,
    receivers,
    route,
    validation,
)
from api.chat_chunks import ChatChunks
from api.chat_schemas import ChatPage, CreateChatCompletion, MessagePage, UpdateChatCompletion
from api.services import Calling, Held, Project
from storage import groups, models
from storage.errors import NotFound
from storage.models import Json

routes = route.router("chat")

OBJECT_OR_CHUNKS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The ChatCompletion object, or its chunks.", "content": {"text/event-stream": {}}}
}
KIND: Final = "chat.completion"
# The form in which the client libraries write a dictionary into a query.
METADATA = re.compile(r"metadata\[(.*)\]")


@routes.post("/chat/completions", responses=OBJECT_OR_CHUNKS)
async def create(
    request: Request, services: Held, caller: Calling, project_id: Project, body: CreateChatCompletion
) -> Response:
    """Answer the last message. Each of `n` answers is a job like a response's, which outlives its worker."""
    if body.tools or body.response_format:  # to compile schemas takes a while
        await run_in_threadpool(chat_submission.check, body, services.settings)
    else:
        chat_submission.check(body, services.settings)
    key = await idempotency.key_of(request)
    await services.limits.charge(request, caller, chat_submission.cost(body))
    webhook = await receivers.read(body.webhook, services)
    new = chat_submission.jobs(body, webhook, services.settings)
    call = await run_in_threadpool(calls.accept, services, project_id, new, key, "messages")
    request.state.response_id = call.ids[0]
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return call.stream(ChatChunks(call.ids[0], include_usage=usage, logprobs=bool(body.logprobs)))
    answered = await call.wait(request)
    if isinstance(answered, Response):
        return answered
    return JSONResponse(chat_objects.completion(answered))


@routes.get("/chat/completions")
def list_stored(request: Request, services: Held, project_id: Project) -> JSONResponse:
    """List the project's stored chat completions."""
    query = _query(request)
    metadata = query.metadata or {}
    if query.model not in (None, services.settings.model_name):
        return JSONResponse(pages.page([], query.limit))
    with services.database.read() as session:
        found = groups.list_page(
            session,
            project_id,
            KIND,
            metadata=metadata,
            limit=query.limit + 1,
            after=query.after,
            newest_first=query.order == "desc",
        )
        shown = [_show(session, rows) for rows in found]
    return JSONResponse(pages.page(shown, query.limit))


@routes.get("/chat/completions/{completion_id}")
def retrieve(services: Held, project_id: Project, completion_id: str) -> JSONResponse:
    """Show a stored chat completion."""
    with services.database.read() as session:
        return JSONResponse(_show(session, groups.stored(session, project_id, KIND, completion_id)))


@routes.post("/chat/completions/{completion_id}")
def update(
    services: Held, project_id: Project, completion_id: str, body: UpdateChatCompletion
) -> JSONResponse:
    """Replace the metadata of a stored chat completion."""
    with services.database.begin() as session:
        rows = groups.stored(session, project_id, KIND, completion_id)
        groups.set_metadata(session, rows, body.metadata or {})
        return JSONResponse(_show(session, rows))


@routes.delete("/chat/completions/{completion_id}")
def delete(services: Held, project_id: Project, completion_id: str) -> JSONResponse:
    """Delete a stored chat completion, with its messages."""
    with services.database.begin() as session:
        groups.delete_group(session, groups.stored(session, project_id, KIND, completion_id))
    return JSONResponse({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})


@routes.get("/chat/completions/{completion_id}/messages")
def list_messages(
    services: Held, project_id: Project, completion_id: str, query: Annotated[MessagePage, Query()]
) -> JSONResponse:
    """List the messages that a stored chat completion answered."""
    with services.database.read() as session:
        groups.stored(session, project_id, KIND, completion_id)
        items = groups.input_items(session, completion_id)
    if query.order == "desc":
        items.reverse()
    if query.after is not None:
        places = [place for place, item in enumerate(items) if item.id == query.after]
        if not places:
            raise NotFound("message", query.after)
        items = items[places[0] + 1 :]
    return JSONResponse(
        pages.page([chat_messages.shown(item) for item in items[: query.limit + 1]], query.limit)
    )


def _show(session: Session, rows: list[models.Response]) -> Json:
    return chat_objects.completion(choices.load(session, rows, "messages"))


def _query(request: Request) -> ChatPage:
    given: Json = {}
    for name, value in request.query_params.multi_items():
        found = METADATA.fullmatch(name)
        if found:
            given.setdefault("metadata", {})[found[1]] = value
        else:
            given[name] = value
    return validation.read(ChatPage, given)
