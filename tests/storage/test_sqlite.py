"""Writers of SQLite: of other processes, of this one, and what is told when one of them never lets go."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tenacity import stop_after_attempt

from storage import outbox, sqlite
from storage.database import Database

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def other(database: Database) -> sqlite3.Connection:
    """A connection as another process has it."""
    return sqlite3.connect(
        str(database.url.database), timeout=30, isolation_level=None, check_same_thread=False
    )


def busy_milliseconds(database: Database) -> int:
    with database.begin() as session:
        return int(session.execute(text("PRAGMA busy_timeout")).scalar_one())


def looks(database: Database) -> int:
    """How often a writer looked until it could write."""
    with database.begin() as session:
        session.execute(text("SELECT 1"))
        return int(sqlite.LOOKING.statistics["attempt_number"])


def test_a_writer_looks_often_whether_another_process_has_let_go(
    database: Database, other: sqlite3.Connection
) -> None:
    with closing(other), ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN IMMEDIATE")
        waiting = pool.submit(looks, database)
        time.sleep(0.3)  # is what is tested: how often it looks meanwhile
        assert not waiting.done()
        other.execute("COMMIT")
        assert waiting.result(30) > 20


def test_one_that_never_lets_go_is_told_as_every_trouble_of_the_database(
    database: Database, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOOKING", sqlite.LOOKING.copy(stop=stop_after_attempt(3)))
    with closing(other):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError, match="database is locked"), database.begin() as session:
            outbox.add(session, "generate", "never")
        other.execute("ROLLBACK")
    assert busy_milliseconds(database) == 1000 * sqlite.BUSY_SECONDS
    with database.read() as session:
        assert outbox.pending(session, 9) == []


def test_a_writer_that_fails_lets_the_next_one_write(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.begin():
        raise ZeroDivisionError
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: busy_milliseconds(database), range(64))) == {30_000}
