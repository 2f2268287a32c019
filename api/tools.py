"""The functions that a model may call: what `tools` and `tool_choice` may say."""

from __future__ import annotations

from typing import Any

from api import structured
from api.errors import BadRequest, Unsupported
from storage.models import Json

MAX_TOOLS = 128
TOOL_KEYS = {"type", "name", "description", "parameters", "strict"}
WORDS = ("none", "auto", "required")


def read(value: object, inner: str | None = None) -> list[Json]:
    """Return `tools` as they are stored and shown.

    Args:
        inner: the key of each tool at which its definition is, as in Chat Completions; None: the tool is it.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if not isinstance(value, list):
        raise structured.wrong_type("tools", "an array of tools")
    if len(value) > MAX_TOOLS:
        raise BadRequest(
            f"Invalid 'tools': it holds {len(value)}, and at most {MAX_TOOLS} are allowed.",
            param="tools",
            code="array_above_max_length",
        )
    tools = [_tool(each, f"tools[{place}]", inner) for place, each in enumerate(value)]
    names: set[str] = set()
    for place, tool in enumerate(tools):
        if tool["name"] in names:
            raise BadRequest(
                f"Invalid 'tools[{place}].name': there is a function '{tool['name']}' before it.",
                param=f"tools[{place}].name",
            )
        names.add(tool["name"])
    return tools


def read_choice(value: object) -> str | Json:
    """Return `tool_choice` as it is stored and shown.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if isinstance(value, str):
        if value not in WORDS:
            raise BadRequest(
                f"Invalid 'tool_choice': expected one of {', '.join(WORDS)}, or an object.",
                param="tool_choice",
            )
        return value
    choice = structured.an_object(value, "tool_choice")
    kind = structured.a_string(choice, "type", "tool_choice")
    if kind == "function":
        structured.only(choice, {"type", "name"}, "tool_choice")
        return {"type": "function", "name": structured.a_string(choice, "name", "tool_choice")}
    if kind == "allowed_tools":
        return _allowed(choice)
    raise Unsupported(
        f"Unsupported value for 'tool_choice.type': '{kind[:40]}' is neither function nor allowed_tools.",
        param="tool_choice.type",
    )


def check(tools: list[Json] | None, choice: str | Json | None, inner: str = "") -> None:
    """Compile the functions' parameters, and look whether the choice is among them.

    Args:
        inner: what stands between a tool and its parameters in the caller's words, like ``.function``.

    Raises:
        BadRequest: a schema cannot be kept, or the choice names what is not there.
    """
    for place, tool in enumerate(tools or ()):
        if tool["parameters"] is not None:
            structured.check_schema(tool["parameters"], f"tools[{place}]{inner}.parameters")
    names = {tool["name"] for tool in tools or ()}
    if choice == "required" and not names:
        raise BadRequest(
            "Invalid 'tool_choice': 'required' needs at least one of 'tools'.", param="tool_choice"
        )
    if isinstance(choice, dict):
        wanted = [choice] if choice["type"] == "function" else choice["tools"]
        for tool in wanted:
            if tool["name"] not in names:
                raise BadRequest(
                    f"Invalid 'tool_choice': 'tools' has no function '{tool['name'][:64]}'.",
                    param="tool_choice",
                )


def _tool(value: object, param: str, inner: str | None) -> Json:
    tool = structured.an_object(value, param)
    kind = structured.a_string(tool, "type", param)
    if kind != "function":
        raise Unsupported(
            f"Tools of type '{kind[:40]}' are not supported: only functions of yours can be called.",
            param=f"{param}.type",
        )
    if inner is not None:
        structured.only(tool, {"type", inner}, param)
        param = f"{param}.{inner}"
        tool = {"type": kind, **structured.an_object(tool.get(inner), param)}
    tool = {key: value for key, value in tool.items() if value is not None}
    structured.only(tool, TOOL_KEYS, param)
    if tool.get("parameters") is None:
        tool = {**tool, "parameters": {}}
        defined = structured.read_definition(tool, param, "parameters") | {"parameters": None}
    else:
        defined = structured.read_definition(tool, param, "parameters")
        if defined["parameters"].get("type", "object") != "object":
            raise BadRequest(
                f"Invalid '{param}.parameters': a function's arguments are an object, its schema's type too.",
                param=f"{param}.parameters",
                code="invalid_json_schema",
            )
        defined["parameters"] = {"type": "object", **defined["parameters"]}
    # OpenAI's functions are strict unless they say that they are not.
    return {"type": "function", **defined, "strict": tool.get("strict") is not False}


def _allowed(choice: dict[str, Any]) -> Json:
    structured.only(choice, {"type", "mode", "tools"}, "tool_choice")
    mode = structured.a_string(choice, "mode", "tool_choice")
    if mode not in ("auto", "required"):
        raise BadRequest("Invalid 'tool_choice.mode': expected auto or required.", param="tool_choice.mode")
    named = choice.get("tools")
    if not isinstance(named, list) or not named:
        raise structured.wrong_type("tool_choice.tools", "an array of functions by name")
    tools = []
    for place, value in enumerate(named):
        param = f"tool_choice.tools[{place}]"
        tool = structured.an_object(value, param)
        if structured.a_string(tool, "type", param) != "function":
            raise Unsupported("Only functions can be called.", param=f"{param}.type")
        tools.append({"type": "function", "name": structured.a_string(tool, "name", param)})
    return {"type": "allowed_tools", "mode": mode, "tools": tools}
