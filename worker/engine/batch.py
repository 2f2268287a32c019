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
    ids, positions, slots, blocks, chosen = [], [], [], [], list[int]()
    row = 0
    for work in plan:
        end = work.start + work.count
        mine = np.array(work.sequence.blocks[: -(-end // block_size)], dtype=np.int64)
        at = np.arange(work.start, end, dtype=np.int64)
        ids.append(np.array(work.sequence.ids[work.start : end], dtype=np.int64))
        positions.append(at)
        slots.append(mine[at // block_size] * block_size + at % block_size)
        blocks.append(mine)
        row += work.count
        if work.completes:
            chosen.append(row - 1)
    # All in one copy: each costs as much as a kernel.
    numbers = on_device(
        np.concatenate([*ids, *positions, *slots, np.array(chosen, np.int64), *blocks]), device
    )
    behind = numbers[3 * row + len(chosen) :]
    spans, at_row, at_block = list[Span](), 0, 0
    for work, mine in zip(plan, blocks, strict=True):
        side_by_side = bool((np.diff(mine) == 1).all())
        there = behind[at_block : at_block + len(mine)]
        spans.append(Span(at_row, work.count, work.start, there, int(mine[0]) if side_by_side else None))
        at_row, at_block = at_row + work.count, at_block + len(mine)
    return Batch(
        ids=numbers[:row],
        positions=numbers[row : 2 * row],
        slots=numbers[2 * row : 3 * row],
        spans=spans,
        answers=sum(work.count == 1 for work in plan),
        chosen=numbers[3 * row : 3 * row + len(chosen)],
    )


def on_device(values: Integers, device: torch.device) -> Tensor:
    """On the device, without waiting for what is launched there: arrays as they are, all else as int64."""
    on_host = torch.from_numpy(values if isinstance(values, np.ndarray) else np.asarray(values, np.int64))
    if device.type != "cuda":
        return on_host.to(device)
    return on_host.pin_memory().to(device, non_blocking=True)
