"""SQLite as this project uses it: WAL, every commit on the disk, and one writer at a time without SQLite's own waiting.

SQLite lets a writer that finds another at work sleep for up to a tenth of a second and look again, so that with many
of them the lock lies idle while all of them sleep. Here the threads of a process queue for it, and the one at the head
looks often.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import Connection, Engine, event
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

# How long a writer waits for those before it. Writes take a few milliseconds each.
BUSY_SECONDS = 30
# How often the head of a process's queue looks whether another process has let go.
LOOK_SECONDS = 0.0005


class Writers:
    """The queue of one process."""

    def __init__(self) -> None:
        self._writing = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this process's other writers, but for no more than BUSY_SECONDS: then SQLite is asked, which says
        after as long again what is wrong."""
        held = self._writing.acquire(timeout=BUSY_SECONDS)
        try:
            yield
        finally:
            if held:
                self._writing.release()


def prepare(engine: Engine) -> None:
    """Have every connection and transaction of this engine begin as they should."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own object
        connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would get SQLITE_BUSY at once when another wrote in
        # between; taking the write lock at BEGIN makes it wait its turn instead.
        if connection.get_execution_options().get("qwenq_write", False):
            _begin_writing(connection)
        else:
            connection.exec_driver_sql("BEGIN")


def _is_busy(error: BaseException) -> bool:
    # The lowest byte of what the driver has: the rest says why, as that another process mends the log of a dead one.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


LOOKING = Retrying(
    retry=retry_if_exception(_is_busy),
    wait=wait_fixed(LOOK_SECONDS),
    stop=stop_after_delay(BUSY_SECONDS),
    reraise=True,
)


def _begin_writing(connection: Connection) -> None:
    driver = cast(sqlite3.Connection, connection.connection.dbapi_connection)
    driver.execute("PRAGMA busy_timeout=0")
    try:
        LOOKING(driver.execute, "BEGIN IMMEDIATE")
    except sqlite3.Error:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # once more, so that it fails as everything else does
    finally:
        driver.execute(f"PRAGMA busy_timeout={1000 * BUSY_SECONDS}")
