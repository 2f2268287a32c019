"""The form of an answer: what `text` may ask for, and whether its schema can be kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from api.errors import BadRequest, UnknownParameter, Unsupported
from api.messages import FUNCTION_NAME, NAME_RULE
from storage import answer_format
from storage.models import Json

PLAIN: Json = {"format": {"type": "text"}}
MAX_SCHEMA_CHARACTERS = 65_536
# What a JSON string can hold only as an escape that the grammar leaves out.
CONTROLS = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")
FORMAT_KEYS = {
    "text": {"type"},
    "json_object": {"type"},
    "json_schema": {"type", "name", "description", "schema", "strict"},
}


def read_text(value: object) -> Json:
    """Return the `text` object of a request as it is stored and shown.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    if value is None:
        return PLAIN
    text = an_object(value, "text")
    only(text, {"format", "verbosity"}, "text")
    if text.get("verbosity") is not None:
        raise Unsupported(
            "Unsupported value for 'text.verbosity': say in 'instructions' how long an answer should be.",
            param="text.verbosity",
        )
    asked = text.get("format")
    return PLAIN if asked is None else {"format": read_format(asked, "text.format")}


def read_format(value: object, param: str) -> Json:
    """Return a format as it is stored and shown.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    asked = an_object(value, param)
    kind = a_string(asked, "type", param)
    if kind not in FORMAT_KEYS:
        raise Unsupported(
            f"Formats of type '{kind[:40]}' are not supported. Use one of {', '.join(FORMAT_KEYS)}.",
            param=f"{param}.type",
        )
    only(asked, FORMAT_KEYS[kind], param)
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, **read_definition(asked, param, "schema")}


def read_definition(asked: dict[str, Any], param: str, holder: str) -> Json:
    """Return name, description, strictness and the schema, which is at the key `holder`.

    Raises:
        BadRequest: the first thing that is wrong, with its place.
    """
    name = a_string(asked, "name", param)
    if not FUNCTION_NAME.fullmatch(name):
        raise BadRequest(
            f"Invalid '{param}.name': {NAME_RULE}.",
            param=f"{param}.name",
        )
    description, strict = asked.get("description"), asked.get("strict")
    if description is not None and not isinstance(description, str):
        raise wrong_type(f"{param}.description", "a string")
    if strict is not None and not isinstance(strict, bool):
        raise wrong_type(f"{param}.strict", "a boolean")
    if holder not in asked:
        raise BadRequest(
            f"Missing required parameter: '{param}.{holder}'.",
            param=f"{param}.{holder}",
            code="missing_required_parameter",
        )
    schema = an_object(asked[holder], f"{param}.{holder}")
    return {"name": name, "description": description, holder: schema, "strict": bool(strict)}


def check_schema(schema: Json, param: str) -> None:
    """Compile a schema, which takes a millisecond, and of the largest ones half a second.

    Raises:
        BadRequest: it is no JSON schema, or asks for what no grammar can promise.
    """
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise BadRequest(
            f"Invalid '{param}': it is {len(text)} characters long, and at most {MAX_SCHEMA_CHARACTERS} are allowed.",
            param=param,
            code="string_above_max_length",
        )
    if any(CONTROLS.search(string) for string in _strings(schema)):
        raise BadRequest(f"Invalid '{param}': it holds control characters.", param=param)
    problem = _problem(text)
    if problem:
        raise BadRequest(f"Invalid '{param}': {problem}", param=param, code="invalid_json_schema")


@lru_cache(maxsize=256)
def _problem(schema: str) -> str:
    """Return why a schema cannot be used, or nothing. The lines of a batch share theirs, so it is remembered."""
    found = LLMatcher.validate_grammar(f"start: {answer_format.of_schema(json.loads(schema))}")
    # Its answer: a place in the grammar, the problem, and the grammar's text.
    _, _, reason = found.partition("failed to compile JSON schema: ")
    reason = (reason or found).partition("\n   1 |")[0]
    return " ".join(reason.split())[:300]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield str(key)
            yield from _strings(inner)


def an_object(value: object, param: str) -> dict[str, Any]:
    """Return `value` if it is an object, else raise BadRequest."""
    if not isinstance(value, dict):
        raise wrong_type(param, "an object")
    return value


def a_string(value: dict[str, Any], key: str, param: str) -> str:
    """Return the string at a key that must be there, else raise BadRequest."""
    found = value.get(key)
    if found is None:
        raise BadRequest(
            f"Missing required parameter: '{param}.{key}'.",
            param=f"{param}.{key}",
            code="missing_required_parameter",
        )
    if not isinstance(found, str):
        raise wrong_type(f"{param}.{key}", "a string")
    return found


def only(value: dict[str, Any], known: set[str], param: str) -> None:
    """Raise BadRequest for a key that is not among the known ones."""
    for key in value:
        if key not in known:
            raise UnknownParameter(f"Unknown parameter: '{param}.{key[:100]}'.", param=f"{param}.{key[:100]}")


def wrong_type(param: str, wanted: str) -> BadRequest:
    """Return the error for a value of another type."""
    return BadRequest(f"Invalid type for '{param}': expected {wanted}.", param=param, code="invalid_type")
