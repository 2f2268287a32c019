"""/v1/conversations and their items."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from api import idempotency, objects, pages, route
from api.schemas import AddItems, CreateConversation, Page, Retrieve, UpdateConversation
from api.services import Held, Project, Services
from storage import conversations
from storage.models import Json

routes = route.router("conversations")


@routes.post("/conversations")
async def create(
    request: Request, services: Held, project_id: Project, body: CreateConversation
) -> JSONResponse:
    """Begin a conversation, with up to 20 items."""
    key = await idempotency.key_of(request)
    return JSONResponse(await run_in_threadpool(_create, services, project_id, body, key))


@routes.get("/conversations")
def list_conversations(services: Held, project_id: Project, query: Annotated[Page, Query()]) -> JSONResponse:
    """List the project's conversations (an extension)."""
    with services.database.read() as session:
        rows = conversations.list_page(
            session, project_id, limit=query.limit + 1, after=query.after, newest_first=query.order == "desc"
        )
    return JSONResponse(pages.page([objects.conversation(row) for row in rows], query.limit))


@routes.get("/conversations/{conversation_id}")
def retrieve(services: Held, project_id: Project, conversation_id: str) -> JSONResponse:
    """Show a conversation, without its items."""
    with services.database.read() as session:
        row = conversations.get(session, project_id, conversation_id)
    return JSONResponse(objects.conversation(row))


@routes.post("/conversations/{conversation_id}")
def update(
    services: Held, project_id: Project, conversation_id: str, body: UpdateConversation
) -> JSONResponse:
    """Replace the metadata."""
    with services.database.begin() as session:
        row = conversations.set_metadata(session, project_id, conversation_id, body.metadata or {})
    return JSONResponse(objects.conversation(row))


@routes.delete("/conversations/{conversation_id}")
def delete(services: Held, project_id: Project, conversation_id: str) -> JSONResponse:
    """Delete a conversation; the responses that were part of it keep their items."""
    with services.database.begin() as session:
        conversations.delete_conversation(session, project_id, conversation_id)
    return JSONResponse({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@routes.post("/conversations/{conversation_id}/items")
def add_items(
    services: Held,
    project_id: Project,
    conversation_id: str,
    body: AddItems,
    _query: Annotated[Retrieve, Query()],
) -> JSONResponse:
    """Append up to 20 items."""
    with services.database.begin() as session:
        rows = conversations.add_items(session, project_id, conversation_id, body.items)
    return JSONResponse(pages.page([objects.item(row) for row in rows], len(rows)))


@routes.get("/conversations/{conversation_id}/items")
def list_items(
    services: Held, project_id: Project, conversation_id: str, query: Annotated[Page, Query()]
) -> JSONResponse:
    """List the items, newest first unless asked otherwise."""
    with services.database.read() as session:
        rows = conversations.list_items(
            session,
            project_id,
            conversation_id,
            limit=query.limit + 1,
            after=query.after,
            newest_first=query.order == "desc",
        )
    return JSONResponse(pages.page([objects.item(row) for row in rows], query.limit))


@routes.get("/conversations/{conversation_id}/items/{item_id}")
def retrieve_item(
    services: Held,
    project_id: Project,
    conversation_id: str,
    item_id: str,
    _query: Annotated[Retrieve, Query()],
) -> JSONResponse:
    """Show one item."""
    with services.database.read() as session:
        row = conversations.get_item(session, project_id, conversation_id, item_id)
    return JSONResponse(objects.item(row))


@routes.delete("/conversations/{conversation_id}/items/{item_id}")
def delete_item(services: Held, project_id: Project, conversation_id: str, item_id: str) -> JSONResponse:
    """Take one item out and show the conversation."""
    with services.database.begin() as session:
        row = conversations.delete_item(session, project_id, conversation_id, item_id)
    return JSONResponse(objects.conversation(row))


def _create(
    services: Services, project_id: str, body: CreateConversation, key: idempotency.Key | None
) -> Json:
    def store(session: Session) -> tuple[str, Json]:
        row = conversations.create(session, project_id, metadata=body.metadata or {}, items=body.items or [])
        return row.id, objects.conversation(row)

    def load(session: Session, conversation_id: str) -> Json:
        return objects.conversation(conversations.get(session, project_id, conversation_id))

    return idempotency.once(services.database, project_id, key, store, load)
