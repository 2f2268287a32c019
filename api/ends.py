"""Hears from Redis which responses have ended: one subscription for all that requests of this process wait for.

What is heard is a hint to ask SQL. Nothing is repeated to whoever did not listen, so after each new subscription SQL is
asked about everything, and now and then anyway (`api.live`).
"""

from __future__ import annotations

from collections.abc import Callable

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as Silence

from storage import stream

# After so long without a word the server is asked for one, and after as long again it counts as gone.
LISTEN_SECONDS = 2.5
# A job may end before the request that made it has begun to wait.
REMEMBERED = 4096


def connect(redis_url: str) -> Redis:
    """Return a client for what is read all the time; one that fails is not tried again here: SQL is asked instead."""
    return Redis.from_url(
        redis_url,
        socket_timeout=5,  # longer than a read may stand, so that only a dead connection runs into it
        socket_connect_timeout=2,
        protocol=2,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


class Ends:
    """The subscription, and the ends that were heard last."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._lately: dict[str, None] = {}  # in the order in which they were heard

    def lately(self, response_id: str) -> bool:
        """Return whether it is among the last that were heard of."""
        return response_id in self._lately

    async def listen(self, listening: Callable[[], None], heard: Callable[[str], None]) -> None:
        """Call `listening` once the subscription stands, then `heard` with each id, until Redis fails.

        Raises:
            redis.exceptions.RedisError, OSError: it has.
        """
        redis = connect(self._redis_url)
        async with redis, redis.pubsub() as subscription:
            await subscription.subscribe(stream.ENDED)
            silent = False
            while True:
                message = await subscription.get_message(timeout=LISTEN_SECONDS)
                if message is None:
                    if silent:
                        raise Silence("the server of the subscription says nothing any more")
                    silent = True
                    await subscription.ping()
                    continue
                silent = False
                if message["type"] == "subscribe":
                    listening()
                elif message["type"] == "message":
                    self._remember(message["data"])
                    heard(message["data"])

    def _remember(self, response_id: str) -> None:
        self._lately[response_id] = None
        if len(self._lately) > REMEMBERED:
            del self._lately[next(iter(self._lately))]
