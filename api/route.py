"""How every request under /v1 begins: its key first, then its body, bounded and strict."""

from __future__ import annotations

import email.message
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import Response

from api import auth, services, strict_json
from api.errors import NoSuchObject, TooLarge, WrongMediaType

# A body over the limit is read on and dropped up to this many times the limit: a client that is still sending
# when the connection closes would never see why.
DRAIN_TIMES = 16


class JsonRequest(Request):
    """A request whose body is bounded while it is read and is taken as strict JSON."""

    async def body(self) -> bytes:
        """Return the body.

        Raises:
            TooLarge: it is longer than the setting allows. No more than the limit was kept.
            WrongMediaType: it is not declared as JSON.
        """
        if not hasattr(self, "_body"):
            limit = services.of(self).settings.max_body_bytes
            if int(self.headers.get("content-length", "0")) > limit * DRAIN_TIMES:
                raise _too_large(limit)
            parts: list[bytes] = []
            size = 0
            async for part in self.stream():
                size += len(part)
                if size > limit * DRAIN_TIMES:
                    break
                if size <= limit:
                    parts.append(part)
            if size > limit:
                raise _too_large(limit)
            if size:
                _require_json(self.headers.get("content-type", ""))
            self._body = b"".join(parts)
        return self._body

    async def json(self) -> object:
        """Return the body's value; raises BadRequest when it is not strict JSON."""
        if not hasattr(self, "_json"):
            self._json = strict_json.read(await self.body())
        return self._json


class Route(APIRoute):
    """A route that knows its caller before it reads anything else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls for a matching request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            request.state.caller = await auth.authenticate(request, services.of(request).keys)
            if "\0" in request.url.path:  # would be an error of the database
                raise NoSuchObject("No id holds the character NUL.")
            return await handle(request)

        return handler


def router(tag: str) -> APIRouter:
    """Return a router for endpoints under /v1 that need an API key."""
    return APIRouter(
        prefix="/v1",
        route_class=Route,
        tags=[tag],
        # For the OpenAPI document; `Route` does the work, before the body is read.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )


def _require_json(content_type: str) -> None:
    message = email.message.Message()
    message["content-type"] = content_type or "application/octet-stream"
    if message.get_content_type() != "application/json":
        raise WrongMediaType(
            f"The body's type is '{content_type}'. Send JSON, with the header 'Content-Type: application/json'."
        )


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit} bytes.")
