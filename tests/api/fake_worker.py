"""What a worker does to a job, without a model: claim it, write its end, mark its stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from storage import leases, stream, terminal
from storage.database import Database
from storage.leases import Chunk
from storage.models import Json, Response

USAGE: Json = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 10,
}
# What an answer to Completions holds beside its text.
NOTHING_RAW: Json = {"prompt": "", "prompt_logprobs": None, "stop_logprobs": None}


class FakeWorker:
    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis

    def claim(self) -> Response | None:
        with self._database.begin() as session:
            response = leases.claim(session, "fake", lease_seconds=30, max_attempts=3)
        if response is not None:
            stream.fence(self._redis, response.id, response.attempt)
        return response

    def answer(self, text: str = "Hello!", *, incomplete: bool = False) -> Response:
        response = self.claim()
        assert response is not None, "nothing to claim"
        return self.finish(response, text, incomplete=incomplete)

    def finish(
        self, response: Response, text: str = "Hello!", *, incomplete: bool = False, tell: bool = True
    ) -> Response:
        """End a claimed job; with `tell=False` in SQL alone, as when Redis has lost the end marker."""
        with self._database.begin() as session:
            reason = "max_output_tokens" if incomplete else None
            raw = NOTHING_RAW if response.kind == "completion" else None
            answer = terminal.Answer(text, USAGE, reason, raw=raw)
            ended = terminal.close_answered(session, response.id, response.attempt, answer)
            leases.add_chunk(session, response.id, response.attempt, Chunk(0, [0], [text]))
        if tell:
            stream.end(self._redis, response.id, response.attempt)
        return ended

    def answers(self, text: str) -> bool:
        """Answer the next job, if there is one."""
        response = self.claim()
        return response is not None and bool(self.finish(response, text))

    def fails(self) -> bool:
        """Fail the next job, if there is one."""
        response = self.claim()
        return response is not None and bool(self._fail(response))

    def fail(self) -> Response:
        response = self.claim()
        assert response is not None, "nothing to claim"
        return self._fail(response)

    def _fail(self, response: Response) -> Response:
        failure = terminal.Failure("server_error", "worker_lost", "It was lost.")
        with self._database.begin() as session:
            ended = terminal.close_failed(session, response.id, response.attempt, failure)
        stream.end(self._redis, response.id, response.attempt)
        return ended

    @contextmanager
    def at_work(self, text: str = "Hello!") -> Iterator[None]:
        """Answer whatever comes, from a thread."""
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                response = self.claim()
                if response is None:
                    stop.wait(0.01)
                else:
                    self.finish(response, text)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)


def until(condition: object, seconds: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
