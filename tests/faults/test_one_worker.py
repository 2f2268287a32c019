"""One worker in real processes: a second signal while it drains, and a job that kills it at its first token."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from migrations.run import upgrade
from storage import leases
from storage.database import Database
from storage.models import Response
from tests.acceptance.houses import new_postgres_database
from tests.faults.run import model
from tests.faults.servers import Broker, until
from tests.faults.stack import Stack

ATTEMPTS = 3
DRAIN_SECONDS = 120
Submit = Callable[..., str]


@pytest.fixture(scope="module")
def stack(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("one-worker")
    url = new_postgres_database(postgres_server, "one_worker")
    upgrade(url)
    broker = Broker(directory / "valkey", directory / "valkey.log")
    broker.start()
    stack = Stack(
        directory,
        database_url=url,
        redis_url=broker.url,
        model=model(directory / "model"),
        workers=1,
        without="",
        pace=0.01,
    )
    stack.environment["QWENQ_MAX_ATTEMPTS"] = str(ATTEMPTS)
    stack.own["generate"] = {"QWENQ_DRAIN_SECONDS": str(DRAIN_SECONDS)}
    try:
        for name in stack.programs:
            stack.start(name)
        yield stack
    finally:
        left = stack.close()
        broker.stop(signal.SIGTERM)
    assert left == []


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {stack.api_key}"}
    with httpx.Client(base_url=stack.base_url, headers=headers, trust_env=False, timeout=15) as http:

        def up() -> bool:
            stack.start_what_died()
            try:
                return http.get("/readyz").status_code == 200 and stack.workers[0].ready
            except httpx.TransportError:
                return False

        until("the service", up, 120)
        yield http


@pytest.fixture
def submit(http: httpx.Client) -> Submit:
    def submit(length: int, **more: Any) -> str:
        body = {"input": "Go on.", "background": True, "max_output_tokens": length, **more}
        return str(http.post("/v1/responses", json=body).raise_for_status().json()["id"])

    return submit


def shown(http: httpx.Client, response_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/responses/{response_id}").raise_for_status().json()
    return found


def is_over(http: httpx.Client, response_id: str) -> bool:
    return shown(http, response_id)["status"] not in ("queued", "in_progress")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_gives_running_answers_back_at_once(
    stack: Stack, http: httpx.Client, submit: Submit, number: signal.Signals
) -> None:
    database = Database(stack.environment["QWENQ_DATABASE_URL"])
    try:

        def known() -> tuple[Response, int]:
            with database.read() as session:
                row = session.get_one(Response, job)
                return row, len(leases.output(session, job).token_ids)

        job = submit(1500)
        until("its first checkpoint", lambda: known()[1] > 0, 60)
        log = stack.workers[0].log
        before = log.read_text().count('"draining"')
        stack.signal("worker-1", number)
        until("the drain", lambda: log.read_text().count('"draining"') > before, 30)
        assert known()[0].status == "in_progress"
        stack.signal("worker-1", number)
        stack.wait("worker-1", DRAIN_SECONDS / 2)
        row, stored = known()
        assert (row.status, row.attempt, row.failures) == ("queued", 1, 0)
        assert stored > 0
        assert http.post(f"/v1/responses/{job}/cancel").json()["status"] == "cancelled"
    finally:
        database.close()


def test_a_poison_job_fails_after_its_attempts_and_the_others_come_to_their_end(
    stack: Stack, http: httpx.Client, submit: Submit
) -> None:
    lives = len(stack.workers[0].pids)
    harmless = [submit(60) for _ in range(2)]  # long enough to be in the worker's hands when it dies
    poison = submit(60, metadata={"poison": "1"})
    harmless.append(submit(60))

    def over() -> bool:
        stack.start_what_died()
        return all(is_over(http, one) for one in (poison, *harmless))

    until("all ends", over, 150)
    assert shown(http, poison)["error"]["type"] == "attempts_exhausted"
    assert {shown(http, one)["status"] for one in harmless} <= {"completed", "incomplete"}
    assert len(stack.workers[0].pids) == lives + ATTEMPTS
