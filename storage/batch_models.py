"""The tables of batches; `storage.models` has the others and the conventions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, Json


class Batch(Base):
    """A file of requests on its way to a file of answers. `storage.batches` tells its states.

    It is open while `due_at` is set. Whoever works on it takes the next `attempt`, which every write names, and has
    until `due_at`; then the work is anybody's.
    """

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str]
    completion_window: Mapped[str] = mapped_column(String(16))
    meta: Mapped[Json]
    output_expires_in: Mapped[float | None]  # seconds that its files are kept; None for ever
    model: Mapped[str | None]  # once its lines are known to be good

    status: Mapped[str] = mapped_column(String(16))
    # What it becomes once its files are written: completed, expired or cancelled.
    ending: Mapped[str | None] = mapped_column(String(16))
    errors: Mapped[list[Any]]  # of its lines: {"code", "line", "message", "param"}
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    usage: Mapped[Json]  # summed over its lines
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]

    read_to: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes of the input that are validated
    lines_read: Mapped[int] = mapped_column(default=0)
    fed: Mapped[int] = mapped_column(default=0)  # lines that were made jobs
    attempt: Mapped[int] = mapped_column(default=0)  # the fencing token of whoever works on it
    due_at: Mapped[float | None]

    created_at: Mapped[float]
    expires_at: Mapped[float]
    in_progress_at: Mapped[float | None]
    finalizing_at: Mapped[float | None]
    completed_at: Mapped[float | None]
    failed_at: Mapped[float | None]
    expired_at: Mapped[float | None]
    cancelling_at: Mapped[float | None]
    cancelled_at: Mapped[float | None]

    __table_args__ = (
        Index("ix_batches_project", "project_id", "created_at", "id"),
        Index(
            "ix_batches_due",
            "due_at",
            postgresql_where=text("due_at IS NOT NULL"),
            sqlite_where=text("due_at IS NOT NULL"),
        ),
    )


class BatchLine(Base):
    """One request of an open batch: where it stands in the input file, and the job that answers it."""

    __tablename__ = "batch_lines"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)  # from 0, without a gap
    custom_id: Mapped[str] = mapped_column(Text)
    offset: Mapped[int] = mapped_column(BigInteger)
    length: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))  # waiting, open, completed, failed
    response_id: Mapped[str | None]
    refusal: Mapped[Json | None]  # {"status_code", "body"} of a line that no job was made of

    __table_args__ = (
        UniqueConstraint("batch_id", "custom_id"),
        UniqueConstraint("response_id"),
        Index(
            "ix_batch_lines_open",
            "batch_id",
            postgresql_where=text("state = 'open'"),
            sqlite_where=text("state = 'open'"),
        ),
    )
