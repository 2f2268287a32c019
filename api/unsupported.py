"""Parameters of OpenAI's API that a text model, or this service, does not honour.

Each is refused by name unless its value asks for nothing: what a caller sends is done or refused, never ignored
in silence. docs/api.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping

from api.errors import Unsupported

NOT_HERE = "this service has nothing like it"
NO_MORE = "there is nothing more to include"

# What a response may include: with an answer that has them they are always shown afterwards.
LOGPROBS = "message.output_text.logprobs"

Table = Mapping[str, tuple[tuple[object, ...], str]]

# The name, the values besides null and empty ones that ask for nothing, and why the others are refused.
CREATE: Table = {
    "reasoning": (({"effort": "none"},), "this model does not reason apart from its answer"),
    "prompt": ((), "there are no stored prompt templates; use 'instructions'"),
    "n": ((1,), "a response has one answer"),
    "access_programs": ((), NOT_HERE),
    "context_management": ((), NOT_HERE),
    "image": ((), "this is a text model"),
    "moderation": ((), NOT_HERE),
    "prompt_cache_options": ((), "prompt caching needs no options here"),
}
BACKGROUND_OPTIONS: Table = {
    "continuation_id": ((), "related requests get no place of their own in the queue"),
}
# Where a batch decides, its lines cannot.
BATCH_LINE: Table = {
    "stream": ((False,), "a batch's answers come in a file"),
    "background": ((False,), "all lines of a batch are answered in the background"),
    "background_options": ((), "the batch's 'completion_window' decides"),
    "expires_in": ((), "the batch's 'completion_window' decides"),
    "service_tier": (("auto", "flex"), "all lines of a batch run in the tier 'flex'"),
    "webhook": ((), "the end of the batch is told by the events 'batch.*' of a webhook endpoint"),
}
BATCH_CHAT: Table = {"n": ((1,), "each line of a batch has one answer")}
BATCH_ENDPOINTS = (
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/edits",
    "/v1/images/generations",
    "/v1/moderations",
    "/v1/videos",
)
CHAT: Table = {
    "functions": ((), "use 'tools'"),
    "function_call": (("auto", "none"), "use 'tool_choice'"),
    "audio": ((), "this is a text model"),
    "modalities": ((["text"],), "this is a text model"),
    "moderation": ((), NOT_HERE),
    "prediction": ((), "there is no speculation on predicted output"),
    "prompt_cache_options": ((), "prompt caching needs no options here"),
    "reasoning_effort": (("none",), "this model does not reason apart from its answer"),
    "verbosity": ((), "this model has one length of answer; use 'max_completion_tokens'"),
    "web_search_options": ((), NOT_HERE),
}
COMPLETION: Table = {
    "best_of": ((1,), "answers are not ranked here; use 'n'"),
    "suffix": ((), "this model cannot fill in"),
}
COUNT: Table = {
    "personality": ((), "this model has one style; use 'instructions'"),
}
# What files are for elsewhere.
PURPOSES = ("assistants", "evals", "fine-tune", "user_data", "vision")
RETRIEVE: Table = {
    "include": ((LOGPROBS, [LOGPROBS]), NO_MORE),
    "include[]": ((LOGPROBS, [LOGPROBS]), NO_MORE),
}


def refuse(given: Mapping[str, object], table: Table, within: str = "") -> None:
    """Look for parameters of `table` that ask for something; `within` names the object that holds them.

    Raises:
        Unsupported: the first one found.
    """
    for name in given:
        if name not in table:
            continue
        harmless, why = table[name]
        if not _asks_nothing(given[name]) and given[name] not in harmless:
            param = within + name.removesuffix("[]")
            raise Unsupported(f"Unsupported value for '{param}': {why}.", param=param)


def refuse_include(include: object) -> None:
    """Check a request's `include`: only log-probabilities can be included.

    Raises:
        Unsupported: it asks for something else.
    """
    if isinstance(include, list):
        for place, name in enumerate(include):
            if isinstance(name, str) and name != LOGPROBS:
                raise Unsupported(
                    f"Unsupported value for 'include[{place}]': {NO_MORE}.", param=f"include[{place}]"
                )


def _asks_nothing(value: object) -> bool:
    if isinstance(value, dict):
        return all(inner is None for inner in value.values())
    return value is None or value == []
