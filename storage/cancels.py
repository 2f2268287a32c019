"""Tells workers at once that a running job is to be cancelled: a hint over Redis pub/sub.

The wish itself stands in SQL, where the worker's next checkpoint finds it: what a hint that nobody heard costs is the
time until then.
"""

from __future__ import annotations

import contextlib

from redis import Redis
from redis.exceptions import RedisError

from storage import stream
from storage.models import Response

CHANNEL = "qwenq:cancel"


def tell(redis: Redis, response: Response) -> None:
    """After a cancellation: whoever waits for the response, or runs it, learns of it at once.

    Without Redis they find it in SQL.
    """
    with contextlib.suppress(RedisError):
        if response.status == "cancelled":
            stream.end(redis, response.id, response.attempt)
        elif response.status == "in_progress":
            announce(redis, response.id)


def announce(redis: Redis, response_id: str) -> None:
    """Tell whoever runs the response to look at SQL now.

    Raises:
        redis.exceptions.RedisError: Redis is away.
    """
    redis.publish(CHANNEL, response_id)
