"""Faults of Redis: it forgets, goes away and comes back, and says things twice."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

from sqlalchemy import select

from storage import broker
from storage.models import Response, WebhookDelivery
from tests.faults.scene import Scene


async def flush_broker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """Everything in it is gone: knocks, queues, live tails."""
    async with scene.broker_away:
        await asyncio.to_thread(scene.broker.flush)
    return {}


async def restart_broker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """It is killed and started at once; its append-only file may lack the last second."""
    async with scene.broker_away:
        await asyncio.to_thread(scene.broker.stop, signal.SIGKILL)
        scene.broker.start()
    return {}


async def stop_broker(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """It is away for 20 seconds (6 in a short run)."""
    seconds = 6.0 if scene.short else 20.0
    async with scene.broker_away:
        await asyncio.to_thread(scene.broker.stop, signal.SIGTERM)
        try:
            await asyncio.sleep(seconds)
        finally:
            scene.broker.start()
    return {"seconds": seconds}


async def duplicate_messages(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """Knocks of jobs and deliveries that wait, run or ended long ago are sent again, several times each."""
    subjects: list[tuple[str, str]] = []
    for queue, table in (("generate", Response), ("webhooks", WebhookDelivery)):
        newest = select(table.id).order_by(table.created_at.desc()).limit(40)
        known = await scene.ask(lambda session, query=newest: list(session.scalars(query)))  # type: ignore[misc]
        subjects += [(queue, subject) for subject in known or []]
    draw.shuffle(subjects)

    def send() -> None:
        app = broker.make_app(scene.broker.url)
        with app.connection_for_write() as connection:
            for queue, subject in subjects[:30]:
                for _ in range(draw.randint(2, 4)):
                    app.send_task(broker.TASKS[queue], args=[subject], queue=queue, connection=connection)
        app.close()

    async with scene.broker_away:
        await asyncio.to_thread(send)
    return {"subjects": len(subjects[:30])}
