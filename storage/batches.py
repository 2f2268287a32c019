"""Batches as their owners see them: made, shown, cancelled. What becomes of them is `storage.batch_work`.

validating ─▶ in_progress ─▶ finalizing ─▶ completed | expired
    │  └─▶ failed  │
    └──────────────┴─▶ cancelling ─▶ cancelled
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import clock, ids, paging
from storage.batch_models import Batch
from storage.errors import Conflict, NotFound
from storage.models import Json

WINDOW_SECONDS = {"24h": 24 * 3600.0}
# While their lines may still become jobs.
CANCELLABLE = ("validating", "in_progress")
NO_USAGE: Json = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What the API hands over, already validated; the file exists in the project."""

    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: Json
    output_expires_in: float | None


def create(session: Session, project_id: str, new: NewBatch) -> Batch:
    """Store a batch that is to be validated."""
    moment = clock.read(session)
    batch = Batch(
        id=ids.new("batch"),
        project_id=project_id,
        endpoint=new.endpoint,
        input_file_id=new.input_file_id,
        completion_window=new.completion_window,
        meta=new.metadata,
        output_expires_in=new.output_expires_in,
        status="validating",
        errors=[],
        usage=NO_USAGE,
        created_at=moment,
        due_at=moment,
        expires_at=moment + WINDOW_SECONDS[new.completion_window],
    )
    session.add(batch)
    session.flush()
    return batch


def get(session: Session, project_id: str, batch_id: str) -> Batch:
    """Return the batch.

    Raises:
        NotFound: there is none in this project.
    """
    batch = session.scalar(select(Batch).where(Batch.id == batch_id, Batch.project_id == project_id))
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


def list_page(session: Session, project_id: str, *, limit: int, after: str | None) -> list[Batch]:
    """Return up to `limit` batches of the project, the newest first, beginning behind `after`.

    Raises:
        NotFound: `after` is not a batch of this project.
    """
    query = select(Batch).where(Batch.project_id == project_id)
    cursor = None if after is None else get(session, project_id, after)
    query = paging.page(query, Batch.created_at, Batch.id, cursor=cursor, limit=limit, newest_first=True)
    return list(session.scalars(query))


def cancel(session: Session, project_id: str, batch_id: str) -> Batch:
    """Ask for the batch's end: no more of its lines become jobs, and those that are jobs are cancelled.

    One that is being cancelled, or was, comes back as it is.

    Raises:
        NotFound: there is none in this project.
        Conflict: it has come to another end, or is about to.
    """
    batch = get(session, project_id, batch_id)
    asked = session.scalar(
        update(Batch)
        .where(Batch.id == batch.id, Batch.status.in_(CANCELLABLE))
        .values(
            status="cancelling",
            ending="cancelled",
            cancelling_at=clock.now(),
            due_at=clock.now(),
            attempt=Batch.attempt + 1,  # whoever works on it now changes nothing any more
        )
        .returning(Batch)
        .execution_options(populate_existing=True)
    )
    if asked is not None:
        return asked
    session.refresh(batch)
    if batch.ending != "cancelled":
        raise Conflict(f"Batch '{batch_id}' is {batch.status}, so it can no longer be cancelled.")
    return batch
