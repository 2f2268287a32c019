"""Faults of PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any

from tests.faults.scene import Scene


async def restart_database(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """It is stopped, every connection cut, or crashes; and is started again at once."""
    how = draw.choice((signal.SIGINT, signal.SIGQUIT))
    async with scene.broker_away:
        await asyncio.to_thread(scene.postgres.stop, how)
        await asyncio.to_thread(scene.postgres.start)
    return {"signal": how.name}
