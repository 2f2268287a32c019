"""What waits for the end of something: the next turn of a conversation, and what continues a response.

A job is `ready` once nothing it waits for is open. The two who decide that, whoever accepts a job and whoever ends
one, hold the same row while they do: the conversation's, or the continued response's.
"""

from __future__ import annotations

from sqlalchemy import bindparam, literal, select, update
from sqlalchemy.orm import Session

from storage import clock, homes, outbox
from storage.models import Conversation, Response

OPEN = ("queued", "in_progress")
# Built once: every end of a job asks for them.
CONTINUATIONS = select(Response.id).where(
    Response.previous_response_id == bindparam("ended"), Response.status == "queued", ~Response.ready
)


def first_open(session: Session, conversation_id: str) -> Response | None:
    """Return the conversation's earliest turn that has not ended, or None."""
    return session.scalar(
        select(Response)
        .where(
            Response.conversation_id == conversation_id,
            # As the partial index has it.
            Response.status.in_([literal(status, literal_execute=True) for status in OPEN]),
        )
        .order_by(Response.turn)
        .limit(1)
        .execution_options(populate_existing=True)
    )


def release(session: Session, ended: Response) -> None:
    """Make ready, and announce, what waited for this response. Its end must stand in the transaction already."""
    if ended.conversation_id is not None:
        session.execute(
            select(Conversation.id).where(Conversation.id == ended.conversation_id).with_for_update()
        )
        following = first_open(session, ended.conversation_id)
        if following is not None and following.status == "queued" and not following.ready:
            _make_ready(session, following.id, ended.worker)
    for response_id in session.scalars(CONTINUATIONS, {"ended": ended.id}).all():
        _make_ready(session, response_id, ended.worker)


def _make_ready(session: Session, response_id: str, home: str | None) -> None:
    session.execute(
        update(Response)
        .where(Response.id == response_id)
        .values(ready=True, home=home, shared_at=clock.now() + homes.FRESH_SECONDS)
    )
    outbox.add(session, "generate", response_id)
