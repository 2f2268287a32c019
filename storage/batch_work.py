"""The work on open batches, step by step: each step is a claim, and one transaction that names the claim's attempt.

Whoever dies between two steps leaves a batch that is due again a moment later. A step that comes too late, because
another has claimed the batch meanwhile or its owner has cancelled it, changes nothing (`BatchLost`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session

from storage import clock, responses, terminal, webhooks
from storage.batch_models import Batch, BatchLine
from storage.database import changed
from storage.models import Item, Json, Response

# How long a step may take; after it the batch is anybody's.
LEASE_SECONDS = 15.0


class BatchLost(Exception):
    """The claim is no longer current: nothing was written."""


@dataclass(frozen=True, slots=True)
class NewLine:
    """A line that was found to be good."""

    custom_id: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A line with what came of it; the response is None where no job was made, or it is gone."""

    line: BatchLine
    response: Response | None
    output: Sequence[Item]


def any_due(session: Session) -> bool:
    """Return whether a claim would find something."""
    return session.scalar(select(Batch.id).where(Batch.due_at <= clock.now()).limit(1)) is not None


def claim(session: Session) -> Batch | None:
    """Take the batch that has been due for longest, or return None."""
    candidate = (
        select(Batch.id)
        .where(Batch.due_at <= clock.now())
        .order_by(Batch.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return session.scalar(
        update(Batch)
        .where(Batch.id == candidate, Batch.due_at <= clock.now())
        .values(attempt=Batch.attempt + 1, due_at=clock.now() + LEASE_SECONDS)
        .returning(Batch)
        .execution_options(populate_existing=True)
    )


def hold(session: Session, batch: Batch, *, pause: float = LEASE_SECONDS, **values: Any) -> None:  # noqa: ANN401
    """Change a claimed batch and hold its row to the end of the transaction. Every step begins with it.

    Args:
        pause: seconds until the batch is due again; the lease, unless this ends the step.

    Raises:
        BatchLost: the claim is no longer current.
    """
    held = changed(
        session,
        update(Batch)
        .where(Batch.id == batch.id, Batch.attempt == batch.attempt, Batch.due_at.is_not(None))
        .values({"due_at": clock.now() + pause, **values}),
    )
    if held != 1:
        raise BatchLost(batch.id)


def is_late(session: Session, batch: Batch) -> bool:
    """Return whether the batch's window is over."""
    return clock.read(session) >= batch.expires_at


def taken(session: Session, batch: Batch, custom_ids: Sequence[str]) -> set[str]:
    """Return those of the ids that an earlier line of the batch has."""
    query = select(BatchLine.custom_id).where(
        BatchLine.batch_id == batch.id, BatchLine.custom_id.in_(custom_ids)
    )
    return set(session.scalars(query))


def add_lines(
    session: Session,
    batch: Batch,
    lines: Sequence[NewLine],
    errors: Sequence[Json],
    *,
    read_to: int,
    lines_read: int,
) -> None:
    """Store what a stretch of the input file held: good lines, and what is wrong with the others."""
    hold(
        session,
        batch,
        pause=0,
        read_to=read_to,
        lines_read=lines_read,
        total=batch.total + len(lines),
        errors=[*batch.errors, *errors],
    )
    session.add_all(
        BatchLine(
            batch_id=batch.id,
            ordinal=batch.total + place,
            custom_id=line.custom_id,
            offset=line.offset,
            length=line.length,
            state="waiting",
        )
        for place, line in enumerate(lines)
    )
    session.flush()


def begin(session: Session, batch: Batch, model: str) -> None:
    """End the validation of a batch whose lines are all good."""
    hold(session, batch, pause=0, status="in_progress", in_progress_at=clock.now(), model=model)


def fail(session: Session, batch: Batch, errors: Sequence[Json]) -> None:
    """End the validation of a batch, and the batch, with what is wrong with it."""
    hold(session, batch, status="failed", failed_at=clock.now(), errors=list(errors), total=0)
    _close(session, batch)


def waiting(session: Session, batch: Batch, limit: int) -> list[BatchLine]:
    """Return the next lines that no job was made of."""
    if limit < 1:
        return []
    query = (
        select(BatchLine)
        .where(BatchLine.batch_id == batch.id, BatchLine.ordinal >= batch.fed)
        .order_by(BatchLine.ordinal)
        .limit(limit)
    )
    return list(session.scalars(query))


def open_lines(session: Session, project_id: str) -> int:
    """Return how many lines of the project's batches are jobs that have not ended, as far as is noted."""
    return int(
        session.scalar(
            select(func.count())
            .select_from(BatchLine)
            .join(Batch, Batch.id == BatchLine.batch_id)
            .where(Batch.project_id == project_id, Batch.due_at.is_not(None), _line_is_open())
        )
        or 0
    )


def made(session: Session, line: BatchLine, response_id: str) -> None:
    """Note the job that was made of a line, in the transaction that made it."""
    session.execute(
        update(BatchLine)
        .where(BatchLine.batch_id == line.batch_id, BatchLine.ordinal == line.ordinal)
        .values(state="open", response_id=response_id)
    )


def refused(session: Session, line: BatchLine, status_code: int, body: Json) -> None:
    """Note that no job could be made of a line, and what its endpoint would have answered."""
    session.execute(
        update(BatchLine)
        .where(BatchLine.batch_id == line.batch_id, BatchLine.ordinal == line.ordinal)
        .values(state="failed", refusal={"status_code": status_code, "body": body})
    )


def settle(session: Session, batch: Batch) -> None:
    """Note which jobs have ended, in the lines and in the counts of `batch`. The caller holds it."""
    ended = session.execute(
        select(BatchLine.ordinal, Response.status, Response.usage)
        .outerjoin(Response, and_(Response.id == BatchLine.response_id, Response.deleted_at.is_(None)))
        .where(
            BatchLine.batch_id == batch.id,
            _line_is_open(),
            or_(Response.id.is_(None), Response.status.in_(responses.TERMINAL)),
        )
    ).all()
    good = [row.ordinal for row in ended if row.status in ("completed", "incomplete")]
    bad = [row.ordinal for row in ended if row.status not in ("completed", "incomplete")]
    for state, ordinals in (("completed", good), ("failed", bad)):
        session.execute(
            update(BatchLine)
            .where(BatchLine.batch_id == batch.id, BatchLine.ordinal.in_(ordinals))
            .values(state=state)
        )
    batch.completed += len(good)
    batch.failed += len(bad)
    for row in ended:
        batch.usage = _sum(batch.usage, row.usage or {})


def counts(batch: Batch) -> Json:
    """Return what `settle`, and whoever makes jobs of lines, change of a batch: values for `hold`."""
    return {
        "completed": batch.completed,
        "failed": batch.failed,
        "usage": batch.usage,
        "fed": batch.fed,
    }


def end_soon(session: Session, batch: Batch, ending: str) -> None:
    """Let a batch end as `ending`, once its open jobs have ended and its files are written."""
    hold(
        session,
        batch,
        pause=0,
        status="finalizing",
        ending=ending,
        finalizing_at=clock.now(),
        **counts(batch),
    )


def open_jobs(session: Session, batch: Batch) -> list[tuple[str, bool]]:
    """Return the jobs that have not ended, as far as is noted, and whether they were asked to."""
    query = (
        select(Response.id, Response.cancel_requested_at)
        .join(BatchLine, BatchLine.response_id == Response.id)
        .where(BatchLine.batch_id == batch.id, _line_is_open())
    )
    return [(response_id, asked is not None) for response_id, asked in session.execute(query)]


def cancel_job(session: Session, batch: Batch, response_id: str) -> Response:
    """Cancel one job of the batch, as its owner would. A transaction for each: it takes the locks of a job's end."""
    hold(session, batch)
    return terminal.cancel(session, session.get_one(Response, response_id))


def answers(session: Session, batch: Batch, first: int, limit: int) -> list[Answered]:
    """Return up to `limit` lines from this ordinal on, with what came of each."""
    rows = session.execute(
        select(BatchLine, Response)
        .outerjoin(Response, and_(Response.id == BatchLine.response_id, Response.deleted_at.is_(None)))
        .where(BatchLine.batch_id == batch.id, BatchLine.ordinal >= first)
        .order_by(BatchLine.ordinal)
        .limit(limit)
    ).all()
    outputs = responses.outputs(session, [response.id for _, response in rows if response is not None])
    return [
        Answered(line, response, outputs.get(response.id, []) if response is not None else [])
        for line, response in rows
    ]


def finish(session: Session, batch: Batch, output_file_id: str | None, error_file_id: str | None) -> None:
    """End the batch; its files are in the transaction."""
    begun = batch.in_progress_at is not None
    ended: Json = {f"{batch.ending}_at": clock.now()}
    hold(
        session,
        batch,
        **ended,
        status=batch.ending,
        output_file_id=output_file_id,
        error_file_id=error_file_id,
        # What never became a job has failed; what was not yet validated was no line.
        total=batch.total if begun else 0,
        failed=batch.total - batch.completed if begun else 0,
    )
    _close(session, batch)


def _close(session: Session, batch: Batch) -> None:
    session.execute(update(Batch).where(Batch.id == batch.id).values(due_at=None))
    session.execute(delete(BatchLine).where(BatchLine.batch_id == batch.id))
    webhooks.emit_batch(session, session.get_one(Batch, batch.id, populate_existing=True))


def _line_is_open() -> Any:  # noqa: ANN401 - as the partial index has it
    return BatchLine.state == literal("open", literal_execute=True)


def _sum(total: Json, more: Json) -> Json:
    """Add a response's usage to a batch's, which has fewer details."""
    return {
        name: _sum(value, more.get(name, {})) if isinstance(value, dict) else value + more.get(name, 0)
        for name, value in total.items()
    }
