"""The life of batches as a state machine: processes die between any two commits, stall and come back, owners cancel.

After each step SQL is looked at: no line is two jobs, no more jobs wait than the window allows, an end stays as it is,
and the files of an ended batch hold every line once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO, cast

import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api import batch_driver, batch_input
from api.batch_driver import BatchDriver
from api.pressure import Pressure
from api.settings import ApiSettings
from storage import batch_work, batches, clock, conversations, files, stream, terminal
from storage.batch_models import Batch, BatchLine
from storage.batches import NewBatch
from storage.database import Database
from storage.errors import Conflict
from storage.models import Base, File, Response
from tests.storage.factory import answer, claim, project

WINDOW = 3
MOST_BATCHES = 3
ENDS = ("completed", "failed", "expired", "cancelled")
NEXT = {
    "validating": {"in_progress", "failed", "finalizing", "cancelling"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired"},
    "cancelling": {"cancelled"},
}
PICK = st.integers(0, 10**6)
# What a line is: a plain request, one of a conversation's turns, one that is refused when its turn comes.
KINDS = st.sampled_from(["plain", "plain", "turn", "gone", "lost"])


class Died(BaseException):
    """The process is no more. No handler of the product sees it as an error."""


class Mortal:
    """A database whose process dies at one of the next commits, just before or just after it."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.left = 0
        self.committed = False

    @contextmanager
    def begin(self) -> Iterator[Session]:
        self.left -= 1
        dies = self.left == 0
        with self._inner.begin() as session:
            yield session
            if dies and not self.committed:
                raise Died
        if dies:
            raise Died

    def read(self) -> Any:
        return self._inner.read()


class Memory:
    """A store of bytes in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def draft(self, key: str) -> MemoryDraft:
        return MemoryDraft(self.kept, key)

    def open(self, key: str) -> BinaryIO:
        return BytesIO(self.kept[key])

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)

    def older_than(self, _seconds: float) -> Iterator[str]:
        return iter(self.kept)


class MemoryDraft:
    """Bytes on their way into it."""

    sha256 = "0" * 64

    def __init__(self, kept: dict[str, bytes], key: str) -> None:
        self.key = key
        self._kept = kept
        self._data = b""

    @property
    def size(self) -> int:
        return len(self._data)

    def write(self, data: bytes) -> None:
        self._data += data

    def finish(self) -> None:
        self._kept[self.key] = self._data

    def discard(self) -> None:
        self._kept.pop(self.key, None)


class Life(RuleBasedStateMachine):
    """Subclasses name the database; each example begins with an empty one."""

    make_database: Callable[[], Database]
    redis: Redis

    def __init__(self) -> None:
        super().__init__()
        self.database = type(self).make_database()
        self.mortal = Mortal(self.database)
        self.blobs = Memory()
        configured = ApiSettings(secret_key=Fernet.generate_key().decode(), batch_window=WINDOW)
        self.driver = BatchDriver(
            configured,
            cast(Database, self.mortal),
            self.blobs,
            type(self).redis,
            Pressure(1000),
        )
        self.kinds: dict[str, list[str]] = {}
        self.bad: set[str] = set()
        self.seen: dict[str, str] = {}
        self.ended: dict[str, Any] = {}
        self.running: list[Response] = []
        self.stalled: list[Batch] = []
        with self.database.begin() as session:
            self.owner = project(session)
            self.talk = conversations.create(session, self.owner, metadata={}, items=[]).id

    def teardown(self) -> None:
        try:
            for _ in range(400):
                if len(self.ended) == len(self.kinds):
                    break
                self.time_passes()
                self.work(dies=0, committed=False)
                self.take()
                if self.running:
                    self.end_job(0, "completed")
                self.look()
            assert len(self.ended) == len(self.kinds), "a batch never ends"
        finally:
            self.database.close()

    # What owners do.

    @precondition(lambda self: len(self.kinds) < MOST_BATCHES)
    @rule(kinds=st.lists(KINDS, min_size=1, max_size=9), bad=st.sampled_from([False, False, False, True]))
    def submit(self, kinds: list[str], *, bad: bool) -> None:
        number = len(self.kinds)
        lines = [self._line(number, place, kind) for place, kind in enumerate(kinds)]
        if bad:
            lines.append(self._line(number, 0, "plain"))  # its id is there already
        draft = self.blobs.draft(f"file_{number}")
        draft.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        draft.finish()
        with self.database.begin() as session:
            files.add(
                session,
                self.owner,
                file_id=draft.key,
                purpose="batch",
                filename="in",
                size=draft.size,
                sha256=draft.sha256,
                expires_in=None,
            )
            new = NewBatch("/v1/responses", draft.key, "24h", {}, None)
            batch = batches.create(session, self.owner, new)
        self.kinds[batch.id] = kinds
        self.seen[batch.id] = "validating"
        if bad:
            self.bad.add(batch.id)

    def _line(self, number: int, place: int, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"input": "Hello", "metadata": {"line": f"{number}/{place}"}}
        if kind in ("turn", "gone"):
            body["conversation"] = self.talk if kind == "turn" else "conv_gone"
        if kind == "lost":
            body["input"] = [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "msg_gone"}]
        return {"custom_id": f"{place}", "method": "POST", "url": "/v1/responses", "body": body}

    @precondition(lambda self: self.kinds)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        batch_id = self._pick(pick)
        before = self.seen[batch_id]
        with self.database.begin() as session:
            try:
                batches.cancel(session, self.owner, batch_id)
            except Conflict:
                assert before in ("finalizing", "completed", "failed", "expired")
            else:
                assert before in ("validating", "in_progress", "cancelling", "cancelled")

    # What time does.

    @rule()
    def time_passes(self) -> None:
        """Pauses and leases are over."""
        with self.database.begin() as session:
            session.execute(update(Batch).where(Batch.due_at.is_not(None)).values(due_at=1.0))

    @precondition(lambda self: self.kinds)
    @rule(pick=PICK)
    def window_over(self, pick: int) -> None:
        with self.database.begin() as session:
            is_open = (Batch.id == self._pick(pick), Batch.due_at.is_not(None))
            session.execute(update(Batch).where(*is_open).values(expires_at=clock.now()))

    # What API processes do.

    @rule(dies=st.integers(0, 6), committed=st.booleans())
    def work(self, *, dies: int, committed: bool) -> None:
        """Claim a batch and do a step, and die at one of its commits."""
        with self.database.begin() as session:
            batch = batch_work.claim(session)
        if batch is not None:
            self._step(batch, dies, committed)

    @rule()
    def stall(self) -> None:
        """Claim a batch, and be stopped there."""
        with self.database.begin() as session:
            batch = batch_work.claim(session)
        if batch is not None:
            self.stalled.append(batch)

    @precondition(lambda self: self.stalled)
    @rule(pick=PICK)
    def wake_up(self, pick: int) -> None:
        """Go on with a claim, whatever has become of the batch meanwhile."""
        self._step(self.stalled.pop(pick % len(self.stalled)), 0, committed=False)

    def _step(self, batch: Batch, dies: int, committed: bool) -> None:
        self.mortal.left, self.mortal.committed = dies, committed
        try:
            self.driver._step(batch)
        except Died:
            pass
        finally:
            self.mortal.left = 0

    # What workers do.

    @rule()
    def take(self) -> None:
        with self.database.begin() as session:
            job = claim(session)
        if job is not None:
            self.running.append(job)

    @precondition(lambda self: self.running)
    @rule(pick=PICK, end=st.sampled_from(["completed", "completed", "incomplete", "failed"]))
    def end_job(self, pick: int, end: str) -> None:
        job = self.running.pop(pick % len(self.running))
        with self.database.begin() as session:
            asked = session.get_one(Response, job.id).cancel_requested_at is not None
            if asked and pick % 2:
                terminal.close_cancelled(session, job.id, job.attempt)
            elif end == "failed":
                failure = terminal.Failure("server_error", "engine_error", "It broke.")
                terminal.close_failed(session, job.id, job.attempt, failure)
            else:
                answer(session, job, cut=end == "incomplete")

    # What must be true.

    @invariant()
    def look(self) -> None:
        with self.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(Batch))}
            jobs = session.scalars(select(Response)).all()
            lines = session.scalars(select(BatchLine)).all()
        once = Counter(job.request["metadata"]["line"] for job in jobs)
        assert not [line for line, times in once.items() if times > 1], "a line became two jobs"
        assert sum(job.status in ("queued", "in_progress") for job in jobs) <= WINDOW
        assert {line.response_id for line in lines} - {None} <= {job.id for job in jobs}
        for batch_id, row in rows.items():
            before = self.seen[batch_id]
            # A look may come after several steps, so each edge may have been taken on the way.
            assert row.status == before or row.status in _reachable(before), (before, row.status)
            self.seen[batch_id] = row.status
            told = {column.name: getattr(row, column.key) for column in Batch.__table__.columns}
            if batch_id in self.ended:
                assert told == self.ended[batch_id], "an end has changed"
            elif row.status in ENDS:
                self.ended[batch_id] = told
                self._ended(row, [job for job in jobs if self._is_of(job, batch_id)])
            else:
                assert row.due_at is not None
                assert row.completed + row.failed <= row.total

    def _ended(self, row: Batch, jobs: list[Response]) -> None:
        assert row.due_at is None
        assert not [job for job in jobs if job.status in ("queued", "in_progress")]
        assert (row.status == "failed") <= (row.id in self.bad)
        if row.in_progress_at is None:
            assert not jobs
            assert (row.output_file_id, row.error_file_id, row.total) == (None, None, 0)
            return
        kinds = self.kinds[row.id]
        good, bad = self._read(row.output_file_id), self._read(row.error_file_id)
        assert row.total == len(kinds) == row.completed + row.failed
        assert (len(good), len(bad)) == (row.completed, row.failed)
        assert sorted(int(each["custom_id"]) for each in good + bad) == list(range(len(kinds)))
        answered = {job.id for job in jobs if job.status in ("completed", "incomplete")}
        assert {each["response"]["body"]["id"] for each in good} == answered
        for each in bad:
            kind = kinds[int(each["custom_id"])]
            if row.status == "completed":
                status_code = each["response"]["status_code"]
                assert status_code == (404 if kind in ("gone", "lost") else 200)
            assert each["error"] or each["response"]["status_code"] == 404

    def _read(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        with self.database.read() as session:
            assert session.get_one(File, file_id).size == len(self.blobs.kept[file_id])
        return [json.loads(line) for line in self.blobs.kept[file_id].splitlines()]

    def _is_of(self, job: Response, batch_id: str) -> bool:
        return str(job.request["metadata"]["line"]).startswith(f"{list(self.kinds).index(batch_id)}/")

    def _pick(self, pick: int) -> str:
        return list(self.kinds)[pick % len(self.kinds)]


def _reachable(status: str) -> set[str]:
    found = set(NEXT.get(status, ()))
    for each in tuple(found):
        found |= _reachable(each)
    return found


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "READ_LINES", 2)
    monkeypatch.setattr(batch_driver, "MAKE_LINES", 2)
    monkeypatch.setattr(batch_driver, "WRITE_LINES", 2)


def run(make_database: Callable[[], Database], broker_url: str, *, examples: int, steps: int) -> None:
    with stream.connect(broker_url) as redis:
        members = {"make_database": staticmethod(make_database), "redis": redis}
        run_state_machine_as_test(
            type("LifeOnThisDatabase", (Life,), members),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                # Making a failure smaller takes longer than a test may.
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_any_life_on_sqlite(broker_url: str) -> None:
    def in_memory() -> Database:
        database = Database("sqlite:///:memory:")
        Base.metadata.create_all(database.engine)
        return database

    run(in_memory, broker_url, examples=40, steps=50)


def test_any_life_on_postgresql(postgres_url: str, broker_url: str) -> None:
    def emptied() -> Database:
        database = Database(postgres_url)
        with database.begin() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        return database

    run(emptied, broker_url, examples=6, steps=40)
