"""Are our objects the SDK's? Validated as JSON in strict mode; nothing undeclared, nothing left out."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, TypeAdapter


def check(kind: Any, shown: Any, *, extensions: Collection[str] = (), left_out: Collection[str] = ()) -> None:
    """Assert that `shown` is a valid `kind` with exactly its fields.

    Args:
        extensions: paths of keys that the SDK's type does not know, e.g. ``store`` or ``data[].enabled``.
        left_out: paths of optional keys that we never send.
    """
    value = TypeAdapter(kind).validate_json(json.dumps(shown), strict=True)
    extra: set[str] = set()
    missing: set[str] = set()
    _walk(value, "", extra, missing)
    assert extra == set(extensions), f"undeclared or no longer sent: {extra ^ set(extensions)}"
    assert missing == set(left_out), f"left out: {missing ^ set(left_out)}"


def _walk(value: Any, path: str, extra: set[str], missing: set[str]) -> None:
    if isinstance(value, list):
        for each in value:
            _walk(each, f"{path}[]", extra, missing)
    elif isinstance(value, BaseModel):
        dot = f"{path}." if path else ""
        extra |= {f"{dot}{key}" for key in value.model_extra or ()}
        missing |= {f"{dot}{key}" for key in type(value).model_fields.keys() - value.model_fields_set}
        for key in value.model_fields_set:
            if key in type(value).model_fields:
                _walk(getattr(value, key), f"{dot}{key}", extra, missing)
