"""What a request says about the queue: its tier, its window, how long it may wait and run; and its place in it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from api.settings import ApiSettings
from storage import queue
from storage.database import Database
from storage.models import Response
from tests.api.fake_worker import FakeWorker


def row(database: Database, response_id: str) -> Response:
    with database.read() as session:
        return session.get_one(Response, response_id)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({}, "default"),
        ({"service_tier": "auto"}, "default"),
        ({"service_tier": "default"}, "default"),
        ({"service_tier": "flex"}, "flex"),
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "fast"}, "priority"),
        ({"background_options": {"completion_window": "soonest"}}, "default"),
        ({"background_options": {"completion_window": "2h"}}, "flex"),
        ({"background_options": {"completion_window": "8h"}, "service_tier": "auto"}, "flex"),
    ],
)
def test_the_tier_that_is_used_is_shown(
    client: OpenAI, database: Database, asked: dict[str, Any], used: str
) -> None:
    created = client.responses.create(model="default", input="a", background=True, **asked)
    assert created.service_tier == used == row(database, created.id).tier
    assert client.responses.retrieve(created.id).service_tier == used


def test_a_window_is_also_an_expiry_unless_one_is_given(client: OpenAI, database: Database) -> None:
    def expires_after(**asked: Any) -> float | None:
        job = row(database, client.responses.create(model="default", input="a", background=True, **asked).id)
        return None if job.expires_at is None else job.expires_at - job.created_at

    window: dict[str, Any] = {"background_options": {"completion_window": "2h"}}
    assert expires_after() is None
    assert expires_after(**window) == pytest.approx(7200)
    assert expires_after(extra_body={"expires_in": 60.5}) == pytest.approx(60.5)
    assert expires_after(**window, extra_body={"expires_in": 60}) == pytest.approx(60)


def test_a_job_may_ask_for_less_time_than_the_service_gives(
    http: httpx.Client, database: Database, settings: ApiSettings
) -> None:
    for asked, given in (
        (None, settings.job_timeout),
        (2.5, 2.5),
        (settings.job_timeout, settings.job_timeout),
    ):
        body = {"input": "a", "background": True, "max_run_seconds": asked}
        created = http.post("/v1/responses", json=body).json()
        assert row(database, created["id"]).max_run_seconds == given


@pytest.mark.parametrize("asked", ["auto", "disabled"])
def test_truncation_is_shown_and_handed_on(client: OpenAI, worker: FakeWorker, asked: Any) -> None:
    created = client.responses.create(model="default", input="a", background=True, truncation=asked)
    assert created.truncation == asked
    job = worker.claim()
    assert job is not None
    assert job.request["truncation"] == asked


def test_a_queued_response_knows_its_place_until_it_is_taken(
    http: httpx.Client, worker: FakeWorker, database: Database
) -> None:
    body = {"input": "a", "background": True}
    created = [http.post("/v1/responses", json=body).json() for _ in range(3)]
    assert [each["queue"] for each in created] == [
        {"position": place, "expected_start": None} for place in range(3)
    ]
    urgent = http.post("/v1/responses", json={**body, "service_tier": "priority"}).json()
    assert urgent["queue"]["position"] == 1, "before its tier's lessers, not before the head"

    def shown(number: int) -> Any:
        return http.get(f"/v1/responses/{created[number]['id']}").json()["queue"]

    assert shown(2)["position"] == 3
    worker.answer()
    first = worker.claim()
    assert first is not None
    assert shown(2)["position"] == 1
    assert http.get(f"/v1/responses/{first.id}").json()["queue"] is None
    worker.finish(first)
    assert http.get(f"/v1/responses/{first.id}").json()["queue"] is None
    listed = http.get("/v1/responses").json()["data"]
    assert {each["queue"] is None for each in listed} == {True}, "a list does not count places"
    cancelled = http.post(f"/v1/responses/{created[2]['id']}/cancel").json()
    assert cancelled["queue"] is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_place_far_behind_is_not_counted_out(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "COUNTED", 2)
    body = {"input": "a", "background": True}
    places = [http.post("/v1/responses", json=body).json()["queue"]["position"] for _ in range(5)]
    assert places == [0, 1, 2, 2, 2]
