"""What an answer must look like, as a grammar: llguidance's form of Lark, a pure function of the request.

The API refuses a request whose grammar does not compile; the worker hands the same text to the engine.
"""

from __future__ import annotations

import json

from storage import react
from storage.bounded_schema import any_object, bounded
from storage.models import Json

ANY_TEXT = r"/(.|\n)+/"

# Between two tokens of JSON: nothing, a space, or a line break with some levels of indentation. With more a model could
# write white space until its tokens are used up. Of a string's characters only those are escaped that must be: a key is
# spelled in one way, so it cannot stand twice, or stand for one that the schema names.
JSON_OPTIONS: Json = {
    "whitespace_pattern": r"(\n {0,20}| )",
    "json_allowed_escapes": '"\\bfnrt',
}


def grammar(request: Json) -> str | None:
    """Return the grammar of the answer, None where it may be any text."""
    form = _form(request)
    if not react.offered(request):
        return None if form is None else f"start: {form}"
    thought = f'"Thought: " /[^\\n]{{1,{react.THOUGHT}}}/ "\\n"'
    rules = [f"start: {thought} call"]
    if not react.must_call(request):
        rules = [f"start: {thought} (call | final)", f'final: "Final Answer: " {form or ANY_TEXT}']
    calls = []
    for place, tool in enumerate(react.callable_tools(request)):
        calls.append(f'"{tool["name"]}" "\\nAction Input: " call_{place}')
        rules.append(f"call_{place}: {of_schema(tool['parameters'] or react.NO_PARAMETERS)}")
    rules.append(f'call: "Action: " ({" | ".join(calls)})')
    return "\n".join(rules)


def _form(request: Json) -> str | None:
    """Return the part of a grammar for the text of an answer, None where it may be any."""
    asked = (request.get("text") or {}).get("format", {})
    if asked.get("type") == "json_object":
        return of_schema(any_object())
    if asked.get("type") == "json_schema":
        return of_schema(asked["schema"])
    return None


def of_schema(schema: Json) -> str:
    """Return the part of a grammar that stands for the JSON texts that a schema describes."""
    return f"%json {json.dumps({**bounded(schema), 'x-guidance': JSON_OPTIONS})}"
