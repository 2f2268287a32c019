"""Threads of one worker that want a job: none is run twice, and no more at once than there are slots."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from sqlalchemy import select

from storage import leases
from storage.models import Response
from tests.storage.factory import accept, project
from worker import claims, generation
from worker.runtime import Generator, Runtime


class Ran:
    """In place of running jobs: which, and how many at once at most; each waits until `go` is set."""

    def __init__(self) -> None:
        self.attempts: list[generation.Attempt] = []
        self.at_once = self.most = 0
        self.go = threading.Event()
        self._counting = threading.Lock()

    @property
    def ids(self) -> set[str]:
        return {attempt.response.id for attempt in self.attempts}

    def __call__(self, attempt: generation.Attempt) -> None:
        with self._counting:
            self.attempts.append(attempt)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        assert self.go.wait(20)
        with self._counting:
            self.at_once -= 1


@pytest.fixture
def ran(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Ran:
    runtime.generator = cast(Generator, object())
    run = Ran()
    monkeypatch.setattr(generation, "run", run)
    return run


def queue(runtime: Runtime, count: int, **fields: object) -> set[str]:
    with runtime.database.begin() as session:
        owner = project(session)
        return {accept(session, owner, str(number), **fields).id for number in range(count)}


def looks(runtime: Runtime, ran: Ran, threads: int, *, running: int) -> list[bool | Exception]:
    """What so many threads that look at once come to; when so many jobs run, they may go on."""

    def look() -> bool | Exception:
        try:
            return claims.run_next(runtime)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        found = [pool.submit(look) for _ in range(threads)]
        deadline = time.monotonic() + 20
        while ran.at_once < running or sum(one.done() for one in found) < threads - running:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        ran.go.set()
        return [one.result() for one in found]


def test_each_job_is_run_by_one_thread(runtime: Runtime, ran: Ran) -> None:
    jobs = queue(runtime, 5, max_run_seconds=50.0)
    assert sorted(looks(runtime, ran, 7, running=5)) == [False] * 2 + [True] * 5
    assert ran.ids == jobs
    assert len(ran.attempts) == 5
    for attempt in ran.attempts:
        assert attempt.response.attempt == 1
        assert 20 < attempt.deadline - time.monotonic() <= 50
    assert runtime.busy == 0


def test_no_more_run_than_there_are_slots(runtime: Runtime, ran: Ran) -> None:
    queue(runtime, 8)
    runtime.settings = runtime.settings.model_copy(update={"concurrency": 5})
    runtime.busy = 3
    assert sorted(looks(runtime, ran, 6, running=2)) == [False] * 4 + [True] * 2
    assert ran.most == 2
    with runtime.database.read() as session:
        assert len(session.scalars(select(Response).where(Response.status == "in_progress")).all()) == 2
    assert runtime.busy == 3


def test_of_jobs_that_lost_every_worker_one_runs(runtime: Runtime, ran: Ran) -> None:
    """It may be what kills workers: beside another of its kind, that one would lose its last attempt for nothing."""
    jobs = queue(runtime, 2)
    with runtime.database.begin() as session:
        for job in jobs:
            session.get_one(Response, job).failures = runtime.settings.max_attempts - 1
    assert sorted(looks(runtime, ran, 3, running=1)) == [False, False, True]


def test_a_claim_that_fails_takes_no_slot(
    runtime: Runtime, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, real, calls = queue(runtime, 3), leases.claim, 0

    def claim(*arguments: object) -> Response | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the database is away")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "claim", claim)
    found = looks(runtime, ran, 4, running=3)
    assert sum(isinstance(one, RuntimeError) for one in found) == 1
    assert ran.ids == jobs
    assert runtime.busy == 0
