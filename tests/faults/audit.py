"""What SQL saw: triggers that write down every change of a status and every stored stretch of an answer.

The product cannot talk its way around them: a write that was rolled back leaves no trace, one that was committed
leaves one in the same transaction. `Snapshot` is all that the invariants read of the database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from storage.models import (
    Item,
    Outbox,
    OutputChunk,
    Response,
    WebhookDelivery,
    WebhookEvent,
)

INSTALL = """
CREATE TABLE IF NOT EXISTS faults_audit (
    seq bigserial PRIMARY KEY,
    at double precision NOT NULL DEFAULT extract(epoch from clock_timestamp()),
    what text NOT NULL,
    response_id text NOT NULL,
    attempt integer NOT NULL,
    worker text,
    was text,
    status text NOT NULL,
    current integer NOT NULL,
    first_index integer,
    tokens integer
);
CREATE OR REPLACE FUNCTION faults_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults_audit (what, response_id, attempt, worker, was, status, current)
    VALUES ('status', NEW.id, NEW.attempt, NEW.worker,
            CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status,
            CASE TG_OP WHEN 'UPDATE' THEN OLD.attempt ELSE 0 END);
    RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION faults_chunk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO faults_audit (what, response_id, attempt, was, status, current, first_index, tokens)
    SELECT 'chunk', NEW.response_id, NEW.attempt, lower(TG_OP), status, attempt,
           NEW.first_index, json_array_length(NEW.token_ids::json)
    FROM responses WHERE id = NEW.response_id;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER faults_status AFTER INSERT OR UPDATE OF status ON responses
    FOR EACH ROW EXECUTE FUNCTION faults_status();
CREATE OR REPLACE TRIGGER faults_chunk AFTER INSERT OR UPDATE ON output_chunks
    FOR EACH ROW EXECUTE FUNCTION faults_chunk();
"""


@dataclass
class Change:
    """A row of the audit: a response's new status, or a chunk. `current` is the attempt before, or that of the row."""

    at: float
    what: str
    response_id: str
    attempt: int
    status: str
    was: str | None = None
    worker: str | None = None
    current: int = 0
    first_index: int | None = None
    tokens: int | None = None


@dataclass
class Stretch:
    """A stored chunk."""

    first: int
    attempt: int
    token_ids: list[int]
    pieces: list[str]
    tail: str = ""


@dataclass
class Job:
    """A response and what hangs on it."""

    id: str
    status: str
    attempt: int = 1
    conversation_id: str | None = None
    turn: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    leased: bool = False
    stretches: list[Stretch] = field(default_factory=list)
    text: str | None = None  # of its output item
    outputs: int = 0  # output items

    @property
    def tokens(self) -> list[int]:
        """All stored tokens, in order."""
        return [token for stretch in self.stretches for token in stretch.token_ids]


@dataclass
class Said:
    """An item of a conversation."""

    position: int
    response_id: str | None
    role: str
    text: str


@dataclass
class Delivery:
    """An event on its way to a receiver, as SQL has it."""

    response_id: str
    event_id: str
    type: str
    status: str


@dataclass
class Snapshot:
    """The database when all was over."""

    jobs: dict[str, Job] = field(default_factory=dict)
    conversations: dict[str, list[Said]] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    unsent: int = 0


def install(session: Session) -> None:
    """Begin to write down what is committed (PostgreSQL only)."""
    session.execute(text(INSTALL))


def snapshot(session: Session) -> Snapshot:
    """Read everything."""
    found = Snapshot()
    for row in session.scalars(select(Response)):
        found.jobs[row.id] = Job(
            id=row.id,
            status=row.status,
            attempt=row.attempt,
            conversation_id=row.conversation_id,
            turn=row.turn,
            metadata=row.request.get("metadata") or {},
            usage=row.usage,
            error=row.error,
            leased=row.lease_expires_at is not None,
        )
    for chunk in session.scalars(
        select(OutputChunk).order_by(OutputChunk.response_id, OutputChunk.first_index)
    ):
        found.jobs[chunk.response_id].stretches.append(
            Stretch(chunk.first_index, chunk.attempt, chunk.token_ids, chunk.pieces, chunk.tail)
        )
    for item in session.scalars(select(Item).order_by(Item.conversation_id, Item.position, Item.ordinal)):
        words = "".join(part["text"] for part in item.body["content"])
        if item.is_output and item.response_id is not None:
            job = found.jobs[item.response_id]
            job.text, job.outputs = words, job.outputs + 1
        if item.conversation_id is not None and item.position is not None:
            said = Said(item.position, item.response_id, item.body["role"], words)
            found.conversations.setdefault(item.conversation_id, []).append(said)
    events = select(WebhookDelivery, WebhookEvent).join(
        WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id
    )
    for delivery, event in session.execute(events):
        found.deliveries.append(Delivery(event.subject, event.id, event.type, delivery.status))
    found.changes = [
        Change(**row)
        for row in session.execute(
            text(
                "SELECT at, what, response_id, attempt, status, was, worker, current, first_index, tokens "
                "FROM faults_audit ORDER BY seq"
            )
        ).mappings()
    ]
    found.unsent = len(session.scalars(select(Outbox.id)).all())
    return found
