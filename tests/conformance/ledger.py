"""Every difference between what the service sends and the SDK's types, with its reason. Nothing else may differ.

`test_the_record` fails when a line here is no longer needed.
"""

from __future__ import annotations

NOT_TEXT = "about things that a text model has not"
OTHERS = "OpenAI's own API and the Open Responses document send it; the SDK's type has not got it"
PAGES = "OpenAI's own pages have it; the SDK's class for them names only what it reads"
EXTENSION = "an extension, described in docs/api.md"
NO_PHASES = "messages have no phases"
NO_CALLS = "no functions are offered on the tour"
USAGE_ONLY = "only with stream_options.include_usage, as the SDK says"
CHANGED = "a chunk tells what it brings"
NO_PROGRAMS = "about tools that are called by programs, or searched for; there are none"
NO_BREAKPOINTS = "prompt caching takes no breakpoints here"

# Keys that we send and the type does not know. The SDK keeps them as extra fields.
EXTRA: dict[str, dict[str, str]] = {
    "response.Response": {
        "store": OTHERS,
        "presence_penalty": OTHERS,
        "frequency_penalty": OTHERS,
        "queue": EXTENSION,
    },
    "response_function_call_arguments_done_event.ResponseFunctionCallArgumentsDoneEvent": {
        "name": "earlier versions of the SDK need it",
    },
    "webhook_endpoint.WebhookEndpoint": {"enabled": EXTENSION, "disabled_reason": EXTENSION},
    "webhook_endpoint_with_secret.WebhookEndpointWithSecret": {
        "enabled": EXTENSION,
        "disabled_reason": EXTENSION,
    },
    "pagination.SyncCursorPage": {"object": PAGES, "first_id": PAGES, "last_id": PAGES},
    "pagination.SyncConversationCursorPage": {"object": PAGES, "first_id": PAGES},
}

# Keys that the type knows as optional and that we leave out.
LEFT_OUT: dict[str, dict[str, str]] = {
    "response.Response": {
        "image": NOT_TEXT,
        "input_transformations": NOT_TEXT,
        "moderation": NOT_TEXT,
        "prompt": "there are no stored prompt templates",
        "prompt_cache_diagnostics": "nobody can ask for them",
        "prompt_cache_options": "nobody can ask for them",
        "tool_usage": "no tool runs in the service",
    },
    "response_text_config.ResponseTextConfig": {"verbosity": "the model knows no verbosity"},
    "response_output_message.ResponseOutputMessage": {"phase": NO_PHASES},
    "response_function_tool_call_output_item.ResponseFunctionToolCallOutputItem": {
        "caller": NO_PROGRAMS,
        "created_by": "items do not say who made them",
        "name": "its call says it",
        "namespace": NO_PROGRAMS,
    },
    "message.Message": {"phase": NO_PHASES},
    "function_tool.FunctionTool": {
        "allowed_callers": NO_PROGRAMS,
        "async_": NO_PROGRAMS,
        "defer_loading": NO_PROGRAMS,
        "output_schema": NO_PROGRAMS,
    },
    "response_function_tool_call.ResponseFunctionToolCall": {
        "async_": NO_PROGRAMS,
        "caller": NO_PROGRAMS,
        "namespace": NO_PROGRAMS,
    },
    "response_input_text.ResponseInputText": {"prompt_cache_breakpoint": NO_BREAKPOINTS},
    "response_usage.InputTokensDetails": {"cache_write_tokens_details": "a cache of one kind"},
    "chat_completion.ChatCompletion": {"moderation": "nothing judges the text"},
    "chat_completion_message.ChatCompletionMessage": {
        "audio": NOT_TEXT,
        "function_call": NO_CALLS,
        "tool_calls": NO_CALLS,
    },
    "chat_completion_chunk.ChatCompletionChunk": {
        "moderation": "nothing judges the text",
        "obfuscation": "chunks are never padded",
        "usage": USAGE_ONLY,
    },
    "chat_completion_chunk.ChoiceDelta": {
        "audio": NOT_TEXT,
        "content": CHANGED,
        "function_call": NO_CALLS,
        "refusal": CHANGED,
        "role": CHANGED,
        "tool_calls": NO_CALLS,
    },
    "completion.Completion": {"usage": USAGE_ONLY},
    "completion_usage.CompletionTokensDetails": {
        "accepted_prediction_tokens": "nothing is predicted",
        "audio_tokens": NOT_TEXT,
        "rejected_prediction_tokens": "nothing is predicted",
        "text_tokens": "all of them are",
    },
    "completion_usage.PromptTokensDetails": {
        "audio_tokens": NOT_TEXT,
        "image_tokens": NOT_TEXT,
        "text_tokens": "all of them are",
    },
    "error_object.ErrorObject": {"misalignment": "nothing judges the text"},
}

# Values that are not of the SDK's type, by method and place.
MISTYPED: dict[str, dict[str, str]] = {
    "completions.create (stream)": {
        "choices.finish_reason": "null until the end, as OpenAI's own API has it; the SDK has one type for both shapes",
    },
    "chat.completions.messages.list": {
        "data.role": "OpenAI's own API shows each message's role; the SDK's type knows the answer's alone",
    },
}

# Methods of the SDK's text families that are not served, and why. They answer with 404 or 405.
NOT_OFFERED: dict[str, str] = {
    "responses.compact": "needs a model that summarises its own history; truncation drops whole turns instead",
    "models.delete": "there are no fine-tuned models",
}

# Paths that the SDK does not have.
PATHS_OF_OURS = ("/livez", "/readyz", "/metrics")

# Events that the SDK's union does not hold; both SDKs pass them through.
EVENTS_OF_OURS = ("response.cancelled",)
