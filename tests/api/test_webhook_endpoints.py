"""Webhook endpoints with the official client, and what of a request's own webhook is stored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import httpx
import openai
import pytest
from cryptography.fernet import Fernet
from openai import OpenAI
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from pydantic import SecretStr

from api.schemas import EventType
from api.settings import ApiSettings
from storage import webhook_secret, webhook_tries, webhooks
from storage.crypto import SecretBox
from storage.database import Database
from storage.models import WebhookDelivery
from storage.models import WebhookEndpoint as Row
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served, serving
from tests.api.strict import check

URL = "http://127.0.0.1:9/hook"
EXTENSIONS = ("enabled", "disabled_reason")


def test_the_life_of_an_endpoint(
    client: OpenAI, http: httpx.Client, database: Database, secret_key: str
) -> None:
    created = http.post(
        "/v1/webhook_endpoints",
        json={"name": "Mine", "url": URL, "event_types": ["response.completed", "response.completed"]},
    ).json()
    check(WebhookEndpointWithSecret, created, extensions=EXTENSIONS)
    webhook_secret.check_secret(created["signing_secret"])
    assert created["event_types"] == ["response.completed"]
    with database.read() as session:
        row = session.get_one(Row, created["id"])
    assert created["signing_secret"] not in row.secret
    assert SecretBox(secret_key).open(row.secret) == created["signing_secret"]

    shown = http.get(f"/v1/webhook_endpoints/{created['id']}").json()
    check(WebhookEndpoint, shown, extensions=EXTENSIONS)
    assert "signing_secret" not in shown
    assert shown["signing_secret_hint"].endswith(created["signing_secret"][-4:])
    page = http.get("/v1/webhook_endpoints").json()
    check(WebhookEndpointList, page, extensions=[f"data[].{key}" for key in EXTENSIONS])
    assert page["data"] == [shown]

    changed = client.webhooks.update(
        created["id"], name="Ours", url=URL + "2", event_types=["response.failed"]
    )
    assert (changed.name, changed.url, changed.event_types) == ("Ours", URL + "2", ["response.failed"])
    assert client.webhooks.update(created["id"], name="Theirs").event_types == ["response.failed"]
    off = client.webhooks.update(created["id"], extra_body={"enabled": False})
    assert off.model_extra == {"enabled": False, "disabled_reason": "switched off through the API"}
    on = client.webhooks.update(created["id"], extra_body={"enabled": True})
    assert on.model_extra == {"enabled": True, "disabled_reason": None}

    check(DeletedWebhookEndpoint, http.delete(f"/v1/webhook_endpoints/{created['id']}").json())
    assert http.get(f"/v1/webhook_endpoints/{created['id']}").status_code == 404
    assert http.get("/v1/webhook_endpoints").json()["data"] == []


def test_an_endpoint_shows_when_its_owner_last_changed_it(client: OpenAI, database: Database) -> None:
    created = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    assert created.updated_at == created.created_at

    def later(**change: object) -> int:
        """Change the endpoint as if it had been changed in 1970 before, and return when it was now."""
        with database.begin() as session:
            session.get_one(Row, created.id).updated_at = 7.0
        shown = client.webhooks.update(created.id, extra_body=change)
        assert shown.updated_at is not None
        return shown.updated_at

    assert later(name="a", event_types=["response.completed"]) == 7
    assert later(enabled=True) == 7
    for change in (
        {"name": "b"},
        {"enabled": False},
        {"enabled": True},
        {"event_types": ["response.failed"]},
    ):
        assert later(**change) >= created.created_at
    assert later() == 7
    assert (client.webhooks.rotate_secret(created.id).updated_at or 0) >= created.created_at


def test_rotation_keeps_the_old_secret_only_when_asked(
    client: OpenAI, database: Database, secret_key: str
) -> None:
    box = SecretBox(secret_key)
    created = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])

    def stored() -> Row:
        with database.read() as session:
            return session.get_one(Row, created.id)

    rotated = client.webhooks.rotate_secret(created.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != created.signing_secret
    row = stored()
    assert box.open(row.secret) == rotated.signing_secret
    assert box.open(str(row.previous_secret)) == created.signing_secret
    again = client.webhooks.rotate_secret(created.id)
    row = stored()
    assert box.open(row.secret) == again.signing_secret
    assert row.previous_secret is None


def test_event_types(http: httpx.Client, client: OpenAI) -> None:
    check(WebhookEventTypeList, http.get("/v1/webhook_event_types").json())
    sent = [*webhooks.RESPONSE_EVENTS, *webhooks.BATCH_EVENTS]
    assert client.webhooks.event_types.list().data == sent
    assert set(get_args(EventType)) == set(sent)


def test_what_is_refused(http: httpx.Client) -> None:
    good = {"name": "a", "url": URL, "event_types": ["response.completed"]}
    for change, param in (
        ({"url": "http://192.168.0.1/"}, "url"),
        ({"url": "ftp://127.0.0.1/"}, "url"),
        ({"url": "http://user:pw@127.0.0.1/"}, "url"),
        ({"url": "http://no-such-host.invalid/"}, "url"),
        ({"url": None}, "url"),
        ({"name": ""}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["video.completed"]}, "event_types[0]"),
        ({"secret": "x"}, "secret"),
    ):
        answer = http.post("/v1/webhook_endpoints", json={**good, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), change
    assert http.get("/v1/webhook_endpoints").json()["data"] == []
    created = http.post("/v1/webhook_endpoints", json=good).json()["id"]
    answer = http.post(f"/v1/webhook_endpoints/{created}", json={"url": "http://10.1.1.1/"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "url")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://167772161/", "10.0.0.1 is private"),
        ("http://0xA9FEA9FE/latest/meta-data", "a cloud metadata service"),
        ("http://0251.0376.0251.0376/", "a cloud metadata service"),
        ("http://10.1/", "10.0.0.1 is private"),
        ("http://168.63.129.16/", "a cloud metadata service"),
        ("http://192.0.0.8/", "reserved"),
        ("http://224.0.0.1/", "multicast"),
        ("http://[::1]/", "loopback"),
        ("http://[::ffff:10.0.0.1]/", "private (10.0.0.1 as IPv4-mapped)"),
        ("http://[64:ff9b::a9fe:a9fe]/", "as NAT64"),
        ("http://[2002:a00:1::]/", "as 6to4"),
        ("http://[2001:0:a00:1:0:0:f7f7:f7f7]/", "as Teredo"),
        ("http://[2a00:1450::5efe:10.0.0.1]/", "as ISATAP"),
        ("http://[fec0::1]/", "site-local"),
        ("http://[fe80::1%25eth0]/", "zone"),
        ("https://user:pw@example.com/", "user name or password"),
        ("gopher://127.0.0.1/", "http://"),
        ("http://127.0.0.1:0/", "port 0"),
    ],
)
def test_no_spelling_of_an_inner_address_is_registered(http: httpx.Client, url: str, reason: str) -> None:
    """For an endpoint as for the webhook of one request; each try checks it again."""
    endpoint = {"name": "a", "url": url, "event_types": ["response.completed"]}
    job = {"model": "default", "input": "a", "webhook": {"url": url}}
    for path, body, param in (
        ("/v1/webhook_endpoints", endpoint, "url"),
        ("/v1/responses", job, "webhook.url"),
    ):
        error = http.post(path, json=body).json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_webhook_url")
        assert reason in error["message"]


def test_endpoints_belong_to_a_project(client: OpenAI, stranger: httpx.Client) -> None:
    mine = client.webhooks.create(name="a", url=URL, event_types=["response.completed"]).id
    path = f"/v1/webhook_endpoints/{mine}"
    assert stranger.get("/v1/webhook_endpoints").json()["data"] == []
    for method, url, body in (
        ("GET", path, None),
        ("POST", path, {"name": "b"}),
        ("DELETE", path, None),
        ("POST", f"{path}/rotate_secret", {}),
        ("POST", f"{path}/test", {"event_type": "response.completed"}),
        ("POST", "/v1/responses", {"input": "a", "background": True, "webhook": {"endpoint_id": mine}}),
    ):
        assert stranger.request(method, url, json=body).status_code == 404, (method, url)
    assert client.webhooks.retrieve(mine).name == "a"


def deliver(database: Database, outcome: webhook_tries.Try) -> webhook_tries.DeliveryJob:
    """Do a webhook worker's part of the next delivery."""
    found: list[str] = []

    def pending() -> bool:
        with database.read() as session:
            found[:] = [row.id for row in session.query(WebhookDelivery) if row.status == "pending"]
        return bool(found)

    until(pending)
    with database.begin() as session:
        job = webhook_tries.claim_delivery(session, found[0], 30, limit=4)
        assert job is not None
        webhook_tries.record(session, job, outcome)
    return job


def test_a_test_event_shows_what_the_endpoint_said(
    client: OpenAI, http: httpx.Client, database: Database
) -> None:
    endpoint = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    body = {"event_type": "response.failed"}
    path = f"/v1/webhook_endpoints/{endpoint.id}/test"
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(http.post, path, json=body)
        job = deliver(database, webhook_tries.Try(False, 500, None, "", 5, None))
        assert b'"response.failed"' in job.body
        shown = call.result().json()
        check(WebhookEndpointTestResult, shown)
        assert (shown["status_code"], shown["success"]) == (500, True)

        call = pool.submit(http.post, path, json=body)
        deliver(database, webhook_tries.Try(False, None, "connection refused", "", 5, None))
        unreachable = call.result()
        assert unreachable.status_code == 400
        assert "connection refused" in unreachable.json()["error"]["message"]

    client.webhooks.update(endpoint.id, extra_body={"enabled": False})
    with pytest.raises(openai.ConflictError, match="switched off"):
        client.webhooks.test(endpoint.id, event_type="response.completed")


def test_a_test_that_nobody_sends_says_so(
    client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.webhook_endpoints.TEST_SECONDS", 0.5)
    endpoint = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    answer = http.post(f"/v1/webhook_endpoints/{endpoint.id}/test", json={"event_type": "response.completed"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "webhook_not_sent")
    assert answer.headers["x-should-retry"] == "false"


def test_a_requests_own_webhook_is_stored_sealed(
    client: OpenAI, worker: FakeWorker, secret_key: str, settings: ApiSettings
) -> None:
    box = SecretBox(secret_key)
    mine = webhook_secret.new_secret()
    endpoint = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    assert settings.webhook_secret is not None
    for asked, secret, events in (
        ({"url": URL, "secret": mine, "events": ["response.failed"]}, mine, ["response.failed"]),
        ({"url": URL}, settings.webhook_secret.get_secret_value(), list(webhooks.RESPONSE_EVENTS)),
    ):
        client.responses.create(model="default", input="a", background=True, extra_body={"webhook": asked})
        row = worker.claim()
        assert row is not None
        assert row.webhook is not None
        assert row.webhook["url"] == URL
        assert row.webhook["events"] == events
        assert box.open(row.webhook["secret"]) == secret
        assert "webhook" not in row.request
    client.responses.create(
        model="default", input="a", background=True, extra_body={"webhook": {"endpoint_id": endpoint.id}}
    )
    row = worker.claim()
    assert row is not None
    assert row.webhook == {"endpoint_id": endpoint.id}


def test_endpoints_outlive_a_changed_key(
    served: Served, client: OpenAI, settings: ApiSettings, api_key: str
) -> None:
    endpoint = client.webhooks.create(name="a", url=URL, event_types=["response.completed"])
    other = settings.model_copy(update={"secret_key": SecretStr(Fernet.generate_key().decode())})
    with (
        serving(other) as restarted,
        OpenAI(base_url=f"{restarted.url}/v1", api_key=api_key, max_retries=0) as again,
    ):
        assert again.webhooks.retrieve(endpoint.id).signing_secret_hint is None
        rotated = again.webhooks.rotate_secret(endpoint.id)
        assert str(rotated.signing_secret_hint).endswith(rotated.signing_secret[-4:])
