"""Jobs and projects for tests of the state functions."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from storage import keys, leases, responses, terminal
from storage.models import Response
from storage.responses import NewResponse

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
LEASE = 30.0


def project(session: Session, name: str = "default") -> str:
    secret = keys.create(session, name, "test").secret
    found = keys.project_of(session, secret)
    assert found is not None
    return found


def message(text: str, role: str = "user") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def accept(session: Session, project_id: str, text: str = "hello", **fields: Any) -> Response:
    request = {"background": True, "metadata": {"k": "v"}, **fields.pop("request", {})}
    new = NewResponse(
        **{"request": request, "items": [message(text)], "seed": 1, "max_run_seconds": 600.0, **fields}
    )
    return session.get_one(Response, responses.accept(session, project_id, new).id)


def salvage_nothing(_session: Session, _response: Response) -> None:
    """What a sweep saves of a lost attempt when there is no live tail."""


def sweep(session: Session, max_attempts: int = 3) -> leases.Swept:
    return leases.sweep(session, max_attempts, salvage_nothing)


def claim(session: Session, worker: str = "w1", lease: float = LEASE) -> Response | None:
    return leases.claim(session, worker, lease, 3)


def answer(session: Session, response: Response, text: str = "hi", *, cut: bool = False) -> Response:
    return terminal.close_answered(
        session,
        response.id,
        response.attempt,
        terminal.Answer(text, USAGE, "max_output_tokens" if cut else None),
    )
