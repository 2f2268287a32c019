"""Which job a worker runs next, and how many at a time: a knock has a thread run jobs until none is left."""

from __future__ import annotations

import contextlib
import time

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from storage import homes, leases, queue
from worker import generation
from worker.runtime import Claimed, Runtime

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
    claimed = _next(runtime)
    if claimed is None:
        return False
    response, deadline = claimed
    try:
        with structlog.contextvars.bound_contextvars(response_id=response.id, attempt=response.attempt):
            generation.run(generation.Attempt(runtime, generator, response, deadline))
    finally:
        with runtime.counting:
            runtime.busy -= 1
    return True


def _next(runtime: Runtime) -> Claimed | None:
    """Return a job for the thread that calls, claimed by whichever thread came first for all that wait behind it."""
    with runtime.counting:
        runtime.looking += 1
    with runtime.claiming:
        try:
            if not runtime.claimed and not runtime.draining:
                # Where all slots are taken, whoever runs a job looks for the next one when his is done.
                found = _claim(runtime, min(runtime.looking, runtime.settings.concurrency - runtime.busy))
                with runtime.counting:
                    runtime.busy += len(found)
                runtime.claimed.extend(found)
            return runtime.claimed.popleft() if runtime.claimed else None
        finally:
            # Under both locks: nothing is claimed for a thread that has what it came for.
            with runtime.counting:
                runtime.looking -= 1


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


def _claim(runtime: Runtime, most: int) -> list[Claimed]:
    settings, found = runtime.settings, list[Claimed]()
    if most <= 0:
        return found
    with runtime.database.begin() as session:
        while len(found) < most:
            response = leases.claim(session, runtime.name, settings.lease_seconds, settings.max_attempts)
            if response is None:
                break
            # The engine's clock is not the database's: what crosses over is a time that is left. It is counted by a
            # clock that nobody can set.
            first = response.attempt == 1  # its time begins with this claim
            left = response.max_run_seconds if first else leases.seconds_left(session, response)
            found.append((response, time.monotonic() + left))
    return found
