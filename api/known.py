"""What SQL knows about many watched responses, asked in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api import objects
from storage import following, responses
from storage.database import Database
from storage.following import Standing
from storage.models import Json, OutputChunk

# Of a response that is not there at all.
GONE = Standing(started=False, ended=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one response.

    Attributes:
        stored: the position from which its chunks are wanted, None when only its end matters.
        row: is the Response object wanted although it has not ended?
        result: is it wanted with its output once it has ended?
    """

    response_id: str
    stored: int | None
    row: bool
    result: bool


@dataclass(frozen=True, slots=True)
class News:
    """The answer to a batch of questions, by response id.

    Attributes:
        chunks: in order.
        shown: the output message's id and the Response object, unless it was deleted.
    """

    standings: dict[str, Standing]
    chunks: dict[str, list[OutputChunk]]
    shown: dict[str, tuple[str, Json]]

    def standing(self, response_id: str) -> Standing:
        """Return how far the response has come; one that is not there at all has ended."""
        return self.standings.get(response_id, GONE)


def ask(database: Database, questions: Sequence[Question]) -> News:
    """Answer the questions. What had ended when it was asked is told with its last chunk and its output.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    with database.read() as session:
        standings = following.standings(session, [question.response_id for question in questions])
        followed = {q.response_id: q.stored for q in questions if q.stored is not None}
        chunks: dict[str, list[OutputChunk]] = {}
        for chunk in following.chunks(session, followed):
            chunks.setdefault(chunk.response_id, []).append(chunk)
        ended = [q.response_id for q in questions if q.result and standings.get(q.response_id, GONE).ended]
        wanted = {question.response_id for question in questions if question.row} | set(ended)
        outputs = responses.outputs(session, ended)
        shown = {
            row.id: (row.message_id, objects.response(row, outputs.get(row.id, [])))
            for row in following.rows(session, sorted(wanted))
        }
    return News(standings, chunks, shown)
