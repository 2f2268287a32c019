"""From a validated completion to the jobs that are stored: what depends on settings is checked here."""

from __future__ import annotations

from api import chat_submission, limits, submission
from api.completion_schemas import CreateCompletion, Prompt
from api.errors import BadRequest
from api.schemas import MAX_SEED
from api.settings import ApiSettings
from storage.models import Json
from storage.responses import NewResponse

# A raw prompt is for the model itself, as evaluations measure it: OpenAI's defaults, not the checkpoint's for chat.
DEFAULTS: Json = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}


def check(body: CreateCompletion, settings: ApiSettings) -> None:
    """Refuse what this service cannot do.

    Raises:
        NoSuchObject: another model than the served one is asked for.
        BadRequest: it is longer than the settings allow.
    """
    submission.check_model(body.model, settings)
    submission.check_characters("prompt", _characters(body), settings)
    for place, prompt in enumerate(body.prompt):
        if not isinstance(prompt, str) and len(prompt) > settings.context_length:
            raise BadRequest(
                f"Invalid 'prompt': prompt {place} is {len(prompt)} tokens long, "
                f"and the model's whole context is {settings.context_length}.",
                param="prompt",
                code="context_length_exceeded",
            )
    submission.check_tokens("max_tokens", body.max_tokens, settings)


def cost(body: CreateCompletion) -> int:
    """Return the tokens that the jobs are charged: each prompt once, and every answer."""
    ids = sum(len(prompt) for prompt in body.prompt if not isinstance(prompt, str))
    return ids + limits.tokens(_characters(body), body.most, len(body.prompt) * body.choices)


def jobs(body: CreateCompletion, settings: ApiSettings) -> list[NewResponse]:
    """Return the job of each answer: all of the first prompt, then all of the second, and so on."""
    asked = chat_submission.sampling(body, settings)
    shared = {
        **asked,
        **{name: default for name, default in DEFAULTS.items() if asked[name] is None},
        "store": False,
        "metadata": {},
        "max_output_tokens": body.most,
        "truncation": "disabled",
        "top_logprobs": None,
        "logprobs": body.logprobs,
        "parallel_tool_calls": True,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "safety_identifier": None,
        "echo": bool(body.echo),
    }
    first = chat_submission.first_seed(body)

    def job(prompt: Prompt, choice: int) -> NewResponse:
        return NewResponse(
            request={**shared, "prompt": prompt},
            items=[],
            seed=(first + choice) % (MAX_SEED + 1),
            max_run_seconds=settings.job_timeout,
            kind="completion",
            stored=False,
        )

    return [job(prompt, choice) for prompt in body.prompt for choice in range(body.choices)]


def _characters(body: CreateCompletion) -> int:
    return sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str))
