"""One house on SQLite and one on PostgreSQL, each started once for all tests that drive the whole service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from migrations.run import upgrade
from tests.acceptance.house import House


def opened(directory: Path, database_url: str, broker_url: str, number: int, model: Path) -> Iterator[House]:
    """A house on this database and on the numbered one of the run's Valkey."""
    upgrade(database_url)
    redis_url = f"{broker_url.rstrip('/').removesuffix('/0')}/{number}"
    house = House(directory, database_url=database_url, redis_url=redis_url, model=model)
    try:
        house.open()
        yield house
    finally:
        house.close()


@pytest.fixture(scope="session")
def sqlite_house(
    broker_url: str, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """The whole service on SQLite, with the real demo model."""
    directory = tmp_path_factory.mktemp("house-sqlite")
    yield from opened(directory, f"sqlite:///{directory / 'qwenq.db'}", broker_url, 1, demo_model)


@pytest.fixture(scope="session")
def postgres_house(
    broker_url: str, postgres_server: str, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """The whole service on PostgreSQL, with the real demo model."""
    directory = tmp_path_factory.mktemp("house-postgresql")
    yield from opened(directory, new_postgres_database(postgres_server), broker_url, 2, demo_model)


@pytest.fixture(params=["sqlite", "postgres"])
def house(request: pytest.FixtureRequest) -> House:
    """The service on SQLite, then on PostgreSQL."""
    found: House = request.getfixturevalue(f"{request.param}_house")
    return found


@pytest.fixture(scope="session")
def real_house(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The whole service with the real checkpoint that QWENQ_MODEL names."""
    model = os.environ.get("QWENQ_MODEL")
    if not model:
        pytest.skip("QWENQ_MODEL names no real checkpoint on this machine")
    directory = tmp_path_factory.mktemp("house-real")
    yield from opened(directory, f"sqlite:///{directory / 'qwenq.db'}", broker_url, 3, Path(model))


def new_postgres_database(server_url: str, name: str = "acceptance") -> str:
    """Make a database on the run's server and return its URL."""
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)
