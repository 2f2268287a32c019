"""Server-sent events: their bytes, and an answer that is made of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.waiting import disconnected
from storage.models import Json

DONE = b"data: [DONE]\n\n"
HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold events back to fill a buffer
}


def event(value: Json) -> bytes:
    """Return an event under its own type.

    ASCII, because many readers split lines where Unicode does (U+2028, U+0085), and the text may hold such characters.
    """
    data = json.dumps(value, separators=(",", ":"))
    return f"event: {value['type']}\ndata: {data}\n\n".encode("ascii")


def data(value: Json) -> bytes:
    """Return an event without a type, as Chat Completions and Completions have them."""
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode("ascii")


def comment(text: str) -> bytes:
    """Return a line that every reader skips."""
    return f": {text}\n\n".encode("ascii")


class EventStream(Response):
    """A 200 answer whose body is sent as it comes, never faster than the client reads.

    Args:
        body: the bytes, piece by piece. It is closed when the client goes away.
        on_gone: what to do when the client went away before the end of the body.
    """

    media_type = "text/event-stream"

    def __init__(
        self, body: AsyncGenerator[bytes, None], on_gone: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]  # of the empty body that the base class has
        self._pieces = body
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body. The request's own body must have been read."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
            elif self._on_gone is not None:
                await self._on_gone()
        finally:
            for task in (sending, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._pieces):
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
