"""The life of jobs as a state machine: any order of what callers, workers, the sweeper and time can do to them.

A model in memory says what each step must lead to; after each step SQL is compared with it. Time passes by moving
every stored time into the past, so that both databases keep their own clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Double, func, select, update

from storage import conversations, homes, leases, responses, terminal
from storage.database import Database
from storage.errors import Conflict, LeaseLost, NotFound
from storage.leases import Chunk
from storage.models import Base, OutputChunk, Response, WebhookDelivery, WebhookEvent
from storage.webhooks import RESPONSE_EVENTS
from tests.storage.factory import USAGE, accept, claim, project, salvage_nothing

# Times end in 5 and steps in 0: the milliseconds that a test takes decide nothing.
LEASE, EXPIRY, RUN = 35.0, 105.0, 605.0
STEPS = (10.0, 40.0, 300.0)
MAX_ATTEMPTS = 3
CONVERSATIONS = 2
MOST_OPEN = 4
OPEN = ("queued", "in_progress")
ENDS = ("completed", "completed", "incomplete", "failed", "cancelled")  # most jobs are answered
FAILURE = terminal.Failure("server_error", "engine_error", "It broke.")
PICK = st.integers(0, 10**6)
TIMES = [
    column
    for column in Response.__table__.c
    if column.name.endswith("_at") and isinstance(column.type, Double)
]


@dataclass
class Job:
    """What must be true of one response. Times are the model's own seconds."""

    question: str
    conversation: int | None
    previous: str | None
    events: tuple[str, ...]
    expires: float | None
    status: str = "queued"
    attempt: int = 0
    failures: int = 0
    began: float | None = None
    lease_until: float = 0.0
    available: float = 0.0
    cancel_asked: bool = False
    deleted: bool = False
    answer: str | None = None
    tokens: list[int] = field(default_factory=list)


class Life(RuleBasedStateMachine):
    """Subclasses name the database; each example begins with an empty one."""

    make_database: Callable[[], Database]

    def __init__(self) -> None:
        super().__init__()
        self.database = type(self).make_database()
        self.now = 0.0
        self.jobs: dict[str, Job] = {}
        self.handed: list[tuple[str, int]] = []  # every attempt that was ever claimed
        self.said: list[list[str]] = [[] for _ in range(CONVERSATIONS)]
        with self.database.begin() as session:
            self.owner = project(session)
            self.talks = [
                conversations.create(session, self.owner, metadata={}, items=[]).id
                for _ in range(CONVERSATIONS)
            ]

    def teardown(self) -> None:
        self.database.close()

    # What callers do.

    @precondition(lambda self: self._room())
    @rule(
        conversation=st.none() | st.integers(0, CONVERSATIONS - 1),
        events=st.sets(st.sampled_from(RESPONSE_EVENTS)),
        expires=st.booleans(),
        tier=st.sampled_from(["priority", "default", "flex"]),
    )
    def accept(self, conversation: int | None, events: set[str], *, expires: bool, tier: str) -> None:
        self._accept(conversation, None, events, expires=expires, tier=tier)

    @precondition(lambda self: self.jobs and self._room())
    @rule(pick=PICK, events=st.sets(st.sampled_from(RESPONSE_EVENTS)))
    def continue_one(self, pick: int, events: set[str]) -> None:
        previous = list(self.jobs)[-1 - pick % len(self.jobs)]
        job = self.jobs[previous]
        if job.deleted:
            with pytest.raises(NotFound):
                self._accept(None, previous, events)
        elif job.status in ("failed", "cancelled"):
            with pytest.raises(Conflict):
                self._accept(None, previous, events)
        else:
            self._accept(None, previous, events)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        job_id = list(self.jobs)[-1 - pick % len(self.jobs)]
        job = self.jobs[job_id]
        with self.database.begin() as session:
            terminal.cancel(session, session.get_one(Response, job_id))
        if job.status == "queued":
            job.status, job.cancel_asked = "cancelled", True
        elif job.status == "in_progress":
            job.cancel_asked = True

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        job_id = list(self.jobs)[-1 - pick % len(self.jobs)]
        job = self.jobs[job_id]
        refusal = NotFound if job.deleted else Conflict if job.status in OPEN else None

        def try_it() -> None:
            with self.database.begin() as session:
                responses.delete_response(session, self.owner, job_id)

        if refusal is not None:
            with pytest.raises(refusal):
                try_it()
        else:
            try_it()
            job.deleted, job.tokens = True, []

    # What workers do. Any attempt that was ever handed out may come back, long after it was taken over.

    @precondition(lambda self: self._queued())
    @rule(count=st.integers(1, 3))
    def claim(self, count: int) -> None:
        for _ in range(count):
            self._claim(f"worker {len(self.handed)}")

    @precondition(lambda self: self._queued() and max(job.failures for job in self.jobs.values()) < 2)
    @rule(pick=PICK)
    def claim_at_home(self, pick: int) -> None:
        """A worker comes for what is reserved for it; no job here is on its last attempt, of which it runs only one."""
        with self.database.read() as session:
            found = session.scalars(select(Response.home).where(Response.home.is_not(None))).all()
        if found:
            self._claim(str(sorted(found)[pick % len(found)]))

    def _claim(self, worker: str) -> None:
        with self.database.read() as session:
            held_back = set(
                session.scalars(select(Response.id).where(Response.ready, ~homes.open_to(worker))).all()
            )
        with self.database.begin() as session:
            taken = claim(session, worker, LEASE)
        if taken is None:
            assert not [
                job_id
                for job_id, job in self.jobs.items()
                if self._may_run(job) and job.available <= self.now and job_id not in held_back
            ]
            return
        job = self.jobs[taken.id]
        assert self._may_run(job)
        assert taken.id not in held_back
        assert taken.attempt == job.attempt + 1
        job.status, job.attempt, job.lease_until = "in_progress", taken.attempt, self.now + LEASE
        if job.began is None:
            job.began = self.now
        self.handed.append((taken.id, taken.attempt))

    @precondition(lambda self: self.handed)
    @rule(pick=PICK, count=st.integers(0, 3))
    def renew(self, pick: int, count: int) -> None:
        job_id, attempt, job, chunk = self._attempt(pick, count)
        wish: list[bool] = []
        if self._write(
            job, attempt, lambda s: wish.append(leases.renew(s, job_id, attempt, LEASE, chunk)), chunk
        ):
            job.lease_until = self.now + LEASE
            assert wish == [job.cancel_asked]

    @precondition(lambda self: self.handed)
    @rule(pick=PICK, count=st.integers(0, 3))
    def give_back(self, pick: int, count: int) -> None:
        job_id, attempt, job, chunk = self._attempt(pick, count)
        if self._write(job, attempt, lambda s: leases.give_back(s, job_id, attempt, chunk), chunk):
            job.status, job.available = "queued", self.now

    @precondition(lambda self: self.handed)
    @rule(pick=PICK, count=st.integers(0, 3))
    def lose(self, pick: int, count: int) -> None:
        job_id, attempt, job, chunk = self._attempt(pick, count)
        if self._write(job, attempt, lambda s: leases.lose(s, job_id, attempt, MAX_ATTEMPTS, chunk), chunk):
            self._lost(job)

    @precondition(lambda self: self.handed)
    @rule(pick=PICK, end=st.sampled_from(ENDS))
    def close(self, pick: int, end: str) -> None:
        job_id, attempt, job, _ = self._attempt(pick, 0)
        text = f"answer {attempt} to {job.question}"
        cut = terminal.Answer(text, USAGE, "max_output_tokens" if end == "incomplete" else None)

        def write(session: Any) -> None:
            if end == "failed":
                terminal.close_failed(session, job_id, attempt, FAILURE)
            elif end == "cancelled":
                terminal.close_cancelled(session, job_id, attempt)
            else:
                terminal.close_answered(session, job_id, attempt, cut)

        if self._write(job, attempt, write, None):
            job.status = end
            if end in ("completed", "incomplete"):
                job.answer = text
                if job.conversation is not None:
                    self.said[job.conversation] += [job.question, text]

    # What the sweeper and time do.

    @rule()
    def sweep(self) -> None:
        with self.database.begin() as session:
            leases.sweep(session, MAX_ATTEMPTS, salvage_nothing)
        late = [
            job
            for job in self.jobs.values()
            if job.status == "queued" and job.expires is not None and job.expires < self.now
        ]
        lost = [
            job for job in self.jobs.values() if job.status == "in_progress" and job.lease_until < self.now
        ]
        for job in late:
            job.status = "failed"
        for job in lost:
            self._lost(job)

    @rule(seconds=st.sampled_from(STEPS))
    def time_passes(self, seconds: float) -> None:
        with self.database.begin() as session:
            session.execute(update(Response).values({column.name: column - seconds for column in TIMES}))
        self.now += seconds

    # What must hold after each step.

    @invariant()
    def sql_is_as_the_model_says(self) -> None:
        """This is all of it: nothing leaves an end, attempts grow, and a stale attempt changes nothing."""
        with self.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(Response))}
            assert rows.keys() == self.jobs.keys()
            tokens: dict[str, list[int]] = {job_id: [] for job_id in rows}
            for chunk in session.scalars(select(OutputChunk).order_by(OutputChunk.first_index)):
                assert chunk.first_index == len(tokens[chunk.response_id])
                tokens[chunk.response_id] += chunk.token_ids
            outputs = responses.outputs(session, list(rows))
            for job_id, job in self.jobs.items():
                row = rows[job_id]
                assert (row.status, row.attempt, row.failures) == (job.status, job.attempt, job.failures)
                assert (row.lease_expires_at is not None) == (job.status == "in_progress")
                assert (row.completed_at is not None) == (job.status not in OPEN)
                assert row.usage == (USAGE if job.answer is not None else None)
                assert (row.error is not None) == (job.status == "failed")
                assert tokens[job_id] == job.tokens
                shown = [] if job.answer is None or job.deleted else [job.answer]
                assert [item.body["content"][0]["text"] for item in outputs.get(job_id, [])] == shown

    @invariant()
    def a_conversation_is_the_serial_order_of_its_completed_turns(self) -> None:
        with self.database.read() as session:
            for talk, said in zip(self.talks, self.said, strict=True):
                items = conversations.list_items(
                    session, self.owner, talk, limit=999, after=None, newest_first=False
                )
                assert [item.body["content"][0]["text"] for item in items] == said
                turns = session.scalars(
                    select(Response.status).where(Response.conversation_id == talk).order_by(Response.turn)
                ).all()
                still_open = [status for status in turns if status in OPEN]
                assert "in_progress" not in still_open[1:]

    @invariant()
    def each_subscribed_end_has_one_event_and_no_other_has_any(self) -> None:
        expected = Counter(
            (job_id, f"response.{job.status}")
            for job_id, job in self.jobs.items()
            if f"response.{job.status}" in job.events
        )
        with self.database.read() as session:
            events = session.execute(select(WebhookEvent.subject, WebhookEvent.type)).all()
            deliveries = session.scalar(select(func.count(WebhookDelivery.event_id.distinct())))
            rows = session.scalar(select(func.count()).select_from(WebhookDelivery))
        assert Counter((subject, kind) for subject, kind in events) == expected
        assert deliveries == rows == len(events)

    # The model's own steps.

    def _accept(
        self,
        conversation: int | None,
        previous: str | None,
        events: set[str],
        *,
        expires: bool = False,
        tier: str = "default",
    ) -> None:
        question = f"question {len(self.jobs)}"
        webhook = {"url": "https://hooks.example", "secret": "sealed", "events": sorted(events)}
        with self.database.begin() as session:
            row = accept(
                session,
                self.owner,
                question,
                conversation_id=None if conversation is None else self.talks[conversation],
                previous_response_id=previous,
                tier=tier,
                expires_in=EXPIRY if expires else None,
                max_run_seconds=RUN,
                webhook=webhook if events else None,
            )
        self.jobs[row.id] = Job(
            question,
            conversation,
            previous,
            tuple(events),
            self.now + EXPIRY if expires else None,
            available=self.now,
        )

    def _queued(self) -> bool:
        return any(job.status == "queued" for job in self.jobs.values())

    def _room(self) -> bool:
        """Few jobs at a time, so that an example's steps are about what becomes of them."""
        return sum(job.status in OPEN for job in self.jobs.values()) < MOST_OPEN

    def _may_run(self, job: Job) -> bool:
        if job.status != "queued":
            return False
        if job.previous is not None and self.jobs[job.previous].status in OPEN:
            return False
        # Jobs stand in the order of their acceptance: the turns before this one are those of earlier jobs.
        for other in self.jobs.values():
            if other is job:
                return True
            if (
                job.conversation is not None
                and other.conversation == job.conversation
                and other.status in OPEN
            ):
                return False
        return True

    def _attempt(self, pick: int, count: int) -> tuple[str, int, Job, Chunk | None]:
        job_id, attempt = self.handed[-1 - pick % len(self.handed)]
        job = self.jobs[job_id]
        first = len(job.tokens)
        ids = list(range(first, first + count))
        return job_id, attempt, job, Chunk(first, ids, ["x"] * count) if count else None

    def _write(self, job: Job, attempt: int, write: Callable[[Any], object], chunk: Chunk | None) -> bool:
        """Let a worker write for an attempt: True if it was the current one, else it must have been refused."""

        def in_a_transaction() -> None:
            with self.database.begin() as session:
                write(session)

        if job.status != "in_progress" or job.attempt != attempt:
            with pytest.raises(LeaseLost):
                in_a_transaction()
            return False
        in_a_transaction()
        if chunk is not None:
            job.tokens += chunk.token_ids
        return True

    def _lost(self, job: Job) -> None:
        assert job.began is not None
        if job.cancel_asked:
            job.status = "cancelled"
        elif job.began + RUN <= self.now or job.failures + 1 >= MAX_ATTEMPTS:
            job.status = "failed"
        else:
            # A first loss is tried again at once, the next one after a pause shorter than any step.
            job.available = self.now + (min(STEPS) if job.failures else 0.0)
            job.status, job.failures = "queued", job.failures + 1


def run(make_database: Callable[[], Database], *, examples: int, steps: int) -> None:
    machine = type("LifeOnThisDatabase", (Life,), {"make_database": staticmethod(make_database)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def _reservations_last_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "FRESH_SECONDS", 15.0)


def test_any_life_on_sqlite() -> None:
    def in_memory() -> Database:
        database = Database("sqlite:///:memory:")
        Base.metadata.create_all(database.engine)
        return database

    run(in_memory, examples=100, steps=50)


def test_any_life_on_postgresql(postgres_url: str) -> None:
    def emptied() -> Database:
        database = Database(postgres_url)
        with database.begin() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        return database

    run(emptied, examples=10, steps=40)
