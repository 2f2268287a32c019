"""Requests of Chat Completions and Completions: jobs like any other, one for each answer, for a caller who waits.

The jobs belong to the connection: when the caller goes away, or the service restarts under a stream, they are
cancelled, unless an Idempotency-Key lets the caller come back for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from api import choices, gate, idempotency, sse, streaming, waiting
from api.choices import Choice
from api.errors import NoSuchObject, Unavailable
from api.services import Services
from storage import cancels, groups, stream, terminal, webhook_endpoints
from storage.errors import NotFound
from storage.responses import NewResponse

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """An accepted request.

    Attributes:
        ids: of its jobs; the first is the object's.
        keep: may a caller come back for them?
        input: the parameter that holds what is answered, for errors.
    """

    services: Services
    project_id: str
    ids: Sequence[str]
    keep: bool
    input: str

    async def wait(self, request: Request) -> list[Choice] | Response:
        """Return the answers once all are there; a bare answer when nobody is left to read them.

        Raises:
            ApiError: there is no answer, and why.
        """
        outcome = await waiting.for_end(request, self.services.live, self.ids, None)
        if outcome == "ended":
            return await run_in_threadpool(self.load)
        if not self.keep:
            await self.cancel()
        if outcome == "gone":
            return Response(status_code=gate.CLIENT_GONE)
        raise Unavailable(choices.RESTARTING, code="restarting")

    def stream(self, script: streaming.Script) -> sse.EventStream:
        """Return the answers as they come."""

        async def body() -> AsyncGenerator[bytes, None]:
            async with contextlib.aclosing(streaming.send(self.services.live, self.ids, script)) as pieces:
                async for piece in pieces:
                    yield piece
            if not script.complete and not self.keep:
                await self.cancel()

        return sse.EventStream(body(), on_gone=None if self.keep else self.cancel)

    async def cancel(self) -> None:
        """Cancel what still runs: nobody can ever read it."""
        try:
            await run_in_threadpool(self._cancel)
        except (SQLAlchemyError, NotFound) as trouble:
            log.warning("caller gone, not cancelled", response_id=self.ids[0], cause=type(trouble).__name__)

    def load(self) -> list[Choice]:
        """Return the answers of an ended call.

        Raises:
            ApiError: it has none, and why.
        """
        with self.services.database.read() as session:
            return choices.load(session, groups.members(session, self.project_id, self.ids[0]), self.input)

    def _cancel(self) -> None:
        with self.services.database.begin() as session:
            rows = groups.members(session, self.project_id, self.ids[0])
            ended = [terminal.cancel(session, row) for row in rows]
        # Whoever runs one learns of it at once; without Redis they find it in SQL.
        with contextlib.suppress(RedisError):
            for row in ended:
                if row.status == "cancelled":
                    stream.end(self.services.redis, row.id, row.attempt)
                elif row.status == "in_progress":
                    cancels.announce(self.services.redis, row.id)


def accept(
    services: Services,
    project_id: str,
    new: Sequence[NewResponse],
    key: idempotency.Key | None,
    input_: str,
) -> Call:
    """Store the jobs, or find those that the key's first request stored.

    Raises:
        NoSuchObject: their webhook endpoint does not exist.
        TooMany: the queue is full.
    """

    def store(session: Session) -> tuple[str, list[str]]:
        webhook = new[0].webhook
        if webhook is not None and "endpoint_id" in webhook:
            webhook_endpoints.get(session, project_id, webhook["endpoint_id"])
        for _ in new:
            services.pressure.admit(session)
        rows = groups.accept(session, project_id, new)
        return rows[0].id, [row.id for row in rows]

    def found(session: Session, group_id: str) -> list[str]:
        return [row.id for row in groups.members(session, project_id, group_id)]

    try:
        ids = idempotency.once(services.database, project_id, key, store, found)
    except NotFound as missing:
        param = "webhook.endpoint_id" if missing.kind == "webhook endpoint" else None
        raise NoSuchObject(str(missing), param=param) from None
    return Call(services, project_id, ids, keep=key is not None, input=input_)
