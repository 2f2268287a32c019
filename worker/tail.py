"""Writes live tails, and word of ends, to Redis: one pipelined round trip every few milliseconds for all answers.

Redis is a copy here. While it is away, tokens of running answers wait in memory, bounded by the answers'
own lengths, and readers fall back on the checkpoints in SQL.
"""

from __future__ import annotations

import threading

import structlog
from redis import Redis
from redis.exceptions import RedisError

from storage import stream
from storage.leases import Chunk

log = structlog.get_logger(__name__)

# A person reads text that comes 40 times a second as flowing; each flush costs one round trip in all.
FLUSH_SECONDS = 0.025
# After a failed flush the next one waits longer: the server is restarting, and nobody is better served by haste.
PAUSE_SECONDS = 0.5


class TailWriter:
    """Buffers tokens by answer and flushes them from a thread of its own. Thread-safe."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, int], Chunk] = {}
        self._ended: set[tuple[str, int]] = set()
        self._untailed: set[str] = set()
        self._wake = threading.Event()
        self._hurry = threading.Event()  # an end is not kept waiting: callers wait for it
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, response_id: str, attempt: int, chunk: Chunk) -> None:
        """Append tokens; a chunk begins where the one before it ended."""
        with self._lock:
            waiting = self._pending.get((response_id, attempt))
            if waiting is not None:
                chunk = waiting.then(chunk)
            self._pending[response_id, attempt] = chunk
        self._wake.set()

    def end(self, response_id: str, attempt: int, *, tailed: bool = True) -> None:
        """Mark the answer as ended behind what is still to be written of it, or tell the end of one without a tail."""
        with self._lock:
            if tailed:
                self._ended.add((response_id, attempt))
            else:
                self._untailed.add(response_id)
        self._hurry.set()
        self._wake.set()

    def forget(self, response_id: str, attempt: int) -> None:
        """Drop what is buffered of an attempt that has lost its lease or was given back."""
        with self._lock:
            self._ended.discard((response_id, attempt))
            self._pending.pop((response_id, attempt), None)

    def stop(self) -> None:
        """Flush once more and end the thread."""
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def flush(self) -> None:
        """Write everything that is buffered.

        Raises:
            RedisError: Redis did not take it; tokens of running answers are buffered again.
        """
        with self._lock:
            pending, self._pending = self._pending, {}
            ended, self._ended = self._ended, set()
            untailed, self._untailed = self._untailed, set()
        try:
            stale = stream.append(
                self._redis,
                [(response_id, attempt, chunk) for (response_id, attempt), chunk in pending.items()],
                ended,
                untailed,
            )
            if stale:  # its worker learns of it at its next checkpoint
                log.info("live events of a stale attempt refused", response_ids=stale)
        except RedisError:
            with self._lock:
                self._untailed |= untailed  # nothing else tells these ends
                for key, chunk in pending.items():
                    if key in ended:
                        continue  # SQL has all of it, and its readers look there
                    newer = self._pending.get(key)
                    if newer is not None:
                        chunk = chunk.then(newer)
                    self._pending[key] = chunk
            raise

    def _run(self) -> None:
        reachable = True
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            self._hurry.clear()
            try:
                self.flush()
            except RedisError as trouble:
                if reachable:
                    log.warning("redis unreachable, live events pause", cause=str(trouble))
                reachable = False
                self._wake.set()
                self._stopping.wait(PAUSE_SECONDS)
            else:
                if not reachable:
                    log.info("redis reachable again, live events go on")
                reachable = True
                self._hurry.wait(FLUSH_SECONDS)
        try:
            self.flush()
        except RedisError as trouble:
            log.warning("the last live events were not written", cause=str(trouble))
