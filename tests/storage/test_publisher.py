"""The outbox on its way to a real broker."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from celery import Celery
from kombu.exceptions import OperationalError as BrokerUnavailable
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage import broker, outbox, publisher
from storage.database import Database
from tests.faults.servers import Broker, until


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    """A database of the broker that nobody else uses."""
    with Redis.from_url(f"{broker_url.rstrip('/').removesuffix('/0')}/9") as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def app(broker_url: str, redis: Redis) -> Iterator[Celery]:
    with closing(broker.make_app(f"{broker_url.rstrip('/').removesuffix('/0')}/9")) as made:
        yield made


def owe(database: Database, queue: outbox.Queue, count: int) -> None:
    with database.begin() as session:
        for number in range(count):
            outbox.add(session, queue, f"{queue}-{number}")


def left(database: Database) -> int:
    with database.read() as session:
        return len(outbox.pending(session, 10_000))


def test_a_connection_is_kept_for_all_messages(database: Database, app: Celery, redis: Redis) -> None:
    with closing(publisher.Sender(app)) as sender:
        owe(database, "generate", 2)
        assert publisher.drain(database, sender) == 2
        opened = redis.info("stats")["total_connections_received"]
        owe(database, "generate", 3)
        owe(database, "webhooks", 4)
        assert publisher.drain(database, sender) == 7
        assert redis.info("stats")["total_connections_received"] == opened
    assert (redis.llen("generate"), redis.llen("webhooks"), left(database)) == (5, 4, 0)


def test_knocks_are_bounded_and_webhooks_are_not(
    database: Database, app: Celery, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A knock makes a thread run jobs until there are none: as many as there are threads wake all of them."""
    monkeypatch.setattr(publisher, "MOST_KNOCKS", 10)
    monkeypatch.setattr(publisher, "FULL_SECONDS", 0.0)
    with closing(publisher.Sender(app)) as sender:
        owe(database, "generate", 25)
        owe(database, "webhooks", 25)
        publisher.drain(database, sender)
        assert (redis.llen("generate"), redis.llen("webhooks"), left(database)) == (10, 25, 0)
        redis.ltrim("generate", 0, 3)  # workers have taken six
        owe(database, "generate", 25)
        publisher.drain(database, sender)
    assert (redis.llen("generate"), left(database)) == (10, 0)


def test_a_full_queue_is_not_asked_for_its_length_by_every_knock(
    database: Database, app: Celery, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MOST_KNOCKS", 10)
    monkeypatch.setattr(publisher, "FULL_SECONDS", 600.0)
    with closing(publisher.Sender(app)) as sender:
        owe(database, "generate", 11)
        publisher.drain(database, sender)
        redis.ltrim("generate", 0, 3)  # which only a look would tell
        owe(database, "generate", 50)
        publisher.drain(database, sender)
    assert (redis.llen("generate"), left(database)) == (4, 0)


def test_what_stands_before_a_savepoint_that_is_undone_is_owed(database: Database) -> None:
    owed: list[outbox.Owed] = []
    database.on_owed = owed.extend
    with database.begin() as session:
        outbox.add(session, "webhooks", "kept")
        with session.begin_nested() as savepoint:
            outbox.add(session, "webhooks", "undone")
            savepoint.rollback()
    assert "kept" in [row.subject for row in owed]
    assert left(database) == 1


def test_what_a_process_commits_is_sent_without_a_look_at_the_table(
    database: Database, app: Celery, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "pending", lambda _session, _limit: [])
    sending = publisher.Publisher(database, app)
    sending.start()
    try:
        with database.begin() as session:
            outbox.add(session, "webhooks", "undone")
            session.rollback()
        owe(database, "webhooks", 3)
        until("the messages", lambda: redis.llen("webhooks") == 3, 10)
    finally:
        sending.stop()
    assert redis.llen("webhooks") == 3
    monkeypatch.undo()
    assert left(database) == 0


def test_what_is_fresh_is_left_to_who_wrote_it(database: Database, app: Celery, redis: Redis) -> None:
    """A sweeper would send what is being sent."""
    owe(database, "webhooks", 2)
    with closing(publisher.Sender(app)) as sender:
        assert publisher.drain(database, sender, age=60.0) == 0
        with database.begin() as session:
            session.execute(
                text("UPDATE outbox SET created_at = created_at - 60 WHERE subject = 'webhooks-0'")
            )
        assert publisher.drain(database, sender, age=60.0) == 1
    assert (redis.llen("webhooks"), left(database)) == (1, 1)


def test_a_message_that_was_given_a_forgotten_ones_id_stays(database: Database) -> None:
    """SQLite gives ids again. Two may forget a message, and between them another may have been written."""
    owe(database, "webhooks", 1)
    with database.read() as session:
        (first,) = outbox.pending(session, 9)
    publisher.forget(database, [first])
    with database.begin() as session:
        session.execute(
            text(
                f"INSERT INTO outbox (id, queue, subject, created_at) VALUES ({first.id}, 'webhooks', 'new', 0)"
            )
        )
    publisher.forget(database, [first])
    assert left(database) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_is_away_is_asked_now_and_then(
    database: Database, app: Celery, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def fails(_database: Database, taken: Sequence[outbox.Owed]) -> None:
        if taken:
            asked.append(time.monotonic())
            raise OperationalError("DELETE", None, Exception("away"))

    monkeypatch.setattr(publisher, "forget", fails)
    monkeypatch.setattr(publisher, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(publisher, "FORGET_SECONDS", 0.05)
    sending = publisher.Publisher(database, app)
    sending.start()
    try:
        owe(database, "webhooks", 1)
        until("twenty questions", lambda: len(asked) >= 20, 30)
    finally:
        sending.stop()
    assert asked[19] - asked[0] > 0.5
    assert redis.llen("webhooks") == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broker_that_comes_back_gets_what_it_missed(database: Database, tmp_path: Path) -> None:
    server = Broker(tmp_path / "valkey", tmp_path / "valkey.log")
    server.start()
    try:
        with closing(broker.make_app(server.url)) as app, closing(publisher.Sender(app)) as sender:
            owe(database, "generate", 1)
            publisher.drain(database, sender)
            server.stop(signal.SIGTERM)
            owe(database, "generate", 2)
            with pytest.raises((BrokerUnavailable, RedisError, OSError)):
                publisher.drain(database, sender)
            assert left(database) == 2
            server.start()
            assert publisher.drain(database, sender) == 2
            with server.client() as redis:
                assert redis.llen("generate") == 3
    finally:
        server.stop(signal.SIGTERM)
