"""The product without one of its protections: what `make faults WITHOUT=...` runs, to see that the checks see it.

Each function replaces one function of the product in this process and nothing else. The product has no such
options. What must show is named with each; the fault that makes it show is a part of every plan.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, get_args

from sqlalchemy import event, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from storage import clock, leases, terminal, webhooks
from storage.database import Database
from storage.models import OutputChunk, Response
from storage.publisher import Publisher

Protection = Literal["fencing", "sweeper", "outbox", "checkpoint"]
PROTECTIONS: tuple[Protection, ...] = get_args(Protection)


def fencing() -> None:
    """A checkpoint does not ask whose lease it is.

    `leases.renew` extends whatever lease there is and writes over the chunk that stands at its position. A worker that
    was stopped beyond its lease (fault `freeze_worker`) then writes into an answer that another has taken over or
    ended: a stale write in the audit, and a log that overlaps itself.
    """

    def renew(
        session: Session, response_id: str, attempt: int, lease_seconds: float, chunk: leases.Chunk | None
    ) -> bool:
        asked = session.scalar(
            update(Response)
            .where(Response.id == response_id)
            .values(lease_expires_at=clock.now() + lease_seconds)
            .returning(Response.cancel_requested_at)
        )
        if chunk is not None:
            session.merge(
                OutputChunk(
                    response_id=response_id,
                    first_index=chunk.first_index,
                    attempt=attempt,
                    token_ids=list(chunk.token_ids),
                    pieces=list(chunk.pieces),
                    tail=chunk.tail,
                )
            )
            session.flush()
        return asked is not None

    leases.renew = renew


def sweeper() -> None:
    """Nobody looks for lost jobs.

    `leases.sweep` finds nothing. What a worker held that got SIGKILL (fault `kill_worker`) stays `in_progress` for
    ever, and so do the turns behind it.
    """
    leases.sweep = lambda _session, _max_attempts, *_, **__: leases.Swept(0, (), 0)


def outbox() -> None:
    """The webhook of an end is published after its commit instead of being written with it.

    `webhooks.emit` only takes a note, and a thread beside the publisher stores the deliveries a moment later. A worker
    that dies between the commit and that (fault `worker_dies_after_end`) has ended a job, and nobody is told.
    (A knock for the queue `generate` that is lost in the same way would be repeated by the sweeper.)
    """
    emit, start = webhooks.emit, Publisher.start
    noted: list[str] = []
    lock = threading.Lock()

    def note(session: Session, response: Response) -> None:
        response_id = response.id

        def committed(_session: Session) -> None:
            with lock:
                noted.append(response_id)

        event.listen(session, "after_commit", committed, once=True)

    def publish_and_forget(database: Database) -> None:
        while True:
            time.sleep(0.02)
            with lock:
                mine = noted.copy()
                noted.clear()
            for response_id in mine:
                try:
                    with database.begin() as session:
                        emit(
                            session, session.scalars(select(Response).where(Response.id == response_id)).one()
                        )
                except SQLAlchemyError:
                    continue

    def start_both(self: Publisher) -> None:
        start(self)
        threading.Thread(target=publish_and_forget, args=(self._database,), daemon=True).start()

    webhooks.emit, Publisher.start = note, start_both  # type: ignore[method-assign]


def checkpoint() -> None:
    """Tokens are stored when the answer ends and not before.

    `leases.renew` keeps its chunk in this process's memory; the end stores them all. After a worker got SIGKILL and
    Redis lost the live tail (fault `flush_and_kill`) the next attempt begins the answer anew: readers who were far into
    it are set back to its first token.
    """
    renew, close_answered = leases.renew, terminal.close_answered
    kept: dict[tuple[str, int], list[leases.Chunk]] = defaultdict(list)

    def renew_only(
        session: Session, response_id: str, attempt: int, lease_seconds: float, chunk: leases.Chunk | None
    ) -> bool:
        asked = renew(session, response_id, attempt, lease_seconds, None)
        if chunk is not None:
            kept[response_id, attempt].append(chunk)
        return asked

    def close_and_store(
        session: Session, response_id: str, attempt: int, answer: terminal.Answer
    ) -> Response:
        response = close_answered(session, response_id, attempt, answer)
        for chunk in kept.pop((response_id, attempt), []):
            leases.add_chunk(session, response_id, attempt, chunk)
        return response

    leases.renew, terminal.close_answered = renew_only, close_and_store


SWITCH_OFF: dict[Protection, Callable[[], None]] = {
    "fencing": fencing,
    "sweeper": sweeper,
    "outbox": outbox,
    "checkpoint": checkpoint,
}
