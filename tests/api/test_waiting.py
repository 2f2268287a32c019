"""Calls that wait for the end of their response, and what ends the waiting."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import openai
import pytest
from openai import OpenAI

from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served


def submitted(database: Database) -> list[Response]:
    with database.read() as session:
        return list(session.query(Response).order_by(Response.created_at))


def test_a_foreground_call_returns_the_answer(client: OpenAI, worker: FakeWorker) -> None:
    with worker.at_work("Here."):
        answered = client.responses.create(model="default", input="a")
    assert (answered.status, answered.output_text, answered.background) == ("completed", "Here.", False)


def test_many_wait_at_once_and_each_gets_its_own(
    client: OpenAI, worker: FakeWorker, database: Database
) -> None:
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(client.responses.create, model="default", input=str(n)) for n in range(20)]
        until(lambda: len(submitted(database)) == 20)
        for _ in range(20):
            claimed = worker.claim()
            assert claimed is not None
            worker.finish(claimed, f"for {claimed.id}")
        for call in calls:
            answered = call.result()
            assert answered.output_text == f"for {answered.id}"


def test_a_failure_is_an_answer_too(client: OpenAI, worker: FakeWorker, database: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.responses.create, model="default", input="a")
        until(lambda: submitted(database))
        worker.fail()
        assert call.result().status == "failed"


def test_the_end_is_found_in_sql_when_its_stream_is_lost(
    client: OpenAI,
    worker: FakeWorker,
    served: Served,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.responses.create, model="default", input="a")
        until(lambda: submitted(database))
        claimed = worker.claim()
        assert claimed is not None
        worker.finish(claimed, tell=False)
        assert call.result().id == claimed.id
    assert not served.services.live._watches


def test_a_caller_who_goes_away_cancels_his_foreground_call(
    http: httpx.Client, database: Database, worker: FakeWorker
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/responses", json={"input": "a"}, timeout=0.5)
    until(lambda: submitted(database)[0].status == "cancelled")
    assert worker.claim() is None


def test_with_an_idempotency_key_he_can_come_back(
    http: httpx.Client, database: Database, worker: FakeWorker
) -> None:
    headers = {"idempotency-key": "k"}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/responses", json={"input": "a"}, headers=headers, timeout=0.5)
    worker.answer("Still here.")
    again = http.post("/v1/responses", json={"input": "a"}, headers=headers)
    assert again.json()["output"][0]["content"][0]["text"] == "Still here."
    assert len(submitted(database)) == 1


def test_prefer_wait_returns_the_answer_or_the_queued_object(
    client: OpenAI, worker: FakeWorker, http: httpx.Client
) -> None:
    with worker.at_work("Quick."):
        raw = client.responses.with_raw_response.create(
            model="default", input="a", background=True, extra_headers={"Prefer": "wait=20"}
        )
        assert raw.headers["preference-applied"] == "wait=20"
        assert raw.parse().output_text == "Quick."
    started = time.monotonic()
    queued = http.post("/v1/responses", json={"input": "b", "background": True}, headers={"prefer": "wait=1"})
    assert queued.json()["status"] == "queued"
    assert 1 <= time.monotonic() - started < 10
    too_long = http.post(
        "/v1/responses", json={"input": "c", "background": True}, headers={"prefer": "wait=9999"}
    )
    assert too_long.status_code == 400


def test_cancel_ends_the_waiting_of_others(client: OpenAI, database: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(
            client.responses.create,
            model="default",
            input="a",
            background=True,
            extra_headers={"Prefer": "wait=20"},
        )
        until(lambda: submitted(database))
        client.responses.cancel(submitted(database)[0].id)
        assert call.result(timeout=5).status == "cancelled"


def test_at_sigterm_waiting_calls_end_and_say_try_again(
    client: OpenAI, served: Served, database: Database
) -> None:
    foreground: Future[object]
    with ThreadPoolExecutor(2) as pool:
        foreground = pool.submit(client.responses.create, model="default", input="a")
        background = pool.submit(
            client.responses.create,
            model="default",
            input="b",
            background=True,
            extra_headers={"Prefer": "wait=20"},
        )
        until(lambda: len(served.services.live._watches) == 2)
        started = time.monotonic()
        threading.Thread(target=served.server.handle_exit, args=(signal.SIGTERM, None)).start()
        with pytest.raises(openai.InternalServerError) as refused:
            foreground.result()
        assert background.result().status == "queued"
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
    assert time.monotonic() - started < 5
    assert sorted(row.status for row in submitted(database)) == ["cancelled", "queued"]


def test_only_calls_that_somebody_may_follow_are_written_live(
    client: OpenAI, worker: FakeWorker, database: Database
) -> None:
    """The worker keeps a live tail of those, and of no others."""
    with worker.at_work("a"):
        client.responses.create(model="default", input="waits for all of it")
        client.responses.create(model="default", input="comes back", background=True)
        for _ in client.responses.create(model="default", input="streams", stream=True):
            pass
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "waits"}])
        for _ in client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": "streams"}], stream=True
        ):
            pass
    followed = [job.request["followed"] for job in submitted(database)]
    assert followed == [False, True, True, False, True]


def test_an_end_that_was_told_before_anybody_waited_is_not_waited_for(
    client: OpenAI, worker: FakeWorker, database: Database, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.POLL_SECONDS", 600)  # nothing but the hint makes it ask
    wait = served.services.live.result
    ended = threading.Event()

    async def late(response_id: str) -> object:
        await asyncio.to_thread(ended.wait)
        while not served.services.live._ends.lately(response_id):
            await asyncio.sleep(0.001)
        return await wait(response_id)

    monkeypatch.setattr(served.services.live, "result", late)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.responses.create, model="default", input="a")
        until(lambda: submitted(database))
        worker.answer("Quick.")
        ended.set()
        assert call.result(timeout=10).output_text == "Quick."
