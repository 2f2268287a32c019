"""Old programs on the new schema: `migrate` runs first, and what it finds running goes on working meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, inspect, select
from sqlalchemy.engine import Inspector

from migrations import run
from storage import clock, leases
from storage.database import Database
from storage.models import Response
from tests.acceptance.houses import new_postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/old.db"
    return new_postgres_database(request.getfixturevalue("postgres_server"), f"old_{tmp_path.name}")


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


def revisions() -> list[str]:
    """All revisions, oldest first."""
    script = ScriptDirectory(str(Path(run.__file__).parent))
    return [one.revision for one in reversed(list(script.walk_revisions()))]


def columns(found: Inspector) -> dict[str, dict[str, bool]]:
    """Of each table, its columns, and whether a row may leave the column out."""
    return {
        table: {
            column["name"]: column["nullable"] or column["default"] is not None
            for column in found.get_columns(table)
        }
        for table in found.get_table_names()
    }


def test_each_migration_leaves_what_the_programs_before_it_write_and_read(url: str, empty: Database) -> None:
    before: dict[str, dict[str, bool]] = {}
    for revision in revisions():
        command.upgrade(run.config(url), revision)
        after = columns(inspect(empty.engine))
        for table, old in before.items():
            assert old.keys() <= after.get(table, {}).keys(), f"{revision} takes columns away from {table}"
            new = {name for name, optional in after[table].items() if not optional} - old.keys()
            assert not new, f"{revision} adds to {table} what an older program does not fill: {new}"
        before = after


def test_a_job_of_the_first_programs_is_run_by_the_newest(url: str, empty: Database) -> None:
    first = revisions()[0]
    command.upgrade(run.config(url), first)
    old = MetaData()
    old.reflect(empty.engine)

    def accept_as_then(name: str) -> None:
        table: Table = old.tables["responses"]
        with empty.begin() as session:
            moment = clock.read(session)
            known = {
                "id": name,
                "project_id": "proj_old",
                "request": {"background": True},
                "status": "queued",
                "created_at": moment,
                "available_at": moment,
                "knocked_at": moment,
                "message_id": f"msg_{name}",
                "attempt": 0,
                "failures": 0,
                "seed": 1,
            }
            session.execute(table.insert().values(known))

    with empty.begin() as session:
        session.execute(old.tables["projects"].insert().values(id="proj_old", name="old", created_at=0))
    accept_as_then("resp_before")
    command.upgrade(run.config(url), "head")
    accept_as_then("resp_meanwhile")
    claimed = set()
    for _ in range(2):
        with empty.begin() as session:
            job = leases.claim(session, "new", 30, 3)
            assert job is not None
            assert leases.seconds_left(session, job) > 0
            claimed.add(job.id)
    assert claimed == {"resp_before", "resp_meanwhile"}
    with empty.read() as session:
        assert session.scalar(select(Response.request).where(Response.id == "resp_before")) == {
            "background": True
        }
