"""Listens for the cancellation of running answers, so that they end within a step and not at the next checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog
from redis import Redis
from redis.exceptions import RedisError

from storage.cancels import CHANNEL

log = structlog.get_logger(__name__)

LISTEN_SECONDS = 1.0


class Cancels:
    """One subscription for all running answers of a process, in a thread of its own.

    Args:
        calls: other channels, and what to do when somebody calls there.
    """

    def __init__(self, redis: Redis, calls: Mapping[str, Callable[[], object]] | None = None) -> None:
        self._redis = redis
        self._calls = calls or {}
        self._lock = threading.Lock()
        self._watched: dict[str, Callable[[], object]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancels", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(timeout=3 * LISTEN_SECONDS)

    @contextmanager
    def watch(self, response_id: str, asked: Callable[[], object]) -> Iterator[None]:
        """Call `asked` when somebody asks for the cancellation of this response, in the listening thread."""
        with self._lock:
            self._watched[response_id] = asked
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(response_id, None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
                    pubsub.subscribe(CHANNEL, *self._calls)
                    while not self._stopping.is_set():
                        self._hear(pubsub.get_message(timeout=LISTEN_SECONDS))
            except (
                RedisError,
                OSError,
            ):  # said by others; until it is back, checkpoints see to cancellations
                self._stopping.wait(LISTEN_SECONDS)

    def _hear(self, message: dict[str, str] | None) -> None:
        if message is None:
            return
        if message["channel"] in self._calls:
            self._calls[message["channel"]]()
            return
        with self._lock:
            asked = self._watched.get(message["data"])
        if asked is not None:
            asked()
