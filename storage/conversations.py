"""Conversations and their items.

A conversation's row is the lock that orders its turns and its items: whoever takes a number from one of its
counters holds the row until his transaction ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from storage import clock, ids, paging
from storage.database import changed
from storage.errors import NotFound
from storage.models import Conversation, Item, Json


def create(session: Session, project_id: str, *, metadata: Json, items: Sequence[Json]) -> Conversation:
    """Store a new conversation that begins with `items` (bodies, in order)."""
    moment = clock.read(session)
    conversation = Conversation(
        id=ids.new("conv"),
        project_id=project_id,
        meta=metadata,
        created_at=moment,
        used_at=moment,
    )
    session.add(conversation)
    session.flush()
    add_items(session, project_id, conversation.id, items)
    return conversation


def get(session: Session, project_id: str, conversation_id: str) -> Conversation:
    """Return the conversation.

    Raises:
        NotFound: there is none in this project.
    """
    conversation = session.scalar(
        select(Conversation).where(Conversation.id == conversation_id, Conversation.project_id == project_id)
    )
    if conversation is None:
        raise NotFound("conversation", conversation_id)
    return conversation


def list_page(
    session: Session, project_id: str, *, limit: int, after: str | None, newest_first: bool
) -> list[Conversation]:
    """Return up to `limit` conversations of the project, beginning behind `after`.

    Raises:
        NotFound: `after` is not a conversation of this project.
    """
    query = select(Conversation).where(Conversation.project_id == project_id)
    cursor = None if after is None else get(session, project_id, after)
    return list(
        session.scalars(
            paging.page(
                query,
                Conversation.created_at,
                Conversation.id,
                cursor=cursor,
                limit=limit,
                newest_first=newest_first,
            )
        )
    )


def set_metadata(session: Session, project_id: str, conversation_id: str, metadata: Json) -> Conversation:
    """Replace the metadata and return the conversation.

    Raises:
        NotFound: there is none in this project.
    """
    conversation = get(session, project_id, conversation_id)
    conversation.meta = metadata
    session.flush()
    return conversation


def delete_conversation(session: Session, project_id: str, conversation_id: str) -> None:
    """Delete a conversation and the items that belong to it alone; its responses keep theirs.

    A turn that is still open finds no conversation when its worker looks for the history, and fails.

    Raises:
        NotFound: there is none in this project.
    """
    gone = changed(
        session,
        delete(Conversation).where(Conversation.id == conversation_id, Conversation.project_id == project_id),
    )
    if gone != 1:
        raise NotFound("conversation", conversation_id)
    in_it = Item.conversation_id == conversation_id
    session.execute(delete(Item).where(in_it, Item.response_id.is_(None)))
    session.execute(update(Item).where(in_it).values(conversation_id=None, position=None))


def next_turn(session: Session, project_id: str, conversation_id: str) -> tuple[int, str | None]:
    """Take the number of the next turn, and return with it the worker of the last one that was answered.

    The row stays locked until the transaction ends.

    Raises:
        NotFound: there is no such conversation in this project.
    """
    found = session.execute(
        update(Conversation)
        .where(Conversation.id == conversation_id, Conversation.project_id == project_id)
        .values(next_turn=Conversation.next_turn + 1, used_at=clock.now())
        .returning(Conversation.next_turn, Conversation.worker)
    ).one_or_none()
    if found is None:
        raise NotFound("conversation", conversation_id)
    return int(found[0]) - 1, found[1]


def take_positions(
    session: Session, conversation_id: str, count: int, worker: str | None = None
) -> int | None:
    """Reserve `count` places at the end; return the first, or None when the conversation is gone.

    Args:
        worker: who has answered the turn whose items they are.
    """
    after = session.scalar(
        update(Conversation)
        .where(Conversation.id == conversation_id)
        .values(
            next_position=Conversation.next_position + count,
            used_at=clock.now(),
            worker=func.coalesce(worker, Conversation.worker),
        )
        .returning(Conversation.next_position)
    )
    return None if after is None else after - count


def add_items(session: Session, project_id: str, conversation_id: str, bodies: Sequence[Json]) -> list[Item]:
    """Append items and return them.

    Raises:
        NotFound: there is no such conversation in this project.
    """
    get(session, project_id, conversation_id)
    first = take_positions(session, conversation_id, len(bodies))
    if first is None:
        raise NotFound("conversation", conversation_id)
    moment = clock.read(session)
    added = [
        Item(
            id=ids.new(ids.ITEMS.get(body["type"], "msg")),
            project_id=project_id,
            conversation_id=conversation_id,
            position=first + offset,
            body=body,
            created_at=moment,
        )
        for offset, body in enumerate(bodies)
    ]
    session.add_all(added)
    session.flush()
    return added


def get_item(session: Session, project_id: str, conversation_id: str, item_id: str) -> Item:
    """Return one item of the conversation.

    Raises:
        NotFound: the conversation, or the item in it, does not exist in this project.
    """
    get(session, project_id, conversation_id)
    item = session.scalar(
        select(Item).where(
            Item.id == item_id, Item.conversation_id == conversation_id, Item.project_id == project_id
        )
    )
    if item is None:
        raise NotFound("item", item_id)
    return item


def list_items(
    session: Session,
    project_id: str,
    conversation_id: str,
    *,
    limit: int,
    after: str | None,
    newest_first: bool,
) -> list[Item]:
    """Return up to `limit` items of the conversation, beginning behind `after`.

    Raises:
        NotFound: the conversation, or `after` in it, does not exist in this project.
    """
    get(session, project_id, conversation_id)
    query = select(Item).where(Item.conversation_id == conversation_id)
    if after is not None:
        cursor = get_item(session, project_id, conversation_id, after).position
        query = query.where(Item.position < cursor if newest_first else Item.position > cursor)
    order = Item.position.desc() if newest_first else Item.position
    return list(session.scalars(query.order_by(order).limit(limit)))


def delete_item(session: Session, project_id: str, conversation_id: str, item_id: str) -> Conversation:
    """Take one item out of the conversation; the response it came from keeps it.

    Raises:
        NotFound: the conversation, or the item in it, does not exist in this project.
    """
    item = get_item(session, project_id, conversation_id, item_id)
    if item.response_id is None:
        session.delete(item)
    else:
        item.conversation_id = item.position = None
    session.flush()
    return get(session, project_id, conversation_id)
