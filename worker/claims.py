"""Which job a worker runs next, and how many at a time: a knock has a thread run jobs until none is left."""

from __future__ import annotations

import contextlib
import time

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from storage import homes, leases, queue
from storage.models import Response
from worker import generation
from worker.runtime import Runtime

log = structlog.get_logger(__name__)


def run_all(runtime: Runtime) -> None:
    """Run jobs until there is none left to claim or the worker must go. Trouble is logged, never raised."""
    try:
        while not runtime.draining:
            if run_next(runtime):
                if not _any_waits(runtime):
                    return
            elif not _waited_for_home(runtime):
                return
    except SQLAlchemyError as trouble:
        log.error("database unreachable, nothing claimed", cause=str(trouble))


def run_next(runtime: Runtime) -> bool:
    """Claim the best job there is and run it to an end of its attempt.

    Returns:
        False when there was nothing to claim.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away; a claimed job's lease runs out and is swept.
    """
    generator = runtime.generator
    if generator is None:
        raise RuntimeError("a `generate` message reached a worker without an engine")
    with runtime.claiming:
        if runtime.busy >= runtime.settings.concurrency:
            return False  # whoever runs here now looks for the next job when his is done
        claimed = _claim(runtime)
        runtime.busy += claimed is not None
    if claimed is None:
        return False
    response, deadline = claimed
    try:
        with structlog.contextvars.bound_contextvars(response_id=response.id, attempt=response.attempt):
            generation.run(generation.Attempt(runtime, generator, response, deadline))
    finally:
        with runtime.claiming:
            runtime.busy -= 1
    return True


def _any_waits(runtime: Runtime) -> bool:
    """Look without the write lock that a claim takes: after most jobs of callers that wait there is nothing."""
    with runtime.database.read() as session:
        return queue.any_waits(session)


def _waited_for_home(runtime: Runtime) -> bool:
    """Call the worker that a waiting job is reserved for, and give it time; False where nothing is reserved."""
    with runtime.database.read() as session:
        found = homes.reserved(session, runtime.name)
    if found is None:
        return False
    with contextlib.suppress(RedisError):
        if homes.call(runtime.redis, found.home):
            time.sleep(max(found.seconds, 0.0))  # a moment: `homes.FRESH_SECONDS` at most
            return True
    with runtime.database.begin() as session:
        homes.forget(session, found.home)
    return True


def _claim(runtime: Runtime) -> tuple[Response, float] | None:
    settings = runtime.settings
    with runtime.database.begin() as session:
        response = leases.claim(session, runtime.name, settings.lease_seconds, settings.max_attempts)
        if response is None:
            return None
        # The engine's clock is not the database's: what crosses over is a time that is left. It is counted by a clock
        # that nobody can set.
        first = response.attempt == 1  # its time begins with this claim
        left = response.max_run_seconds if first else leases.seconds_left(session, response)
        return response, time.monotonic() + left
