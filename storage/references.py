"""Items of a request that are only named, ``{"type": "item_reference", "id"}``: it becomes a copy of what it names."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.errors import NotFound
from storage.models import Item, Json


def resolve(session: Session, project_id: str, bodies: Sequence[Json]) -> list[Json]:
    """Return the bodies with every reference replaced by the body of its item.

    Raises:
        NotFound: this project has no such item, or it was deleted with its response.
    """
    named = [body["id"] for body in bodies if body["type"] == "item_reference"]
    if not named:
        return list(bodies)
    found = {
        item.id: item.body
        for item in session.scalars(select(Item).where(Item.project_id == project_id, Item.id.in_(named)))
    }
    for item_id in named:
        if item_id not in found:
            raise NotFound("item", item_id)
    return [found[body["id"]] if body["type"] == "item_reference" else body for body in bodies]
