"""What changes from step to step, at addresses that do not: a graph reads its inputs where it was captured.

The host writes into pinned memory and one copy takes all to the device, without waiting for it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Host(NamedTuple):
    """The host's side, as arrays: one column a row of the step. See `StaticInputs`."""

    given: np.ndarray
    sources: np.ndarray
    positions: np.ndarray
    keys: np.ndarray
    ints: np.ndarray
    floats: np.ndarray
    tables: np.ndarray


class Reads(NamedTuple):
    """What the rows of a step read, int64 or int32 `[rows]`.

    given      the id, where `sources` is -1;
    sources    else which of the step before's tokens it is;
    positions  of the row in its sequence;
    places     of the token that is chosen after the row, -1 where none is. None: each row has its own.
    """

    given: Tensor
    sources: Tensor
    positions: Tensor
    places: Tensor | None


class StaticInputs:
    """Of up to `capacity` rows.

    given, sources, positions   int64, see `Reads`;
    keys, ints, floats   what `worker.engine.gpu.sampler` reads;
    tables     int32 `[capacity, width]`, the blocks of the row's sequence;
    numbers    int32, as many as are asked for: for what else a step reads. `host_numbers` is their host's side.
    """

    def __init__(self, capacity: int, width: int, device: torch.device, *, numbers: int = 0) -> None:
        self.capacity, self.device = capacity, device
        self._pinned = device.type == "cuda"
        self._first = -(-14 * capacity // 32) * 32  # of the numbers, which are read 16 bytes at a time
        self._host = torch.zeros(self._first + numbers, dtype=torch.int32, pin_memory=self._pinned)
        self._host_tables = torch.zeros(capacity, width, dtype=torch.int32, pin_memory=self._pinned)
        self._there = self._host.to(device, copy=True)
        self.tables = self._host_tables.to(device, copy=True)
        self.numbers, self.host_numbers = self._there[self._first :], self._host[self._first :]
        self._copied = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]
        self.given, self.sources, self.positions, self.keys, self.ints, self.floats = _parts(
            self._there, capacity
        )
        arrays = [part.numpy() for part in (*_parts(self._host, capacity), self._host_tables)]
        self.host = Host._make(arrays)

    def ready(self) -> None:
        """Wait until the host's side may be written again: at most for the end of the step before the last."""
        if self._copied is not None:
            self._copied.synchronize()

    def upload(self, rows: int, *, tables: bool, numbers: int = 0) -> None:
        """Take the host's side to the device, behind what is launched already; of `tables` the first `rows`.

        All but the tables is one copy: each costs as much as a kernel.
        """
        self._there[: self._first + numbers].copy_(self._host[: self._first + numbers], non_blocking=True)
        if tables:
            self.tables[:rows].copy_(self._host_tables[:rows], non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def reads(self, rows: int) -> Reads:
        """Of the first rows."""
        return Reads(self.given[:rows], self.sources[:rows], self.positions[:rows], None)

    def send(self, values: Tensor, to: Tensor) -> None:
        """Copy something else from the host to the device, in the same order."""
        to.copy_(values.pin_memory() if self._pinned else values, non_blocking=True)


def _parts(numbers: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    words = numbers[: 14 * capacity].view(torch.int64).view(7, capacity)
    ints, floats = words[4].view(torch.int32), words[5:].view(torch.float32)
    return (
        words[0],
        words[1],
        words[2],
        words[3],
        ints.view(2, capacity),
        floats.reshape(-1).view(4, capacity),
    )
