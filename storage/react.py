"""The form in which Qwen calls functions (ReAct), and what of it a caller sees. A pure function of request and text.

    Thought: WHAT THE MODEL MEANS TO DO⏎
    Action: NAME⏎
    Action Input: ARGUMENTS                       a call; the grammar ends behind the arguments

    Thought: WHAT THE MODEL MEANS TO DO⏎
    Final Answer: TEXT                            an answer

A response whose request offers functions is one of the two. What stands before ARGUMENTS or TEXT is for the model
alone: callers get one item, a `function_call` or a message, as soon as it is clear which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.models import Json

# How long a thought may be: it costs time, and nobody reads it.
THOUGHT = 240
# More than the longest thought, the fixed words and the longest name of a function.
LONGEST_OPENING = THOUGHT + 200
OPENING = re.compile(
    r"Thought: [^\n]*\n(?:Final Answer: |Action: (?P<name>[a-zA-Z0-9_-]{1,64})\nAction Input: )"
)
# Of a function without parameters.
NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer of which it is clear what it is: a call of the function `name`, or a text where that is None.

    Attributes:
        deltas: pieces of the answer that belong to what callers do not see, wholly or in part.
        rest: of the last of these, the part that callers see.
    """

    name: str | None
    deltas: int
    rest: str


def offered(asked: Json) -> bool:
    """Whether the request (or the Response object) lets the model call functions."""
    return bool(asked.get("tools")) and asked.get("tool_choice") != "none"


def callable_tools(asked: Json) -> list[Json]:
    """Return the functions that may be called."""
    choice = asked.get("tool_choice")
    tools: list[Json] = asked["tools"]
    if not isinstance(choice, dict):
        return tools
    allowed = choice["tools"] if choice["type"] == "allowed_tools" else [choice]
    names = {tool["name"] for tool in allowed}
    return [tool for tool in tools if tool["name"] in names]


def must_call(asked: Json) -> bool:
    """Whether a text is no answer."""
    choice: Any = asked.get("tool_choice")
    if isinstance(choice, dict):
        return bool(choice["type"] == "function" or choice["mode"] == "required")
    return bool(choice == "required")


def opened(deltas: Sequence[str]) -> Opened | None:
    """Return what an answer is, None while that is not clear. More of the answer never changes it."""
    text = ""
    for place, delta in enumerate(deltas, 1):
        text += delta
        found = OPENING.match(text)
        if found:
            return Opened(found["name"], place, text[found.end() :])
        if len(text) > LONGEST_OPENING:
            break
    return None


def content(asked: Json, deltas: Sequence[str]) -> tuple[str | None, str]:
    """Return the function that an answer calls, if it does, and its arguments or text; of a cut one what there is."""
    if not offered(asked):
        return None, "".join(deltas)
    found = opened(deltas)
    if found is None:
        return None, ""
    return found.name, found.rest + "".join(deltas[found.deltas :])
