"""The answers to one request of Chat Completions or Completions: one response each, the first with the object's id.

A group that is not stored can be found by whoever knows its id from accepting it, and is deleted a day after its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from storage import paging, responses
from storage.errors import NotFound
from storage.models import Item, Json, Response
from storage.responses import Kind, NewResponse

ANSWERED = ("completed", "incomplete")


def accept(session: Session, project_id: str, new: Sequence[NewResponse]) -> list[Response]:
    """Store a job for each answer, in order, as `responses.accept` does; the first has the input items of all."""
    first = responses.accept(session, project_id, new[0])
    return [
        first,
        *(
            responses.accept(session, project_id, each, parent=first, choice=choice)
            for choice, each in enumerate(new[1:], 1)
        ),
    ]


def members(session: Session, project_id: str, group_id: str) -> list[Response]:
    """Return the group's responses in the order of their choices.

    Raises:
        NotFound: it was deleted.
    """
    found = session.scalars(
        select(Response)
        .where(
            or_(Response.id == group_id, Response.parent_id == group_id),
            Response.project_id == project_id,
            Response.kind != "response",
            Response.deleted_at.is_(None),
        )
        .order_by(Response.choice)
    ).all()
    if not found or found[0].id != group_id:
        raise NotFound("chat completion", group_id)
    return list(found)


def stored(session: Session, project_id: str, kind: Kind, group_id: str) -> list[Response]:
    """Return the responses of a stored group whose answers are all there.

    Raises:
        NotFound: there is none of this kind.
    """
    found = members(session, project_id, group_id)
    if found[0].kind != kind or not all(each.stored and each.status in ANSWERED for each in found):
        raise NotFound("chat completion", group_id)
    return found


def list_page(
    session: Session,
    project_id: str,
    kind: Kind,
    *,
    metadata: Mapping[str, str],
    limit: int,
    after: str | None,
    newest_first: bool,
) -> list[list[Response]]:
    """Return up to `limit` stored groups whose metadata has these pairs, beginning behind `after`.

    Raises:
        NotFound: `after` is no stored group of this project.
    """
    other = aliased(Response)
    missing = exists().where(other.parent_id == Response.id, other.status.not_in(ANSWERED))
    query = select(Response).where(
        Response.project_id == project_id,
        Response.kind == kind,
        Response.stored,
        Response.parent_id.is_(None),
        Response.deleted_at.is_(None),
        Response.status.in_(ANSWERED),
        ~missing,
    )
    for key, value in metadata.items():
        query = query.where(Response.request["metadata"][key].as_string() == value)
    cursor = None if after is None else stored(session, project_id, kind, after)[0]
    firsts = session.scalars(
        paging.page(
            query, Response.created_at, Response.id, cursor=cursor, limit=limit, newest_first=newest_first
        )
    ).all()
    found = {first.id: [first] for first in firsts}
    others = select(Response).where(Response.parent_id.in_(list(found)), Response.deleted_at.is_(None))
    for each in session.scalars(others.order_by(Response.choice)):
        found[str(each.parent_id)].append(each)
    return list(found.values())


def set_metadata(session: Session, group: Sequence[Response], metadata: Json) -> None:
    """Replace the metadata of a group."""
    for each in group:
        request = {**each.request, "metadata": metadata}
        session.execute(update(Response).where(Response.id == each.id).values(request=request))
        session.refresh(each)


def delete_group(session: Session, group: Sequence[Response]) -> None:
    """Delete an ended group with all that it was given and answered."""
    for each in group:
        responses.erase(session, each.id)


def input_items(session: Session, group_id: str) -> list[Item]:
    """Return what the group was given, in order."""
    return responses.items(session, group_id, output=False)
