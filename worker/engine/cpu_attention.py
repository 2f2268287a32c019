"""Attention of the C++ kernels on a CPU: one call turns, stores and attends, over the pages as they lie.

A row is computed alone, by whichever thread is free, in an order that depends on its length and nothing else. For the
rows of a prompt torch's blocked product is faster, so it takes over there where it may. Keys and values may be stored
in fp16, half as many bytes to read; what is computed with them is fp32.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.batch import Batch, Span
from worker.engine.kv_cache import KVCache
from worker.model.cpu import library
from worker.model.rope import Rotation

if TYPE_CHECKING:
    from worker.engine.attention import AttentionShape

LANES = 16  # of the kernels' vectors
STORED = (torch.float32, torch.float16)


class CpuRows:
    """Every row by the kernels: the deterministic one."""

    name = "cpu-rows"

    def __init__(self) -> None:
        self._planned: tuple[Batch, np.ndarray] | None = None

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.quantized:
            return "reads keys and values of 16 or 32 bits, not of 8"
        if shape.dtype not in STORED:
            return f"serves float32 and float16, not {str(shape.dtype).removeprefix('torch.')}"
        if shape.head_dim % LANES:
            return f"needs a multiple of {LANES} numbers in a head, not {shape.head_dim}"
        return library.why_not()

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        return self._attend(qkv, layer, cache, batch, rotation, attending=len(qkv))

    def _attend(
        self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation, *, attending: int
    ) -> Tensor:
        x, (rows, heads, dim) = qkv.to(torch.float32).contiguous(), qkv.shape
        mixed = x.new_empty(rows, heads // 3, dim)
        keys, values = cache.layers[layer]
        library.load().qwenq_attend(
            x.data_ptr(),
            rotation.cos.data_ptr(),
            rotation.sin.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            library.DTYPES[cache.dtype],
            self._places(batch).ctypes.data,
            rows,
            attending,
            heads // 3,
            dim,
            cache.block_size,
            mixed.data_ptr(),
            torch.get_num_threads(),
        )
        return mixed

    def _places(self, batch: Batch) -> np.ndarray:
        """The rows for the kernel; made once for all layers of a step."""
        if self._planned is None or self._planned[0] is not batch:
            places = np.zeros(len(batch.slots), library.PLACE)
            places["slot"] = batch.slots.numpy()
            places["length"] = batch.positions.numpy() + 1
            for span in batch.spans:
                places["blocks"][span.row : span.row + span.count] = span.blocks.data_ptr()
            self._planned = batch, places
        return self._planned[1]


class CpuPaged(CpuRows):
    """Answers by the kernels, prompts by torch."""

    name = "cpu-paged"

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.deterministic:
            return "computes a row of a prompt in another order than a row of an answer"
        return super().why_not(device, shape)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        mixed = self._attend(qkv, layer, cache, batch, rotation, attending=batch.answers)
        if batch.answers < len(batch.spans):
            heads = qkv.shape[1] // 3
            queries = rotation.apply(qkv[:, :heads])
            for span in batch.spans[batch.answers :]:
                rows = slice(span.row, span.row + span.count)
                found = cache.read(layer, span.blocks, span.first, span.length).to(torch.float32)
                mixed[rows] = _prompt(queries[rows], found, span)
        return mixed


def _prompt(queries: Tensor, keys_values: Tensor, span: Span) -> Tensor:
    """`[n, heads, D]` and `[2, length, heads, D]` -> `[n, heads, D]`."""
    keys, values = keys_values.transpose(1, 2).unsqueeze(1)
    mask = None
    if span.start:
        mask = torch.ones(span.count, span.length, dtype=torch.bool).tril(diagonal=span.start)
    mixed = F.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, is_causal=not span.start
    )
    return mixed[0].transpose(0, 1)
