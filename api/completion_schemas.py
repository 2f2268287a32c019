"""The body of ``POST /v1/completions``. As `api.schemas`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from api import unsupported
from api.chat_schemas import MAX_CHOICES, Completing
from api.errors import BadRequest
from api.schemas import Flag, Whole

# A prompt as text, or as the ids of its tokens.
Prompt = str | list[int]
DEFAULT_TOKENS = 16
MAX_LOGPROBS = 5


def _prompts(value: object) -> list[Prompt]:
    """Take one prompt for a list of one; a list of whole numbers is one prompt."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong("prompt", "a string, token ids, or an array of either")
    if not value:
        raise BadRequest("Invalid 'prompt': it is empty.", param="prompt", code="array_below_min_length")
    if all(_is_id(each) for each in value):
        return [value]
    for place, each in enumerate(value):
        if isinstance(each, str):
            continue
        if not isinstance(each, list) or not all(_is_id(one) for one in each):
            raise _wrong(f"prompt[{place}]", "a string or an array of token ids")
        if not each:
            raise BadRequest(
                f"Invalid 'prompt[{place}]': it is empty.",
                param=f"prompt[{place}]",
                code="array_below_min_length",
            )
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _wrong(param: str, wanted: str) -> BadRequest:
    return BadRequest(f"Invalid type for '{param}': expected {wanted}.", param=param, code="invalid_type")


class CreateCompletion(Completing):
    """The body of ``POST /v1/completions``."""

    REFUSED = unsupported.COMPLETION

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(_prompts),
        WithJsonSchema(
            {"oneOf": [{"type": "string"}, {"type": "array"}], "description": "Texts, or token ids."}
        ),
    ]
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    echo: Flag | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def most(self) -> int:
        """How many tokens each answer may have."""
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _together(self) -> Self:
        answers = len(self.prompt) * self.choices
        if answers > MAX_CHOICES:
            raise BadRequest(
                f"Invalid 'prompt': it asks for {answers} answers, and at most {MAX_CHOICES} are given to a request.",
                param="prompt",
                code="array_above_max_length",
            )
        return self
