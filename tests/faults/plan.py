"""Which faults a run has, in which order and with which pauses: all of it drawn from the seed.

Two lanes run side by side, so that faults of one meet faults of the other. Each lane first has everything that it
must have, in an order drawn from the seed, then goes on at random until the load is over.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.faults import fault_broker, fault_database, fault_processes, fault_receivers
from tests.faults.scene import Scene

Fault = Callable[[Scene, random.Random], Awaitable[dict[str, Any]]]
Lane = Literal["workers", "surroundings"]

# The first of each lane are those without which a missing protection could go unseen (`tests.faults.sabotage`), and
# what a short run has.
MUST: dict[Lane, tuple[Fault, ...]] = {
    "workers": (
        fault_processes.kill_worker,
        fault_processes.freeze_worker,
        fault_processes.flush_and_kill,
        fault_processes.worker_dies_after_end,
        fault_processes.drain_worker,
        fault_processes.set_clock,
    ),
    "surroundings": (
        fault_broker.flush_broker,
        fault_broker.stop_broker,
        fault_database.restart_database,
        fault_processes.api_dies_before_publish,
        fault_broker.duplicate_messages,
        fault_receivers.receivers_fail,
    ),
}
ALSO: dict[Lane, tuple[Fault, ...]] = {
    "workers": (fault_processes.kill_twice, fault_processes.kill_engine, fault_processes.rolling_deploy),
    "surroundings": (
        fault_broker.restart_broker,
        fault_processes.api_dies_after_publish,
        fault_processes.kill_api,
        fault_processes.restart_api,
        fault_processes.kill_webhooks,
        fault_processes.webhooks_die_after_send,
        fault_processes.kill_beat,
    ),
}
# Seconds between the end of a fault and the beginning of the next one of its lane.
PAUSE = {True: (0.5, 2.0), False: (1.0, 6.0)}


@dataclass(frozen=True)
class Step:
    """One fault: how long to wait before it, and the randomness that is its own."""

    lane: Lane
    number: int
    pause: float
    fault: Fault
    draw: random.Random
    must: bool

    @property
    def name(self) -> str:
        return str(self.fault.__name__)


def steps(seed: int, lane: Lane, *, short: bool) -> Iterator[Step]:
    """Draw the faults of a lane, without end."""
    draw = random.Random(f"{seed}/{lane}")
    must = list(MUST[lane]) if short else [*MUST[lane], *ALSO[lane]]
    draw.shuffle(must)
    every = (*MUST[lane], *ALSO[lane])
    number = 0
    while True:
        fault = must[number] if number < len(must) else draw.choice(every)
        yield Step(
            lane=lane,
            number=number,
            pause=draw.uniform(*PAUSE[short]),
            fault=fault,
            draw=random.Random(f"{seed}/{lane}/{number}"),
            must=number < len(must),
        )
        number += 1
