"""Many rows in two halves, each on a stream of its own: while one attends, the other multiplies.

Attention waits for memory and hardly multiplies; the products of a layer need the memory bus for a sixth of their time.
One after the other, each leaves the other's part of the GPU idle. Weights are read twice, which costs less.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.model.gpu import wgmma
from worker.model.gpu.decoder import GpuQwenModel
from worker.model.gpu.rows import Int4Rows

# What a layer's attention makes of the queries, keys and values of some rows: `Attend` with the rows that they are.
AttendSome = Callable[[int, Tensor, slice], Tensor]


class Halves:
    """Of a model that has `beside`. Attention has to be one whose launches may run side by side."""

    def __init__(self, model: GpuQwenModel, kernels: Int4Rows) -> None:
        self._model, self._kernels = model, kernels
        self._side = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    @staticmethod
    def serves(rows: int) -> bool:
        """Whether so many rows are faster in halves."""
        return rows % 2 == 0 and rows // 2 in wgmma.BESIDE

    def __call__(self, ids: Tensor, attend: AttendSome) -> Tensor:
        """As `QwenModel.hidden`, for a number of rows that is served."""
        main, middle = torch.cuda.current_stream(self._model.device), len(ids) // 2
        self._side.wait_stream(main)
        first = self._half(ids, attend, slice(0, middle))
        with torch.cuda.stream(self._side):
            second = self._half(ids, attend, slice(middle, len(ids)))
        main.wait_stream(self._side)
        return torch.cat([first, second])

    def _half(self, ids: Tensor, attend: AttendSome, some: slice) -> Tensor:
        return self._model.on_tensor_cores(
            self._kernels, ids[some], lambda layer, qkv: attend(layer, qkv, some)
        )
