"""The answers of a request with one or more of them, as stored, and what is told of one that has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api.errors import ApiError, BadRequest, Failed
from storage import groups, models, responses
from storage.models import Item, Json

# Which parameter a worker could do nothing with, by the job's cause; for all others it is the input.
PARAMS = {"invalid_logit_bias": "logit_bias"}
RESTARTING = "The service is about to restart. Send the request again."


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of an ended call."""

    row: models.Response
    output: list[Item]


def load(session: Session, rows: Sequence[models.Response], input_: str) -> list[Choice]:
    """Return the answers of an ended group; `input_` is the parameter that holds what they answer.

    Raises:
        ApiError: one of them is missing, and why.
    """
    for row in rows:
        if row.status not in groups.ANSWERED:
            raise failure(row.error, input_)
    outputs = responses.outputs(session, [row.id for row in rows])
    return [Choice(row, outputs[row.id]) for row in rows]


def failure(error: Json | None, input_: str) -> ApiError:
    """Return what a caller is told of a job that came to no answer; `error` is the job's, None of a cancelled one."""
    if error is None:
        return Failed("The request was cancelled.", code="cancelled")
    if error["code"] == "invalid_prompt":
        return BadRequest(error["message"], param=PARAMS.get(error["type"], input_), code=error["type"])
    return Failed(error["message"], code=error["type"])
