"""Deliveries over HTTP: listed, looked into, replayed and recovered; another project sees none of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import select

from storage import webhook_secret, webhook_tries
from storage.database import Database
from storage.models import WebhookDelivery
from storage.webhook_tries import Try
from tests.api.fake_worker import FakeWorker

URL = "http://127.0.0.1:9/hook"
LIST = "/v1/webhook_deliveries"
REFUSED = Try(False, 503, None, "come later", 7, None)


def try_all(database: Database, outcome: Try) -> None:
    """Do a webhook worker's part of everything that is due."""
    with database.begin() as session:
        for delivery_id in session.scalars(
            select(WebhookDelivery.id).where(WebhookDelivery.status == "pending")
        ).all():
            job = webhook_tries.claim_delivery(session, delivery_id, 30, limit=9)
            assert job is not None
            webhook_tries.record(session, job, outcome)


@pytest.fixture
def owed(client: OpenAI, worker: FakeWorker) -> dict[str, str]:
    """A job whose end is owed to an endpoint and to a URL of its own: the ids of job and endpoint."""
    endpoint = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    own = {"url": URL + "/own", "secret": webhook_secret.new_secret()}
    job = client.responses.create(model="default", input="a", background=True, extra_body={"webhook": own})
    # Beside its own webhook, a background job is told to every endpoint of its project.
    worker.answer()
    return {"job": job.id, "endpoint": endpoint.id}


def listed(http: httpx.Client, path: str = LIST, **query: Any) -> list[dict[str, Any]]:
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def test_the_story_of_a_delivery(http: httpx.Client, database: Database, owed: dict[str, str]) -> None:
    of_endpoint = f"/v1/webhook_endpoints/{owed['endpoint']}/deliveries"
    (delivery,) = listed(http, of_endpoint)
    assert (delivery["object"], delivery["status"], delivery["attempt_count"]) == (
        "webhook_delivery",
        "pending",
        0,
    )
    assert (delivery["event_type"], delivery["subject"]) == ("response.completed", owed["job"])
    try_all(database, REFUSED)
    shown = http.get(f"{LIST}/{delivery['id']}").json()
    assert (shown["status"], shown["failure"]) == ("failed", "every try has failed")
    assert shown["event"]["id"] == shown["webhook_id"]
    (attempt,) = shown["attempts"]
    assert attempt["started_at"] > 0
    assert {key: attempt[key] for key in attempt if key != "started_at"} == {
        "number": 1,
        "duration_ms": 7,
        "status_code": 503,
        "error": None,
        "answer": "come later",
    }

    replayed = http.post(f"{LIST}/{delivery['id']}/replay")
    assert (replayed.status_code, replayed.json()["status"]) == (200, "pending")
    assert replayed.json()["webhook_id"] == delivery["webhook_id"]
    assert http.post(f"{LIST}/{delivery['id']}/replay").json() == replayed.json()
    try_all(database, REFUSED)

    recovered = http.post(f"/v1/webhook_endpoints/{owed['endpoint']}/recover", json={"since": 0}).json()
    assert recovered == {
        "object": "webhook_endpoint.recovery",
        "webhook_endpoint_id": owed["endpoint"],
        "since": 0,
        "count": 1,
    }
    try_all(database, Try(True, 200, None, "", 1, None))
    shown = http.get(f"{LIST}/{delivery['id']}").json()
    assert (shown["status"], shown["attempt_count"]) == ("delivered", 3)


def test_lists_and_their_filters(http: httpx.Client, owed: dict[str, str]) -> None:
    assert {one["url"] for one in listed(http)} == {None, URL + "/own"}
    assert len(listed(http, status="pending", event_type="response.completed", subject=owed["job"])) == 2
    for none in ({"status": "failed"}, {"event_type": "response.failed"}, {"subject": "resp_x"}):
        assert listed(http, **none) == []
    first = http.get(LIST, params={"limit": 1}).json()
    assert first["has_more"]
    rest = http.get(LIST, params={"limit": 1, "after": first["last_id"]}).json()
    assert not rest["has_more"]
    assert rest["first_id"] != first["first_id"]
    for wrong in ({"status": "lost"}, {"event_type": "video.completed"}, {"limit": 0}, {"color": "red"}):
        assert http.get(LIST, params=wrong).status_code == 400, wrong
    assert http.get(LIST, params={"after": "whd_x"}).status_code == 404


def test_a_receiver_that_is_off_is_sent_nothing(
    client: OpenAI, http: httpx.Client, database: Database, owed: dict[str, str]
) -> None:
    (delivery,) = listed(http, f"/v1/webhook_endpoints/{owed['endpoint']}/deliveries")
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, delivery["id"], 30, limit=9)
        assert job is not None
        webhook_tries.record(session, job, Try(False, 410, None, "", 1, None, gone=True))
    shown = client.webhooks.retrieve(owed["endpoint"])
    assert shown.model_extra == {"enabled": False, "disabled_reason": "the receiver answered 410 Gone"}
    for path, body in (
        (f"{LIST}/{delivery['id']}/replay", None),
        (f"/v1/webhook_endpoints/{owed['endpoint']}/recover", {"since": 0}),
    ):
        refused = http.post(path, json=body)
        assert refused.status_code == 409
        assert refused.headers["x-should-retry"] == "false"
    client.webhooks.update(owed["endpoint"], extra_body={"enabled": True})
    assert http.post(f"{LIST}/{delivery['id']}/replay").status_code == 200


def test_deliveries_belong_to_a_project(
    http: httpx.Client, stranger: httpx.Client, owed: dict[str, str]
) -> None:
    mine = listed(http)[0]["id"]
    assert listed(stranger) == []
    assert listed(stranger, subject=owed["job"]) == []
    for method, path, body in (
        ("GET", f"{LIST}/{mine}", None),
        ("GET", f"{LIST}?after={mine}", None),
        ("POST", f"{LIST}/{mine}/replay", None),
        ("GET", f"/v1/webhook_endpoints/{owed['endpoint']}/deliveries", None),
        ("POST", f"/v1/webhook_endpoints/{owed['endpoint']}/recover", {"since": 0}),
    ):
        assert stranger.request(method, path, json=body).status_code == 404, path


@pytest.mark.parametrize("since", [None, "yesterday", -1, 1e13, True])
def test_since_is_a_time(http: httpx.Client, owed: dict[str, str], since: object) -> None:
    answer = http.post(f"/v1/webhook_endpoints/{owed['endpoint']}/recover", json={"since": since})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "since")
