"""What readers of running answers ask SQL, for many answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, or_, select
from sqlalchemy.orm import Session

from storage.models import OutputChunk, Response
from storage.responses import TERMINAL

# Built once: while anybody waits they are asked many times a second.
AMONG = Response.id.in_(bindparam("responses", expanding=True))
STANDINGS = select(Response.id, Response.started_at, Response.status).where(AMONG)
ROWS = select(Response).where(AMONG, Response.deleted_at.is_(None))


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a response has come."""

    started: bool
    ended: bool


def standings(session: Session, response_ids: Sequence[str]) -> dict[str, Standing]:
    """Return how far these responses have come, deleted ones too.

    Ask this before the chunks: what of a response had ended then, is complete in every later answer.
    """
    rows = session.execute(STANDINGS, {"responses": list(response_ids)})
    return {
        response_id: Standing(started is not None, status in TERMINAL)
        for response_id, started, status in rows
    }


def chunks(session: Session, positions: Mapping[str, int]) -> list[OutputChunk]:
    """Return the stored stretches of answers from these positions on, by response id, each answer's in order."""
    wanted = [
        and_(OutputChunk.response_id == response_id, OutputChunk.first_index >= position)
        for response_id, position in positions.items()
    ]
    if not wanted:
        return []
    return list(session.scalars(select(OutputChunk).where(or_(*wanted)).order_by(OutputChunk.first_index)))


def rows(session: Session, response_ids: Sequence[str]) -> list[Response]:
    """Return those of the responses that were not deleted."""
    if not response_ids:
        return []
    return list(session.scalars(ROWS, {"responses": list(response_ids)}))
