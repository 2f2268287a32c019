"""Alembic's entry point: one connection, one transaction, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from storage.database import Database
from storage.models import Base

# Any constant will do; it keeps two migrating processes of one deployment apart.
ADVISORY_LOCK = 0x71776E71


def _run() -> None:
    database = Database(context.config.attributes["database_url"])
    try:
        with database.begin() as session:
            connection = session.connection()
            if not database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
            with context.begin_transaction():
                context.run_migrations()
    finally:
        database.close()


_run()
