"""A worker's runtime without Celery's loop: the same parts, driven by the test."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from cryptography.fernet import Fernet

from storage import broker, stream
from storage.crypto import SecretBox
from storage.database import Database
from storage.egress import EgressPolicy
from storage.publisher import Publisher
from worker.aside import Aside
from worker.runtime import Runtime
from worker.settings import WorkerSettings


@pytest.fixture
def runtime(
    database: Database, database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """The runtime of a webhook worker; tests that generate give it a generator."""
    key = Fernet.generate_key().decode()
    for name, value in (
        ("DATABASE_URL", database_url),
        ("REDIS_URL", broker_url),
        ("SECRET_KEY", key),
        ("WEBHOOK_RETRY_DELAYS", "[60, 120]"),
    ):
        monkeypatch.setenv(f"QWENQ_{name}", value)
    app = broker.make_app(broker_url)
    redis, aside = stream.connect(broker_url), Aside()
    yield Runtime(
        settings=WorkerSettings(),
        name="test",
        app=app,
        database=database,
        redis=redis,
        publisher=Publisher(database, app),
        secrets=SecretBox(key),
        egress=EgressPolicy((ip_network("127.0.0.0/8"),)),
        generator=None,
        health=None,
        aside=aside,
    )
    aside.stop()
    redis.close()
    app.close()
