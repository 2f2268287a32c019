"""Faults of those who receive webhooks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tests.faults.receivers import MODES
from tests.faults.scene import Scene

SECONDS = (3.0, 8.0)


async def receivers_fail(scene: Scene, draw: random.Random) -> dict[str, Any]:
    """Each receiver answers 500, hangs or cuts connections for some seconds."""
    modes = {name: draw.choice(MODES) for name in sorted(scene.receivers.modes)}
    scene.receivers.modes.update(modes)
    await asyncio.sleep(draw.uniform(*SECONDS))
    scene.receivers.heal()
    return {"modes": modes}
