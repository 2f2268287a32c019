"""Files of a project: what SQL knows of them. Their bytes are in `storage.blobs`, under their ids."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from storage import clock, paging
from storage.batch_models import Batch
from storage.database import changed
from storage.errors import Conflict, NotFound
from storage.models import File


def add(
    session: Session,
    project_id: str,
    *,
    file_id: str,
    purpose: str,
    filename: str,
    size: int,
    sha256: str,
    expires_in: float | None,
) -> File:
    """Store a file whose bytes are kept already. It is there for `expires_in` seconds, None for ever."""
    moment = clock.read(session)
    file = File(
        id=file_id,
        project_id=project_id,
        purpose=purpose,
        filename=filename,
        size=size,
        sha256=sha256,
        created_at=moment,
        expires_at=None if expires_in is None else moment + expires_in,
    )
    session.add(file)
    session.flush()
    return file


def get(session: Session, project_id: str, file_id: str, *, lock: bool = False) -> File:
    """Return the file; with `lock` nobody deletes it before the transaction ends.

    Raises:
        NotFound: there is none in this project, or its time is over.
    """
    query = select(File).where(File.id == file_id, File.project_id == project_id, _exists())
    file = session.scalar(query.with_for_update() if lock else query)
    if file is None:
        raise NotFound("file", file_id)
    return file


def list_page(
    session: Session,
    project_id: str,
    *,
    purpose: str | None,
    limit: int,
    after: str | None,
    newest_first: bool,
) -> list[File]:
    """Return up to `limit` files of the project, beginning behind `after`; of one purpose, or of all.

    Raises:
        NotFound: `after` is not a file of this project.
    """
    query = select(File).where(File.project_id == project_id, _exists())
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    cursor = None if after is None else get(session, project_id, after)
    query = paging.page(
        query, File.created_at, File.id, cursor=cursor, limit=limit, newest_first=newest_first
    )
    return list(session.scalars(query))


def delete_file(session: Session, project_id: str, file_id: str) -> None:
    """Delete a file. Its bytes may be removed once this is committed.

    Raises:
        NotFound: there is none in this project.
        Conflict: an open batch still reads it.
    """
    # Held before it is asked who reads it: whoever makes a batch of it holds it too.
    file = get(session, project_id, file_id, lock=True)
    gone = changed(session, delete(File).where(File.id == file.id, ~in_use()))
    if gone != 1:
        raise Conflict(f"File '{file_id}' is read by a batch. Cancel the batch, or wait for its end.")


def known(session: Session, file_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that a row has, whoever's it is."""
    return set(session.scalars(select(File.id).where(File.id.in_(file_ids))))


def in_use() -> ColumnElement[bool]:
    """Return the condition that an open batch reads the file."""
    return exists().where(Batch.input_file_id == File.id, Batch.due_at.is_not(None))


def _exists() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > clock.now())
