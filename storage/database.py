"""The one place that opens and commits transactions.

`Database.begin` is a write transaction, `Database.read` a read-only one. Functions of this package take the
session and never commit, so that a caller's transaction is as long as its `with` block and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    Connection,
    CursorResult,
    Delete,
    Engine,
    Executable,
    Update,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from storage import outbox, sqlite
from storage.models import Response
from storage.outbox import Owed

# A process that stands still in the middle of a transaction (SIGSTOP, a paused machine) holds the locks of its rows:
# no sweeper takes its job back, and the next turn's caller waits. PostgreSQL ends such a transaction after this.
# Longer than Redis can hold one up: a sweep asks it for a lost answer's last tokens (`storage.stream.connect`).
STANDSTILL_SECONDS = 10
# The session was ended for that (25P03), or the server has become a standby (25006): a new connection helps.
PASSING = {"25P03", "25006"}
# A server that has vanished without a word is noticed after this; TCP alone would take a quarter of an hour.
SILENCE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15_000}


class Database:
    """An engine with its pool. Thread-safe; make one for a process.

    Args:
        url: a SQLAlchemy URL of SQLite or PostgreSQL (psycopg 3).
        pool_size: connections that are kept, and with PostgreSQL the most that are opened.

    Attributes:
        on_owed: gets the messages that a committed transaction owes, in the thread that has committed it. Until
            somebody takes them they wait for a sweeper.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.on_owed: Callable[[list[Owed]], None] = _leave
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._turn: Callable[[], AbstractContextManager[None]] = (
            sqlite.Writers().turn if self.is_sqlite else nullcontext
        )
        if self.is_sqlite:
            Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(
                self.url,
                pool_size=pool_size,
                connect_args={"timeout": sqlite.BUSY_SECONDS},
                hide_parameters=True,
            )
            sqlite.prepare(self.engine)
        else:
            self.engine = create_engine(
                self.url,
                pool_size=pool_size,
                max_overflow=0,
                pool_pre_ping=True,  # a restarted server costs a reconnect, not an error
                connect_args={"connect_timeout": 5, **SILENCE},
                hide_parameters=True,  # errors end up in logs, parameters are what callers wrote
            )
            _prepare_postgresql(self.engine)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """A write transaction: committed at the end of the block, rolled back when it raises."""
        with (
            self._turn(),
            self._connect(write=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
        if owed := outbox.written(session):
            self.on_owed(owed)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it does not wait for writers."""
        with self._connect(write=False) as connection, Session(connection, expire_on_commit=False) as session:
            yield session

    def ping(self) -> None:
        """Ask the server for one row.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the server does not answer.
        """
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    @contextmanager
    def _connect(self, *, write: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection.execution_options(qwenq_write=write)


def _leave(_owed: list[Owed]) -> None:
    """Leave the messages where they are."""


def changed(session: Session, statement: Update | Delete) -> int:
    """Execute an UPDATE or DELETE and return how many rows it touched: the answer of a compare-and-set."""
    return cast(CursorResult[Any], session.execute(statement)).rowcount


def loaded(change: ReturningUpdate[Any]) -> Executable:
    """Return an UPDATE of responses so that executing it gives those that it has changed as objects.

    It costs a third of an UPDATE of the class, which is compiled anew each time.
    """
    found = select(Response).from_statement(change)
    return found.execution_options(populate_existing=True)


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own object
        connection.execute(f"SET idle_in_transaction_session_timeout = '{STANDSTILL_SECONDS}s'")
        connection.commit()

    @event.listens_for(engine, "handle_error")
    def _on_error(context: ExceptionContext) -> None:
        # psycopg calls them internal errors, which nobody would try again.
        original = context.original_exception
        if getattr(original, "sqlstate", None) in PASSING:
            raise OperationalError(context.statement, None, original) from original
