"""/v1/batches: a file of requests in, a file of answers out. What happens between is `api.batch_driver`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from api import idempotency, objects, pages, route
from api.errors import BadRequest, NoSuchObject
from api.schemas import CreateBatch, NewestPage
from api.services import Held, Project, Services
from storage import batches, files
from storage.errors import NotFound
from storage.models import Json

routes = route.router("batches")


@routes.post("/batches")
async def create(request: Request, services: Held, project_id: Project, body: CreateBatch) -> JSONResponse:
    """Begin a batch. Its lines are validated next; what is wrong with them appears in `errors`."""
    key = await idempotency.key_of(request)
    shown = await run_in_threadpool(_create, services, project_id, body, key)
    services.clerk.wake()
    return JSONResponse(shown)


@routes.get("/batches")
def list_batches(services: Held, project_id: Project, query: Annotated[NewestPage, Query()]) -> JSONResponse:
    """List the project's batches, the newest first."""
    with services.database.read() as session:
        rows = batches.list_page(session, project_id, limit=query.limit + 1, after=query.after)
    return JSONResponse(pages.page([objects.batch(row) for row in rows], query.limit))


@routes.get("/batches/{batch_id}")
def retrieve(services: Held, project_id: Project, batch_id: str) -> JSONResponse:
    """Show a batch as it stands."""
    with services.database.read() as session:
        row = batches.get(session, project_id, batch_id)
    return JSONResponse(objects.batch(row))


@routes.post("/batches/{batch_id}/cancel")
def cancel(services: Held, project_id: Project, batch_id: str) -> JSONResponse:
    """Cancel a batch: answers that are there are kept, and the rest of its lines ends as errors."""
    with services.database.begin() as session:
        row = batches.cancel(session, project_id, batch_id)
    services.clerk.wake()
    return JSONResponse(objects.batch(row))


def _create(services: Services, project_id: str, body: CreateBatch, key: idempotency.Key | None) -> Json:
    def store(session: Session) -> tuple[str, Json]:
        try:
            file = files.get(session, project_id, body.input_file_id, lock=True)
        except NotFound as missing:
            raise NoSuchObject(str(missing), param="input_file_id") from None
        if file.purpose != "batch":
            raise BadRequest(
                f"Invalid 'input_file_id': the purpose of '{file.id}' is '{file.purpose}', not 'batch'.",
                param="input_file_id",
            )
        new = batches.NewBatch(
            endpoint=body.endpoint,
            input_file_id=file.id,
            completion_window=body.completion_window,
            metadata=body.metadata or {},
            output_expires_in=body.output_expires_after.seconds if body.output_expires_after else None,
        )
        row = batches.create(session, project_id, new)
        return row.id, objects.batch(row)

    def load(session: Session, batch_id: str) -> Json:
        return objects.batch(batches.get(session, project_id, batch_id))

    return idempotency.once(services.database, project_id, key, store, load)
