"""The deterministic setting: every row of a linear layer gives the same bits whatever rows are beside it.

A matrix product sums in an order that depends on its shape, so a row computed with three others may differ in its
last bit from the same row computed with none. Here every call has the same shape: rows go in tiles of a fixed size,
the last of them filled up. Whether a kernel treats the places of a tile alike is tried on each kind of layer; where
one does not, rows go one by one.

Norms and element-wise operations work row by row as they are; attention has its own backend, the sampler is called
row by row.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.gpu.decoder import GpuQwenModel
from worker.model.linear import Linear
from worker.model.qwen import Block, QwenModel

TILE = 8  # on a CPU about three times the time of one row


@dataclass(frozen=True, slots=True)
class Tiled:
    """A linear layer in calls of `tile` rows."""

    linear: Linear
    tile: int

    def __call__(self, x: Tensor, /) -> Tensor:
        missing = -len(x) % self.tile
        padded = F.pad(x, (0, 0, 0, missing)) if missing else x
        return torch.cat([self.linear(rows) for rows in torch.split(padded, self.tile)])[: len(x)]


def batch_invariant(model: QwenModel) -> QwenModel:
    """The same weights, computed so."""
    if isinstance(model, GpuQwenModel):
        model = model.unfused()
    hidden, mlp = model.config.hidden_size, model.config.mlp_size
    inputs = {"c_attn": hidden, "attn_c_proj": hidden, "w1": hidden, "w2": hidden, "mlp_c_proj": mlp}

    def tiled(linear: Linear, width: int, dtype: torch.dtype) -> Tiled:
        return Tiled(linear, TILE if _places_are_alike(linear, width, dtype, model.device) else 1)

    def invariant(block: Block) -> Block:
        changes: dict[str, Any] = {
            name: tiled(getattr(block, name), width, model.dtype) for name, width in inputs.items()
        }
        return dataclasses.replace(block, **changes)

    blocks = [invariant(block) for block in model.blocks]
    return dataclasses.replace(model, blocks=blocks, lm_head=tiled(model.lm_head, hidden, model.head_dtype))


@torch.inference_mode()
def _places_are_alike(linear: Linear, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether one row gives the same bits in every place of a tile, beside other rows each time."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * TILE, width, generator=draw).to(device, dtype)
    results = []
    for place in range(TILE):
        tile = rows[place + 1 : place + 1 + TILE].clone()
        tile[place] = rows[0]
        results.append(linear(tile)[place])
    return all(torch.equal(result, results[0]) for result in results)
