"""What one API process holds: opened at start, closed at the end, handed to each endpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Self, cast

import anyio.to_thread
from anyio import CapacityLimiter
from celery import Celery
from fastapi import Depends
from redis import Redis
from starlette.requests import HTTPConnection

from api.auth import KeyCache
from api.batch_driver import BatchDriver
from api.clerk import Clerk
from api.limits import RateLimits
from api.live import Live
from api.pressure import Pressure
from api.prompt_length import PromptLength
from api.settings import ApiSettings
from storage import broker, stream
from storage.blobs import Blobs, Folder
from storage.crypto import SecretBox
from storage.database import Database
from storage.egress import EgressPolicy
from storage.keys import Caller
from storage.publisher import Publisher

# Looking up a webhook's host, or probing a dead server, takes seconds: not in the threads that serve SQL.
SLOW_CALLS = 32


@dataclass(frozen=True, slots=True)
class Services:
    """The process's connections and caches. Everything here may be used from any thread."""

    settings: ApiSettings
    database: Database
    celery: Celery
    publisher: Publisher
    redis: Redis
    live: Live
    keys: KeyCache
    limits: RateLimits
    pressure: Pressure
    secrets: SecretBox
    egress: EgressPolicy
    blobs: Blobs
    clerk: Clerk
    prompt_length: PromptLength | None
    slow_calls: CapacityLimiter

    @classmethod
    def open(cls, settings: ApiSettings, prompt_length: PromptLength | None) -> Self:
        """Connect to nothing yet, start what runs beside the requests. Needs a running event loop."""
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.api_threads
        # One connection for each request thread, the rest for the outbox, the watch, the clerk and the probe.
        database = Database(settings.database_url, pool_size=settings.api_threads + 4)
        celery = broker.make_app(settings.redis_url)
        blobs = Folder(settings.files_dir)
        redis = stream.connect(settings.redis_url)
        pressure = Pressure(settings.max_queued)
        services = cls(
            settings=settings,
            database=database,
            celery=celery,
            publisher=Publisher(database, celery),
            redis=redis,
            live=Live(settings.redis_url, database),
            keys=KeyCache(database),
            limits=RateLimits(settings),
            pressure=pressure,
            secrets=SecretBox(settings.secret_key.get_secret_value()),
            egress=EgressPolicy(tuple(settings.webhook_allowed_networks)),
            blobs=blobs,
            clerk=Clerk(database, blobs, BatchDriver(settings, database, blobs, redis, pressure)),
            prompt_length=prompt_length,
            slow_calls=CapacityLimiter(SLOW_CALLS),
        )
        services.publisher.start()
        services.live.start()
        services.clerk.start()
        return services

    async def close(self) -> None:
        """Stop what runs and give all connections back."""
        await self.live.stop()
        await self.limits.close()
        await asyncio.to_thread(self.clerk.stop)
        await asyncio.to_thread(self.publisher.stop)
        self.celery.close()
        self.redis.close()
        self.database.close()


def of(connection: HTTPConnection) -> Services:
    """Return the services of the application that serves this request."""
    return cast(Services, connection.app.state.services)


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who calls, which `api.route` has found out."""
    return cast(Caller, connection.state.caller)


# FastAPI would run plain functions in threads, three a request.
async def _held(connection: HTTPConnection) -> Services:
    return of(connection)


async def _calling(connection: HTTPConnection) -> Caller:
    return caller_of(connection)


async def _project(connection: HTTPConnection) -> str:
    return caller_of(connection).project_id


Held = Annotated[Services, Depends(_held)]
Calling = Annotated[Caller, Depends(_calling)]
Project = Annotated[str, Depends(_project)]
