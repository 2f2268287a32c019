"""What a worker does that hears no messages, on a real Valkey."""

from __future__ import annotations

import threading
import time

import pytest

from storage import stream
from worker.runtime import Runtime
from worker.watchdog import ASK_SECONDS, DEAF_SECONDS, Watchdog

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Asked:
    """Stands where jobs are run, and counts."""

    def __init__(self) -> None:
        self.times = threading.Semaphore(0)
        self.count = 0

    def __call__(self, _runtime: Runtime) -> None:
        self.count += 1
        self.times.release()


@pytest.fixture
def left() -> list[int]:
    return []


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def dog(runtime: Runtime, asked: Asked, left: list[int]) -> Watchdog:
    runtime.redis.delete("generate")
    return Watchdog(runtime, asked, left.append)


def silent_for(runtime: Runtime, seconds: float) -> None:
    runtime.last_heard = time.monotonic() - seconds


def test_a_worker_that_hears_messages_is_left_alone(runtime: Runtime, dog: Watchdog, asked: Asked) -> None:
    dog.look()
    dog.stop()
    assert asked.count == 0


def test_a_silent_worker_with_a_free_slot_asks_sql(runtime: Runtime, dog: Watchdog, asked: Asked) -> None:
    silent_for(runtime, ASK_SECONDS + 1)
    dog.look()
    assert asked.times.acquire(timeout=5)
    runtime.busy = runtime.settings.concurrency
    dog.look()
    runtime.busy = 0
    runtime.drain_now()
    dog.look()
    dog.stop()
    assert asked.count == 1


def test_silence_without_messages_is_no_deafness(
    runtime: Runtime, dog: Watchdog, asked: Asked, left: list[int]
) -> None:
    silent_for(runtime, DEAF_SECONDS + 1)
    dog.look()
    assert asked.times.acquire(timeout=5)
    assert left == []


def test_a_deaf_worker_gives_its_jobs_back_and_leaves(
    runtime: Runtime, dog: Watchdog, left: list[int]
) -> None:
    runtime.redis.rpush("generate", "a message that nobody takes")
    try:
        silent_for(runtime, DEAF_SECONDS + 1)
        dog.look()
    finally:
        runtime.redis.delete("generate")
    assert left == [1]
    assert runtime.drained_out


def test_a_worker_whose_threads_all_work_through_a_backlog_is_not_deaf(
    runtime: Runtime, dog: Watchdog, asked: Asked, left: list[int]
) -> None:
    """Between two jobs a slot is free for a moment, and the messages of the backlog have waited for long."""
    runtime.redis.rpush("generate", "a message for later")
    try:
        runtime.in_tasks = runtime.settings.concurrency
        silent_for(runtime, DEAF_SECONDS + 1)
        dog.look()
        assert asked.times.acquire(timeout=5)
        assert left == []
        runtime.in_tasks -= 1
        with runtime.hearing():
            pass
        dog.look()  # a thread has only just become free
    finally:
        runtime.redis.delete("generate")
    assert left == []
    dog.stop()


def test_a_broker_that_is_away_is_no_deafness(runtime: Runtime, asked: Asked, left: list[int]) -> None:
    runtime.redis = stream.connect("redis://127.0.0.1:1/0")
    dog = Watchdog(runtime, asked, left.append)
    silent_for(runtime, DEAF_SECONDS + 1)
    dog.look()
    assert asked.times.acquire(timeout=5)
    assert left == []
