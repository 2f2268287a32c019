"""Limits of a key: requests and tokens a minute, counted in windows that begin with a key's first request.

The counters are in Redis, so that all API processes share them. While Redis is away each process counts for itself:
a caller may then get more than the limit, and nobody is turned away because of Redis.

A job is charged when it is submitted, as OpenAI does it: a quarter of the characters of its own text and
`max_output_tokens`. What it really used is not settled afterwards, and stored history is not counted.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.requests import Request

from api import messages
from api.errors import TooMany
from api.schemas import CreateResponse
from api.settings import ApiSettings
from storage.keys import Caller

log = structlog.get_logger(__name__)

Kind = Literal["requests", "tokens"]

CHARACTERS_PER_TOKEN = 4
# What an answer is charged whose request sets no `max_output_tokens`: the default of Qwen's generation_config.
DEFAULT_OUTPUT_TOKENS = 512
# A counter is not worth a longer wait; after one, Redis is left alone for a moment.
REDIS_SECONDS = 0.5
AWAY_SECONDS = 5.0
CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a key stands with one limit, after a request that was let through or not."""

    kind: Kind
    limit: int
    remaining: int
    reset: float  # seconds until the whole limit is there again
    let_through: bool

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that OpenAI's API has for it."""
        values = {"limit": str(self.limit), "remaining": str(self.remaining), "reset": f"{self.reset:.0f}s"}
        return [(f"x-ratelimit-{name}-{self.kind}".encode(), text.encode()) for name, text in values.items()]


def cost(body: CreateResponse) -> int:
    """Return the tokens that a job is charged."""
    characters = messages.characters(body.input) + len(body.instructions or "")
    return tokens(characters, body.max_output_tokens)


def tokens(characters: int, most: int | None, answers: int = 1) -> int:
    """Return what so many answers to so much text are charged, of `most` tokens each."""
    each = DEFAULT_OUTPUT_TOKENS if most is None else most
    return math.ceil(characters / CHARACTERS_PER_TOKEN) + answers * each


class RateLimits:
    """The counters of all keys. For the event loop's thread; it connects at the first limited request."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._pool = BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=CONNECTIONS,
            timeout=REDIS_SECONDS,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # a connection that died of a restart is replaced at once
        )
        shared = RedisStorage(
            "async+redis://",  # the pool knows where
            implementation="redispy",
            key_prefix="qwenq:limits",
            connection_pool=self._pool,  # type: ignore[arg-type]
        )
        self._shared = FixedWindowRateLimiter(shared)
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._away_until = 0.0

    async def charge(self, request: Request, caller: Caller, tokens: int) -> None:
        """Count a job of so many tokens; where the key stands becomes headers of the answer (`api.gate`).

        Raises:
            TooMany: the key has used up a limit. A refusal for its tokens has counted as a request all the same.
        """
        headers: list[tuple[bytes, bytes]] = []
        request.state.limit_headers = headers
        settings = self._settings
        limited: tuple[tuple[Kind, int | None, int, int], ...] = (
            ("requests", caller.requests_per_minute, settings.requests_per_minute, 1),
            ("tokens", caller.tokens_per_minute, settings.tokens_per_minute, tokens),
        )
        for kind, own, default, amount in limited:
            limit = default if own is None else own
            if limit == 0:
                continue
            standing = await self._count(kind, limit, caller.key_id, amount)
            headers += standing.headers
            if not standing.let_through:
                raise _refusal(standing, amount)

    async def close(self) -> None:
        """Give the connections back."""
        await self._pool.disconnect()

    async def _count(self, kind: Kind, limit: int, key_id: str, amount: int) -> Standing:
        if time.monotonic() >= self._away_until:
            try:
                return await _count(self._shared, kind, limit, key_id, amount)
            except (RedisError, OSError) as trouble:
                self._away_until = time.monotonic() + AWAY_SECONDS
                log.warning("redis unreachable, limits are counted by this process alone", cause=str(trouble))
        return await _count(self._own, kind, limit, key_id, amount)


async def _count(
    limiter: FixedWindowRateLimiter, kind: Kind, limit: int, key_id: str, amount: int
) -> Standing:
    item = RateLimitItemPerMinute(limit, namespace=kind)
    # A hit counts although it is refused: without the test, one that is too large would use up the window.
    let_through = await limiter.test(item, key_id, cost=amount)
    let_through = let_through and await limiter.hit(item, key_id, cost=amount)
    window = await limiter.get_window_stats(item, key_id)
    return Standing(kind, limit, window.remaining, max(0.0, window.reset_time - time.time()), let_through)


def _refusal(standing: Standing, amount: int) -> TooMany:
    if amount > standing.limit:
        return TooMany(
            f"Request too large: it counts as {amount} tokens, and this key has {standing.limit} a minute. "
            "Send less text or set a smaller 'max_output_tokens'.",
            retry_after=None,
        )
    seconds = max(1, math.ceil(standing.reset))
    return TooMany(
        f"Rate limit reached for {standing.kind} per minute: limit {standing.limit}, "
        f"remaining {standing.remaining}, requested {amount}. Try again in {seconds} s.",
        retry_after=seconds,
    )
