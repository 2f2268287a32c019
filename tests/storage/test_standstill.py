"""A process that stands still in the middle of a transaction holds no row for long (PostgreSQL)."""

from __future__ import annotations

import socket

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage import database as module
from storage import leases, stream
from storage.database import Database
from storage.models import Response
from storage.salvage import Salvage
from tests.api.fake_worker import until
from tests.storage.factory import accept, claim, project, sweep

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def test_its_job_is_taken_back_and_its_transaction_fails_like_an_outage(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STANDSTILL_SECONDS", 1)
    with database.begin() as session:
        job = accept(session, project(session)).id
    stopped = Database(database_url)
    with stopped.begin() as session:
        assert claim(session, lease=0.1) is not None

    def standing() -> str:
        with database.begin() as session:
            sweep(session)
        with database.read() as session:
            return session.get_one(Response, job).status

    def stand_still() -> None:
        with stopped.begin() as session:
            leases.renew(session, job, 1, 60, None)
            assert standing() == "in_progress"  # its row is held, so a sweeper goes past it
            until(lambda: standing() == "queued")
            session.execute(text("SELECT 1"))

    with pytest.raises(OperationalError):
        stand_still()
    with stopped.begin() as session, pytest.raises(leases.LeaseLost):  # with a new connection, and too late
        leases.renew(session, job, 1, 60, None)
    stopped.close()


def test_a_server_that_has_become_a_standby_is_an_outage(database: Database) -> None:
    def write() -> None:
        with database.begin() as session:
            session.execute(text("SET TRANSACTION READ ONLY"))
            accept(session, project(session))

    with pytest.raises(OperationalError):
        write()


def test_a_redis_that_hangs_ends_no_sweep(database: Database) -> None:
    """Its longest silence within a transaction is shorter than what counts as standing still."""
    with stream.connect("redis://127.0.0.1/0") as redis:
        limits = redis.connection_pool.connection_kwargs
        assert limits["socket_timeout"] + limits["socket_connect_timeout"] < module.STANDSTILL_SECONDS
    with socket.create_server(("127.0.0.1", 0)) as silent, database.begin() as session:
        job = accept(session, project(session)).id
        claim(session, lease=-1)
        session.flush()
        with stream.connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0") as redis:
            leases.sweep(session, 3, Salvage(redis))
        assert session.get_one(Response, job, populate_existing=True).status == "queued"
