"""JSON schemas whose every answer is short, and the grammar that holds an answer to one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from storage import answer_format

Schema = dict[str, Any]

# Control characters cannot be written without an escape, and the API refuses them.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
NUMBERS = st.integers(-1000, 1000)
FIXED = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def _range(kind: str, least: str, most: str, bounds: st.SearchStrategy[int]) -> st.SearchStrategy[Schema]:
    return st.tuples(bounds, bounds).map(lambda two: {"type": kind, least: min(two), most: max(two)})


LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    _range("integer", "minimum", "maximum", NUMBERS),
    st.sampled_from(["number", "integer"]).map(lambda kind: {"type": kind}),
    _range("number", "minimum", "exclusiveMaximum", NUMBERS).filter(
        lambda of: of["minimum"] < of["exclusiveMaximum"]
    ),
    _range("string", "minLength", "maxLength", st.integers(0, 6)),
    st.sampled_from(["^[a-c]{1,4}$", "^(é|ß)x?$", r"^\d{2}-\d{2}$", '^a"b$']).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda form: {"type": "string", "format": form}),
    FIXED.map(lambda value: {"const": value}),
    st.lists(FIXED, min_size=1, max_size=3).map(lambda values: {"enum": values}),
)


@st.composite
def _object(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(TEXT, inner, max_size=3))
    return {
        "type": "object",
        "properties": properties,
        "required": draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else [],
        "additionalProperties": False,
    }


def _array(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.tuples(inner, st.integers(0, 2), st.integers(2, 3)).map(
        lambda of: {"type": "array", "items": of[0], "minItems": of[1], "maxItems": of[2]}
    )


def _any_of(schemas: list[Schema]) -> Schema:
    return {"anyOf": schemas}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: _object(inner) | _array(inner) | st.lists(inner, min_size=1, max_size=2).map(_any_of),
    max_leaves=5,
)


def grammar(schema: Schema) -> str:
    held = answer_format.grammar({"text": {"format": {"type": "json_schema", "schema": schema}}})
    assert held is not None
    return held
