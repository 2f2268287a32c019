"""The tables.

Conventions: ids are text with a prefix (`storage.ids`), times are unix seconds of the database's clock
(`storage.clock`), documents that are only ever read whole are JSON (PostgreSQL's `json`, which keeps what it
was given; `jsonb` refuses the escaped NUL that a message may hold).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Declarative base; constraints get names so that migrations can speak of them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Double, str: String}  # noqa: RUF012


class Project(Base):
    """Whose data it is. Every query of the API carries a project's id."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]


class ApiKey(Base):
    """A key is shown once, when it is made; only its SHA-256 is kept (the key itself has 256 random bits)."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]  # its last four characters, to tell keys apart in a list
    requests_per_minute: Mapped[int | None]  # None: the service's own limit
    tokens_per_minute: Mapped[int | None]
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]


class Conversation(Base):
    """A line of items. Its counters are taken under the row's lock, which is what orders its turns."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    meta: Mapped[Json]
    created_at: Mapped[float]
    used_at: Mapped[float] = mapped_column(index=True)  # its last turn or item
    worker: Mapped[str | None]  # that answered its last turn
    next_turn: Mapped[int] = mapped_column(default=0)  # of the next response accepted for it
    next_position: Mapped[int] = mapped_column(default=0)  # of the next item appended to it


class Response(Base):
    """One job and its answer. `storage.leases` and `storage.terminal` are the only writers of `status`."""

    __tablename__ = "responses"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    conversation_id: Mapped[str | None]
    previous_response_id: Mapped[str | None]
    kind: Mapped[str] = mapped_column(String(16), default="response")  # what the caller sees it as
    # Of several answers to one request: the first of them, which has the object's id and the input, and its index.
    parent_id: Mapped[str | None]
    choice: Mapped[int] = mapped_column(default=0)
    stored: Mapped[bool] = mapped_column(default=True)  # else it can be shown to its first caller alone
    turn: Mapped[int | None]  # its place among the conversation's turns, in the order of acceptance
    tier: Mapped[str] = mapped_column(String(16))  # priority, default or flex: its share of the workers
    rank: Mapped[float]  # its place in the queue (storage.queue)
    # Whether nothing it has to wait for is open: an earlier turn of its conversation, what it continues.
    ready: Mapped[bool]
    home: Mapped[str | None]  # the worker that has its history in its cache (storage.homes)
    shared_at: Mapped[float | None]  # when others than its home may claim it
    # What the caller asked for, as validated: model, instructions, sampling, metadata, flags.
    request: Mapped[Json]
    webhook: Mapped[Json | None]  # {"endpoint_id"} or {"url", "secret" (sealed), "events"}

    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    available_at: Mapped[float]  # not claimed before this time (back-off after a lost worker)
    expires_at: Mapped[float | None]  # fails if it is not claimed by then
    max_run_seconds: Mapped[float]  # from its first claim on, all attempts together
    knocked_at: Mapped[float]  # when a message for it was last handed to the outbox
    started_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    deleted_at: Mapped[float | None]

    attempt: Mapped[int] = mapped_column(default=0)  # the fencing token: every claim takes the next one
    failures: Mapped[int] = mapped_column(default=0)  # attempts that lost their worker
    worker: Mapped[str | None]
    lease_expires_at: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]

    message_id: Mapped[str]  # the output item's id, fixed at acceptance so that every attempt shares it
    seed: Mapped[int] = mapped_column(BigInteger)  # of the sampling noise, fixed for the same reason
    usage: Mapped[Json | None]
    error: Mapped[Json | None]  # {"code", "message", "type"}
    incomplete_reason: Mapped[str | None]

    __table_args__ = (
        # The claim's order. Partial: the table keeps every answer ever given, the index only what waits.
        Index(
            "ix_responses_ready",
            "rank",
            "id",
            postgresql_where=text("status = 'queued' AND ready"),
            sqlite_where=text("status = 'queued' AND ready = 1"),
        ),
        Index(
            "ix_responses_homes",
            "home",
            "rank",
            postgresql_where=text("status = 'queued' AND ready AND home IS NOT NULL"),
            sqlite_where=text("status = 'queued' AND ready = 1 AND home IS NOT NULL"),
        ),
        # The end of a project's line in a tier.
        Index(
            "ix_responses_lines",
            "project_id",
            "tier",
            "rank",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_responses_expiring",
            "expires_at",
            postgresql_where=text("status = 'queued' AND expires_at IS NOT NULL"),
            sqlite_where=text("status = 'queued' AND expires_at IS NOT NULL"),
        ),
        Index("ix_responses_completed", "completed_at"),
        Index(
            "ix_responses_deleted",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL"),
            sqlite_where=text("deleted_at IS NOT NULL"),
        ),
        Index(
            "ix_responses_running",
            "lease_expires_at",
            postgresql_where=text("status = 'in_progress'"),
            sqlite_where=text("status = 'in_progress'"),
        ),
        # "Is an earlier turn of this conversation still open?"
        Index(
            "ix_responses_open_turns",
            "conversation_id",
            "turn",
            postgresql_where=text("status IN ('queued', 'in_progress')"),
            sqlite_where=text("status IN ('queued', 'in_progress')"),
        ),
        Index("ix_responses_project", "project_id", "created_at", "id"),
        Index("ix_responses_previous", "previous_response_id"),
        Index(
            "ix_responses_parent",
            "parent_id",
            postgresql_where=text("parent_id IS NOT NULL"),
            sqlite_where=text("parent_id IS NOT NULL"),
        ),
        Index(
            "ix_responses_unstored",
            "completed_at",
            postgresql_where=text("NOT stored"),
            sqlite_where=text("stored = 0"),
        ),
    )


class Item(Base):
    """A message. It belongs to a response (`ordinal`), to a conversation (`position`), or to both.

    A turn's items get their place in the conversation in the transaction that completes the turn.
    """

    __tablename__ = "items"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    response_id: Mapped[str | None]
    is_output: Mapped[bool] = mapped_column(default=False)
    ordinal: Mapped[int | None]
    conversation_id: Mapped[str | None]
    position: Mapped[int | None]
    body: Mapped[Json]  # the item as the API shows it, without its id
    created_at: Mapped[float]

    __table_args__ = (
        UniqueConstraint("response_id", "ordinal"),
        UniqueConstraint("conversation_id", "position"),
    )


class OutputChunk(Base):
    """A stretch of an answer's tokens: its checkpoint while it runs and its event log for ever.

    `pieces` holds each token's text; the deltas of the event stream are its non-empty entries. `tail` is the
    text that only the answer's end released (a held-back stop string's beginning, a broken character).
    """

    __tablename__ = "output_chunks"

    response_id: Mapped[str] = mapped_column(ForeignKey("responses.id"), primary_key=True)
    first_index: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    token_ids: Mapped[list[Any]]
    pieces: Mapped[list[Any]]
    tail: Mapped[str] = mapped_column(Text, default="")
    logprobs: Mapped[list[Any] | None]  # one entry a token (storage.scores), where the caller asked for them


class Outbox(Base):
    """A message that a committed transaction owes the broker: written with the change it tells of."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    queue: Mapped[str]  # "generate" or "webhooks"
    subject: Mapped[str]  # the response's or the delivery's id
    created_at: Mapped[float]


class IdempotencyKey(Base):
    """`Idempotency-Key` of a POST: the object that its first request created, and a digest of its body."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    object_id: Mapped[str]
    created_at: Mapped[float] = mapped_column(index=True)


class File(Base):
    """What is known of a file. Its bytes are in `storage.blobs`, under its id."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    purpose: Mapped[str] = mapped_column(String(32))  # batch, batch_output
    filename: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)  # bytes
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    expires_at: Mapped[float | None]  # None: kept until it is deleted

    __table_args__ = (
        Index("ix_files_project", "project_id", "created_at", "id"),
        Index(
            "ix_files_expiring",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL"),
            sqlite_where=text("expires_at IS NOT NULL"),
        ),
    )


class WebhookEndpoint(Base):
    """Where a project's events go."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[Any]]
    secret: Mapped[str] = mapped_column(Text)  # sealed
    previous_secret: Mapped[str | None] = mapped_column(Text)  # sealed; signs too until it expires
    previous_secret_expires_at: Mapped[float | None]
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None]
    failing_since: Mapped[float | None]
    created_at: Mapped[float]
    updated_at: Mapped[float]  # when its owner last changed it
    deleted_at: Mapped[float | None]


class WebhookEvent(Base):
    """Something that happened, as the bytes every receiver gets. Its id is the `webhook-id` of every try."""

    __tablename__ = "webhook_events"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(index=True)


class WebhookDelivery(Base):
    """One event on its way to one receiver: a registered endpoint or the URL that the request carried."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]  # its event's, here too because lists go by it
    event_id: Mapped[str] = mapped_column(ForeignKey("webhook_events.id"), index=True)
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id"))
    url: Mapped[str | None] = mapped_column(Text)
    secret: Mapped[str | None] = mapped_column(Text)  # sealed
    # Whom the cap of concurrent tries counts: the endpoint, or project and host of the URL.
    receiver: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))  # pending, delivered, failed
    failure: Mapped[str | None] = mapped_column(Text)  # why it was given up
    attempts: Mapped[int] = mapped_column(default=0)
    # How many attempts came before the last replay: they do not count in its retry schedule.
    replayed_after: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[float | None]
    knocked_at: Mapped[float]
    # Turned away at the cap: announced again when its receiver has room, not before.
    waiting: Mapped[bool] = mapped_column(default=False)
    lease_expires_at: Mapped[float | None]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]

    __table_args__ = (
        Index(
            "ix_webhook_deliveries_due",
            "next_attempt_at",
            postgresql_where=text("status = 'pending'"),
            sqlite_where=text("status = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_leased",
            "receiver",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at IS NOT NULL"),
            sqlite_where=text("lease_expires_at IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_waiting",
            "receiver",
            "next_attempt_at",
            postgresql_where=text("waiting"),
            sqlite_where=text("waiting = 1"),
        ),
        Index("ix_webhook_deliveries_project", "project_id", "created_at", "id"),
        Index("ix_webhook_deliveries_endpoint", "endpoint_id", "created_at", "id"),
    )


class WebhookAttempt(Base):
    """One try of a delivery and what the receiver said."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[float]
    duration_ms: Mapped[int]
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    excerpt: Mapped[str] = mapped_column(Text)
