"""Attention of the C++ kernels on a CPU: one call turns, stores and attends, over the pages as they lie.

A row is computed alone, by whichever thread is free, in an order that depends on its length and nothing else. For the
rows of a prompt torch's blocked product is faster, so it takes over there where it may. Keys and values may be stored
in fp16, half as many bytes to read; what is computed with them is fp32.
"""

import ctypes
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


class Step:
    """The attention of one step, as `worker.model.qwen.Attend` says.

    `answers`: how many of the rows, the first ones, the kernels attend for; torch does for the prompts behind them.
    """

    def __init__(self, cache: KVCache, batch: Batch, rotation: Rotation, *, heads: int, answers: int) -> None:
        self._cache, self._batch, self._rotation, self._answers = cache, batch, rotation, answers
        self._places = _places(batch)
        keys, values = cache.addresses
        self._struct = library.Attention(
            rotation.cos.data_ptr(),
            rotation.sin.data_ptr(),
            keys.ctypes.data,
            values.ctypes.data,
            self._places.ctypes.data,
            len(batch.slots),
            answers,
            heads,
            rotation.cos.shape[-1],
            cache.block_size,
            library.DTYPES[cache.dtype],
        )

    @property
    def whole(self) -> int | None:
        """The address of the `library.Attention` that attends for every row; None where torch has a part in it."""
        return ctypes.addressof(self._struct) if self._answers == len(self._batch.slots) else None

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        x, (rows, heads, dim) = qkv.to(torch.float32).contiguous(), qkv.shape
        mixed = x.new_empty(rows, heads // 3, dim)
        library.load().qwenq_attend(
            ctypes.addressof(self._struct), layer, x.data_ptr(), mixed.data_ptr(), torch.get_num_threads()
        )
        if self._answers < rows:
            queries = self._rotation.apply(x[:, : heads // 3])
            for span in self._batch.spans[self._batch.answers :]:
                some = slice(span.row, span.row + span.count)
                found = self._cache.read(layer, span.blocks, span.first, span.length).to(torch.float32)
                mixed[some] = _prompt(queries[some], found, span)
        return mixed


class CpuRows:
    """Every row by the kernels: the deterministic one."""

    name = "cpu-rows"

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.quantized:
            return "reads keys and values of 16 or 32 bits, not of 8"
        if shape.dtype not in STORED:
            return f"serves float32 and float16, not {str(shape.dtype).removeprefix('torch.')}"
        if shape.head_dim % LANES:
            return f"needs a multiple of {LANES} numbers in a head, not {shape.head_dim}"
        return library.why_not()

    def step(self, cache: KVCache, batch: Batch, rotation: Rotation, heads: int) -> Step:
        """All layers' attention of a step."""
        return Step(cache, batch, rotation, heads=heads, answers=len(batch.slots))

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        return self.step(cache, batch, rotation, qkv.shape[1] // 3)(layer, qkv)


class CpuPaged(CpuRows):
    """Answers by the kernels, prompts by torch."""

    name = "cpu-paged"

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.deterministic:
            return "computes a row of a prompt in another order than a row of an answer"
        return super().why_not(device, shape)

    def step(self, cache: KVCache, batch: Batch, rotation: Rotation, heads: int) -> Step:
        return Step(cache, batch, rotation, heads=heads, answers=batch.answers)


def _places(batch: Batch) -> np.ndarray:
    """The rows for the kernels."""
    places = np.zeros(len(batch.slots), library.PLACE)
    places["slot"] = batch.slots.numpy()
    places["length"] = batch.positions.numpy() + 1
    for span in batch.spans:
        places["blocks"][span.row : span.row + span.count] = span.blocks.data_ptr()
    return places


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
