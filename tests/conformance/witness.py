"""A proxy between a client and the service that keeps every exchange and judges it by the SDK's own types.

Whoever calls through it (the Python and the Node SDK, curl, somebody else's program) is served unchanged: bytes are
passed on as they come, in both directions.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

# Of one connection, not of what is sent over it.
HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}


@dataclass(frozen=True)
class Exchange:
    """One request and the whole of its answer."""

    verb: str
    path: str
    query: str
    asked: bytes
    status: int
    kind: str
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, without ``[DONE]``."""
        lines = self.body.decode().split("\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]


class Witness:
    """What went through the proxy at `url`, in the order in which it ended."""

    def __init__(self, upstream: str) -> None:
        self.exchanges: list[Exchange] = []
        self.url = ""
        self._upstream = upstream

    @asynccontextmanager
    async def connected(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=300, trust_env=False) as self._client:
            yield

    async def forward(self, request: Request) -> Response:
        asked = await request.body()
        target = httpx.URL(self._upstream).copy_with(raw_path=_raw_path(request))
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP]
        answer = await self._client.send(
            self._client.build_request(request.method, target, headers=headers, content=asked), stream=True
        )
        return StreamingResponse(
            self._pieces(request, asked, answer),
            answer.status_code,
            {name: value for name, value in answer.headers.items() if name not in HOP},
        )

    async def _pieces(self, request: Request, asked: bytes, answer: httpx.Response) -> AsyncIterator[bytes]:
        body = b""
        try:
            async for piece in answer.aiter_raw():
                body += piece
                yield piece
        finally:
            await answer.aclose()
            kind = answer.headers.get("content-type", "").partition(";")[0]
            self.exchanges.append(
                Exchange(
                    request.method,
                    request.url.path,
                    request.url.query,
                    asked,
                    answer.status_code,
                    kind,
                    body,
                )
            )


def _raw_path(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    path: bytes = request.scope["raw_path"]
    return path + (b"?" + query if query else b"")


@contextmanager
def witnessing(upstream: str) -> Iterator[Witness]:
    """Run a proxy in front of the service at `upstream`, on a free port."""
    witness = Witness(upstream)
    verbs = ["GET", "POST", "DELETE", "PUT", "PATCH"]
    routes = [Route("/{path:path}", witness.forward, methods=verbs)]
    app = Starlette(routes=routes, lifespan=witness.connected)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=10)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        witness.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield witness
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
