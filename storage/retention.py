"""Deletion of what has outlived its time. Each batch is a transaction of its own; two at once take different rows.

What something else stands on stays: an item in a conversation that exists, a response that a kept one continues, a
conversation with an open turn, what an open batch will write down, an event with a delivery under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, exists, literal, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from storage import clock, files
from storage.batch_models import Batch, BatchLine
from storage.database import Database
from storage.models import (
    Conversation,
    File,
    IdempotencyKey,
    Item,
    OutputChunk,
    Response,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEvent,
)
from storage.turns import OPEN

DAY_SECONDS = 86400.0
# A key is for the retries of one request; what it names may be gone after a day.
KEYS_DAYS = 1
# So is an answer that is not to be stored: a retry that brings its key may still fetch it.
UNSTORED_DAYS = KEYS_DAYS
# The marker of a deleted response answers stale workers, and no job runs longer than a day.
MARKERS_DAYS = 2
BATCH = 200
# Of each kind, in one run: the next one goes on.
BATCHES = 50

Step = Callable[[Session], int]


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many days what is kept; None for ever."""

    responses_days: int | None
    conversations_days: int | None
    webhooks_days: int


def purge(database: Database, keep: Keep) -> dict[str, int]:
    """Delete what is too old and return how many rows of each kind that were."""
    steps: dict[str, Step] = {
        "idempotency_keys": _keys,
        "deleted_responses": _markers,
        "unstored_responses": lambda session: _responses(session, UNSTORED_DAYS, stored=False),
        "files": _files,
        "webhook_deliveries": lambda session: _deliveries(session, keep.webhooks_days),
        "webhook_events": lambda session: _events(session, keep.webhooks_days),
    }
    responses_days, conversations_days = keep.responses_days, keep.conversations_days
    if responses_days is not None:
        steps["responses"] = lambda session: _responses(session, responses_days)
    if conversations_days is not None:
        steps["conversations"] = lambda session: _conversations(session, conversations_days)
    return {name: _repeated(database, step) for name, step in steps.items()}


def _repeated(database: Database, step: Step) -> int:
    gone = 0
    for _ in range(BATCHES):
        with database.begin() as session:
            count = step(session)
        if count == 0:
            break
        gone += count
    return gone


def _before(days: float) -> ColumnElement[float]:
    return clock.now() - days * DAY_SECONDS


def _keys(session: Session) -> int:
    old = session.execute(
        select(IdempotencyKey.project_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < _before(KEYS_DAYS))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    keys = tuple_(IdempotencyKey.project_id, IdempotencyKey.key)
    session.execute(delete(IdempotencyKey).where(keys.in_([tuple(row) for row in old])))
    return len(old)


def _markers(session: Session) -> int:
    old = session.scalars(
        select(Response.id)
        .where(Response.deleted_at < _before(MARKERS_DAYS))
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    _remove_responses(session, old)
    return len(old)


def _files(session: Session) -> int:
    """Forget files whose time is over; the API processes, which hold their bytes, remove those then."""
    old = session.scalars(
        select(File.id)
        .where(File.expires_at < clock.now(), ~files.in_use())
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    session.execute(delete(File).where(File.id.in_(old)))
    return len(old)


def _responses(session: Session, days: int, *, stored: bool = True) -> int:
    later, other = aliased(Response), aliased(Response)
    needed = or_(
        exists().where(later.previous_response_id == Response.id, later.deleted_at.is_(None)),
        # The first of several answers holds the input of all.
        exists().where(other.parent_id == Response.id, other.completed_at.is_(None)),
        exists().where(
            BatchLine.response_id == Response.id, Batch.id == BatchLine.batch_id, Batch.due_at.is_not(None)
        ),
    )
    old = session.scalars(
        select(Response.id)
        .where(
            Response.completed_at < _before(days),
            Response.deleted_at.is_(None),
            # As the partial index has it.
            Response.stored if stored else ~Response.stored,
            ~needed,
        )
        .order_by(Response.completed_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    # Asked again with the rows held: whoever continues one holds it too, and may have done so meanwhile.
    free = session.scalars(select(Response.id).where(Response.id.in_(old), ~needed)).all()
    _remove_responses(session, free)
    return len(free)


def _remove_responses(session: Session, response_ids: Sequence[str]) -> None:
    of_them = Item.response_id.in_(response_ids)
    session.execute(delete(OutputChunk).where(OutputChunk.response_id.in_(response_ids)))
    session.execute(delete(Item).where(of_them, Item.conversation_id.is_(None)))
    session.execute(update(Item).where(of_them).values(response_id=None, ordinal=None))
    session.execute(delete(Response).where(Response.id.in_(response_ids)))


def _conversations(session: Session, days: int) -> int:
    # As the partial index has it.
    is_open = Response.status.in_([literal(status, literal_execute=True) for status in OPEN])
    old = session.scalars(
        select(Conversation.id)
        .where(
            Conversation.used_at < _before(days),
            ~exists().where(Response.conversation_id == Conversation.id, is_open),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    in_them = Item.conversation_id.in_(old)
    session.execute(delete(Item).where(in_them, Item.response_id.is_(None)))
    session.execute(update(Item).where(in_them).values(conversation_id=None, position=None))
    session.execute(delete(Conversation).where(Conversation.id.in_(old)))
    return len(old)


def _deliveries(session: Session, days: int) -> int:
    old = session.scalars(
        select(WebhookDelivery.id)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookEvent.created_at < _before(days), WebhookDelivery.status != "pending")
        .limit(BATCH)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    ).all()
    session.execute(delete(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(old)))
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)))
    return len(old)


def _events(session: Session, days: int) -> int:
    old = session.scalars(
        select(WebhookEvent.id)
        .where(
            WebhookEvent.created_at < _before(days),
            ~exists().where(WebhookDelivery.event_id == WebhookEvent.id),
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    session.execute(delete(WebhookEvent).where(WebhookEvent.id.in_(old)))
    return len(old)
