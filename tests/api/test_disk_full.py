"""The database's disk is full: nothing is accepted and nothing is lost, and all goes on once there is room."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from storage.database import Database
from tests.api.fake_worker import FakeWorker
from tests.api.serving import Served

BIG = {"input": "a" * 150_000, "background": True}
# What PostgreSQL reports when it cannot extend a file (SQLSTATE 53100), without a disk of its own to fill.
REFUSE = """
CREATE OR REPLACE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER no_room BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION no_room();
"""
ALLOW = "DROP TRIGGER no_room ON items"


@contextmanager
def full_disk(database: Database, served: Served) -> Iterator[None]:
    if database.engine.dialect.name == "postgresql":
        with database.begin() as session:
            session.execute(text(REFUSE))
        try:
            yield
        finally:
            with database.begin() as session:
                session.execute(text(ALLOW))
        return
    # SQLite's own limit of a file's pages, set on the connections of the server alone.
    engine = served.services.database.engine
    with closing(sqlite3.connect(engine.url.database or "")) as file:
        file.execute("VACUUM")  # what earlier tests have left free would be room
    with engine.connect() as probe:
        pages = probe.scalar(text("PRAGMA page_count"))
    engine.dispose()

    def limit(connection: object, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]

    event.listen(engine, "connect", limit)
    try:
        yield
    finally:
        event.remove(engine, "connect", limit)
        engine.dispose()


def test_nothing_is_accepted_what_is_there_can_be_read_and_it_goes_on_when_there_is_room(
    http: httpx.Client,
    served: Served,
    database: Database,
    worker: FakeWorker,
    rows: Callable[[], dict[str, int]],
) -> None:
    kept = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
    before = rows()
    with full_disk(database, served):
        refused = http.post("/v1/responses", json=BIG)
        assert refused.status_code == 503, refused.text
        assert refused.headers["retry-after"] == "1"
        assert rows() == before
        assert http.get(f"/v1/responses/{kept}").json()["status"] == "queued"
    assert http.post("/v1/responses", json=BIG).status_code == 200
    worker.answer()
    assert http.get(f"/v1/responses/{kept}").json()["status"] == "completed"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_end_that_cannot_be_written_changes_nothing_and_is_written_by_the_next_attempt(
    http: httpx.Client, served: Served, database: Database, worker: FakeWorker
) -> None:
    job = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
    running = worker.claim()
    assert running is not None
    with (
        full_disk(database, served),
        pytest.raises(OperationalError),
    ):  # what `generation` takes for an outage
        worker.finish(running)
    assert http.get(f"/v1/responses/{job}").json()["status"] == "in_progress"
    worker.finish(running)
    assert http.get(f"/v1/responses/{job}").json()["status"] == "completed"
