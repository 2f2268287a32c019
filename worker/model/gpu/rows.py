"""The products of a layer for few rows on tensor cores, compiled for the layers of a model.

`int4_rows.cu` serves up to MOST rows on GPUs of compute capability 9 and 10; on 9.0 `int4_wgmma.cu` takes over where it
is faster, and serves more of them. Where neither can, `worker.model.gpu.linear.GpuLinear.few` does.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from worker.model.gpu import cuda, support, wgmma
from worker.model.gpu.linear import GpuLinear
from worker.model.gpu.plan import END, GROUP, NORMED, Plan, Role, Tile, flag

MOST = 32  # rows of `int4_rows.cu`; from there on cuBLAS on a copy in 16 bits is as fast
SOURCE = Path(__file__).with_name("int4_rows.cu")

logger = logging.getLogger(__name__)


class RowsTile(NamedTuple):
    """See the template of `int4_rows.cu`. `ahead` at most."""

    tiles: int
    warps: int
    ahead: int
    cluster: int

    def plan(self, most: int, role: Role, linear: GpuLinear) -> Plan:
        """From 17 rows on there are too few registers for the accumulators of a group."""
        turns = -(-linear.in_features // (GROUP * self.warps * self.cluster))
        blocks_of_8 = -(-most // 8)
        numbers = (blocks_of_8, self.tiles, self.warps, turns, min(self.ahead, turns), self.cluster)
        names = (*map(str, numbers), flag(most > 16), flag(role in NORMED), str(END[role]))
        return Plan(
            SOURCE,
            f"int4_rows<{', '.join(names)}>",
            self.cluster * -(-linear.out_features // (16 * self.tiles)),
            32 * self.warps,
            4 * blocks_of_8 * (128 * self.warps * self.tiles + 8),
            self.cluster,
        )


# By the most rows: the fastest of those that were tried on an H200 with Qwen-1.8B's shapes (docs/benchmarks.md).
TILES: dict[int, dict[Role, RowsTile]] = {
    4: {
        "c_attn": RowsTile(2, 16, 1, 1),
        "attn_c_proj": RowsTile(1, 16, 1, 1),
        "gate_up": RowsTile(2, 8, 1, 1),
        "mlp_c_proj": RowsTile(1, 22, 2, 1),
    },
    8: {
        "c_attn": RowsTile(2, 16, 1, 1),
        "attn_c_proj": RowsTile(1, 16, 1, 1),
        "gate_up": RowsTile(2, 8, 1, 1),
        "mlp_c_proj": RowsTile(1, 22, 2, 1),
    },
    16: {
        "c_attn": RowsTile(3, 8, 1, 1),
        "attn_c_proj": RowsTile(1, 16, 1, 1),
        "gate_up": RowsTile(6, 8, 1, 1),
        "mlp_c_proj": RowsTile(1, 15, 3, 1),
    },
    24: {
        "c_attn": RowsTile(3, 16, 1, 1),
        "attn_c_proj": RowsTile(1, 16, 1, 1),
        "gate_up": RowsTile(3, 6, 1, 1),
        "mlp_c_proj": RowsTile(2, 11, 2, 2),
    },
    32: {
        "c_attn": RowsTile(3, 8, 1, 1),
        "attn_c_proj": RowsTile(1, 16, 1, 1),
        "gate_up": RowsTile(3, 6, 1, 1),
        "mlp_c_proj": RowsTile(2, 11, 2, 2),
    },
}


class Stream(NamedTuple):
    """The residual stream of some rows, and what the next product reads of it behind a norm.

    hidden   fp32 `[rows, width]`;
    scaled   fp16, a sixteenth of it times the norm's weights: so it overflows only from a million on; in the order that
             the kernel for so many rows reads, `Int4Rows.placed`;
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


class Int4Rows:
    """Launches for up to `most` rows of layers that have the same shapes. Raises `cuda.CompileError`."""

    def __init__(
        self,
        layer: dict[Role, GpuLinear],
        tilings: Mapping[int, Mapping[Role, Tile]] | None = None,
        *,
        first: bool = False,
    ) -> None:
        """`layer`: the products of any of them. `tilings`, by the most rows: others than those in use.

        `first` as `cuda.Kernel` says.
        """
        device = next(iter(layer.values())).words.device
        tilings = tilings or tilings_for(torch.cuda.get_device_capability(device), layer)
        plans = {
            (most, role): tiles[role].plan(most, role, linear)
            for most, tiles in tilings.items()
            for role, linear in layer.items()
        }
        kernels = _compiled({(plan.source, plan.instance) for plan in plans.values()}, device)
        self._steps, self._first = sorted(tilings), first
        self._launches = {key: (kernels[plan.instance], plan) for key, plan in plans.items()}
        self._placed = {most: plan.source == wgmma.SOURCE for (most, _), plan in plans.items()}

    @property
    def most(self) -> int:
        """Rows."""
        return self._steps[-1]

    def placed(self, rows: int) -> bool:
        """Whether `Stream.scaled` and what is inside the MLP are in the order of `wgmma.rearranged`."""
        return self._placed[self._most(rows)]

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
        """c_attn and gate_up: out, fp16, is the product of the normed stream, or silu(gate) * up as `placed` says."""
        self._launch(role, linear, stream.scaled, stream.squares, eps, out, None, None)

    def add(self, role: Role, linear: GpuLinear, x: Tensor, stream: Stream, gamma: Tensor | None) -> None:
        """attn_c_proj and mlp_c_proj: add the product of x, fp16, to the stream. `gamma` (fp32): of the next norm.

        mlp_c_proj's x is as `placed` says.
        """
        self._launch(role, linear, x, stream.squares, 0.0, stream.hidden, gamma, stream.scaled)

    def _most(self, rows: int) -> int:
        return next(most for most in self._steps if rows <= most)

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
        kernel, plan = self._launches[self._most(rows), role]
        weights = (linear.words, linear.scales, linear.bias)
        sizes = (rows, linear.in_features, linear.out_features)
        kernel(
            (plan.blocks, 1),
            plan.threads,
            (x, squares, eps, *weights, out, gamma, scaled, *sizes, 1),
            shared=plan.shared,
            cluster=plan.cluster,
            overlap=True,
            first=self._first,
        )


def tilings_for(
    capability: tuple[int, int], layer: dict[Role, GpuLinear]
) -> Mapping[int, Mapping[Role, Tile]]:
    """What serves such layers on a GPU, by the most rows."""
    if capability != wgmma.CAPABILITY or not wgmma.fits(layer, wgmma.TILES):
        return TILES
    fewer = {most: tiles for most, tiles in TILES.items() if most < min(wgmma.TILES)}
    return {**fewer, **wgmma.TILES}


def _compiled(instances: set[tuple[Path, str]], device: torch.device) -> dict[str, cuda.Kernel]:
    at_once, ordered = min(8, os.cpu_count() or 1), sorted(instances)

    def load(first: int) -> dict[str, cuda.Kernel]:
        loaded = dict[str, cuda.Kernel]()
        for source, some in groupby(ordered[first::at_once], key=itemgetter(0)):
            loaded |= cuda.load(source, [name for _, name in some], device, exactly=source == wgmma.SOURCE)
        return loaded

    with ThreadPoolExecutor(at_once) as pool:
        parts = pool.map(load, range(at_once))
        return dict(chain.from_iterable(part.items() for part in parts))


def compiled(layers: Sequence[dict[Role, GpuLinear]]) -> Int4Rows | None:
    """The kernels for these layers; None, and the log says why, where they cannot serve."""
    reason = Int4Rows.why_not(layers)
    if reason is None:
        device = layers[0]["c_attn"].words.device
        for tilings in (tilings_for(torch.cuda.get_device_capability(device), layers[0]), TILES):
            try:
                return Int4Rows(layers[0], tilings)
            except (cuda.CompileError, RuntimeError) as error:  # an older NVRTC may know `int4_rows.cu` alone
                reason = f"up to {max(tilings)} rows could not be compiled: {error}"
            logger.info("the int4 product on tensor cores %s", reason)
        return None
    logger.info("the int4 product on tensor cores %s", reason)
    return None
