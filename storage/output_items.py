"""The output item of an answer: a message, or a call of a function. Its ids follow from the response's `message_id`."""

from __future__ import annotations

from collections.abc import Sequence

from storage.models import Json


def item_id(message_id: str, name: str | None) -> str:
    """Return the id of the item; `name` is that of the function which it calls, if it calls one."""
    return message_id if name is None else f"fc_{message_id.partition('_')[2]}"


def body(message_id: str, name: str | None, content: str, status: str, logprobs: Sequence[Json] = ()) -> Json:
    """Return the item without its id; `content` is a message's text or a call's arguments."""
    if name is None:
        part = {"type": "output_text", "text": content, "annotations": [], "logprobs": list(logprobs)}
        return {"type": "message", "role": "assistant", "status": status, "content": [part]}
    return {
        "type": "function_call",
        "call_id": f"call_{message_id.partition('_')[2]}",
        "name": name,
        "arguments": content,
        "status": status,
    }
