"""Cursor pages over (created_at, id), the order of every top-level list of the API."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import InstrumentedAttribute


class Listed(Protocol):
    """What a row needs to be paged over."""

    id: Any
    created_at: Any


Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


def page(
    query: Query,
    created: InstrumentedAttribute[float],
    key: InstrumentedAttribute[str],
    *,
    cursor: Listed | None,
    limit: int,
    newest_first: bool,
) -> Query:
    """Return `query` narrowed to the `limit` rows behind `cursor`, in order."""
    if cursor is not None:
        if newest_first:
            behind = or_(created < cursor.created_at, and_(created == cursor.created_at, key < cursor.id))
        else:
            behind = or_(created > cursor.created_at, and_(created == cursor.created_at, key > cursor.id))
        query = query.where(behind)
    order = (created.desc(), key.desc()) if newest_first else (created.asc(), key.asc())
    return query.order_by(*order).limit(limit)
