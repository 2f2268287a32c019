"""What is made narrower still fits what was asked, and says no more than it must."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher

from storage import answer_format
from storage.bounded_schema import any_object, bounded

ENDS = {"minimum": -(10**15), "maximum": 10**15}
FINE = {"multipleOf": 1e-6}


@pytest.mark.parametrize(
    ("schema", "narrower"),
    [
        ({"type": "integer"}, {"type": "integer", **ENDS}),
        ({"type": "number", "minimum": 0}, {"type": "number", "minimum": 0, "maximum": 10**15, **FINE}),
        ({"type": ["number", "null"]}, {"type": ["number", "null"], **ENDS, **FINE}),
        (
            {"properties": {"type": {"type": "integer"}, "n": True}},
            {"properties": {"type": {"type": "integer", **ENDS}, "n": True}},
        ),
        (
            {"anyOf": [{"items": {"type": "integer"}}, {"type": "string"}]},
            {"anyOf": [{"items": {"type": "integer", **ENDS}}, {"type": "string"}]},
        ),
    ],
)
def test_numbers_get_an_end(schema: object, narrower: object) -> None:
    assert bounded(schema) == narrower


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"enum": [{"type": "integer"}]},
        {"const": {"properties": {"a": {"type": "integer"}}}},
        {"type": "integer", "enum": [10**18]},
        {"type": "number", "minimum": 10**16},
        {"type": "number", "minimum": 1e-9, "maximum": 2e-9},
        {"type": "number", "minimum": 0.5, "maximum": 0.50001},
        {"oneOf": [{"type": "number", "maximum": 3}, {"type": "number", "minimum": 10**16}]},
    ],
)
def test_what_says_itself_what_it_is_stays(schema: object) -> None:
    assert bounded(schema) == schema


def test_any_object_compiles() -> None:
    for schema in (
        any_object(),
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "integer", "maximum": -5},
    ):
        assert LLMatcher.validate_grammar(f"start: {answer_format.of_schema(schema)}") == ""
