"""Many rows in two halves, each on a stream of its own: while one attends, the other multiplies.

Attention waits for memory and hardly multiplies; the products of a layer need the memory bus for a sixth of their time.
One after the other, each leaves the other's part of the GPU idle. Weights are read twice, which costs less.
"""

import logging
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from worker.model.gpu import cuda, wgmma
from worker.model.gpu.decoder import GpuQwenModel
from worker.model.gpu.rows import Int4Rows

# What a layer's attention makes of the queries, keys and values of some rows: `Attend` with the rows that they are.
AttendSome = Callable[[int, Tensor, slice], Tensor]

logger = logging.getLogger(__name__)


class Halves:
    """Attention has to be one whose launches may run side by side."""

    def __init__(self, model: GpuQwenModel, kernels: Int4Rows) -> None:
        self._model, self._kernels = model, kernels
        self._side = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    @classmethod
    def compiled(cls, model: GpuQwenModel, max_running: int) -> Self | None:
        """None where the most rows of a step are too few, or there are no kernels for it: then the log says why."""
        if max_running <= min(wgmma.BESIDE) or model.rows is None:
            return None
        layer, capability = model.layers[0].roles, torch.cuda.get_device_capability(model.device)
        reason = "there are no kernels for it here"
        if capability == wgmma.CAPABILITY and wgmma.fits(layer, wgmma.BESIDE):
            try:
                return cls(model, Int4Rows(layer, wgmma.BESIDE, first=True))
            except (cuda.CompileError, RuntimeError) as error:
                reason = str(error)
        logger.info("steps of many rows are not computed in halves: %s", reason)
        return None

    @staticmethod
    def serves(rows: int) -> bool:
        """Whether a step for up to so many rows is computed in halves."""
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
