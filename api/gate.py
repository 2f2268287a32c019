"""The outermost layer of every request: its id, one log line, the answer's fixed headers, and the last resort.

Log lines carry ids, method, path and time, never bodies, queries or keys.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, metrics

log = structlog.get_logger("api.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
FIXED_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
# A client that went away has no status; nginx's number for it is widely understood.
CLIENT_GONE = 499
PROBES = ("/livez", "/readyz", "/metrics")


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        status = CLIENT_GONE
        fixed = [*FIXED_HEADERS, (b"x-request-id", request_id.encode())]

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*fixed, *scope.get("state", {}).get("limit_headers", ())]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_marked)
            except Exception:
                log.exception("defect", response_id=_response_id(scope))
                if status != CLIENT_GONE:  # the answer has begun: it can only be cut off
                    raise
                failure = errors.answer(
                    500,
                    "The server had an error while processing your request. "
                    f"Its operator finds it in the log as {request_id}.",
                    type_=errors.SERVER_ERROR,
                    code="internal_error",
                )
                await failure(scope, receive, send_marked)
            finally:
                seconds = time.perf_counter() - started
                metrics.observe(scope, status, seconds)
                # Probes come every few seconds: they are news only when they fail.
                level = logging.DEBUG if scope["path"] in PROBES and status < 400 else logging.INFO
                log.log(
                    level,
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(seconds * 1000, 1),
                    response_id=_response_id(scope),
                )


def _request_id(scope: Scope) -> str:
    """Return the caller's own id when it is a harmless one, so that a request can be followed across services."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


def _response_id(scope: Scope) -> str | None:
    """Return the response that the request made (`request.state.response_id`) or named in its path."""
    made: str | None = scope.get("state", {}).get("response_id")
    return made or scope.get("path_params", {}).get("response_id")
