"""What was said before a turn: the items its prompt is built from, oldest first.

An answer comes with the tokens it was generated as. Its text alone would be cut into others (no model generates only
what its tokenizer would make of the same text), and a worker that has the conversation in its cache would not know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from storage.errors import NotFound
from storage.models import Conversation, Item, Json, OutputChunk, Response

# More than the context window can hold of the shortest turns there are, and a bound on the work of a claim.
MAX_ITEMS = 1000
MAX_CHAIN = 500


@dataclass(frozen=True, slots=True)
class Said:
    """An item as the API shows it; of an answer, the tokens that were generated, where they are known."""

    body: Json
    token_ids: list[int] | None = None


class HistoryGone(Exception):
    """The turn continues something that no longer exists or never succeeded; the message says what."""


def load(session: Session, response: Response) -> list[Said]:
    """Return the stored history followed by the response's own input.

    Raises:
        HistoryGone: the conversation was deleted, or a continued response failed, was cancelled or deleted.
    """
    return [
        *before(session, response.conversation_id, response.previous_response_id),
        *(Said(item.body) for item in _own(session, response.parent_id or response.id, with_output=False)),
    ]


def before(session: Session, conversation_id: str | None, previous_response_id: str | None) -> list[Said]:
    """Return what the next turn of this conversation, or behind this response, has before it.

    Raises:
        HistoryGone: as `load`.
    """
    history: list[Item] = []
    if conversation_id is not None:
        history = _conversation(session, conversation_id)
    elif previous_response_id is not None:
        history = _chain(session, previous_response_id)
    answers = [item.response_id for item in history if item.is_output and item.response_id]
    tokens = _tokens(session, answers) if answers else {}
    return [
        Said(item.body, tokens.get(item.response_id or "") if item.is_output else None) for item in history
    ]


def _tokens(session: Session, response_ids: Sequence[str]) -> dict[str, list[int]]:
    """Return what each of the responses generated."""
    found: dict[str, list[int]] = {}
    query = (
        select(OutputChunk.response_id, OutputChunk.token_ids)
        .where(OutputChunk.response_id.in_(response_ids))
        .order_by(OutputChunk.response_id, OutputChunk.first_index)
    )
    for response_id, token_ids in session.execute(query):
        found.setdefault(response_id, []).extend(token_ids)
    return found


def _conversation(session: Session, conversation_id: str) -> list[Item]:
    if session.get(Conversation, conversation_id) is None:
        raise HistoryGone(str(NotFound("conversation", conversation_id)))
    return _newest(session, select(Item).where(Item.conversation_id == conversation_id))


def _chain(session: Session, response_id: str | None) -> list[Item]:
    turns: list[list[Item]] = []
    while response_id is not None and len(turns) < MAX_CHAIN:
        response = session.get(Response, response_id)
        if response is None or response.deleted_at is not None:
            raise HistoryGone(str(NotFound("response", response_id)))
        if response.status not in ("completed", "incomplete"):
            raise HistoryGone(f"Response '{response_id}' is {response.status}, so nothing can continue it.")
        turns.append(_own(session, response_id, with_output=True))
        if response.conversation_id is not None:
            # It was a turn of a conversation: what it was answered from is what stood before it there.
            turns.append(_before(session, response))
            break
        response_id = response.previous_response_id
    return [item for turn in reversed(turns) for item in turn]


# Built once: every claimed job asks them.
ALL_OF = select(Item).where(Item.response_id == bindparam("response")).order_by(Item.ordinal)
INPUT_OF = ALL_OF.where(Item.is_output.is_(False))


def _own(session: Session, response_id: str, *, with_output: bool) -> list[Item]:
    return list(session.scalars(ALL_OF if with_output else INPUT_OF, {"response": response_id}))


def _before(session: Session, response: Response) -> list[Item]:
    first = session.scalar(
        select(Item.position)
        .where(Item.response_id == response.id, Item.position.is_not(None))
        .order_by(Item.position)
        .limit(1)
    )
    if first is None:
        return []
    earlier = select(Item).where(Item.conversation_id == response.conversation_id, Item.position < first)
    return _newest(session, earlier)


def _newest(session: Session, query: Select[Item]) -> list[Item]:
    """Return the last items of a conversation's, oldest first."""
    return list(reversed(session.scalars(query.order_by(Item.position.desc()).limit(MAX_ITEMS)).all()))
