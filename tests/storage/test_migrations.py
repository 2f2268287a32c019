"""The migrations make exactly the tables that the code was written for, on both databases."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from migrations.run import is_current, upgrade
from storage.database import Database
from storage.models import Base


def test_migrations_and_models_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_running_them_again_changes_nothing(database: Database, database_url: str) -> None:
    upgrade(database_url)
    assert is_current(database)


def test_an_empty_database_is_not_current(tmp_path: object) -> None:
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    assert not is_current(database)
    database.close()
