"""The products of a layer for few rows on tensor cores: `int4_rows.cu`, compiled for the layers of a model.

For GPUs of compute capability 9 and 10. Where it cannot serve, `worker.model.gpu.linear.GpuLinear.few` does.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worker.model.gpu import cuda, support
from worker.model.gpu.linear import GpuLinear

MOST = 32  # rows; from there on cuBLAS on a copy in 16 bits is as fast
GROUP = 128
SOURCE = Path(__file__).with_name("int4_rows.cu")

Role = Literal["c_attn", "attn_c_proj", "gate_up", "mlp_c_proj"]
_NORMED = ("c_attn", "gate_up")
_END = {"c_attn": 0, "attn_c_proj": 2, "gate_up": 1, "mlp_c_proj": 2}  # as in the source

logger = logging.getLogger(__name__)


class Tile(NamedTuple):
    """How a product is cut: see the source's template. `ahead` at most."""

    tiles: int
    warps: int
    ahead: int
    cluster: int


# By the most rows: the fastest of those that were tried on an H200 with Qwen-1.8B's shapes (docs/benchmarks.md).
TILES: dict[int, dict[Role, Tile]] = {
    4: {
        "c_attn": Tile(2, 16, 1, 1),
        "attn_c_proj": Tile(1, 16, 1, 1),
        "gate_up": Tile(2, 8, 1, 1),
        "mlp_c_proj": Tile(1, 22, 2, 1),
    },
    8: {
        "c_attn": Tile(2, 16, 1, 1),
        "attn_c_proj": Tile(1, 16, 1, 1),
        "gate_up": Tile(2, 8, 1, 1),
        "mlp_c_proj": Tile(1, 22, 2, 1),
    },
    16: {
        "c_attn": Tile(3, 8, 1, 1),
        "attn_c_proj": Tile(1, 16, 1, 1),
        "gate_up": Tile(6, 8, 1, 1),
        "mlp_c_proj": Tile(1, 15, 3, 1),
    },
    24: {
        "c_attn": Tile(3, 16, 1, 1),
        "attn_c_proj": Tile(1, 16, 1, 1),
        "gate_up": Tile(3, 6, 1, 1),
        "mlp_c_proj": Tile(2, 11, 2, 2),
    },
    32: {
        "c_attn": Tile(3, 8, 1, 1),
        "attn_c_proj": Tile(1, 16, 1, 1),
        "gate_up": Tile(3, 6, 1, 1),
        "mlp_c_proj": Tile(2, 11, 2, 2),
    },
}


class Stream(NamedTuple):
    """The residual stream of some rows, and what the next product reads of it behind a norm.

    hidden   fp32 `[rows, width]`;
    scaled   fp16, a sixteenth of it times the norm's weights: so it overflows only from a million on;
    squares  fp32 `[rows, width / 16]`, sums of 16 squares of `hidden`.
    """

    hidden: Tensor
    scaled: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, rows: int, width: int, device: torch.device) -> "Stream":
        return cls(
            torch.empty(rows, width, device=device),
            torch.empty(rows, width, dtype=torch.float16, device=device),
            torch.empty(rows, width // 16, device=device),
        )


class Launch(NamedTuple):
    """A kernel and what of its launch does not change."""

    kernel: cuda.Kernel
    blocks: int
    threads: int
    shared: int
    cluster: int


class Int4Rows:
    """Launches for up to MOST rows of layers that have the same shapes. Raises `cuda.CompileError`."""

    def __init__(
        self, layer: dict[Role, GpuLinear], tilings: dict[int, dict[Role, Tile]] | None = None
    ) -> None:
        """`layer`: the products of any of them. `tilings`: others than TILES, to compare them."""
        self._tilings = tilings or TILES
        device = next(iter(layer.values())).words.device
        plans = {
            (most, role): (_name(most, role, tile, linear), tile)
            for most, tiles in self._tilings.items()
            for role, linear in layer.items()
            for tile in (tiles[role],)
        }
        names = sorted({name for name, _ in plans.values()})
        at_once = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(at_once) as pool:
            parts = pool.map(
                lambda first: cuda.load(SOURCE, names[first::at_once], device),
                range(min(at_once, len(names))),
            )
            kernels = dict(chain.from_iterable(part.items() for part in parts))
        self._launches = {
            (most, role): Launch(
                kernels[name],
                tile.cluster * -(-layer[role].out_features // (16 * tile.tiles)),
                32 * tile.warps,
                4 * _blocks_of_8(most) * (128 * tile.warps * tile.tiles + 8),
                tile.cluster,
            )
            for (most, role), (name, tile) in plans.items()
        }

    @staticmethod
    def why_not(layers: Sequence[dict[Role, GpuLinear]]) -> str | None:
        """Why these layers cannot be served; None when they can."""
        for linear in chain.from_iterable(layer.values() for layer in layers):
            if linear.group_size != GROUP or linear.in_features % GROUP or linear.out_features % 16:
                return (
                    f"needs groups of {GROUP} inputs and a multiple of 16 outputs, "
                    f"not {linear.in_features} in {linear.group_size}s to {linear.out_features}"
                )
            if not linear.words.is_contiguous():
                return "needs the rows of a packing side by side"
        return support.why_not_compiled(layers[0]["c_attn"].words.device)

    def normed(self, role: Role, linear: GpuLinear, stream: Stream, eps: float, out: Tensor) -> None:
        """c_attn and gate_up: out, fp16, is the product of the normed stream, or silu(gate) * up."""
        self._launch(role, linear, stream.scaled, stream.squares, eps, out, None, None)

    def add(self, role: Role, linear: GpuLinear, x: Tensor, stream: Stream, gamma: Tensor | None) -> None:
        """attn_c_proj and mlp_c_proj: add the product of x, fp16, to the stream. `gamma` (fp32): of the next norm."""
        self._launch(role, linear, x, stream.squares, 0.0, stream.hidden, gamma, stream.scaled)

    def _launch(
        self,
        role: Role,
        linear: GpuLinear,
        x: Tensor,
        squares: Tensor,
        eps: float,
        out: Tensor,
        gamma: Tensor | None,
        scaled: Tensor | None,
    ) -> None:
        rows = len(x)
        launch = self._launches[next(most for most in self._tilings if rows <= most), role]
        weights = (linear.words, linear.scales, linear.bias)
        sizes = (rows, linear.in_features, linear.out_features)
        launch.kernel(
            (launch.blocks, 1),
            launch.threads,
            (x, squares, eps, *weights, out, gamma, scaled, *sizes, 1),
            shared=launch.shared,
            cluster=launch.cluster,
            overlap=True,
        )


def _blocks_of_8(rows: int) -> int:
    return -(-rows // 8)


def _name(most: int, role: Role, tile: Tile, linear: GpuLinear) -> str:
    """The instance of the template. From 17 rows on there are too few registers for the accumulators of a group."""
    turns = -(-linear.in_features // (GROUP * tile.warps * tile.cluster))
    rounded, normed = (str(flag).lower() for flag in (most > 16, role in _NORMED))
    numbers = (_blocks_of_8(most), tile.tiles, tile.warps, turns, min(tile.ahead, turns), tile.cluster)
    return f"int4_rows<{', '.join(map(str, numbers))}, {rounded}, {normed}, {_END[role]}>"


def compiled(layers: Sequence[dict[Role, GpuLinear]]) -> Int4Rows | None:
    """The kernels for these layers; None, and the log says why, where they cannot serve."""
    reason = Int4Rows.why_not(layers)
    if reason is None:
        try:
            return Int4Rows(layers[0])
        except (cuda.CompileError, RuntimeError) as error:
            reason = f"could not be compiled: {error}"
    logger.info("the int4 product on tensor cores %s", reason)
    return None
