"""POST /v1/responses/input_tokens: how many tokens a request's prompt has, without asking for an answer.

The prompt is the worker's own, so that the count is what `usage.input_tokens` would say. Who builds it is handed
in from above (`qwenq.counting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import structlog
from fastapi import Body
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse

from api import route, submission, unsupported, validation
from api.errors import BadRequest, NoSuchObject, Refused, Unavailable, UnknownParameter
from api.prompt_length import NoTokenizer, Uncountable
from api.schemas import CreateResponse
from api.services import Held, Project
from storage import conversations, history, references, responses
from storage.errors import NotFound
from storage.history import Said
from storage.models import Json

log = structlog.get_logger(__name__)

routes = route.router("responses")

# What of a response's parameters decides its prompt.
PARAMETERS = {
    "conversation",
    "input",
    "instructions",
    "model",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
}
EXAMPLE = {"model": "default", "input": "Hello"}


@routes.post("/responses/input_tokens")
def count(
    services: Held, project_id: Project, given: Annotated[dict[str, Any], Body(examples=[EXAMPLE])]
) -> JSONResponse:
    """Count the tokens of a prompt: its history, instructions and input."""
    body = _read(given)
    submission.check(body, services.settings)
    if services.prompt_length is None:
        raise _no_tokenizer()
    new = submission.job(body, None, services.settings)
    with services.database.read() as session:
        said = _history(session, project_id, body)
        own = _own(session, project_id, new.items) if given.get("input") is not None else []
    try:
        tokens = services.prompt_length([*said, *own], new.request)
    except Uncountable as too_long:
        raise BadRequest(str(too_long), param="input", code="context_length_exceeded") from None
    except NoTokenizer as trouble:
        log.error("prompts cannot be counted", cause=str(trouble))
        raise _no_tokenizer() from None
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


def _read(given: Mapping[str, Any]) -> CreateResponse:
    unsupported.refuse(given, unsupported.COUNT)
    asked = {name: value for name, value in given.items() if name not in unsupported.COUNT}
    for name in asked.keys() - PARAMETERS:
        raise UnknownParameter(f"Unknown parameter: '{name[:100]}'.", param=name[:100])
    # A count may leave the input out, a response may not: a word stands in for it, and is taken out again.
    return validation.read(
        CreateResponse, asked if asked.get("input") is not None else {**asked, "input": "-"}
    )


def _own(session: Session, project_id: str, items: Sequence[Json]) -> list[Said]:
    try:
        return [Said(item) for item in references.resolve(session, project_id, items)]
    except NotFound as missing:
        raise NoSuchObject(str(missing), param="input") from None


def _history(session: Session, project_id: str, body: CreateResponse) -> list[Said]:
    try:
        if body.conversation is not None:
            conversations.get(session, project_id, body.conversation)
        if body.previous_response_id is not None:
            responses.get(session, project_id, body.previous_response_id)
        return history.before(session, body.conversation, body.previous_response_id)
    except NotFound as missing:
        param = "conversation" if missing.kind == "conversation" else "previous_response_id"
        raise NoSuchObject(str(missing), param=param) from None
    except history.HistoryGone as gone:
        raise Refused(str(gone), param="previous_response_id") from None


def _no_tokenizer() -> Unavailable:
    return Unavailable(
        "Tokens cannot be counted here: the API has no checkpoint. Its operator sets QWENQ_MODEL.",
        code="tokenizer_unavailable",
        retry_after=None,
    )
