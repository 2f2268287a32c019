"""From a validated body to the job that is stored: what depends on settings is checked here."""

from __future__ import annotations

import secrets

from api import answer_form, messages
from api.errors import BadRequest, NoSuchObject
from api.schemas import MAX_SEED, CreateResponse
from api.settings import ApiSettings
from storage import queue
from storage.errors import NotFound
from storage.models import Json
from storage.responses import NewResponse

DEFAULT_MODEL = "default"
# OpenAI's other name for a tier: its answers show `priority` for both.
TIERS: dict[str | None, queue.Tier] = {"flex": "flex", "priority": "priority", "fast": "priority"}
# What of a request an id that was not found belongs to.
PARAMS = {
    "conversation": "conversation",
    "item": "input",
    "response": "previous_response_id",
    "webhook endpoint": "webhook.endpoint_id",
}
WINDOW_SECONDS = {"2h": 2 * 3600.0, "8h": 8 * 3600.0}


def check(body: CreateResponse, settings: ApiSettings) -> None:
    """Refuse what this service cannot do.

    Raises:
        NoSuchObject: another model than the served one is asked for.
        BadRequest: it is longer than the settings allow, or its parts exclude each other.
    """
    check_model(body.model, settings)
    _check_limits(body, settings)
    _check_window(body)
    answer_form.check(_form(body), answer_form.RESPONSES)
    _check_calls(body)
    if body.background and body.store is False:
        raise BadRequest(
            "Invalid 'store': a background response is fetched later, so it has to be stored.", param="store"
        )
    if body.conversation is not None and body.previous_response_id is not None:
        raise BadRequest(
            "'conversation' and 'previous_response_id' exclude each other: name one of them.",
            param="previous_response_id",
            code="mutually_exclusive_parameters",
        )


def job(body: CreateResponse, webhook: Json | None, settings: ApiSettings) -> NewResponse:
    """Return the job to store. `webhook` is the receiver as `api.receivers` has read it."""
    window = _window(body)
    tier = TIERS.get(body.service_tier, "default") if window is None else "flex"
    return NewResponse(
        request=_request(body, settings),
        items=body.input,
        seed=secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
        max_run_seconds=body.max_run_seconds or settings.job_timeout,
        tier=tier,
        expires_in=window if body.expires_in is None else body.expires_in,
        conversation_id=body.conversation,
        previous_response_id=body.previous_response_id,
        webhook=webhook,
        stored=body.store is not False,
    )


def missing(error: NotFound) -> NoSuchObject:
    """Return the error for an id in a request that stands for nothing."""
    return NoSuchObject(str(error), param=PARAMS[error.kind])


def check_model(name: str | None, settings: ApiSettings) -> None:
    """Raise NoSuchObject unless `name` is the served model's, its alias, or left out."""
    if name not in (None, DEFAULT_MODEL, settings.model_name):
        raise NoSuchObject(
            f"The model '{name}' does not exist here. This service has '{settings.model_name}'.",
            param="model",
            code="model_not_found",
        )


def check_characters(param: str, length: int, settings: ApiSettings) -> None:
    """Raise BadRequest when a text is longer than one may be."""
    if length > settings.max_input_characters:
        raise BadRequest(
            f"Invalid '{param}': its text is {length} characters long, "
            f"and at most {settings.max_input_characters} are allowed.",
            param=param,
            code="string_above_max_length",
        )


def check_tokens(param: str, most: int | None, settings: ApiSettings) -> None:
    """Raise BadRequest when an answer may be longer than the model's context."""
    if most is not None and most > settings.context_length:
        raise BadRequest(
            f"Invalid '{param}': the model's whole context is {settings.context_length} tokens.",
            param=param,
            code="integer_above_max_value",
        )


def _check_limits(body: CreateResponse, settings: ApiSettings) -> None:
    for param, length in (
        ("input", messages.characters(body.input)),
        ("instructions", len(body.instructions or "")),
    ):
        check_characters(param, length, settings)
    check_tokens("max_output_tokens", body.max_output_tokens, settings)
    if body.max_run_seconds is not None and body.max_run_seconds > settings.job_timeout:
        raise BadRequest(
            f"Invalid 'max_run_seconds': a job may run for at most {settings.job_timeout:g} seconds here.",
            param="max_run_seconds",
            code="decimal_above_max_value",
        )


def _check_window(body: CreateResponse) -> None:
    if _window(body) is None:
        return
    param = "background_options.completion_window"
    for wrong, why in (
        (not body.background, 'it needs "background": true'),
        (body.stream, "it excludes 'stream'"),
        (body.service_tier not in (None, "auto", "default"), "it excludes another 'service_tier'"),
    ):
        if wrong:
            raise BadRequest(f"Invalid '{param}': {why}.", param=param)


def _form(body: CreateResponse) -> answer_form.Form:
    return answer_form.Form(body.text, body.tools, body.tool_choice, body.stop, bool(body.include))


def _check_calls(body: CreateResponse) -> None:
    if body.conversation is not None or body.previous_response_id is not None:
        return  # the calls may be what the input continues
    unanswered = messages.unanswered(body.input)
    if unanswered is not None:
        raise BadRequest(
            f"Invalid 'input[{unanswered}].call_id': no function_call before it has this 'call_id'.",
            param=f"input[{unanswered}].call_id",
        )


def _window(body: CreateResponse) -> float | None:
    """Return the seconds within which the caller wants the answer, or None for as soon as possible."""
    window = None if body.background_options is None else body.background_options.completion_window
    return WINDOW_SECONDS.get(window or "soonest")


def _request(body: CreateResponse, settings: ApiSettings) -> Json:
    """Return everything the worker and the Response object need to know; None where the caller said nothing."""
    return {
        "model": settings.model_name,
        "instructions": body.instructions,
        "background": bool(body.background),
        "followed": bool(body.stream or body.background),
        "store": body.store is not False,
        "metadata": body.metadata or {},
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "top_logprobs": body.top_logprobs,
        # How many alternatives are found for each token; None leaves log-probabilities out altogether.
        "logprobs": (body.top_logprobs or 0) if body.include else None,
        "seed": body.seed,
        "stop": body.stop,
        "truncation": body.truncation or "auto",
        **_form(body).stored,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "max_tool_calls": body.max_tool_calls,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
        "safety_identifier": body.safety_identifier,
        "user": body.user,
    }
