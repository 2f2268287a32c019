"""Hooks for schemathesis: most of what it asks about exists, and most jobs that it submits could be accepted.

Made-up ids are not found, which tests one line of each endpoint. `QWENQ_REAL_IDS` holds JSON: ids by the name of the
path's parameter. What takes the place of a made-up value is drawn from that value, so a seed makes the same requests.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import schemathesis

KNOWN: dict[str, list[str]] = json.loads(os.environ["QWENQ_REAL_IDS"])
# One value in so many is left as it was made up.
LEFT = 4
BODY = {
    "model": ["default"],
    "conversation": KNOWN["conversation_id"],
    "previous_response_id": KNOWN["response_id"],
}


def real(value: object, known: list[str]) -> object:
    """Return one of the known ids for a value, or now and then the value."""
    drawn = zlib.crc32(repr(value).encode("utf-8", "backslashreplace"))
    return value if drawn % LEFT == 0 else known[drawn // LEFT % len(known)]


@schemathesis.hook
def before_call(_context: object, case: Any, _options: object) -> None:
    """Put what exists into a request that is about to be sent."""
    for name, value in (case.path_parameters or {}).items():
        if name in KNOWN:
            case.path_parameters[name] = real(value, KNOWN[name])
    own = case.path_parameters.get("conversation_id") if case.path_parameters else None
    if "item_id" in (case.path_parameters or {}) and own in KNOWN["conversation_id"]:
        case.path_parameters["item_id"] = KNOWN["item_id"][KNOWN["conversation_id"].index(own)]
    if isinstance(case.body, dict):
        for name, known in BODY.items():
            if isinstance(case.body.get(name), str):
                case.body[name] = real(case.body[name], known)
        if isinstance(case.body.get("input"), list):
            text = json.dumps(case.body["input"])[:200]
            case.body["input"] = real(text, [text])
