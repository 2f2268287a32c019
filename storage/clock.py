"""The database's clock as a SQL expression.

Leases and schedules of several machines are compared with each other, so all of them use one clock: the
database's. Times are unix seconds as double precision, in every table.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """``now()``: unix seconds, at the time of the statement and not of the transaction's start."""

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401
    return "(extract(epoch from clock_timestamp())::double precision)"


@compiles(now, "sqlite")
def _sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ANN401
    # The julian day is a double with a step of about 40 microseconds; SQLite fills it to the millisecond.
    return "((julianday('now') - 2440587.5) * 86400.0)"


READ = select(now())


def read(session: Session) -> float:
    """Return the database's time, for values that several rows of a transaction share."""
    return session.execute(READ).scalar_one()
