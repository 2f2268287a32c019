"""Faults of the product's own processes: killed, frozen, drained, or dead at an unlucky place.

Nothing here starts a process again: the run does that a moment after a death, as an init system would.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from typing import Any

from tests.faults import clocks, deaths
from tests.faults.scene import NothingToHit, Scene
from tests.faults.stack import CHECKPOINT_SECONDS, Program

# Faults that need an answer which goes on for a while.
LONG = 100


async def kill_worker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for a worker in the middle of an answer."""
    job = await scene.busy(draw, left=LONG // 2, stored=1)
    scene.stack.signal(job.worker, signal.SIGKILL)
    return {"worker": job.worker, "response": job.id, "tokens": job.stored}


async def kill_twice(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for the worker of an answer, and for the next worker of the same answer."""
    job = await scene.busy(draw, left=LONG, stored=1)
    scene.stack.signal(job.worker, signal.SIGKILL)

    async def again() -> str | None:
        for running in await scene.running():
            if running.id == job.id and running.attempt > job.attempt:
                return running.worker
        return None

    second = await scene.until(f"the next attempt of {job.id}", again)
    scene.stack.signal(second, signal.SIGKILL)
    return {"workers": [job.worker, second], "response": job.id}


async def freeze_worker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGSTOP for a worker until another one has gone on with its answer or ended it, then SIGCONT.

    The worker wakes up with tokens in hand for a job that is not its own any more.
    """
    job = await scene.busy(draw, left=LONG, stored=1)
    with_engine = draw.random() < 0.5
    scene.stack.signal(job.worker, signal.SIGSTOP, group=with_engine)

    async def taken_over() -> bool:
        known = await scene.job(job.id)
        if known is None:
            return False
        status, attempt = known
        return status not in ("queued", "in_progress") or (
            attempt > job.attempt and await _has_stored(scene, job.id, attempt)
        )

    try:
        await scene.until(f"another worker's tokens of {job.id}", taken_over)
        if draw.random() < 0.5:  # or only when it is over
            await scene.until(f"the end of {job.id}", lambda: _ended(scene, job.id))
    finally:
        scene.stack.signal(job.worker, signal.SIGCONT, group=True)
    # It has time to do harm.
    await asyncio.sleep(3 * CHECKPOINT_SECONDS)
    return {"worker": job.worker, "response": job.id, "with_engine": with_engine}


async def _has_stored(scene: Scene, response_id: str, attempt: int) -> bool:
    from sqlalchemy import func, select

    from storage.models import OutputChunk

    stored = await scene.ask(
        lambda session: session.scalar(
            select(func.count(OutputChunk.first_index)).where(
                OutputChunk.response_id == response_id, OutputChunk.attempt == attempt
            )
        )
    )
    return (stored or 0) >= 2  # the first only moves what the live tail had


async def _ended(scene: Scene, response_id: str) -> bool:
    known = await scene.job(response_id)
    return known is not None and known[0] not in ("queued", "in_progress")


async def drain_worker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGTERM for a worker with long answers: what it cannot end within its grace time goes back to the queue."""
    job = await scene.busy(draw, left=LONG)
    scene.stack.signal(job.worker, signal.SIGTERM)
    try:
        status = await asyncio.to_thread(scene.stack.wait, job.worker, 30)
    except subprocess.TimeoutExpired:
        scene.stack.signal(job.worker, signal.SIGKILL, group=True)
        status = None
    return {"worker": job.worker, "response": job.id, "status": status}


async def kill_engine(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for an engine process; its worker lives."""
    job = await scene.busy(draw, left=LONG // 2)
    engine = scene.stack.engine_of(job.worker)
    if engine is None:
        raise NothingToHit("the worker has no engine")
    engine.kill()
    return {"worker": job.worker, "response": job.id}


async def flush_and_kill(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for a worker far into an answer, and Redis forgets the live tail: only the checkpoint is left."""
    async with scene.broker_away:
        job = await scene.busy(draw, left=10, stored=LONG)
        scene.stack.signal(job.worker, signal.SIGKILL)
        await asyncio.to_thread(scene.broker.flush)
    return {"worker": job.worker, "response": job.id, "tokens": job.stored}


async def worker_dies_after_end(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """A worker dies right after it has committed an answer's end, before anybody was told of it."""
    return await _die(scene, deaths.WORKER_AFTER_END)


async def api_dies_before_publish(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """The API dies between the commit of a job and its publication."""
    return await _die(scene, deaths.API_BEFORE_PUBLISH)


async def api_dies_after_publish(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """The API dies between the publication of a job and the caller's answer."""
    return await _die(scene, deaths.API_AFTER_PUBLISH)


async def webhooks_die_after_send(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """The webhook worker dies between a receiver's answer and its record."""
    return await _die(scene, deaths.WEBHOOKS_AFTER_SEND)


async def _die(scene: Scene, name: str) -> dict[str, Any]:
    order = deaths.arm(scene.stack.deaths, name)

    async def died() -> bool:
        return not order.exists()

    try:
        await scene.until(f"a process to come to {name}", died, 60)
    finally:
        order.unlink(missing_ok=True)
    return {"place": name}


async def set_clock(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """The clock of a worker with running answers jumps, by up to two days to either side; of beat's too."""
    job = await scene.busy(draw, left=LONG // 2)
    jumps = {name: draw.choice((-1, 1)) * draw.uniform(60, 2 * 86400) for name in (job.worker, "beat")}
    for name, seconds in jumps.items():
        clocks.set_clock(scene.stack.deaths, name, seconds)
    return {"seconds": jumps, "response": job.id}


async def rolling_deploy(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """Every program gets SIGTERM, one after the other, each when the one before it is back at work."""
    for program in scene.stack.programs.values():

        async def at_work(program: Program = program) -> bool:
            return program.ready if program.role == "generate" else program.alive

        await scene.until(f"{program.name} at work", at_work, 60)
        scene.stack.signal(program.name, signal.SIGTERM)
        try:
            await asyncio.to_thread(scene.stack.wait, program.name, 30)
        except subprocess.TimeoutExpired:
            scene.stack.signal(program.name, signal.SIGKILL, group=True)
        await scene.until(f"{program.name} back", at_work, 60)
    return {}


async def kill_api(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for the API."""
    scene.stack.signal("api", signal.SIGKILL)
    return {}


async def restart_api(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGTERM for the API: open streams are ended by it, their readers resume."""
    scene.stack.signal("api", signal.SIGTERM)
    try:
        status = await asyncio.to_thread(scene.stack.wait, "api", 30)
    except subprocess.TimeoutExpired:
        scene.stack.signal("api", signal.SIGKILL)
        status = None
    return {"status": status}


async def kill_webhooks(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for the webhook worker, which sweeps too."""
    scene.stack.signal("webhooks", signal.SIGKILL)
    return {}


async def kill_beat(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """SIGKILL for beat."""
    scene.stack.signal("beat", signal.SIGKILL)
    return {}
