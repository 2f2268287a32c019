"""Who calls: the `Authorization: Bearer` key, looked up in SQL and remembered for a few seconds.

The memory saves most requests a query. A revoked key works on for at most its length; wrong keys are not
remembered, so that nobody can push the right ones out by guessing.
"""

from __future__ import annotations

import hashlib
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from api.errors import InvalidKey
from storage import keys
from storage.database import Database
from storage.keys import Caller

REMEMBER_SECONDS = 5.0
REMEMBER_KEYS = 1024


class KeyCache:
    """Whose the keys seen lately are. For the event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[bytes, tuple[Caller, float]] = {}

    async def caller_of(self, secret: str) -> Caller | None:
        """Return whose key this is and what it may, or None."""
        digest = hashlib.sha256(secret.encode()).digest()
        caller, until = self._known.get(digest, (None, 0.0))
        if caller is not None and time.monotonic() < until:
            return caller
        caller = await run_in_threadpool(self._look_up, secret)
        self._known.pop(digest, None)
        if caller is not None:
            if len(self._known) >= REMEMBER_KEYS:
                del self._known[next(iter(self._known))]  # the one remembered first
            self._known[digest] = (caller, time.monotonic() + REMEMBER_SECONDS)
        return caller

    def _look_up(self, secret: str) -> Caller | None:
        with self._database.read() as session:
            return keys.caller_of(session, secret)


async def authenticate(connection: HTTPConnection, known: KeyCache) -> Caller:
    """Return who calls.

    Raises:
        InvalidKey: there is no key, or it is not one of ours.
    """
    scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise InvalidKey("You did not provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    caller = await known.caller_of(secret)
    if caller is None:
        raise InvalidKey("Incorrect API key provided. It may have been revoked.")
    return caller
