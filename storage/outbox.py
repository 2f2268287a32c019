"""Messages that are written with a change and sent after its commit.

A row says "tell queue Q about S". The process that committed it has it sent at once (`Database.on_owed`,
`storage.publisher`); the sweeper sends what a crash or a broker outage left behind. Sending twice does no harm: a
message is a hint, and the claim in SQL decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import Double, Integer, bindparam, delete, event, insert, select, tuple_
from sqlalchemy.orm import Session

from storage import clock
from storage.models import Outbox

# Without the unit of work, which costs a submission more time than the row itself.
ADD = insert(Outbox.__table__).values(created_at=clock.now()).returning(Outbox.id)  # type: ignore[arg-type]
# Built once: every submission and every end of a job asks for them.
PENDING = (
    select(Outbox.id, Outbox.queue, Outbox.subject)
    .where(Outbox.created_at <= clock.now() - bindparam("age", type_=Double))
    .order_by(Outbox.id)
    .limit(bindparam("most", type_=Integer))
)
# By what they say too: SQLite gives the id of a deleted row again, and somebody else may have deleted it. A message
# that says the same again under the same id is deleted unsent; the job that it is about is announced once more.
SENT = delete(Outbox.__table__).where(  # type: ignore[arg-type]
    tuple_(Outbox.__table__.c.id, Outbox.__table__.c.subject).in_(bindparam("gone", expanding=True))
)

Queue = Literal["generate", "webhooks"]
WRITTEN = "qwenq_owed"
# A row that is as old was left behind by whoever wrote it.
UNSENT_SECONDS = 1.0


class Owed(NamedTuple):
    """A message that is not sent yet."""

    id: int
    queue: str
    subject: str


def add(session: Session, queue: Queue, subject: str) -> None:
    """Owe `queue` a message about `subject`, from the commit of this transaction on."""
    row_id = session.execute(ADD, {"queue": queue, "subject": subject}).scalar_one()
    session.info.setdefault(WRITTEN, []).append(Owed(row_id, queue, subject))


def written(session: Session) -> list[Owed]:
    """Return what this session's transaction has added, and perhaps what a savepoint has undone."""
    found: list[Owed] = session.info.get(WRITTEN, [])
    return found


@event.listens_for(Session, "after_rollback")
def _forget(session: Session) -> None:
    # A savepoint's rollback leaves what was written before it. What was written behind it is sent in vain.
    if not session.in_nested_transaction():
        session.info.pop(WRITTEN, None)


def pending(session: Session, limit: int, age: float = 0.0) -> list[Owed]:
    """Return the oldest messages that are not known to be sent, written at least `age` seconds ago."""
    return [Owed(*row) for row in session.execute(PENDING, {"most": limit, "age": age})]


def sent(session: Session, rows: Sequence[Owed]) -> None:
    """Forget messages that the broker has taken."""
    session.execute(SENT, {"gone": [(row.id, row.subject) for row in rows]})
