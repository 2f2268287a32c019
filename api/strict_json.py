"""Reads a request body: JSON in UTF-8, and only what SQL can keep and JSON can send back.

Refused besides plain syntax errors: NaN and infinities (not JSON), numbers beyond a double's range, the
character NUL (PostgreSQL stores none) and lone surrogates (not text), and nesting deeper than any request here.
Of a key that stands twice the last one counts, as in every common JSON reader.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn, TypeAlias

from api.errors import BadRequest
from api.validation import path

MAX_DEPTH = 64

Trail: TypeAlias = "tuple[Trail, str | int] | None"


def read(body: bytes) -> object:
    """Return the value that `body` spells.

    Raises:
        BadRequest: it is not JSON, or holds something that is refused; `param` says where.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # an integer of more digits than Python converts
        raise _invalid("it holds a number of too many digits") from None
    _check(value)
    return value


def _check(root: object) -> None:
    stack: list[tuple[object, Trail, int]] = [(root, None, 0)]
    while stack:
        value, trail, depth = stack.pop()
        if isinstance(value, str):
            _check_text(value, trail)
        elif isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise _too_deep()
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(key, str):
                    _check_text(key, trail)
                stack.append((inner, (trail, key), depth + 1))


def text(value: bytes, param: str) -> str:
    """Return a text that came outside of JSON, under the same rules.

    Raises:
        BadRequest: it is no UTF-8, or holds the character NUL.
    """
    try:
        decoded = value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"Invalid '{param}': it is not UTF-8.", param=param) from None
    _check_text(decoded, (None, param))
    return decoded


def _check_text(text: str, trail: Trail) -> None:
    problem = None
    if "\0" in text:
        problem = "the character NUL (\\u0000)"
    elif not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"a lone surrogate (\\u{ord(text[error.start]):04x}), which is not a character"
    if problem:
        param = path(_steps(trail)) or None
        raise BadRequest(f"Invalid '{param or 'body'}': the text holds {problem}.", param=param)


def _steps(trail: Trail) -> list[str | int]:
    steps: list[str | int] = []
    while trail is not None:
        trail, step = trail
        steps.append(step)
    return steps[::-1]


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _invalid(f"the number {digits[:20]} is out of range")
    return number


def _no_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not a JSON number")


def _too_deep() -> BadRequest:
    return _invalid(f"it is nested more than {MAX_DEPTH} levels deep")


def _invalid(reason: str) -> BadRequest:
    return BadRequest(f"The body could not be read as JSON: {reason}.", code="invalid_json")
