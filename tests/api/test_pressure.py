"""A full queue refuses with the time to come back, stores nothing, and counts rarely."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai import OpenAI

from api import pressure
from api.pressure import Pressure
from api.settings import ApiSettings
from storage import queue
from storage.database import Database
from tests.api.fake_worker import FakeWorker, until
from tests.storage.factory import accept, project

BODY = {"input": "a", "background": True}


@pytest.fixture
def settings(settings: ApiSettings) -> ApiSettings:
    return settings.model_copy(update={"max_queued": 3})


def test_a_full_queue_takes_nothing_until_there_is_room(
    client: OpenAI, http: httpx.Client, worker: FakeWorker, rows: Callable[[], dict[str, int]]
) -> None:
    for _ in range(3):
        assert http.post("/v1/responses", json=BODY).status_code == 200
    before = rows()
    refused = http.post("/v1/responses", json=BODY)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "queue_full", None)
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    with pytest.raises(openai.RateLimitError, match="The queue is full"):
        client.responses.create(model="default", input="a")
    assert rows() == before

    worker.answer()
    until(lambda: http.post("/v1/responses", json=BODY).status_code == 200)
    assert http.post("/v1/responses", json=BODY).status_code == 429


def test_a_repeated_request_finds_its_object_all_the_same(http: httpx.Client) -> None:
    headers = {"idempotency-key": "k"}
    first = http.post("/v1/responses", json=BODY, headers=headers).json()
    for _ in range(2):
        http.post("/v1/responses", json=BODY)
    assert http.post("/v1/responses", json=BODY).status_code == 429
    again = http.post("/v1/responses", json=BODY, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])


def test_a_flood_is_held_at_the_limit(http: httpx.Client, rows: Callable[[], dict[str, int]]) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/responses", json=BODY).status_code, range(24)))
    assert sorted(set(answers)) == [200, 429]
    # Of those in the same moment as the first count a few may not be seen by it.
    assert 3 <= rows()["responses"] == answers.count(200) <= 3 + 12


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_is_counted_once_a_second_and_not_for_each(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def count(*_: object) -> queue.Load:
        counted.append(1)
        return queue.Load(0, 0.0)

    monkeypatch.setattr(queue, "load", count)
    gate = Pressure(1000)
    with database.read() as session:
        for _ in range(50):
            gate.admit(session)
        assert len(counted) == 1
        monkeypatch.setattr(pressure, "REMEMBER_SECONDS", 0.0)
        gate.admit(session)
        assert len(counted) == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("waiting", "pace", "expected"),
    [(10, 2.0, 1), (19, 2.0, 5), (10, 0.01, 100), (10, 0.001, 120), (10, 0.0, 120), (10, 50.0, 1)],
)
def test_the_time_to_come_back_follows_the_pace(
    database: Database, monkeypatch: pytest.MonkeyPatch, waiting: int, pace: float, expected: int
) -> None:
    monkeypatch.setattr(queue, "load", lambda _: queue.Load(waiting, pace))
    with database.read() as session, pytest.raises(Exception, match="full") as refused:
        Pressure(10).admit(session)
    assert refused.value.headers == {"retry-after": str(expected)}


def test_a_place_comes_with_a_time_when_the_queue_moves(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.begin() as session:
        owner = project(session)
        jobs = [accept(session, owner) for _ in range(5)]
        waits = accept(session, owner, previous_response_id=jobs[0].id)
        assert Pressure(10).place(session, jobs[4]) == {"position": 4, "expected_start": None}
        monkeypatch.setattr(queue, "load", lambda _: queue.Load(5, 0.5))
        moving = Pressure(10)
        start = moving.place(session, jobs[4])["expected_start"]
        assert 7 <= start - jobs[4].created_at <= 10
        assert moving.place(session, waits) == {"position": 5, "expected_start": None}
        jobs[0].available_at += 60
        assert moving.place(session, jobs[0])["expected_start"] >= jobs[0].created_at + 60
