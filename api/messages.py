"""Input items: from what a caller may write to the one form in which messages are stored and shown.

A caller writes a string, or a list of messages whose content is a string or a list of text parts. Stored is
always ``{"type": "message", "role", "status": "completed", "content": [parts]}``, with parts of type
``output_text`` for the assistant's messages and ``input_text`` for all others. Among them stand calls of functions,
which are output items sent back, and what these returned: ``{"type": "function_call", "call_id", "name", "arguments"}``
and ``{"type": "function_call_output", "call_id", "output"}``. Ids and statuses that come with an item mean nothing;
items get ids of their own. An item that is kept already can be named, ``{"type": "item_reference", "id"}``: what is
stored is a copy of it (`storage.references`).
"""

from __future__ import annotations

import re
from typing import Any

from api.errors import BadRequest, UnknownParameter, Unsupported
from storage.models import Json

ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = ("input_text", "output_text")
MAX_ITEMS = 1000

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
NAME_RULE = "it is 1 to 64 letters, digits, underscores and dashes"

CALL_KEYS = {"type", "call_id", "name", "arguments", "id", "status"}
CALL_OUTPUT_KEYS = {"type", "call_id", "output", "id", "status"}
REFERENCE_KEYS = {"type", "id"}
MESSAGE_KEYS = {"type", "role", "content", "id", "status", "phase"}
# Annotations and logprobs come with output items that are sent back; they say nothing to a text model.
PART_KEYS = {"type", "text", "annotations", "logprobs", "prompt_cache_breakpoint"}


def read(value: object, param: str, *, most: int = MAX_ITEMS, references: bool = False) -> list[Json]:
    """Return the bodies of a list of input items; with `references` items may be named by their ids.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    return [
        _reference(each, f"{param}[{place}]")
        if references and _is_reference(each)
        else item(each, f"{param}[{place}]")
        for place, each in enumerate(many(value, param, most=most))
    ]


def many(value: object, param: str, *, most: int = MAX_ITEMS) -> list[object]:
    """Return `value` if it is a list of at least one and at most so many items, else raise BadRequest."""
    if not isinstance(value, list):
        raise _wrong_type(param, "an array of messages", value)
    if not value:
        raise BadRequest(f"Invalid '{param}': it is empty.", param=param, code="array_below_min_length")
    if len(value) > most:
        raise BadRequest(
            f"Invalid '{param}': it holds {len(value)} items, and at most {most} are allowed.",
            param=param,
            code="array_above_max_length",
        )
    return value


def read_input(value: object) -> list[Json]:
    """Return the bodies of a request's `input`: a string is one user message.

    Raises:
        BadRequest: the first thing that is wrong, with its place; or no message is the user's.
    """
    if isinstance(value, str):
        if not value:
            raise BadRequest("Invalid 'input': it is empty.", param="input", code="string_below_min_length")
        return [_body("user", [value])]
    if not isinstance(value, list):
        raise _wrong_type("input", "a string or an array of messages", value)
    bodies = read(value, "input", references=True)
    if all(body.get("role") != "user" and body["type"] != "function_call_output" for body in bodies):
        raise BadRequest(
            "Invalid 'input': at least one item must be a message of role 'user' or a function_call_output.",
            param="input",
        )
    return bodies


def unanswered(bodies: list[Json]) -> int | None:
    """Return the place of the first function_call_output whose call is not among the items before it.

    Behind an item that is only named nobody knows: the call may be that item.
    """
    called = set()
    for place, body in enumerate(bodies):
        if body["type"] == "item_reference":
            return None
        if body["type"] == "function_call":
            called.add(body["call_id"])
        elif body["type"] == "function_call_output" and body["call_id"] not in called:
            return place
    return None


def characters(bodies: list[Json]) -> int:
    """Return how much text the bodies hold, in characters."""
    return sum(len(part["text"]) for body in bodies for part in body.get("content", ())) + sum(
        len(body.get("arguments", "")) + len(body.get("output", "")) for body in bodies
    )


def _is_reference(item: object) -> bool:
    return isinstance(item, dict) and (item.get("type") == "item_reference" or item.keys() == {"id"})


def _reference(item: Any, param: str) -> Json:  # noqa: ANN401 - the caller's JSON
    _only(item, REFERENCE_KEYS, param)
    return {"type": "item_reference", "id": _label(item, "id", param)}


def item(value: object, param: str) -> Json:
    """Return the body of an input item.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if not isinstance(value, dict):
        raise _wrong_type(param, "an object", value)
    kind = value.get("type", "message")
    if kind == "function_call":
        return _call(value, param)
    if kind == "function_call_output":
        return _call_output(value, param)
    if kind != "message":
        raise Unsupported(
            f"Items of type {_shown(kind)} are not supported: this is a text model, "
            "its input is messages and function calls.",
            param=f"{param}.type",
        )
    _only(value, MESSAGE_KEYS, param)
    if value.get("phase") is not None:
        raise Unsupported("Message phases are not supported.", param=f"{param}.phase")
    role = _required(value, "role", param)
    if role not in ROLES:
        raise BadRequest(
            f"Invalid '{param}.role': expected one of {', '.join(ROLES)}, got {_shown(role)}.",
            param=f"{param}.role",
        )
    content = _required(value, "content", param)
    if isinstance(content, str):
        return _body(role, [content])
    if not isinstance(content, list):
        raise _wrong_type(f"{param}.content", "a string or an array of text parts", content)
    if not content:
        raise BadRequest(
            f"Invalid '{param}.content': it is empty.",
            param=f"{param}.content",
            code="array_below_min_length",
        )
    return _body(role, [_text(part, f"{param}.content[{place}]") for place, part in enumerate(content)])


def _call(item: dict[str, Any], param: str) -> Json:
    _only(_without_nulls(item), CALL_KEYS, param)
    call_id, name, arguments = (_label(item, key, param) for key in ("call_id", "name", "arguments"))
    if not FUNCTION_NAME.fullmatch(name):
        raise BadRequest(f"Invalid '{param}.name': {NAME_RULE}.", param=f"{param}.name")
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }


def _call_output(item: dict[str, Any], param: str) -> Json:
    _only(_without_nulls(item), CALL_OUTPUT_KEYS, param)
    call_id, output = _label(item, "call_id", param), _required(item, "output", param)
    if isinstance(output, list):
        output = "".join(_text(part, f"{param}.output[{place}]") for place, part in enumerate(output))
    elif not isinstance(output, str):
        raise _wrong_type(f"{param}.output", "a string or an array of text parts", output)
    return {"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}


def _without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    """Leave out what an item that is sent back says nothing of: `caller`, `namespace` and others of the SDK's types."""
    return {key: value for key, value in item.items() if value is not None}


def _label(item: dict[str, Any], key: str, param: str) -> str:
    value = _required(item, key, param)
    if not isinstance(value, str):
        raise _wrong_type(f"{param}.{key}", "a string", value)
    return value


def _text(part: object, param: str) -> str:
    if not isinstance(part, dict):
        raise _wrong_type(param, "an object", part)
    kind = _required(part, "type", param)
    if kind not in TEXT_PARTS:
        raise Unsupported(
            f"Content of type {_shown(kind)} is not supported: this is a text model. "
            f"Use {' or '.join(TEXT_PARTS)}.",
            param=f"{param}.type",
        )
    _only(part, PART_KEYS, param)
    if part.get("prompt_cache_breakpoint") is not None:
        raise Unsupported(
            "Prompt cache breakpoints are not supported.", param=f"{param}.prompt_cache_breakpoint"
        )
    text = _required(part, "text", param)
    if not isinstance(text, str):
        raise _wrong_type(f"{param}.text", "a string", text)
    return text


def _body(role: str, texts: list[str]) -> Json:
    parts: list[Json] = [{"type": "input_text", "text": text} for text in texts]
    if role == "assistant":
        parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"type": "message", "role": role, "status": "completed", "content": parts}


def _required(value: dict[str, Any], key: str, param: str) -> Any:  # noqa: ANN401 - the caller's JSON
    if key not in value:
        raise BadRequest(
            f"Missing required parameter: '{param}.{key}'.",
            param=f"{param}.{key}",
            code="missing_required_parameter",
        )
    return value[key]


def _only(value: dict[str, Any], known: set[str], param: str) -> None:
    for key in value:
        if key not in known:
            raise UnknownParameter(f"Unknown parameter: '{param}.{key}'.", param=f"{param}.{key}")


def _wrong_type(param: str, wanted: str, value: object) -> BadRequest:
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "an array", type(None): "null"}
    found = names.get(type(value), "a number")
    return BadRequest(
        f"Invalid type for '{param}': expected {wanted}, got {found}.", param=param, code="invalid_type"
    )


def _shown(value: object) -> str:
    """Quote a caller's word in a message, shortened; other values by their type."""
    return f"'{value[:40]}'" if isinstance(value, str) else f"a {type(value).__name__}"
