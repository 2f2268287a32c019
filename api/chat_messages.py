"""The messages of a chat completion: read as the input items that they mean, and shown again as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api import chat_tools, messages
from api.errors import BadRequest, UnknownParameter, Unsupported
from storage.models import Item, Json

KEYS = {"role", "content", "name", "refusal", "annotations", "audio", "tool_calls", "function_call"}
OUTPUT_KEYS = {"role", "content", "tool_call_id"}
# What is refused by name unless it asks for nothing, and why.
UNSUPPORTED = {
    "name": "this model tells speakers of one role not apart; write the name into the content",
    "function_call": "use 'tool_calls'",
    "audio": "this is a text model",
}
MEDIA = ("image_url", "input_audio", "file")


def read(value: object) -> list[Json]:
    """Return the bodies of the items that a request's `messages` mean.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    given = messages.many(value, "messages")
    bodies = [
        messages.item(each, param)
        for place, message in enumerate(given)
        for each, param in _items(message, f"messages[{place}]")
    ]
    if messages.unanswered(bodies) is not None:
        raise BadRequest(
            "Invalid 'messages': a message of the role 'tool' must answer one of the 'tool_calls' before it.",
            param="messages",
        )
    return bodies


def shown(item: Item) -> Json:
    """Return an input item as a stored message: several parts of text as parts, one as plain content."""
    body = item.body
    message: Json = {
        "id": item.id,
        "role": "assistant",
        "content": None,
        "content_parts": None,
        "refusal": None,
    }
    if body["type"] == "function_call":
        return {**message, "tool_calls": [chat_tools.shown(body)]}
    if body["type"] == "function_call_output":
        return {**message, "role": "tool", "tool_call_id": body["call_id"], "content": body["output"]}
    parts = [{"type": "text", "text": part["text"]} for part in body["content"]]
    if len(parts) == 1:
        return {**message, "role": body["role"], "content": parts[0]["text"]}
    return {**message, "role": body["role"], "content_parts": parts}


def _items(message: object, param: str) -> list[tuple[object, str]]:
    """Return the items that a message means, each with the place where it stands."""
    if not isinstance(message, dict):
        return [(message, param)]  # refused by whoever reads items
    is_output = message.get("role") == "tool"
    for key, given in message.items():
        if key not in (OUTPUT_KEYS if is_output else KEYS):
            raise UnknownParameter(f"Unknown parameter: '{param}.{key[:100]}'.", param=f"{param}.{key[:100]}")
        if key in UNSUPPORTED and given not in (None, []):
            raise Unsupported(
                f"Unsupported value for '{param}.{key}': {UNSUPPORTED[key]}.", param=f"{param}.{key}"
            )
    if message.get("role") == "function":
        raise Unsupported(
            f"Unsupported value for '{param}.role': use the role 'tool'.", param=f"{param}.role"
        )
    content = message.get("content")
    if content is None:
        content = message.get("refusal")  # of an earlier answer, which had nothing else to say
    if isinstance(content, list):
        content = [_part(part, f"{param}.content[{place}]") for place, part in enumerate(content)]
    if is_output:
        return [(_output(message, content, param), param)]
    calls = message.get("tool_calls") or []
    items: list[tuple[object, str]] = []
    if content is not None or not calls:
        item = {"role": message["role"]} if "role" in message else {}
        items.append(
            (item if "content" not in message and content is None else {**item, "content": content}, param)
        )
    place = f"{param}.tool_calls"
    if calls and message.get("role") != "assistant":
        raise BadRequest(f"Invalid '{place}': only the assistant calls functions.", param=place)
    return items + [(call, f"{place}[{at}]") for at, call in enumerate(chat_tools.read_calls(calls, place))]


def _output(message: dict[str, Any], content: object, param: str) -> Json:
    for key in ("tool_call_id", "content"):
        if message.get(key) is None:
            raise BadRequest(
                f"Missing required parameter: '{param}.{key}'.",
                param=f"{param}.{key}",
                code="missing_required_parameter",
            )
    return {"type": "function_call_output", "call_id": message["tool_call_id"], "output": content}


def _part(part: object, param: str) -> object:
    if not isinstance(part, Mapping):
        return part
    kind: Any = part.get("type")
    if kind == "refusal":
        return {"type": "input_text", "text": part.get("refusal")}
    if kind == "text":
        return {**part, "type": "input_text"}
    if kind in MEDIA:
        raise Unsupported(
            f"Content of type '{kind}' is not supported: this is a text model.", param=f"{param}.type"
        )
    if "type" in part:
        raise BadRequest(f"Invalid '{param}.type': expected 'text'.", param=f"{param}.type")
    return part
