"""The live tail in a real Valkey: order, fencing by the server, and joining with the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from storage import ids, stream
from storage.leases import Chunk


@pytest.fixture
def redis(broker_url: str) -> Iterator[Redis]:
    client = stream.connect(broker_url)
    yield client
    client.close()


def chunk(first: int, *tokens: int) -> Chunk:
    return Chunk(first, list(tokens), [f"<{token}>" for token in tokens])


def test_tokens_come_back_in_order_with_their_text(redis: Redis) -> None:
    name = ids.new("resp")
    stream.fence(redis, name, 1)
    assert stream.append(redis, [(name, 1, chunk(0, 10, 11))]) == []
    assert stream.append(redis, [(name, 1, chunk(2, 12))]) == []
    assert stream.tail(redis, name) == stream.LiveTail(chunk(0, 10, 11, 12), ended=False)
    stream.end(redis, name, 1)
    stream.end(redis, name, 1)
    assert stream.tail(redis, name).ended
    assert 0 < redis.ttl(stream.key(name)) <= stream.FINISHED_LIFETIME_SECONDS


def test_the_server_refuses_an_attempt_that_was_followed(redis: Redis) -> None:
    stale, fine = ids.new("resp"), ids.new("resp")
    stream.fence(redis, stale, 1)
    stream.append(redis, [(stale, 1, chunk(0, 10, 11))])
    stream.fence(redis, stale, 2)
    assert stream.append(redis, [(stale, 1, chunk(2, 99)), (fine, 1, chunk(0, 1))]) == [stale]
    with pytest.raises(stream.StaleAttempt):
        stream.fence(redis, stale, 1)
    assert stream.append(redis, [(stale, 2, chunk(2, 12))]) == []
    assert stream.tail(redis, stale).chunk == chunk(0, 10, 11, 12)
    assert stream.tail(redis, fine).chunk == chunk(0, 1)


def test_an_entry_sent_twice_repeats_nothing(redis: Redis) -> None:
    """Redis took an entry, the answer got lost, and the writer sends it again with more behind it."""
    name = ids.new("resp")
    stream.append(redis, [(name, 1, chunk(0, 1, 2, 3))])
    stream.append(redis, [(name, 1, chunk(1, 2, 3, 4))])
    assert stream.tail(redis, name).chunk == chunk(0, 1, 2, 3, 4)


def test_after_a_flush_the_tail_begins_where_it_goes_on(redis: Redis) -> None:
    name = ids.new("resp")
    stream.append(redis, [(name, 1, chunk(0, 1, 2, 3))])
    redis.delete(stream.key(name))
    assert stream.tail(redis, name) == stream.LiveTail(Chunk(0, [], []), ended=False)
    stream.append(redis, [(name, 1, chunk(3, 4))])
    assert stream.tail(redis, name).chunk == chunk(3, 4)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_joining_never_invents_repeats_or_drops(stored: int, first: int, length: int) -> None:
    """Both are stretches of the same answer, token i being i."""
    joined = stream.join(chunk(0, *range(stored)), chunk(first, *range(first, first + length)))
    reaches = first + length if first <= stored < first + length else stored
    assert joined == chunk(0, *range(reaches))
