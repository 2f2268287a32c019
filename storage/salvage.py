"""Saves what a lost attempt has told of its answer: its checkpoint may be a second older than its live tail.

A reader has seen the live tail. Stored, it stays part of the answer whatever becomes of the job: a next attempt, a
cancellation, a failure.
"""

from __future__ import annotations

import structlog
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.orm import Session

from storage import leases, stream
from storage.models import Response

log = structlog.get_logger(__name__)


class Salvage:
    """Called for each lost attempt of a sweep; after the first failure of Redis it gives up on the rest of it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reachable = True

    def __call__(self, session: Session, response: Response) -> None:
        """Seal the attempt's live tail and store what SQL lacks of it. The caller has locked the response's row."""
        if not self._reachable or not response.request.get("followed", True):
            return  # the latter has no live tail
        try:
            live = stream.seal(self._redis, response.id, response.attempt).chunk
        except RedisError as trouble:
            self._reachable = False
            log.warning("redis unreachable, lost attempts keep their last checkpoint", cause=str(trouble))
            return
        stored = leases.output(session, response.id)
        whole = stream.join(stored, live)
        if whole.end > stored.end:
            leases.add_chunk(session, response.id, response.attempt, whole.since(stored.end))
