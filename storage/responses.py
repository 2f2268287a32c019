"""Accepting, reading and deleting responses. Claims live in `storage.leases`, endings in `storage.terminal`.

queued ─▶ in_progress ─▶ completed | incomplete | failed
   └──────────┴────────▶ cancelled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import Select, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from storage import clock, conversations, homes, ids, metrics, outbox, paging, queue, references, turns
from storage.database import changed
from storage.errors import Conflict, NotFound
from storage.models import Item, Json, OutputChunk, Response
from storage.turns import OPEN

# Built once.
ADD = insert(Response.__table__)  # type: ignore[arg-type]
ADD_ITEM = insert(Item.__table__)  # type: ignore[arg-type]

TERMINAL = ("completed", "incomplete", "failed", "cancelled")

Kind = Literal["response", "chat.completion", "completion"]
PREFIXES: dict[Kind, str] = {"response": "resp", "chat.completion": "chatcmpl", "completion": "cmpl"}


@dataclass(frozen=True, slots=True)
class NewResponse:
    """What the API hands over, already validated.

    `items` are the input items' bodies in order; `request` is everything else the caller asked for;
    `webhook` holds a sealed secret or none. It may wait for `expires_in` seconds and run for `max_run_seconds`.
    One that is not `stored` is deleted a day after its end, and only `storage.groups` finds it.
    """

    request: Json
    items: Sequence[Json]
    seed: int
    max_run_seconds: float
    tier: queue.Tier = "default"
    expires_in: float | None = None
    conversation_id: str | None = None
    previous_response_id: str | None = None
    webhook: Json | None = None
    kind: Kind = "response"
    stored: bool = True


def accept(
    session: Session, project_id: str, new: NewResponse, *, parent: Response | None = None, choice: int = 0
) -> Response:
    """Store a job with its items and the message that announces it, all in the caller's transaction.

    Args:
        parent: the first answer of the same request, whose input this one shares.
        choice: its index among the answers of that request.

    Raises:
        NotFound: the conversation, the previous response or an item that is named does not exist in this project.
        Conflict: the previous response failed or was cancelled, so there is nothing to continue.
    """
    turn, ready, home = None, True, None
    if new.conversation_id is not None:
        # Whoever ends a turn holds the conversation's row too: neither of the two misses the other.
        turn, home = conversations.next_turn(session, project_id, new.conversation_id)
        ready = turns.first_open(session, new.conversation_id) is None
    if new.previous_response_id is not None:
        previous = get(session, project_id, new.previous_response_id, lock=True)
        ready, home = previous.status not in OPEN, previous.worker
        if previous.status in ("failed", "cancelled"):
            raise Conflict(
                f"Response '{previous.id}' is {previous.status}, so no answer can be continued from it. "
                "Continue from an earlier response instead."
            )
    rank, moment = queue.join(session, project_id, new.tier)
    row: dict[str, Any] = {
        "id": ids.new(PREFIXES[new.kind]),
        "project_id": project_id,
        "kind": new.kind,
        "parent_id": None if parent is None else parent.id,
        "choice": choice,
        "stored": new.stored,
        "conversation_id": new.conversation_id,
        "previous_response_id": new.previous_response_id,
        "turn": turn,
        "tier": new.tier,
        "rank": rank,
        "ready": ready,
        "home": home,
        "shared_at": None if home is None else moment + homes.FRESH_SECONDS,
        "request": new.request,
        "webhook": new.webhook,
        "status": "queued",
        "created_at": moment,
        "available_at": moment,
        "expires_at": None if new.expires_in is None else moment + new.expires_in,
        "max_run_seconds": new.max_run_seconds,
        "knocked_at": moment,
        "attempt": 0,
        "failures": 0,
        "message_id": ids.new("msg"),
        "seed": new.seed,
    }
    session.execute(ADD, row)
    response = Response(**row)  # of no session: the unit of work would cost more than the row
    items = [
        {
            "id": ids.new(ids.ITEMS.get(body["type"], "msg")),
            "project_id": project_id,
            "response_id": response.id,
            "is_output": False,
            "ordinal": ordinal,
            "body": body,
            "created_at": moment,
        }
        for ordinal, body in enumerate(references.resolve(session, project_id, new.items))
    ]
    if items:
        session.execute(ADD_ITEM, items)
    if ready:
        outbox.add(session, "generate", response.id)
    metrics.on_commit(session, metrics.ACCEPTED.labels(new.tier).inc)
    return response


def get(
    session: Session, project_id: str, response_id: str, *, lock: bool = False, unstored: bool = False
) -> Response:
    """Return the response; with `lock` nobody else changes it before the transaction ends.

    One that is not stored is found with `unstored` alone: by the request that made it, and by its repetition.

    Raises:
        NotFound: there is none, or it was deleted.
    """
    response = session.scalar(_one(lock, unstored), {"response": response_id, "project": project_id})
    if response is None:
        raise NotFound("response", response_id)
    return response


# Built once: every request asks one of them, and to build it takes longer than to run it.
@cache
def _one(lock: bool, unstored: bool) -> Select[Response]:
    query = select(Response).where(
        Response.id == bindparam("response"),
        Response.project_id == bindparam("project"),
        Response.kind == "response",
        Response.deleted_at.is_(None),
    )
    if not unstored:
        query = query.where(Response.stored)
    return query.with_for_update() if lock else query


def list_page(
    session: Session, project_id: str, *, limit: int, after: str | None, newest_first: bool
) -> list[Response]:
    """Return up to `limit` responses of the project, beginning behind `after`.

    Raises:
        NotFound: `after` is not a response of this project.
    """
    query = select(Response).where(
        Response.project_id == project_id,
        Response.kind == "response",
        Response.stored,
        Response.deleted_at.is_(None),
    )
    cursor = None if after is None else get(session, project_id, after)
    return list(
        session.scalars(
            paging.page(
                query, Response.created_at, Response.id, cursor=cursor, limit=limit, newest_first=newest_first
            )
        )
    )


def items(session: Session, response_id: str, *, output: bool) -> list[Item]:
    """Return the response's input items, or its output items, in order."""
    return list(session.scalars(_items(output), {"response": response_id}))


@cache
def _items(output: bool) -> Select[Item]:
    mine = select(Item).where(Item.response_id == bindparam("response"), Item.is_output.is_(output))
    return mine.order_by(Item.ordinal)


OUTPUTS = (
    select(Item)
    .where(Item.response_id.in_(bindparam("responses", expanding=True)), Item.is_output)
    .order_by(Item.ordinal)
)


def outputs(session: Session, response_ids: Sequence[str]) -> dict[str, list[Item]]:
    """Return the output items of several responses, in order, by response id; those without any are left out."""
    found: dict[str, list[Item]] = {}
    for item in session.scalars(OUTPUTS, {"responses": list(response_ids)}):
        found.setdefault(str(item.response_id), []).append(item)
    return found


def ended(session: Session, response_ids: Sequence[str]) -> set[str]:
    """Return those of the ids whose response has reached its end."""
    return set(
        session.scalars(
            select(Response.id).where(Response.id.in_(response_ids), Response.status.in_(TERMINAL))
        )
    )


def delete_response(session: Session, project_id: str, response_id: str) -> None:
    """Delete a finished response: its events and items go, except items that stand in a conversation.

    The row stays as a marker without content, so that a stale worker or a late webhook finds no gap.

    Raises:
        NotFound: there is none.
        Conflict: it has not finished; it must be cancelled first.
    """
    response = get(session, project_id, response_id)
    if not erase(session, response_id):
        raise Conflict(
            f"Response '{response_id}' is {response.status}. Cancel it, or wait for its end, then delete it."
        )


def erase(session: Session, response_id: str) -> bool:
    """Take everything away from an ended response but its marker; False when it has not ended, or is erased already."""
    # Conditional, because a claim may happen between the caller's read and this write.
    marked = changed(
        session,
        update(Response)
        .where(Response.id == response_id, Response.status.in_(TERMINAL), Response.deleted_at.is_(None))
        .values(deleted_at=clock.now(), request={}, webhook=None),
    )
    if marked != 1:
        return False
    session.execute(delete(OutputChunk).where(OutputChunk.response_id == response_id))
    session.execute(delete(Item).where(Item.response_id == response_id, Item.conversation_id.is_(None)))
    session.execute(
        update(Item).where(Item.response_id == response_id).values(response_id=None, ordinal=None)
    )
    return True
