"""What a fault finds: the stack, the servers, the receivers, and ways to look for something worth hitting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from storage.database import Database
from storage.models import OutputChunk, Response
from tests.faults.history import History
from tests.faults.readers import LiveReader
from tests.faults.receivers import Receivers
from tests.faults.servers import Broker, Postgres
from tests.faults.stack import Program, Stack

T = TypeVar("T")
# Seconds that a fault waits for what it wants to hit.
PATIENCE = 30.0


class NothingToHit(Exception):
    """What the fault waits for has not come."""


@dataclass(frozen=True)
class Running:
    """A job in a worker's hands."""

    id: str
    attempt: int
    worker: str  # the program's name
    left: int  # tokens that it may still produce
    stored: int


@dataclass
class Scene:
    """All there is to break."""

    stack: Stack
    database: Database
    postgres: Postgres
    broker: Broker
    receivers: Receivers
    live: LiveReader
    history: History
    short: bool
    broker_away: asyncio.Lock  # faults that take Redis or SQL away take turns

    async def until(
        self, what: str, probe: Callable[[], Awaitable[T | None]], seconds: float = PATIENCE
    ) -> T:
        """Return the first truthy answer of `probe`.

        Raises:
            NothingToHit: there was none.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            found = await probe()
            if found:
                return found
            await asyncio.sleep(0.05)
        raise NothingToHit(what)

    async def ask(self, question: Callable[[Any], T]) -> T | None:
        """Put a question to SQL; None while it is away."""

        def asked() -> T | None:
            try:
                with self.database.read() as session:
                    return question(session)
            except SQLAlchemyError:
                return None

        return await asyncio.to_thread(asked)

    async def job(self, response_id: str) -> tuple[str, int] | None:
        """The status and the attempt of a response."""
        row = await self.ask(
            lambda session: session.execute(
                select(Response.status, Response.attempt).where(Response.id == response_id)
            ).one()
        )
        return None if row is None else (row[0], row[1])

    async def running(self) -> list[Running]:
        """All jobs in the hands of workers that are at work."""
        last = (
            select(func.max(OutputChunk.first_index))
            .where(OutputChunk.response_id == Response.id)
            .scalar_subquery()
        )
        query = select(Response.id, Response.attempt, Response.worker, Response.request, last).where(
            Response.status == "in_progress", Response.cancel_requested_at.is_(None)
        )
        rows = await self.ask(lambda session: session.execute(query).all()) or []
        by_pid = {str(program.pid): program for program in self.stack.workers if program.ready}
        found = []
        for response_id, attempt, worker, request, produced in rows:
            program = by_pid.get(str(worker).rpartition(":")[2])
            if program is not None:
                # The live tail is ahead of SQL; the further of both counts.
                so_far = max(produced or 0, self.live.seen.get(response_id, 0))
                left = request["max_output_tokens"] - so_far
                found.append(Running(response_id, attempt, program.name, left, so_far))
        return found

    async def busy(self, draw: random.Random, *, left: int = 0, stored: int = 0) -> Running:
        """Wait for a running job with so many tokens before it and behind it, and draw one of these."""

        async def look() -> Running | None:
            fit = [job for job in await self.running() if job.left >= left and job.stored >= stored]
            return draw.choice(sorted(fit, key=lambda job: job.id)) if fit else None

        return await self.until(f"a running job with {stored} tokens and {left} to come", look)

    async def ready_worker(self, draw: random.Random) -> Program:
        async def look() -> Program | None:
            fit = [program for program in self.stack.workers if program.ready]
            return draw.choice(fit) if fit else None

        return await self.until("a worker that is ready", look)
