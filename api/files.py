"""/v1/files: what batches read and write. Bytes go to the store first, then the row that makes them a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import structlog
from fastapi import Query
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from api import idempotency, objects, pages, route, uploads, validation
from api.errors import BadRequest, Unavailable
from api.schemas import CreateFile, FilePage
from api.services import Held, Project, Services
from storage import files, ids
from storage.blobs import Draft
from storage.errors import NotFound
from storage.models import Json

log = structlog.get_logger(__name__)

routes = route.router("files")

# As OpenAI has it for files of the purpose `batch`.
EXPIRES_SECONDS = 30 * 86400
PIECE = 2**16
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@routes.post("/files", openapi_extra=FORM)
async def create(request: Request, services: Held, project_id: Project) -> JSONResponse:
    """Keep a file, sent as a multipart form."""
    try:
        draft = await run_in_threadpool(services.blobs.draft, ids.new("file"))
    except OSError as trouble:
        raise _full(trouble) from None
    discard = True
    try:
        form = await uploads.receive(request, draft, services.settings.max_file_bytes)
        asked = _asked(form, draft)
        content = f"{form.filename} {form.fields} {draft.sha256}"
        key = await idempotency.key_of(request, content)
        await run_in_threadpool(draft.finish)
        shown = await run_in_threadpool(_store, services, project_id, form, asked, draft, key)
        discard = shown["id"] != draft.key
        return JSONResponse(shown)
    except OSError as trouble:
        raise _full(trouble) from None
    except SQLAlchemyError:
        discard = (
            False  # whether the row was committed is not known; if it was not, the clerk finds the bytes
        )
        raise
    finally:
        if discard:
            await run_in_threadpool(draft.discard)


@routes.get("/files")
def list_files(services: Held, project_id: Project, query: Annotated[FilePage, Query()]) -> JSONResponse:
    """List the project's files, those that batches have written too."""
    with services.database.read() as session:
        rows = files.list_page(
            session,
            project_id,
            purpose=query.purpose,
            limit=query.limit + 1,
            after=query.after,
            newest_first=query.order == "desc",
        )
    return JSONResponse(pages.page([objects.file(row) for row in rows], query.limit))


@routes.get("/files/{file_id}")
def retrieve(services: Held, project_id: Project, file_id: str) -> JSONResponse:
    """Show what is known of a file."""
    with services.database.read() as session:
        row = files.get(session, project_id, file_id)
    return JSONResponse(objects.file(row))


@routes.get("/files/{file_id}/content", responses={200: {"content": {"application/octet-stream": {}}}})
def content(services: Held, project_id: Project, file_id: str) -> StreamingResponse:
    """Send a file's bytes."""
    with services.database.read() as session:
        row = files.get(session, project_id, file_id)
    try:
        opened = services.blobs.open(row.id)
    except FileNotFoundError:
        # Deleted in this moment, or the folder is another one than the file was written to.
        log.error("a file's bytes are missing", file_id=row.id)
        raise NotFound("file", file_id) from None
    headers = {
        "content-length": str(row.size),
        "content-disposition": f"attachment; filename*=utf-8''{quote(row.filename, safe='')}",
    }
    return StreamingResponse(_pieces(opened), media_type="application/octet-stream", headers=headers)


@routes.delete("/files/{file_id}")
def delete(services: Held, project_id: Project, file_id: str) -> JSONResponse:
    """Delete a file."""
    with services.database.begin() as session:
        files.delete_file(session, project_id, file_id)
    services.blobs.delete(file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _asked(form: uploads.Form, draft: Draft) -> CreateFile:
    fields: dict[str, object] = {}
    expires: dict[str, object] = {}
    for name, value in form.fields.items():
        if name.startswith("expires_after[") and name.endswith("]"):
            expires[name[14:-1]] = int(value) if value.isascii() and value.isdigit() else value
        else:
            fields[name] = value
    asked = validation.read(CreateFile, fields | ({"expires_after": expires} if expires else {}))
    if form.filename is None:
        raise BadRequest(
            "Missing required parameter: 'file'.", param="file", code="missing_required_parameter"
        )
    if draft.size == 0:
        raise BadRequest("Invalid 'file': it is empty.", param="file", code="empty_file")
    return asked


def _store(
    services: Services,
    project_id: str,
    form: uploads.Form,
    asked: CreateFile,
    draft: Draft,
    key: idempotency.Key | None,
) -> Json:
    def store(session: Session) -> tuple[str, Json]:
        row = files.add(
            session,
            project_id,
            file_id=draft.key,
            purpose=asked.purpose,
            filename=form.filename or "",
            size=draft.size,
            sha256=draft.sha256,
            expires_in=asked.expires_after.seconds if asked.expires_after else EXPIRES_SECONDS,
        )
        return row.id, objects.file(row)

    def load(session: Session, file_id: str) -> Json:
        return objects.file(files.get(session, project_id, file_id))

    return idempotency.once(services.database, project_id, key, store, load)


def _pieces(opened: BinaryIO) -> Iterator[bytes]:
    with opened:
        while piece := opened.read(PIECE):
            yield piece


def _full(trouble: OSError) -> Unavailable:
    log.error("the file store failed", cause=str(trouble))
    return Unavailable("The file cannot be stored at the moment.", code="store_unavailable")
