"""Beat goes by a clock that nobody can set, and the queue of a worker that is away does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from redis import Redis

from storage import broker, stream
from worker import ticker
from worker.ticker import MOST_WAITING, Ticker


class Clocks:
    """The time of day, which anybody may set, and the other one."""

    def __init__(self) -> None:
        self.day = datetime(2026, 1, 1, tzinfo=UTC)
        self.steady = 100.0


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    with stream.connect(f"{broker_url.rstrip('/').removesuffix('/0')}/9") as connection:
        connection.flushdb()
        yield connection


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(ticker.time, "monotonic", lambda: clocks.steady)
    monkeypatch.setattr(Celery, "now", lambda _self: clocks.day)
    return clocks


@pytest.fixture
def beat(broker_url: str, redis: Redis, clocks: Clocks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ticker]:
    monkeypatch.setenv("QWENQ_REDIS_URL", broker_url)
    from worker.celery import app as worker_app

    app = broker.make_app(f"{broker_url.rstrip('/').removesuffix('/0')}/9")
    app.conf.update(beat_schedule=worker_app.conf.beat_schedule, beat_max_loop_interval=1.0)
    made = Ticker(app)
    yield made
    made.close()
    app.close()


def sent(redis: Redis) -> Counter[str]:
    """Take what waits, by task."""
    waiting = redis.lrange(broker.MAINTENANCE_QUEUE, 0, -1)
    redis.delete(broker.MAINTENANCE_QUEUE)
    assert not any('"expires": "' in message for message in waiting)
    tasks = (broker.SWEEP_TASK, broker.PURGE_TASK)
    return Counter(task for message in waiting for task in tasks if f'"task": "{task}"' in message)


def test_it_sends_each_task_in_its_interval_whatever_the_time_of_day(
    beat: Ticker, redis: Redis, clocks: Clocks
) -> None:
    assert 0 < beat.tick() <= 1
    assert sent(redis) == {broker.SWEEP_TASK: 1, broker.PURGE_TASK: 1}
    assert 0 < beat.tick() <= 1
    assert sent(redis) == {}
    for jump in (timedelta(hours=-1), timedelta(days=2), timedelta(0)):
        clocks.day += jump
        clocks.steady += 1.0
        beat.tick()
        assert sent(redis) == {broker.SWEEP_TASK: 1}
    clocks.steady += 60.0
    beat.tick()
    assert sent(redis) == {broker.SWEEP_TASK: 1, broker.PURGE_TASK: 1}


def test_while_nobody_sweeps_sweeps_do_not_pile_up(beat: Ticker, redis: Redis, clocks: Clocks) -> None:
    for _ in range(3 * MOST_WAITING):
        clocks.steady += 1.0
        beat.tick()
    assert redis.llen(broker.MAINTENANCE_QUEUE) == MOST_WAITING
    redis.delete(broker.MAINTENANCE_QUEUE)
    clocks.steady += 1.0
    beat.tick()
    assert sent(redis)[broker.SWEEP_TASK] == 1
