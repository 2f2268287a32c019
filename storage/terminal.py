"""The end of a response: one transaction that stores everything the caller may see of it, once.

It writes the status, the output item, the usage, the conversation's new items, the webhook deliveries and the
message for the conversation's next turn. Nothing leaves a terminal state: every way in is a compare-and-set
on an open status, and a worker's also on its attempt. A failed or cancelled turn leaves its conversation as
it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from storage import clock, conversations, metrics, output_items, react, turns, webhooks
from storage.database import loaded
from storage.errors import LeaseLost
from storage.models import Item, Json, Response

# The closed list of the SDK's types.
FailureCode = Literal["server_error", "invalid_prompt", "rate_limit_exceeded"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, as it was generated. `incomplete_reason` is None for one that ended by itself.

    `logprobs`: of its tokens, as they are shown, where the caller asked for them. `raw`: what Completions alone show,
    the `prompt` if it is echoed, `prompt_logprobs` and `stop_logprobs` (`storage.scores`).
    """

    text: str
    usage: Json
    incomplete_reason: Literal["max_output_tokens"] | None
    logprobs: Sequence[Json] = ()
    raw: Json | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a response failed: `code` from the SDK's closed list, `cause` our own precise word."""

    code: FailureCode
    cause: str
    message: str

    @property
    def shown(self) -> Json:
        """The `error` object of the response."""
        return {"code": self.code, "message": self.message, "type": self.cause}


# Built once: to build it takes longer than to run it.
ROWS = Response.__table__.c
CLOSE = loaded(
    update(Response.__table__)  # type: ignore[arg-type]
    .where(ROWS.id == bindparam("response"), ROWS.attempt == bindparam("held"), ROWS.status == "in_progress")
    .values(
        status=bindparam("ending"),
        usage=bindparam("used"),
        error=bindparam("failure"),
        incomplete_reason=bindparam("cut"),
        completed_at=clock.now(),
        lease_expires_at=None,
    )
    .returning(*ROWS)
)

ITEMS = Item.__table__.c
# An item of the response behind those that it has.
ADD_OUTPUT = insert(Item.__table__).values(  # type: ignore[arg-type]
    is_output=True,
    ordinal=select(func.coalesce(func.max(ITEMS.ordinal) + 1, 0))
    .where(ITEMS.response_id == bindparam("response"))
    .scalar_subquery(),
)

TOO_LONG = Failure("server_error", "deadline_exceeded", "The answer took longer than it was given.")


def close_answered(session: Session, response_id: str, attempt: int, answer: Answer) -> Response:
    """End a running response with its answer.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    response = _close(
        session,
        response_id,
        attempt,
        status="incomplete" if answer.incomplete_reason else "completed",
        usage=answer.usage,
        incomplete_reason=answer.incomplete_reason,
    )
    name, content = react.content(response.request, [answer.text])
    session.execute(
        ADD_OUTPUT,
        {
            "id": output_items.item_id(response.message_id, name),
            "project_id": response.project_id,
            "response_id": response.id,
            "response": response.id,
            "body": {
                **output_items.body(response.message_id, name, content, response.status, answer.logprobs),
                **({} if answer.raw is None else {"raw": answer.raw}),
            },
            "created_at": response.completed_at,
        },
    )
    if response.conversation_id is not None:
        _append_to_conversation(session, response.id, response.conversation_id, response.worker)
    _tell(session, response)
    return response


def close_failed(session: Session, response_id: str, attempt: int, failure: Failure) -> Response:
    """End a running response as failed.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    response = _close(session, response_id, attempt, status="failed", error=failure.shown)
    _tell(session, response)
    return response


def close_cancelled(session: Session, response_id: str, attempt: int) -> Response:
    """End a running response that its caller has cancelled.

    Raises:
        LeaseLost: the attempt is no longer current.
    """
    response = _close(session, response_id, attempt, status="cancelled")
    _tell(session, response)
    return response


def cancel(session: Session, response: Response) -> Response:
    """Cancel on the caller's behalf: a queued response ends here, a running one is asked to.

    A finished response comes back unchanged. The worker sees the request at its next checkpoint.
    """
    ended = session.scalar(
        update(Response)
        .where(Response.id == response.id, Response.status == "queued")
        .values(status="cancelled", completed_at=clock.now(), cancel_requested_at=clock.now())
        .returning(Response)
        .execution_options(populate_existing=True)
    )
    if ended is not None:
        _tell(session, ended)
        return ended
    session.execute(
        update(Response)
        .where(
            Response.id == response.id,
            Response.status == "in_progress",
            Response.cancel_requested_at.is_(None),
        )
        .values(cancel_requested_at=clock.now())
    )
    session.refresh(response)
    return response


def expire(session: Session, response: Response) -> Response | None:
    """Fail a response that nobody claimed in the time it was given; None when somebody just has."""
    failure = Failure("server_error", "expired_in_queue", "No worker was free before this response expired.")
    ended = session.scalar(
        update(Response)
        .where(Response.id == response.id, Response.status == "queued", Response.attempt == response.attempt)
        .values(status="failed", error=failure.shown, completed_at=clock.now())
        .returning(Response)
        .execution_options(populate_existing=True)
    )
    if ended is not None:
        _tell(session, ended)
    return ended


def _close(
    session: Session,
    response_id: str,
    attempt: int,
    *,
    status: str,
    usage: Json | None = None,
    error: Json | None = None,
    incomplete_reason: str | None = None,
) -> Response:
    response: Response | None = session.scalar(
        CLOSE,
        {
            "response": response_id,
            "held": attempt,
            "ending": status,
            "used": usage,
            "failure": error,
            "cut": incomplete_reason,
        },
    )
    if response is None:
        raise LeaseLost(response_id, attempt)
    return response


def _append_to_conversation(
    session: Session, response_id: str, conversation_id: str, worker: str | None
) -> None:
    new = session.scalars(select(Item).where(Item.response_id == response_id).order_by(Item.ordinal)).all()
    first = conversations.take_positions(session, conversation_id, len(new), worker)
    if first is None:
        return  # deleted meanwhile: the response keeps its items, nothing else does
    for offset, item in enumerate(new):
        item.conversation_id = conversation_id
        item.position = first + offset
    session.flush()


def _tell(session: Session, response: Response) -> None:
    metrics.on_commit(session, metrics.ENDED.labels(response.status).inc)
    webhooks.emit(session, response)
    turns.release(session, response)
