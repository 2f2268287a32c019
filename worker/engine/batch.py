"""The plan of a step as tensors: what the model and the attention read."""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.engine.scheduler import Work

# Of ids, rows and blocks: all that a plan is made of.
Integers = np.ndarray | Several[int]


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one sequence: `count` of them from row `row` on, for positions from `start` on.

    blocks  of the sequence, int64 on the model's device.
    first   the first of them where all lie side by side in the cache, else None.
    """

    row: int
    count: int
    start: int
    blocks: Tensor
    first: int | None

    @property
    def length(self) -> int:
        """Positions that the last row looks at."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one step, those of answers (one a sequence) before those of prompts. int64 `[rows]` each.

    answers  how many of the spans, the first ones, have one row.
    chosen   the rows after which a next token is chosen, int64 `[sequences that complete]`.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    spans: list[Span]
    answers: int
    chosen: Tensor


def build(plan: Several[Work], block_size: int, device: torch.device) -> Batch:
    """`plan` has works of one token first."""
    ids, positions, slots, spans, chosen = [], [], [], [], list[int]()
    row = 0
    for work in plan:
        end = work.start + work.count
        blocks = np.array(work.sequence.blocks[: -(-end // block_size)], dtype=np.int64)
        at = np.arange(work.start, end, dtype=np.int64)
        ids.append(np.array(work.sequence.ids[work.start : end], dtype=np.int64))
        positions.append(at)
        slots.append(blocks[at // block_size] * block_size + at % block_size)
        together = bool((np.diff(blocks) == 1).all())
        first = int(blocks[0]) if together else None
        spans.append(Span(row, work.count, work.start, on_device(blocks, device), first))
        row += work.count
        if work.completes:
            chosen.append(row - 1)
    return Batch(
        ids=on_device(np.concatenate(ids), device),
        positions=on_device(np.concatenate(positions), device),
        slots=on_device(np.concatenate(slots), device),
        spans=spans,
        answers=sum(work.count == 1 for work in plan),
        chosen=on_device(chosen, device),
    )


def on_device(values: Integers, device: torch.device) -> Tensor:
    """int64 on the device, without waiting for what is launched there."""
    on_host = torch.from_numpy(np.asarray(values, dtype=np.int64))
    if device.type != "cuda":
        return on_host.to(device)
    return on_host.pin_memory().to(device, non_blocking=True)
