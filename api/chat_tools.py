"""Functions and formats as Chat Completions spell them, read as what Responses call the same."""

from __future__ import annotations

from typing import Any

from api import structured, tools
from storage.models import Json

CALL_KEYS = {"id", "type", "function"}


def read(value: object) -> list[Json]:
    """Return `tools` in the form in which they are stored.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    return tools.read(value, inner="function")


def read_choice(value: object) -> str | Json:
    """Return `tool_choice` in the form in which it is stored.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if not isinstance(value, dict):
        return tools.read_choice(value)
    kind = structured.a_string(value, "type", "tool_choice")
    if kind == "function":
        structured.only(value, {"type", "function"}, "tool_choice")
        return {"type": kind, "name": _named(value, "tool_choice")}
    if kind == "allowed_tools":
        structured.only(value, {"type", "allowed_tools"}, "tool_choice")
        allowed = structured.an_object(value.get("allowed_tools"), "tool_choice.allowed_tools")
        named = allowed.get("tools")
        if isinstance(named, list):
            named = [
                {"type": "function", "name": _named(each, f"tool_choice.allowed_tools.tools[{place}]")}
                for place, each in enumerate(named)
            ]
        return tools.read_choice({**allowed, "type": kind, "tools": named})
    return tools.read_choice(value)


def read_format(value: object) -> Json:
    """Return `response_format` as the `text` of a response.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    asked = structured.an_object(value, "response_format")
    if asked.get("type") != "json_schema":
        return {"format": structured.read_format(asked, "response_format")}
    structured.only(asked, {"type", "json_schema"}, "response_format")
    param = "response_format.json_schema"
    defined = structured.an_object(asked.get("json_schema"), param)
    structured.only(defined, structured.FORMAT_KEYS["json_schema"] - {"type"}, param)
    return {"format": {"type": "json_schema", **structured.read_definition(defined, param, "schema")}}


def read_calls(value: object, param: str) -> list[Json]:
    """Return the calls of an assistant's message as items.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if not isinstance(value, list):
        raise structured.wrong_type(param, "an array of calls")
    return [_call(each, f"{param}[{place}]") for place, each in enumerate(value)]


def shown(call: Json) -> Json:
    """Return a `function_call` item as a call of a message."""
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["call_id"], "type": "function", "function": function}


def _call(value: object, param: str) -> Json:
    call = structured.an_object(value, param)
    structured.only(call, CALL_KEYS, param)
    function = structured.an_object(call.get("function"), f"{param}.function")
    structured.only(function, {"name", "arguments"}, f"{param}.function")
    return {
        "type": "function_call",
        "call_id": structured.a_string(call, "id", param),
        "name": structured.a_string(function, "name", f"{param}.function"),
        "arguments": structured.a_string(function, "arguments", f"{param}.function"),
    }


def _named(value: Any, param: str) -> str:  # noqa: ANN401 - the caller's JSON
    named = structured.an_object(structured.an_object(value, param).get("function"), f"{param}.function")
    structured.only(named, {"name"}, f"{param}.function")
    return structured.a_string(named, "name", f"{param}.function")
