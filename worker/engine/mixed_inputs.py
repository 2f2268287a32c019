"""What a step with pieces of prompts reads, at addresses that do not change: as `static_inputs`, a column a row.

Such a step has rows of answers, one a sequence, and rows of prompts, several. All its numbers lie side by side behind
those of the sampler, so that one copy takes them to the device, and steps of all shapes lie in the same memory.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from worker.engine.gpu.prompts import Tile, tile_for
from worker.engine.gpu.tiles import FIELDS, most_items
from worker.engine.static_inputs import Reads, StaticInputs


class Shape(NamedTuple):
    """Of a step: at most so many rows of so many sequences. `whole`: all of one prompt, from its beginning."""

    rows: int
    sequences: int
    whole: bool

    @property
    def tile(self) -> Tile:
        return tile_for(self.rows)

    @property
    def items(self) -> int:
        return most_items(self.rows, self.sequences, self.tile.rows, self.tile.spare)

    @property
    def numbers(self) -> int:
        return self.rows * 5 + self.sequences + self.items * FIELDS


class Columns(NamedTuple):
    """The host's side of a step, int32. See `MixedInputs`."""

    items: np.ndarray
    given: np.ndarray
    sources: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    slots: np.ndarray
    chosen: np.ndarray


class Parts(NamedTuple):
    """The same as tensors, in one piece of memory."""

    items: Tensor
    given: Tensor
    sources: Tensor
    positions: Tensor
    places: Tensor
    slots: Tensor
    chosen: Tensor

    @classmethod
    def of(cls, numbers: Tensor, shape: Shape) -> "Parts":
        """Items first: each is read as 32 bytes."""
        items = shape.items * FIELDS
        end = items + 5 * shape.rows
        given, sources, positions, places, slots = numbers[items:end].view(5, shape.rows)
        chosen = numbers[end : shape.numbers]
        return cls(numbers[:items].view(-1, FIELDS), given, sources, positions, places, slots, chosen)


class MixedInputs:
    """Of steps of one shape, int32.

    reads   what each row reads, as `static_inputs` has it; its place is among those whose next token is chosen, or -1;
    slots   `[rows]`, where the keys and values of a row are kept;
    chosen  `[sequences]`, the rows after which a next token is chosen;
    items   as `worker.engine.gpu.prompts` has them.
    """

    def __init__(self, shape: Shape, inputs: StaticInputs) -> None:
        """In the numbers of `inputs`."""
        parts = Parts.of(inputs.numbers, shape)
        self.items, self.slots, self.chosen = parts.items, parts.slots, parts.chosen
        self.reads = Reads(parts.given, parts.sources, parts.positions, parts.places)
        self.host = Columns(*(part.numpy() for part in Parts.of(inputs.host_numbers, shape)))

    def clear(self, rows: int, sequences: int, slot: int) -> None:
        """Nobody's rows from `rows` on, nor choices from `sequences` on: they write to `slot`."""
        host = self.host
        host.given[rows:] = host.positions[rows:] = 0
        host.sources[rows:] = host.places[rows:] = -1
        host.slots[rows:] = slot
        host.chosen[sequences:] = 0

    def divide(self, items: np.ndarray) -> None:
        """Let the attention have these."""
        self.host.items[: len(items)] = items
        self.host.items[len(items) :] = 0
