"""The OpenAPI document: what FastAPI reads off the routes, and with each operation the errors that it can answer.

`tests/api/test_openapi.py` holds the service to it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

ERROR = "#/components/schemas/Error"
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {
                    "type": "string",
                    "enum": ["invalid_request_error", "rate_limit_error", "server_error"],
                },
                "param": {
                    "type": ["string", "null"],
                    "description": "The offending part of the request, like input[0].content.",
                },
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# By status: when it is answered (`api.errors`).
EVERYWHERE = {
    400: "The request cannot be right.",
    401: "No API key, or a wrong one.",
    404: "Nothing of this id in the key's project.",
    503: "Come again in a moment: Retry-After says when.",
}
CHANGES = {
    409: "The state of things does not allow it; sending it again changes nothing.",
    429: "A limit of the key, or the queue is full: Retry-After says when to come again.",
}
BODIES = {
    413: "The body is too large.",
    415: "The body is not declared as what the path takes.",
}


class Application(FastAPI):
    """A FastAPI application whose document tells of errors too."""

    def openapi(self) -> dict[str, Any]:
        """Return the document; it is made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            document.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR_SCHEMA
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _add_errors(path, method, operation)
            self.openapi_schema = document
        return self.openapi_schema


def _add_errors(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; `api.validation` answers 400
    if not path.startswith("/v1/"):
        return
    known = EVERYWHERE | (CHANGES if method != "get" else {}) | (BODIES if "requestBody" in operation else {})
    for status, description in known.items():
        responses[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": {"$ref": ERROR}}},
        }
