"""Attention on a GPU: answers and prompts by our kernels over the pages, whole prompts by cuDNN's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worker.engine.batch import Batch, Span, on_device
from worker.engine.gpu import prompts
from worker.engine.gpu.prompts import Pieces, PromptAttention
from worker.engine.kv_cache import KVCache
from worker.model.gpu import support
from worker.model.rope import Rotation

if TYPE_CHECKING:
    from worker.engine.attention import AttentionShape


@dataclass(frozen=True, slots=True)
class Cut:
    """How a past is cut: at most `split` parts of at least `least` tokens, `tile` tokens a turn, by `warps` warps."""

    split: int
    least: int
    tile: int
    warps: int


# By the most rows of a launch: enough programs to fill the multiprocessors. Found with `bench/layers.py` on an H200.
CUTS = (
    (2, Cut(32, 32, 16, 2)),
    (4, Cut(16, 64, 16, 2)),
    (8, Cut(8, 128, 32, 4)),
    (16, Cut(4, 128, 16, 2)),
    (32, Cut(2, 256, 32, 4)),
)
UNCUT = Cut(1, 64, 16, 2)


def cut_for(rows: int) -> Cut:
    """The cut for a launch of so many rows."""
    return next((cut for most, cut in CUTS if rows <= most), UNCUT)


class TritonPaged:
    """Our own kernels, in Triton; cuDNN's where a long prompt is computed as a whole."""

    name = "triton-paged"

    def __init__(self) -> None:
        self._planned: tuple[Batch, _Plan] | None = None
        self._prompts = PromptAttention()
        self._scratch: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.deterministic:
            return "computes a row of a prompt in another order than a row of an answer"
        if shape.dtype == torch.float32 and not support.INTERPRETED:
            return "serves float16 and bfloat16, not float32"
        if shape.head_dim & (shape.head_dim - 1) or shape.head_dim < 16:
            return f"needs a power of two, 16 or more, in a head, not {shape.head_dim}"
        return support.why_not(device)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        heads, count = qkv.shape[1] // 3, batch.answers
        mixed = qkv.new_empty(len(qkv), heads, qkv.shape[2])
        plan = self._plan(batch, cache)
        if count:
            turns = Rotation(rotation.cos[:count], rotation.sin[:count])
            mixed[:count] = self.decode(
                qkv[:count], layer, cache, plan.tables, batch.positions[:count], turns
            )
        if count < len(batch.spans):
            turns = Rotation(rotation.cos[count:], rotation.sin[count:])
            turned = self._prompts.store(qkv[count:], layer, cache, batch.slots[count:], turns)
            for span in plan.whole:
                rows = slice(span.row, span.row + span.count)
                mixed[rows].copy_(prompts.whole(turned[span.row - count :][: span.count]))
            if plan.pieces is not None:
                self._prompts.attend(turned, layer, cache, plan.pieces, mixed[count:])
        return mixed

    def pieces(self, qkv: Tensor, layer: int, cache: KVCache, pieces: Pieces, rotation: Rotation) -> Tensor:
        """As `PieceAttention` says."""
        turned = self._prompts.store(qkv, layer, cache, pieces.slots, rotation)
        mixed = qkv.new_empty(len(qkv), qkv.shape[1] // 3, qkv.shape[2])
        self._prompts.attend(turned, layer, cache, pieces, mixed)
        return mixed

    def whole(self, qkv: Tensor, layer: int, cache: KVCache, slots: Tensor, rotation: Rotation) -> Tensor:
        """As `PieceAttention` says."""
        return prompts.whole(self._prompts.store(qkv, layer, cache, slots, rotation)).to(qkv.dtype)

    def serves_whole(self, rows: int, cache: KVCache) -> bool:
        """As `PieceAttention` says."""
        return prompts.by_cudnn(0, rows, cache)

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
        """One row a sequence: `[rows, heads, D]`, in qkv's dtype. Shapes alone decide what is launched.

        tables     int32 `[rows, blocks]`: the block of every `block_size` positions.
        positions  int64 `[rows]`.
        """
        from worker.engine.gpu.attention_kernel import decode_attention

        rows, three_heads, dim = qkv.shape
        heads, how = three_heads // 3, cut or cut_for(rows)
        out = qkv.new_empty(rows, heads, dim)
        keys, values = cache.layers[layer]
        scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
        partial, stats, counters = self._room(rows * heads, how.split, dim, qkv.device)
        launch = support.dependent_launch(qkv.device)
        decode_attention[(rows * heads, how.split)](
            qkv,
            keys,
            values,
            scales[0],
            scales[1],
            tables,
            positions,
            rotation.cos,
            rotation.sin,
            out,
            partial,
            stats,
            counters,
            tables.stride(0),
            dim**-0.5,
            H=heads,
            D=dim,
            PAGE=cache.block_size,
            BT=how.tile,
            SPLIT=how.split,
            LEAST=how.least,
            BY_HEAD=cache.by_head,
            QUANTIZED=cache.quantized,
            PDL=launch,
            num_warps=how.warps,
            **({"launch_pdl": True} if launch else {}),
        )
        return out

    def warm(self, cache: KVCache, heads: int) -> None:
        """As `DecodeAttention` says: cuDNN's plans."""
        config = (3 * heads, cache.layers[0].shape[-1])
        if cache.device.type != "cuda" or cache.quantized:
            return
        for length in range(prompts.CUDNN_LEAST, prompts.CUDNN_MOST + 1, prompts.CUDNN_STEP):
            prompts.whole(torch.zeros(length, *config, dtype=cache.dtype, device=cache.device))

    def _plan(self, batch: Batch, cache: KVCache) -> "_Plan":
        """Of a batch; made once for all layers of a step."""
        if self._planned is None or self._planned[0] is not batch:
            self._planned = batch, _plan_of(batch, cache)
        return self._planned[1]

    def _room(self, pairs: int, split: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Where parts leave what they found; the counters are 0 between launches.

        One room a size, for ever: captured graphs hold its address. Launches use it one after the other.
        """
        size = (pairs, split, dim)
        if size not in self._scratch:
            self._scratch[size] = (
                torch.empty(pairs * split * dim, device=device),
                torch.empty(pairs * split * 2, device=device),
                torch.zeros(pairs, dtype=torch.int32, device=device),
            )
        return self._scratch[size]


class _Plan(NamedTuple):
    """How a batch is attended to: answers by `tables`, `whole` prompts by cuDNN, the others as pieces."""

    tables: Tensor
    whole: list[Span]
    pieces: Pieces | None


def _plan_of(batch: Batch, cache: KVCache) -> _Plan:
    tables = pad_sequence([span.blocks for span in batch.spans], batch_first=True).to(torch.int32)
    whole, stretches, first = list[Span](), list[tuple[int, int, int, int]](), batch.answers
    for index, span in enumerate(batch.spans[first:], first):
        if prompts.by_cudnn(span.start, span.count, cache):
            whole.append(span)
        else:
            stretches.append((span.row - first, span.count, span.start, index))
    if not stretches:
        return _Plan(tables, whole, None)
    tile = prompts.tile_for(sum(rows for _, rows, _, _ in stretches))
    items = on_device(prompts.cut(np.array(stretches), tile), cache.device)
    return _Plan(tables, whole, Pieces(batch.slots, tables, items, tile))
