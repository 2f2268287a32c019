"""From a validated chat completion to the jobs that are stored: what depends on settings is checked here."""

from __future__ import annotations

import secrets

from api import answer_form, limits, messages, submission
from api.chat_schemas import Completing, CreateChatCompletion
from api.schemas import MAX_SEED
from api.settings import ApiSettings
from storage.models import Json
from storage.responses import NewResponse


def check(body: CreateChatCompletion, settings: ApiSettings) -> None:
    """Refuse what this service cannot do.

    Raises:
        NoSuchObject: another model than the served one is asked for.
        BadRequest: it is longer than the settings allow, or asks for what cannot be promised.
    """
    submission.check_model(body.model, settings)
    submission.check_characters("messages", messages.characters(body.messages), settings)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    submission.check_tokens(name, _most(body), settings)
    answer_form.check(_form(body), answer_form.CHAT)


def cost(body: CreateChatCompletion) -> int:
    """Return the tokens that the jobs are charged: the messages once, and every answer."""
    return limits.tokens(messages.characters(body.messages), _most(body), body.choices)


def jobs(body: CreateChatCompletion, webhook: Json | None, settings: ApiSettings) -> list[NewResponse]:
    """Return the job of each answer. `webhook` is the receiver as `api.receivers` has read it."""
    request = {
        **sampling(body, settings),
        **_form(body).stored,
        "store": bool(body.store),
        "metadata": body.metadata or {},
        "max_output_tokens": _most(body),
        "truncation": body.truncation or "disabled",
        "top_logprobs": body.top_logprobs,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
        "safety_identifier": body.safety_identifier,
    }
    first = first_seed(body)
    return [
        NewResponse(
            request=request,
            items=body.messages if choice == 0 else [],
            seed=(first + choice) % (MAX_SEED + 1),
            max_run_seconds=settings.job_timeout,
            tier=submission.TIERS.get(body.service_tier, "default"),
            webhook=webhook,
            kind="chat.completion",
            stored=bool(body.store),
        )
        for choice in range(body.choices)
    ]


def first_seed(body: Completing) -> int:
    """Return the seed of the first answer; those after it count on from there, so that they differ."""
    return secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed


def sampling(body: Completing, settings: ApiSettings) -> Json:
    """Return what the worker, and the objects shown, need to know of any body; None where the caller said nothing."""
    return {
        "model": settings.model_name,
        "instructions": None,
        "background": False,
        "followed": bool(body.stream),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
        "seed": body.seed,
        "stop": body.stop or None,
        "user": body.user,
    }


def _form(body: CreateChatCompletion) -> answer_form.Form:
    return answer_form.Form(
        body.response_format, body.tools, body.tool_choice, body.stop, bool(body.logprobs)
    )


def _most(body: CreateChatCompletion) -> int | None:
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
