"""An API on a free port with a key of its own, and the worker that answers its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from redis import Redis
from sqlalchemy import func, select

from api.settings import ApiSettings
from storage import keys, stream
from storage.database import Database
from storage.models import Base
from storage.webhook_secret import new_secret
from tests.api.fake_worker import FakeWorker
from tests.api.serving import Served, serving


@pytest.fixture
def settings(database_url: str, broker_url: str, secret_key: str, tmp_path: Path) -> ApiSettings:
    return ApiSettings(
        database_url=database_url,
        redis_url=broker_url,
        secret_key=secret_key,
        webhook_secret=new_secret(),
        webhook_allowed_networks=["127.0.0.0/8"],
        host="127.0.0.1",
        port=0,
        drain_seconds=5,
        files_dir=tmp_path / "files",
    )


@pytest.fixture
def served(settings: ApiSettings) -> Iterator[Served]:
    with serving(settings) as running:
        yield running


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    with stream.connect(broker_url) as connection:
        yield connection


@pytest.fixture
def worker(database: Database, redis: Redis) -> FakeWorker:
    return FakeWorker(database, redis)


@pytest.fixture
def api_key(database: Database) -> str:
    with database.begin() as session:
        return keys.create(session, "ours", "test").secret


@pytest.fixture
def other_key(database: Database) -> str:
    """The key of another project."""
    with database.begin() as session:
        return keys.create(session, "theirs", "test").secret


@pytest.fixture
def client(served: Served, api_key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key=api_key, max_retries=0, timeout=30) as opened:
        yield opened


@pytest.fixture
def http(served: Served, api_key: str) -> Iterator[httpx.Client]:
    """A plain HTTP client that shows the key."""
    headers = {"authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=30) as opened:
        yield opened


@pytest.fixture
def stranger(served: Served, other_key: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of another project."""
    headers = {"authorization": f"Bearer {other_key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=30) as opened:
        yield opened


@pytest.fixture
def rows(database: Database) -> Callable[[], dict[str, Any]]:
    """Counts the rows of every table but those that the fixtures fill."""

    def count() -> dict[str, Any]:
        with database.read() as session:
            return {
                name: session.scalar(select(func.count()).select_from(table))
                for name, table in Base.metadata.tables.items()
                if name not in ("projects", "api_keys", "outbox")
            }

    return count
