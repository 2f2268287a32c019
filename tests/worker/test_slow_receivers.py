"""A receiver that hangs holds its few places and nothing else: real deliveries, real servers, four threads."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import select

from storage import outbox, webhook_endpoints, webhook_secret, webhook_tries
from storage.models import WebhookDelivery
from tests.receiver import receiving
from tests.storage.factory import accept, answer, claim, project
from worker import delivery
from worker.runtime import Runtime

THREADS = 4
JOBS = 12
SWEEP_SECONDS = 0.05
PATIENCE = 60.0


class Hanging:
    """A receiver that takes requests and answers none of them until `release`."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}/hook"
        self.release = threading.Event()
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()

    def step(self, change: int) -> None:
        with self._lock:
            self.inside += change
            self.most_inside = max(self.most_inside, self.inside)


@contextmanager
def hanging() -> Iterator[Hanging]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            state.step(1)
            state.release.wait(PATIENCE)
            state.step(-1)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hanging(server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class WebhookWorker:
    """Celery's part: messages in order of arrival, THREADS of them at a time, and a sweep now and then."""

    def __init__(self, runtime: Runtime) -> None:
        self.knocks: Counter[str] = Counter()
        self.sweeps = 0
        self._runtime = runtime
        self._messages: queue.Queue[str | None] = queue.Queue()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]
        self._threads.append(threading.Thread(target=self._publish))

    def __enter__(self) -> WebhookWorker:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (delivery_id := self._messages.get()) is not None:
            delivery.deliver(self._runtime, delivery_id)

    def _publish(self) -> None:
        limit = self._runtime.settings.webhook_receiver_limit
        while not self._stopping.wait(SWEEP_SECONDS):
            self.sweeps += 1
            with self._runtime.database.begin() as session:
                webhook_tries.sweep_deliveries(session, limit=limit)
                rows = outbox.pending(session, 999)
                outbox.sent(session, rows)
            for row in rows:
                if row.queue == "webhooks":
                    self.knocks[row.subject] += 1
                    self._messages.put(row.subject)
        for _ in range(THREADS):
            self._messages.put(None)


def owe(runtime: Runtime, *urls: str) -> dict[str, str]:
    """End JOBS jobs that each of `urls` is told of; return the endpoints' ids by URL."""
    with runtime.database.begin() as session:
        owner = project(session)
        endpoints = {
            url: webhook_endpoints.create(
                session,
                owner,
                name=url,
                url=url,
                event_types=["response.completed"],
                secret=runtime.secrets.seal(webhook_secret.new_secret()),
            ).id
            for url in urls
        }
        for _ in range(JOBS):
            accept(session, owner)
            job = claim(session)
            assert job is not None
            answer(session, job)
        return endpoints


def test_a_hanging_receiver_does_not_hold_up_a_fast_one(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.settings, "concurrency", THREADS)
    monkeypatch.setattr(runtime.settings, "webhook_timeout", PATIENCE)
    limit = runtime.settings.webhook_receiver_limit
    assert limit == THREADS // 2
    with hanging() as slow, receiving() as fast:
        endpoints = owe(runtime, slow.url, fast.url)
        with WebhookWorker(runtime) as worker:
            # The slow one hangs all the while. Without its cap it would have every thread for a minute.
            until(lambda: len(fast.got) == JOBS)
            until(lambda: slow.inside == limit)
            until(lambda: len(in_line(runtime, endpoints[slow.url])) == JOBS - limit)
            # Those behind the cap wait in SQL: each was announced once, and no sweep has done it again.
            seen = worker.sweeps
            until(lambda: worker.sweeps >= seen + 10)
            assert {worker.knocks[one] for one in in_line(runtime, endpoints[slow.url])} == {1}
            slow.release.set()
            until(lambda: all_delivered(runtime))
        assert slow.most_inside == limit


def in_line(runtime: Runtime, endpoint_id: str) -> list[str]:
    with runtime.database.read() as session:
        query = select(WebhookDelivery.id).where(
            WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.waiting
        )
        return list(session.scalars(query))


def all_delivered(runtime: Runtime) -> bool:
    with runtime.database.read() as session:
        return set(session.scalars(select(WebhookDelivery.status))) == {"delivered"}


def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, far less long than the slow receiver could hold a thread."""
    deadline = time.monotonic() + PATIENCE / 4
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this"
        time.sleep(0.02)


def test_the_limit_leaves_half_of_the_threads_to_others(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for concurrency, tries, limit in ((16, 4, 4), (4, 4, 2), (2, 4, 1), (1, 4, 1), (64, 40, 32)):
        monkeypatch.setattr(runtime.settings, "concurrency", concurrency)
        monkeypatch.setattr(runtime.settings, "webhook_receiver_tries", tries)
        assert runtime.settings.webhook_receiver_limit == limit
