"""The queue's order: fair between projects, weighted by tier, never stuck behind a turn that has ended."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from storage import clock, conversations, leases, outbox, queue, stream, terminal
from storage.database import Database
from storage.leases import Chunk
from storage.models import Item, Outbox, OutputChunk, Response, WebhookEvent
from storage.salvage import Salvage
from tests.storage.factory import accept, answer, claim, project, sweep


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    with stream.connect(broker_url) as client:
        yield client


def served(session: Session, count: int, owner_of: Callable[[Response], str]) -> list[str]:
    """Claim and answer `count` jobs one after the other; tell whose each was."""
    order = []
    for _ in range(count):
        job = claim(session)
        assert job is not None
        order.append(owner_of(job))
        answer(session, job)
    return order


def test_a_newcomer_does_not_wait_behind_anothers_backlog(database: Database) -> None:
    with database.begin() as session:
        big, small = project(session, "big"), project(session, "small")
        for _ in range(50):
            accept(session, big)
        assert served(session, 10, lambda job: job.project_id) == [big] * 10
        accept(session, small)
        assert small in served(session, 3, lambda job: job.project_id)


def test_a_long_served_project_is_not_pushed_behind_every_later_one(database: Database) -> None:
    """With no worker there, the head of the queue tells the time: a newcomer joins there and not at zero."""
    with database.begin() as session:
        old = project(session, "old")
        for _ in range(40):
            accept(session, old)
        served(session, 20, lambda job: job.project_id)
        new = project(session, "new")
        for _ in range(20):
            accept(session, new)
        assert 9 <= Counter(served(session, 20, lambda job: job.project_id))[old] <= 11


def test_tiers_share_by_weight_and_none_starves(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        for tier in queue.TIERS:
            for _ in range(64):
                accept(session, owner, tier=tier)
        shares = Counter(served(session, 42, lambda job: job.tier))
    for tier, share in {"priority": 32, "default": 8, "flex": 2}.items():
        assert abs(shares[tier] - share) <= 1  # the three lines began a moment apart


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(steps=st.lists(st.sampled_from(["a", "b", "c", "claim"]), min_size=20, max_size=80))
def test_between_backlogged_projects_nobody_gets_ahead(database: Database, steps: list[str]) -> None:
    """While two projects both wait, the jobs claimed of each differ by three at most, however they came."""
    with database.begin() as session:
        for table in (Outbox, Item, WebhookEvent, OutputChunk, Response):
            session.execute(delete(table))
        owners = {project(session, name): name for name in "abc"}
        ids = {name: owner for owner, name in owners.items()}
        waiting: Counter[str] = Counter()
        since: dict[frozenset[str], Counter[str]] = {}
        for step in steps:
            if step != "claim":
                accept(session, ids[step])
                waiting[step] += 1
                continue
            job = claim(session)
            if job is None:
                assert not +waiting
                continue
            name = owners[job.project_id]
            for pair in (frozenset(p) for p in ("ab", "bc", "ac")):
                if all(waiting[one] for one in pair):
                    counts = since.setdefault(pair, Counter())
                    counts[name] += 1
                    one, other = pair
                    assert abs(counts[one] - counts[other]) <= 3
                else:
                    since.pop(pair, None)
            waiting[name] -= 1
            answer(session, job)
        session.rollback()


def test_position_counts_what_is_before(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        jobs = [accept(session, owner) for _ in range(5)]
        assert [queue.position(session, job)[0] for job in jobs] == [0, 1, 2, 3, 4]
        claim(session)
        assert queue.position(session, jobs[4])[0] == 3
        assert queue.load(session).queued == 4


def test_a_cancelled_turn_in_the_middle_lets_nobody_overtake(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[])
        first, second, third = (accept(session, owner, str(i), conversation_id=talk.id) for i in range(3))
        running = claim(session)
        terminal.cancel(session, second)
        assert claim(session) is None
        assert running is not None
        answer(session, running)
        follows = claim(session)
        assert follows is not None
        assert (running.id, follows.id) == (first.id, third.id)


def test_a_turn_accepted_while_the_one_before_ends_is_never_forgotten(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[])
        accept(session, owner, conversation_id=talk.id)
    for _ in range(25):
        with database.begin() as session:
            running = claim(session)
        assert running is not None, "the last turn that was accepted is not ready"
        both = threading.Barrier(2)

        def end(job: Response = running, both: threading.Barrier = both) -> None:
            both.wait()
            with database.begin() as session:
                terminal.close_failed(session, job.id, job.attempt, terminal.TOO_LONG)

        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(end)
            both.wait()
            with database.begin() as session:
                accept(session, owner, conversation_id=talk.id)
            ending.result()


def test_a_job_that_nobody_claimed_in_time_fails_and_releases_the_next(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[])
        late = accept(session, owner, conversation_id=talk.id, expires_in=60.0)
        after = accept(session, owner, conversation_id=talk.id)
        assert sweep(session).ended == ()
        session.execute(update(Response).where(Response.id == late.id).values(expires_at=clock.now() - 1))
        assert sweep(session).ended == ((late.id, 0),)
        session.refresh(late)
        assert late.status == "failed"
        assert late.error is not None
        assert (late.error["code"], late.error["type"]) == ("server_error", "expired_in_queue")
        job = claim(session)
        assert job is not None
        assert job.id == after.id


def test_a_lost_job_whose_time_is_over_is_not_tried_again(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        accept(session, owner, max_run_seconds=5.0)
        job = claim(session)
        assert job is not None
        assert 4 < leases.seconds_left(session, job) <= 5
        session.execute(update(Response).values(started_at=clock.now() - 6, lease_expires_at=clock.now() - 1))
        assert sweep(session).ended == ((job.id, 1),)
        error = session.scalar(select(Response.error))
    assert error["type"] == "deadline_exceeded"


def test_what_a_lost_attempt_had_told_is_stored(database: Database, redis: Redis) -> None:
    with database.begin() as session:
        owner = project(session)
        accept(session, owner)
        job = claim(session)
        assert job is not None
        leases.renew(session, job.id, 1, 30, Chunk(0, [5, 6], ["a", "b"]))
        stream.fence(redis, job.id, 1)
        stream.append(redis, [(job.id, 1, Chunk(0, [5, 6, 7], ["a", "b", "c"]))])
        session.execute(update(Response).values(lease_expires_at=clock.now() - 1))
    with database.begin() as session:
        leases.sweep(session, 3, Salvage(redis))
        assert leases.output(session, job.id).token_ids == [5, 6, 7]
    assert stream.append(redis, [(job.id, 1, Chunk(3, [8], ["d"]))]) == [job.id], (
        "the lost attempt is sealed out"
    )
    stream.fence(redis, job.id, 2)
    assert stream.append(redis, [(job.id, 2, Chunk(3, [9], ["e"]))]) == []


def test_without_redis_a_sweep_takes_lost_jobs_back_all_the_same(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        for _ in range(3):
            accept(session, owner)
            claim(session)
        session.execute(update(Response).values(lease_expires_at=clock.now() - 1))
    with stream.connect("redis://127.0.0.1:1/0") as nobody, database.begin() as session:
        assert leases.sweep(session, 3, Salvage(nobody)).requeued == 3


def test_only_what_is_ready_is_announced(database: Database) -> None:
    with database.begin() as session:
        owner = project(session)
        first = accept(session, owner)
        accept(session, owner, previous_response_id=first.id)
        assert [row.subject for row in outbox.pending(session, 9)] == [first.id]
        session.execute(update(Response).values(knocked_at=0.0))
        assert sweep(session).announced == 1
