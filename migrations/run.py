"""Bring a database to the newest schema. Run by `qwenq migrate`, and by `qwenq up` before it starts the rest."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from storage.database import Database


def config(database_url: str) -> Config:
    """Return Alembic's configuration for this database; there is no ini file to keep in step with it."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.attributes["database_url"] = database_url
    return settings


def upgrade(database_url: str) -> None:
    """Apply every migration that the database has not seen. Two at once wait for each other."""
    command.upgrade(config(database_url), "head")


def is_current(database: Database) -> bool:
    """Tell whether the database's schema is the one this code was written for."""
    script = ScriptDirectory(str(Path(__file__).parent))
    with database.engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found == script.get_current_head()
