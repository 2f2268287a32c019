"""One line of a batch: read as its endpoint would read it over HTTP, and shown as that would answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from api import (
    chat_objects,
    chat_submission,
    choices,
    objects,
    strict_json,
    submission,
    unsupported,
    validation,
)
from api.chat_schemas import CreateChatCompletion
from api.errors import ApiError, BadRequest, TooLarge
from api.schemas import BatchLine, CreateResponse
from api.settings import ApiSettings
from storage import groups
from storage.models import Item, Json, Response
from storage.responses import NewResponse

# What a line has around its body.
MAX_FRAME_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a line may be for.

    Attributes:
        read: from a line's body to its job; raises ApiError.
        show: the status code and the body of the answer.
    """

    read: Callable[[Json, ApiSettings], NewResponse]
    show: Callable[[Response, Sequence[Item]], tuple[int, Json]]


def read(line: bytes, endpoint: str, settings: ApiSettings) -> tuple[str, NewResponse]:
    """Return a line's `custom_id` and its job.

    Raises:
        ApiError: what is wrong with it; of its body, what the endpoint itself would say.
    """
    if len(line) > longest(settings):
        raise TooLarge(f"The line is longer than {longest(settings)} bytes.")
    value = strict_json.read(line)
    if not isinstance(value, dict):
        raise BadRequest("The line must be a JSON object.", code="invalid_type")
    asked = validation.read(BatchLine, value)
    if asked.url != endpoint:
        raise BadRequest(f"Invalid 'url': this batch is for '{endpoint}'.", param="url", code="invalid_url")
    unsupported.refuse(asked.body, unsupported.BATCH_LINE)
    return asked.custom_id, replace(ENDPOINTS[endpoint].read(asked.body, settings), tier="flex")


def longest(settings: ApiSettings) -> int:
    """Return how many bytes a line may have."""
    return settings.max_body_bytes + MAX_FRAME_BYTES


def error(number: int, problem: ApiError) -> Json:
    """Return an entry of a batch's `errors`."""
    return {"code": problem.code, "line": number, "message": problem.message, "param": problem.param}


def _read_response(body: Json, settings: ApiSettings) -> NewResponse:
    asked = validation.read(CreateResponse, body)
    submission.check(asked, settings)
    return submission.job(asked, None, settings)


def _show_response(row: Response, output: Sequence[Item]) -> tuple[int, Json]:
    return 200, objects.response(row, output)


def _read_chat(body: Json, settings: ApiSettings) -> NewResponse:
    unsupported.refuse(body, unsupported.BATCH_CHAT)
    asked = validation.read(CreateChatCompletion, body)
    chat_submission.check(asked, settings)
    (job,) = chat_submission.jobs(asked, None, settings)
    return job


def _show_chat(row: Response, output: Sequence[Item]) -> tuple[int, Json]:
    if row.status not in groups.ANSWERED:
        problem = choices.failure(row.error, "messages")
        return problem.status, {"error": problem.shown}
    return 200, chat_objects.completion([choices.Choice(row, list(output))])


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/responses": Endpoint(_read_response, _show_response),
    "/v1/chat/completions": Endpoint(_read_chat, _show_chat),
}
