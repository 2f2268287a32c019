"""The product's engine process at the pace of a large model: ``python -m tests.faults.slow_engine FD``.

A tiny model ends its answers before a fault could hit them. Here every running request gets a token each
`QWENQ_FAULTS_PACE` seconds, however the engine shares its steps among requests; nothing else is changed.
"""

from __future__ import annotations

import os
import time

from tests.faults import clocks

clocks.install()  # the clock of a machine is set for all its processes

from worker.engine import core, process  # noqa: E402
from worker.engine.request import Event, Failed, Finished, GenerationRequest, Tokens  # noqa: E402

PACE = float(os.environ.get("QWENQ_FAULTS_PACE", "0"))


def slow_down(pace: float) -> None:
    """Make `EngineCore.step` wait after the tokens that it brings; `pace` is seconds a token of one request."""
    submit, step = core.EngineCore.submit, core.EngineCore.step
    running: set[str] = set()

    def slow_submit(self: core.EngineCore, request: GenerationRequest) -> None:
        running.add(request.request_id)
        submit(self, request)

    def slow_step(self: core.EngineCore) -> list[Event]:
        events = step(self)
        told = {event.request_id for event in events if isinstance(event, Tokens)}
        if running:
            time.sleep(pace * len(told) / len(running))
        running.difference_update(
            event.request_id for event in events if isinstance(event, Finished | Failed)
        )
        return events

    core.EngineCore.submit, core.EngineCore.step = slow_submit, slow_step  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(PACE)
    process.main()
