"""Decode attention by `paged_decode.cu` and `paged_decode_int8.cu`, on GPUs of compute capability 9 and 10; prompts as
`TritonPaged`."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from worker.engine.gpu.attention import Cut, TritonPaged
from worker.engine.kv_cache import KVCache
from worker.model.gpu import cuda, support
from worker.model.rope import Rotation

if TYPE_CHECKING:
    from worker.engine.attention import AttentionShape

KERNELS = {quantized: f"paged_decode{'_int8' * quantized}" for quantized in (False, True)}
HEAD_DIM, PAGE = 128, 16
FILLED = 128  # blocks that keep the multiprocessors of an H200 busy


class Division(NamedTuple):
    """How the pages of a sequence are divided: by the warps of a block, and the blocks of a cluster."""

    warps: int
    cluster: int


DIVISIONS = tuple(Division(*pair) for pair in ((8, 8), (8, 4), (8, 2), (16, 1), (8, 1), (4, 1)))


def division_for(pairs: int) -> Division:
    """For so many pairs of row and head. Found on an H200: few pairs need many warps each, many fill it alone."""
    for cluster in (8, 4, 2):
        if pairs * cluster <= FILLED:
            return Division(8, cluster)
    return Division(16 if pairs <= FILLED else 8 if pairs <= 2 * FILLED else 4, 1)


class CudaPaged(TritonPaged):
    """Our own kernel in CUDA C++ for answers."""

    name = "cuda-paged"

    def __init__(self) -> None:
        super().__init__()
        self._kernels: dict[tuple[torch.device, bool], dict[Division, cuda.Kernel]] = {}

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        """As `AttentionBackend` says."""
        if shape.dtype != torch.float16:
            return f"serves float16, not {str(shape.dtype).removeprefix('torch.')}"
        if shape.head_dim != HEAD_DIM or shape.block_size != PAGE:
            return (
                f"needs heads of {HEAD_DIM} and blocks of {PAGE}, not {shape.head_dim} and {shape.block_size}"
            )
        if (reason := super().why_not(device, shape) or support.why_not_compiled(device)) is not None:
            return reason
        try:
            self._loaded(device, shape.quantized)
        except (cuda.CompileError, RuntimeError) as error:
            return f"could not be compiled: {error}"
        return None

    def decode(
        self,
        qkv: Tensor,
        layer: int,
        cache: KVCache,
        tables: Tensor,
        positions: Tensor,
        rotation: Rotation,
        cut: Cut | None = None,
    ) -> Tensor:
        """As `TritonPaged` says. `cut` is for that one alone."""
        rows, three_heads, dim = qkv.shape
        heads = three_heads // 3
        division = division_for(rows * heads)
        out = qkv.new_empty(rows, heads, dim)
        kept = [*cache.layers[layer], *(cache.scales[layer] if cache.quantized else ())]
        self._loaded(qkv.device, cache.quantized)[division](
            (heads * division.cluster, rows),
            32 * division.warps,
            (
                qkv,
                *kept,
                tables,
                positions,
                rotation.cos,
                rotation.sin,
                out,
                tables.stride(0),
                heads,
                dim**-0.5,
                1,
            ),
            cluster=division.cluster,
            overlap=True,
        )
        return out

    def _loaded(self, device: torch.device, quantized: bool) -> dict[Division, cuda.Kernel]:
        key = device, quantized
        if key not in self._kernels:
            kernel = KERNELS[quantized]
            names = [f"{kernel}<{one.warps}, {one.cluster}>" for one in DIVISIONS]
            kernels = cuda.load(Path(__file__).with_name(f"{kernel}.cu"), names, device)
            self._kernels[key] = dict(zip(DIVISIONS, (kernels[name] for name in names), strict=True))
        return self._kernels[key]
