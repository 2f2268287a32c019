"""Request bodies and queries of Chat Completions, and what Completions share with them. As `api.schemas`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from api import chat_messages, chat_tools, unsupported
from api.errors import BadRequest
from api.schemas import (
    MAX_LOGPROBS,
    MAX_SEED,
    Body,
    Flag,
    Label,
    Metadata,
    Number,
    Page,
    Penalty,
    StopString,
    Webhook,
    Whole,
    one_or_more,
    only_streamed,
    read_by,
    refuse_unknown,
)
from storage.models import Json

MAX_CHOICES = 128
MAX_BIASES = 1024

Bias = Annotated[Number, Field(ge=-100, le=100)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,7}$")]


class StreamOptions(Body):
    """What a stream has besides the answer. Chunks are never padded, so there is nothing to switch off."""

    include_usage: Flag | None = None
    include_obfuscation: Flag | None = None


class Completing(Body):
    """What the bodies of both endpoints have in common."""

    REFUSED: ClassVar[unsupported.Table]

    model: Label | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[list[StopString], BeforeValidator(one_or_more), Field(max_length=4)] | None = None

    user: Label | None = None  # without effect

    @property
    def choices(self) -> int:
        """How many answers each prompt is to have."""
        return self.n or 1

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:  # noqa: ANN401 - the caller's JSON
        """Refuse what is not honoured, drop what asks for nothing, and guess what a wrong name meant."""
        if not isinstance(given, dict):
            return given
        unsupported.refuse(given, cls.REFUSED)
        asked = {key: value for key, value in given.items() if key not in cls.REFUSED}
        refuse_unknown(asked, cls)
        return asked

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise only_streamed("stream_options", '"stream": true')
        return self


class CreateChatCompletion(Completing):
    """The body of ``POST /v1/chat/completions``."""

    REFUSED = unsupported.CHAT

    messages: Annotated[
        list[Json],
        BeforeValidator(chat_messages.read),
        WithJsonSchema({"type": "array", "items": {"type": "object"}, "minItems": 1}),
    ]
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    store: Flag | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "fast"] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    webhook: Webhook | None = None
    response_format: Annotated[
        Json | None,
        read_by(chat_tools.read_format),
        WithJsonSchema({"type": "object"}),
    ] = None
    tools: Annotated[
        list[Json] | None,
        read_by(chat_tools.read),
        WithJsonSchema({"type": "array", "items": {"type": "object"}}),
    ] = None
    tool_choice: Annotated[
        str | Json | None,
        read_by(chat_tools.read_choice),
        WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "object"}]}),
    ] = None

    # Without effect.
    parallel_tool_calls: Flag | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: Label | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("Invalid 'top_logprobs': it needs \"logprobs\": true.", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise BadRequest(
                "'max_tokens' and 'max_completion_tokens' exclude each other: use the latter.",
                param="max_tokens",
                code="mutually_exclusive_parameters",
            )
        if self.webhook is not None and self.choices > 1:
            raise BadRequest(
                "Invalid 'webhook': it tells of one answer, so it excludes 'n'.", param="webhook"
            )
        return self


class UpdateChatCompletion(Body):
    """The body of ``POST /v1/chat/completions/{id}``."""

    metadata: Metadata | None


class ChatPage(Page):
    """The query of the list of stored chat completions."""

    order: Literal["asc", "desc"] = "asc"
    model: Label | None = None
    metadata: Metadata | None = None


class MessagePage(Page):
    """The query of the list of a stored chat completion's messages."""

    order: Literal["asc", "desc"] = "asc"
