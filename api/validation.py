"""From pydantic's findings to one error in OpenAI's words: the parameter by its path, the reason by a code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.errors import BadRequest, UnknownParameter

# pydantic's type of error, or its beginning, and the code that OpenAI's API uses for it.
CODES = {
    "missing": "missing_required_parameter",
    "string_too_short": "string_below_min_length",
    "string_too_long": "string_above_max_length",
    "too_short": "array_below_min_length",
    "too_long": "array_above_max_length",
    "greater_than": "below_min_value",
    "less_than": "above_max_value",
}
# A key that a caller made up is shown no longer than this.
LONGEST_NAME = 100
TYPE_ERRORS = ("_type", "_parsing", "finite_number")


Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], value: object) -> Model:
    """Return `value` as a `model`, as an endpoint reads its body.

    Raises:
        BadRequest: the first thing that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as invalid:
        raise first([{**found, "loc": ("body", *found["loc"])} for found in invalid.errors()]) from None


def first(found: Sequence[Any]) -> BadRequest:
    """Return the error for the first finding of a validation; the caller mends them one by one."""
    finding = found[0]
    kind = str(finding["type"])
    place = list(finding["loc"][1:])
    subject = ""
    if place[-1:] == ["[key]"]:  # of a dictionary: the key itself is wrong
        subject = f"of key '{place[-2][:LONGEST_NAME]}', "
        place = place[:-2]
    param = path(place)
    if kind == "extra_forbidden":
        return UnknownParameter(f"Unknown parameter: '{param}'.", param=param)
    if not param:
        if finding["loc"][0] == "body" and kind == "missing":
            return BadRequest("The request needs a JSON body.", code="missing_body")
        return BadRequest("The body must be a JSON object.", code="invalid_type")
    if kind == "missing":
        return BadRequest(f"Missing required parameter: '{param}'.", param=param, code=CODES[kind])
    message = str(finding["msg"]).removeprefix("Value error, ")
    return BadRequest(
        f"Invalid '{param}': {subject}{message[0].lower()}{message[1:]}.", param=param, code=_code(finding)
    )


def path(parts: Sequence[str | int]) -> str:
    """Return ``("input", 0, "content")`` as ``input[0].content``."""
    text = ""
    for part in parts:
        part = part if isinstance(part, int) else part[:LONGEST_NAME]
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _code(finding: dict[str, Any]) -> str:
    kind = str(finding["type"])
    if kind.endswith(TYPE_ERRORS):
        return "invalid_type"
    for beginning, code in CODES.items():
        if kind.startswith(beginning):
            if code.endswith("_value"):
                (bound,) = finding["ctx"].values()
                return f"{'integer' if isinstance(bound, int) else 'decimal'}_{code}"
            return code
    return "invalid_value"
