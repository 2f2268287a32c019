"""Attention over the paged cache, behind one small protocol, and the backends in order of preference.

A backend takes what a layer's c_attn gives, turns queries and keys, stores keys and values, and answers for every
row what it sees. All of it is one call, so that a kernel may fuse all of it. The first backend of the list that can
serve is taken and named at the start; one that was asked for by name must serve.

Those here are torch's own attention and run on every device, on a CPU in fp32: there one call for each sequence,
because copying pages costs more than calls; on a GPU one call for all answers over their gathered pages.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from worker.engine.batch import Batch, Span
from worker.engine.cpu_attention import CpuPaged, CpuRows
from worker.engine.gpu.attention import TritonPaged
from worker.engine.gpu.cuda_attention import CudaPaged
from worker.engine.gpu.prompts import Pieces
from worker.engine.kv_cache import KVCache
from worker.model.errors import BackendError
from worker.model.qwen import Attend
from worker.model.rope import Rotation

# Without cuDNN's: it plans anew for every length of the cache, 10 ms a layer and token on an H200.
TORCH_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a backend has to serve. `deterministic`: a row's result may not depend on the other rows."""

    num_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    quantized: bool
    deterministic: bool


class AttentionBackend(Protocol):
    """One way of attending."""

    @property
    def name(self) -> str: ...

    def why_not(self, device: torch.device, shape: AttentionShape) -> str | None:
        """Why this backend cannot serve; None when it can."""

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        """qkv `[rows, 3 * heads, head_dim]` in the model's dtype -> `[rows, heads, head_dim]`.

        `rotation` has a row for each row of the batch. Keys and values are in the cache afterwards.
        """


@runtime_checkable
class DecodeAttention(AttentionBackend, Protocol):
    """One whose launches for answers depend on shapes alone, so that a graph can hold them."""

    def decode(
        self, qkv: Tensor, layer: int, cache: KVCache, tables: Tensor, positions: Tensor, rotation: Rotation
    ) -> Tensor:
        """As `attend`, one row a sequence: `tables` int32 `[rows, blocks]`, `positions` int64 `[rows]`."""

    def warm(self, cache: KVCache, heads: int) -> None:
        """Do once what would make the first calls slow."""


@runtime_checkable
class PieceAttention(DecodeAttention, Protocol):
    """One whose launches for pieces of prompts, too, depend on shapes alone."""

    def pieces(self, qkv: Tensor, layer: int, cache: KVCache, pieces: Pieces, rotation: Rotation) -> Tensor:
        """As `attend`, of the rows that `pieces` has, answers and prompts; of the others anything."""

    def whole(self, qkv: Tensor, layer: int, cache: KVCache, slots: Tensor, rotation: Rotation) -> Tensor:
        """As `attend`, of all of one prompt; `slots` of every row. Only where `serves_whole`."""

    def serves_whole(self, rows: int, cache: KVCache) -> bool:
        """Whether whole prompts of so many rows are better left to `whole`."""


@runtime_checkable
class StepAttention(AttentionBackend, Protocol):
    """One that prepares a step once, for all its layers."""

    def step(self, cache: KVCache, batch: Batch, rotation: Rotation, heads: int) -> Attend:
        """`attend` of each of the layers in turn."""


class Sequences:
    """torch's attention, once for every sequence."""

    name = "torch-sequences"

    def why_not(self, device: torch.device, shape: AttentionShape) -> str | None:
        if shape.deterministic:
            return "sums a row in another order when more rows are beside it"
        return _slow(device, shape)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        queries = _store(qkv, layer, cache, batch.slots, rotation)
        mixed = torch.empty_like(queries)
        with sdpa_kernel(TORCH_KERNELS):
            for span in batch.spans:
                rows = slice(span.row, span.row + span.count)
                mixed[rows] = _one(
                    queries[rows], cache.read(layer, span.blocks, span.first, span.length), span
                )
        return mixed


class GatheredAnswers:
    """torch's attention, once for all answers, over a copy of their pages padded to one length."""

    name = "torch-gathered"

    def why_not(self, device: torch.device, shape: AttentionShape) -> str | None:
        return "pads sequences to the longest of them" if shape.deterministic else _slow(device, shape)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        queries = _store(qkv, layer, cache, batch.slots, rotation)
        mixed = torch.empty_like(queries)
        with sdpa_kernel(TORCH_KERNELS):
            if batch.answers:
                blocks = [span.blocks for span in batch.spans[: batch.answers]]
                tables, positions = pad_sequence(blocks, batch_first=True), batch.positions[: batch.answers]
                mixed[: batch.answers] = self._answers(
                    queries[: batch.answers], layer, cache, tables, positions
                )
            for span in batch.spans[batch.answers :]:
                rows = slice(span.row, span.row + span.count)
                mixed[rows] = _one(
                    queries[rows], cache.read(layer, span.blocks, span.first, span.length), span
                )
        return mixed

    def decode(
        self, qkv: Tensor, layer: int, cache: KVCache, tables: Tensor, positions: Tensor, rotation: Rotation
    ) -> Tensor:
        """As `DecodeAttention` says."""
        blocks = tables.gather(1, positions[:, None] // cache.block_size).squeeze(1).long()
        slots = blocks * cache.block_size + positions % cache.block_size
        queries = _store(qkv, layer, cache, slots, rotation)
        return self._answers(queries, layer, cache, tables.long(), positions)

    def warm(self, cache: KVCache, heads: int) -> None:
        """Nothing here is slow at first."""

    def _answers(
        self, queries: Tensor, layer: int, cache: KVCache, tables: Tensor, positions: Tensor
    ) -> Tensor:
        room = tables.shape[1] * cache.block_size
        found = cache.read(layer, tables.flatten(), None, tables.numel() * cache.block_size)
        found = found.view(2, len(queries), room, *found.shape[2:])
        seen = torch.arange(room, device=queries.device) <= positions[:, None]
        # What lies behind the end may be NaN, which no mask takes away.
        keys, values = found.masked_fill(~seen[:, :, None, None], 0).transpose(2, 3)
        mixed = F.scaled_dot_product_attention(
            queries.unsqueeze(2), keys, values, attn_mask=seen[:, None, None]
        )
        return mixed.squeeze(2)


class Rows:
    """torch's attention, once for every row: its sums are the same whatever else is computed. Slow on prompts."""

    name = "torch-rows"

    def why_not(self, device: torch.device, shape: AttentionShape) -> str | None:
        return _slow(device, shape)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        queries = _store(qkv, layer, cache, batch.slots, rotation)
        mixed = torch.empty_like(queries)
        with sdpa_kernel([SDPBackend.MATH]):
            for span in batch.spans:
                found = cache.read(layer, span.blocks, span.first, span.length)
                for place in range(span.count):
                    row = slice(span.row + place, span.row + place + 1)
                    alone = Span(row.start, 1, span.start + place, span.blocks, span.first)
                    mixed[row] = _one(queries[row], found[:, : alone.length], alone)
        return mixed


_EVERYWHERE: dict[str, tuple[AttentionBackend, ...]] = {
    "cpu": (CpuPaged(), CpuRows(), Sequences(), GatheredAnswers(), Rows()),
    "cuda": (CudaPaged(), TritonPaged(), GatheredAnswers(), Sequences(), Rows()),
}


def backends(device: torch.device) -> tuple[AttentionBackend, ...]:
    """All there are for a device, the fastest first."""
    return _EVERYWHERE[device.type]


def choose(device: torch.device, shape: AttentionShape, *, forced: str | None = None) -> AttentionBackend:
    """The first backend that can serve. BackendError when the `forced` one is unknown or cannot."""
    reasons = []
    for backend in backends(device):
        if forced is None or backend.name == forced:
            reason = backend.why_not(device, shape)
            if reason is None:
                return backend
            reasons.append(f"{backend.name} {reason}")
    known = ", ".join(backend.name for backend in backends(device))
    raise BackendError("; ".join(reasons) or f"there is no attention backend {forced!r}; known are {known}")


def _slow(device: torch.device, shape: AttentionShape) -> str | None:
    """Why torch should not be asked for it."""
    if device.type == "cpu" and shape.dtype != torch.float32:
        return "is slow in 16 bits on a CPU"
    return None


def _store(qkv: Tensor, layer: int, cache: KVCache, slots: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries and keys, write keys and values; the queries `[rows, heads, head_dim]` in the cache's dtype."""
    heads = qkv.shape[1] // 3
    turned = rotation.apply(qkv[:, : 2 * heads])
    keys_values = torch.stack([turned[:, heads:], qkv[:, 2 * heads :].to(turned.dtype)])
    cache.write(layer, slots, keys_values)
    return turned[:, :heads].to(cache.dtype)


def _one(queries: Tensor, keys_values: Tensor, span: Span) -> Tensor:
    """`[n, heads, D]` and `[2, length, heads, D]` of one sequence -> `[n, heads, D]`."""
    keys, values = keys_values.transpose(1, 2).unsqueeze(1)
    mask = None
    if span.start and span.count > 1:
        mask = torch.ones(span.count, span.length, dtype=torch.bool, device=queries.device)
        mask = mask.tril(diagonal=span.start)
    mixed = F.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, is_causal=span.start == 0
    )
    return mixed[0].transpose(0, 1)
