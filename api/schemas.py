"""Request bodies and queries, as pydantic models: types, ranges and lengths; unknown keys are refused.

What depends on settings or on stored data (the served model's name, the context's length, ids) is checked by the
endpoints. Null means the same as leaving a parameter out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from api import messages, structured, tools, unsupported
from api.errors import BadRequest, UnknownParameter, Unsupported
from storage.models import Json
from storage.webhook_secret import check_secret

MAX_PAIRS = 16
MAX_CONVERSATION_ITEMS = 20
LONGEST_WAIT_SECONDS = 365 * 86400
MAX_LOGPROBS = 20
MAX_SEED = 2**53 - 1  # the largest whole number that every JSON reader keeps exactly

Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Penalty = Annotated[float, Strict(), Field(ge=-2, le=2)]
Label = Annotated[str, StringConstraints(max_length=512)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=MAX_PAIRS),
]
ResponseEvent = Literal["response.completed", "response.incomplete", "response.failed", "response.cancelled"]
BatchEvent = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"]
EventType = Literal[ResponseEvent, BatchEvent]
_Once = AfterValidator(lambda types: list(dict.fromkeys(types)))
EventTypes = Annotated[list[EventType], Field(min_length=1), _Once]


class Body(BaseModel):
    """Base of all: no unknown keys, no coercion between types."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def one_or_more(value: object) -> object:
    """Take one string for a list of one."""
    return [value] if isinstance(value, str) else value


def read_by(reader: Callable[[Any], object]) -> BeforeValidator:
    """Have a reader of its own look at a value that is not null."""
    return BeforeValidator(lambda value: None if value is None else reader(value))


# Out here, because within the model `tools` is its field.
READ_TOOLS = read_by(tools.read)
READ_TOOL_CHOICE = read_by(tools.read_choice)


def _id_of(value: object) -> object:
    """Take ``{"id": ID}`` for ID."""
    return value["id"] if isinstance(value, dict) and value.keys() == {"id"} else value


def _checked_secret(secret: str) -> str:
    check_secret(secret)
    return secret


class Webhook(Body):
    """Where the end of one response is told: a URL of the request's own, or a registered endpoint."""

    url: str | None = None
    secret: Annotated[str, AfterValidator(_checked_secret)] | None = None
    events: Annotated[list[ResponseEvent], Field(min_length=1), _Once] | None = None
    endpoint_id: Id | None = None


class StreamOptions(Body):
    """How a stream is sent. Events are never padded, so there is nothing to switch off."""

    include_obfuscation: Flag | None = None


class BackgroundOptions(Body):
    """How soon a background job is wanted: within a window it runs in the tier `flex`, and expires with it."""

    completion_window: Literal["soonest", "2h", "8h"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:  # noqa: ANN401 - the caller's JSON
        if isinstance(given, dict):
            unsupported.refuse(given, unsupported.BACKGROUND_OPTIONS, "background_options.")
            return {key: value for key, value in given.items() if key not in unsupported.BACKGROUND_OPTIONS}
        return given


class CreateResponse(Body):
    """The body of ``POST /v1/responses``."""

    input: Annotated[
        list[Json],
        BeforeValidator(messages.read_input),
        WithJsonSchema(
            {
                "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
                "description": "A user message, or messages {role, content} with text content.",
            }
        ),
    ]
    model: Label | None = None
    instructions: str | None = None
    background: Flag | None = None
    background_options: BackgroundOptions | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    conversation: Annotated[Id | None, BeforeValidator(_id_of)] = None
    previous_response_id: Id | None = None
    store: Flag | None = None
    metadata: Metadata | None = None
    webhook: Webhook | None = None
    text: Annotated[
        Json | None, BeforeValidator(structured.read_text), WithJsonSchema({"type": "object"})
    ] = None
    tools: Annotated[
        list[Json] | None,
        READ_TOOLS,
        WithJsonSchema({"type": "array", "items": {"type": "object"}}),
    ] = None
    tool_choice: Annotated[
        str | Json | None,
        READ_TOOL_CHOICE,
        WithJsonSchema({"oneOf": [{"type": "string"}, {"type": "object"}]}),
    ] = None

    service_tier: Literal["auto", "default", "flex", "priority", "fast"] | None = None
    expires_in: Annotated[Number, Field(ge=1, le=LONGEST_WAIT_SECONDS)] | None = None
    max_run_seconds: Annotated[Number, Field(gt=0)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = None
    stop: (
        Annotated[list[StopString], BeforeValidator(one_or_more), Field(min_length=1, max_length=4)] | None
    ) = None

    # Accepted and shown again, without effect.
    parallel_tool_calls: Flag | None = None
    max_tool_calls: Annotated[Whole, Field(ge=1)] | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: Label | None = None
    user: Label | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:  # noqa: ANN401 - the caller's JSON
        """Refuse what is not honoured, drop what asks for nothing, and guess what a wrong name meant."""
        if not isinstance(given, dict):
            return given
        unsupported.refuse(given, unsupported.CREATE)
        unsupported.refuse_include(given.get("include"))
        asked = {key: value for key, value in given.items() if key not in unsupported.CREATE}
        refuse_unknown(asked, cls)
        return asked

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise only_streamed("stream_options", '"stream": true')
        return self


def refuse_unknown(asked: Mapping[str, object], model: type[Body]) -> None:
    """Refuse a key that the model does not have, and guess what was meant.

    Raises:
        UnknownParameter: the first one found.
    """
    for key in asked.keys() - model.model_fields.keys():
        close = get_close_matches(key, model.model_fields, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UnknownParameter(f"Unknown parameter: '{key[:100]}'.{hint}", param=key[:100])


def only_streamed(param: str, how: str) -> BadRequest:
    """Return the error for what makes sense with a stream alone."""
    return BadRequest(f"Invalid '{param}': it needs {how}.", param=param)


def _conversation_items(value: object) -> list[Json]:
    return messages.read(value, "items", most=MAX_CONVERSATION_ITEMS)


ConversationItems = Annotated[
    list[Json],
    BeforeValidator(_conversation_items),
    WithJsonSchema({"type": "array", "items": {"type": "object"}, "maxItems": MAX_CONVERSATION_ITEMS}),
]


class ExpiresAfter(Body):
    """When a file is deleted by itself."""

    anchor: Literal["created_at"]
    seconds: Annotated[Whole, Field(ge=3600, le=30 * 86400)]


class CreateFile(Body):
    """The form of ``POST /v1/files``, without the file."""

    purpose: str
    expires_after: ExpiresAfter | None = None

    @field_validator("purpose")
    @classmethod
    def _kept_here(cls, purpose: str) -> str:
        if purpose in unsupported.PURPOSES:
            raise Unsupported(
                f"Unsupported value for 'purpose': files of the purpose '{purpose}' have no use here, use 'batch'.",
                param="purpose",
            )
        if purpose != "batch":
            raise ValueError("input should be 'batch'")
        return purpose


class CreateBatch(Body):
    """The body of ``POST /v1/batches``."""

    input_file_id: Id
    endpoint: Literal["/v1/responses", "/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None

    @field_validator("endpoint", mode="before")
    @classmethod
    def _served(cls, endpoint: object) -> object:
        if endpoint in unsupported.BATCH_ENDPOINTS:
            raise Unsupported(
                f"Unsupported value for 'endpoint': batches for '{endpoint}' are not served here.",
                param="endpoint",
            )
        return endpoint


class BatchLine(Body):
    """One line of a batch's input file."""

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: Json


class CreateConversation(Body):
    """The body of ``POST /v1/conversations``."""

    items: ConversationItems | None = None
    metadata: Metadata | None = None


class UpdateConversation(Body):
    """The body of ``POST /v1/conversations/{id}``."""

    metadata: Metadata | None


class AddItems(Body):
    """The body of ``POST /v1/conversations/{id}/items``."""

    items: ConversationItems


class CreateEndpoint(Body):
    """The body of ``POST /v1/webhook_endpoints``."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    url: str
    event_types: EventTypes


class UpdateEndpoint(Body):
    """The body of ``POST /v1/webhook_endpoints/{id}``; `enabled` is an extension."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    url: str | None = None
    event_types: EventTypes | None = None
    enabled: Flag | None = None


class RotateSecret(Body):
    """The body of ``POST /v1/webhook_endpoints/{id}/rotate_secret``."""

    keep_old_secret_active_for_24_hours: Flag | None = None


class TestEndpoint(Body):
    """The body of ``POST /v1/webhook_endpoints/{id}/test``."""

    event_type: EventType


class Recover(Body):
    """The body of ``POST /v1/webhook_endpoints/{id}/recover``, an extension."""

    since: Annotated[Number, Field(ge=0, le=1e12)]  # unix seconds


class Retrieve(Body):
    """The query of a request for one object: there is nothing to choose."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:  # noqa: ANN401 - the caller's query
        if isinstance(given, dict):
            unsupported.refuse(given, unsupported.RETRIEVE)
            return {key: value for key, value in given.items() if key not in unsupported.RETRIEVE}
        return given


class RetrieveResponse(Retrieve):
    """The query of ``GET /v1/responses/{id}``: as an object, or as its event stream behind `starting_after`."""

    stream: bool | None = None
    starting_after: Annotated[int, Field(ge=0)] | None = None
    include_obfuscation: bool | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.starting_after is not None and not self.stream:
            raise only_streamed("starting_after", "'stream=true'")
        return self


class NewestPage(Retrieve):
    """The query of a list that has one order: the newest first."""

    after: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class Page(Retrieve):
    """The query of a list."""

    after: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class FilePage(Page):
    """The query of the list of files."""

    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    purpose: Annotated[str, StringConstraints(max_length=100)] | None = None


class DeliveryPage(Page):
    """The query of a list of webhook deliveries."""

    status: Literal["pending", "delivered", "failed"] | None = None
    event_type: EventType | None = None
    subject: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")] | None = None
