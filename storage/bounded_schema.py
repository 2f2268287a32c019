"""A JSON schema made narrower where its texts have no end: what fits the result fits the original.

A small model that has begun 0.888 writes eights until its tokens are used up, and objects of any kind nest until then.
So numbers have at most 15 digits before the point and 6 behind it, unless the schema says itself what they are.
"""

from __future__ import annotations

from typing import Any

from storage.models import Json

MOST = 10**15
STEP = 1e-6
# The values of these are schemas, lists of them, or schemas by name. `oneOf` is not among them: branches that only
# became disjoint when they were made narrower would let a value through that fits two of them.
HOLD_ONE = {"items", "additionalProperties"}
HOLD_LIST = {"prefixItems", "anyOf", "allOf"}
HOLD_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
# What says more about a number than its type; only nodes without these are touched.
SAYS_MORE = {"enum", "const", "multipleOf", "$ref", "anyOf", "allOf", "oneOf"}
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}


def bounded(schema: Any) -> Any:  # noqa: ANN401 - a schema may be a boolean
    """Return the schema with bounds for its numbers."""
    if not isinstance(schema, dict):
        return schema
    held = {key: _held(key, value) for key, value in schema.items()}
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if SAYS_MORE & schema.keys() or not {"number", "integer"} & set(kinds) or not _usual(schema):
        return held
    if not {"minimum", "exclusiveMinimum"} & schema.keys():
        held["minimum"] = -MOST
    if not {"maximum", "exclusiveMaximum"} & schema.keys():
        held["maximum"] = MOST
    return held if "number" not in kinds else {**held, "multipleOf": STEP}


def any_object(levels: int = 6) -> Json:
    """Return a schema for JSON objects that nest no deeper than `levels`."""
    scalars = [{"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]
    named: Json = {"level0": {"anyOf": scalars}}
    for level in range(1, levels):
        inner = {"$ref": f"#/$defs/level{level - 1}"}
        named[f"level{level}"] = {"anyOf": [*scalars, {"type": "array", "items": inner}, _object(inner)]}
    return {**_object({"$ref": f"#/$defs/level{levels - 1}"}), "$defs": named}


def _object(inner: Json) -> Json:
    return {"type": "object", "additionalProperties": inner}


def _held(key: str, value: Any) -> Any:  # noqa: ANN401 - JSON
    if key in HOLD_ONE:
        return bounded(value)
    if key in HOLD_LIST and isinstance(value, list):
        return [bounded(each) for each in value]
    if key in HOLD_NAMED and isinstance(value, dict):
        return {name: bounded(each) for name, each in value.items()}
    return value


def _usual(schema: Json) -> bool:
    """Whether its own bounds leave room for numbers of that many digits."""
    own = [schema[key] for key in BOUNDS & schema.keys()]
    return all(
        isinstance(bound, int | float) and (bound == 0 or 1e-3 <= abs(bound) < MOST) for bound in own
    ) and (len(own) < 2 or max(own) - min(own) >= 1e-3 or len(set(own)) == 1)
