"""A worker that hears of a job for another calls that one, waits a moment, and takes over where nobody listens."""

from __future__ import annotations

import threading
import time

import pytest

from storage import conversations, homes
from storage.models import Response
from tests.storage.factory import accept, answer, claim, project
from worker import claims
from worker.cancels import Cancels
from worker.runtime import Runtime
from worker.watchdog import Watchdog


@pytest.fixture
def job_id(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> str:
    """A turn that is reserved for the worker `other`."""
    monkeypatch.setattr(homes, "FRESH_SECONDS", 0.3)
    with runtime.database.begin() as session:
        owner = project(session)
        talk = conversations.create(session, owner, metadata={}, items=[]).id
        accept(session, owner, conversation_id=talk)
        first = claim(session, "other")
        assert first is not None
        answer(session, first)
        return accept(session, owner, conversation_id=talk).id


def home_of(runtime: Runtime, job_id: str) -> str | None:
    with runtime.database.read() as session:
        return session.get_one(Response, job_id).home


def test_a_home_that_listens_is_called_and_given_its_moment(runtime: Runtime, job_id: str) -> None:
    called = threading.Event()
    listener = Cancels(runtime.redis, {homes.channel("other"): called.set})
    listener.start()
    try:
        while not homes.call(runtime.redis, "other"):
            time.sleep(0.01)  # the subscription takes a moment to stand
        called.clear()
        with runtime.database.begin() as session:
            job = session.get_one(Response, job_id)
            job.shared_at = (job.shared_at or 0.0) + 1.0
        began = time.monotonic()
        assert claims._waited_for_home(runtime)
        assert called.wait(5)
        assert time.monotonic() - began > 0.2
        assert home_of(runtime, job_id) == "other"
        with runtime.database.begin() as session:
            assert claim(session, runtime.name) is not None, "its moment is over"
    finally:
        listener.stop()


def test_what_is_for_a_worker_that_is_gone_is_taken_at_once(runtime: Runtime, job_id: str) -> None:
    assert claims._waited_for_home(runtime)
    assert home_of(runtime, job_id) is None
    assert not claims._waited_for_home(runtime)
    with runtime.database.begin() as session:
        assert claim(session, runtime.name) is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_call_starts_work_where_there_is_room(runtime: Runtime) -> None:
    worked = threading.Event()
    watchdog = Watchdog(runtime, lambda _: worked.set())
    runtime.busy = runtime.settings.concurrency
    watchdog.call()
    runtime.busy -= 1
    watchdog.call()
    assert worked.wait(5)
    worked.clear()
    runtime.drain_now()
    watchdog.call()
    watchdog.stop()
    assert not worked.is_set()
