"""Threads of one worker that want a job: one claims for all that wait, none twice, and no more than there are slots."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import pytest
from sqlalchemy import select

from storage import leases
from storage.models import Response
from tests.storage.factory import accept, project
from worker import claims, generation
from worker.runtime import Claimed, Generator, Runtime


@pytest.fixture
def ran(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the jobs that were run, in place of running them."""
    runtime.generator = cast(Generator, object())
    done: list[str] = []
    monkeypatch.setattr(generation, "run", lambda attempt: done.append(attempt.response.id))
    return done


def queue(runtime: Runtime, count: int, **fields: object) -> set[str]:
    with runtime.database.begin() as session:
        owner = project(session)
        return {accept(session, owner, str(number), **fields).id for number in range(count)}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def at_once(runtime: Runtime, threads: int) -> list[Future[bool]]:
    """So many look for a job while nobody may claim; then all may."""
    with ThreadPoolExecutor(threads) as pool:
        with runtime.claiming:
            found = [pool.submit(claims.run_next, runtime) for _ in range(threads)]
            until(lambda: runtime.looking == threads)
        return found


def claimed(runtime: Runtime) -> list[Response]:
    with runtime.database.read() as session:
        return list(session.scalars(select(Response).where(Response.status == "in_progress")))


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many jobs each claim asked for."""
    asked, real = list[int](), claims._claim

    def claim(runtime: Runtime, most: int) -> list[Claimed]:
        asked.append(most)
        return real(runtime, most)

    monkeypatch.setattr(claims, "_claim", claim)
    return asked


def test_one_claims_for_all_that_wait(runtime: Runtime, ran: list[str], sizes: list[int]) -> None:
    jobs = queue(runtime, 5)
    found = at_once(runtime, 7)
    assert sorted(future.result() for future in found) == [False] * 2 + [True] * 5
    assert sorted(ran) == sorted(jobs)
    assert sizes[0] == 7
    assert len(sizes) <= 3  # the two for whom nothing was left ask again
    assert (runtime.looking, runtime.busy, len(runtime.claimed)) == (0, 0, 0)


def test_no_more_are_claimed_than_there_are_slots(runtime: Runtime, ran: list[str], sizes: list[int]) -> None:
    queue(runtime, 8)
    runtime.settings = runtime.settings.model_copy(update={"concurrency": 5})
    runtime.busy = 3
    found = at_once(runtime, 6)
    # A slot is free again when its job has run, so that all may be served in the end.
    assert max(sizes) == 2
    assert len(ran) == sum(future.result() for future in found) >= 2
    assert len(claimed(runtime)) == len(ran)
    assert (runtime.looking, runtime.busy, len(runtime.claimed)) == (0, 3, 0)


def test_of_jobs_that_lost_every_worker_one_is_claimed(runtime: Runtime, ran: list[str]) -> None:
    """It may be what kills workers: beside another of its kind, that one would lose its last attempt for nothing."""
    jobs = queue(runtime, 2)
    with runtime.database.begin() as session:
        for job in jobs:
            session.get_one(Response, job).failures = runtime.settings.max_attempts - 1
    found = at_once(runtime, 3)
    assert sum(future.result() for future in found) == 1
    assert len(ran) == 1


def test_a_claim_that_fails_fails_for_its_thread_alone(
    runtime: Runtime, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, real, calls = queue(runtime, 3), leases.claim, 0

    def claim(*arguments: object) -> Response | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the database is away")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "claim", claim)
    found = at_once(runtime, 4)
    assert [type(future.exception()) for future in found].count(RuntimeError) == 1
    assert sorted(ran) == sorted(jobs), "what it had claimed was taken back with it"
    assert (runtime.looking, runtime.busy, len(runtime.claimed)) == (0, 0, 0)


def test_what_is_claimed_has_its_attempt_and_its_time(
    runtime: Runtime, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, attempts = queue(runtime, 2, max_run_seconds=50.0), list[generation.Attempt]()
    monkeypatch.setattr(generation, "run", attempts.append)
    at_once(runtime, 2)
    assert {attempt.response.id for attempt in attempts} == jobs
    for attempt in attempts:
        assert attempt.response.attempt == 1
        assert 40 < attempt.deadline - time.monotonic() <= 50
    assert all(job.lease_expires_at for job in claimed(runtime))
    assert len(claimed(runtime)) == 2
