"""The memory behind the blocks: keys and values of every layer, in pages.

One tensor a layer, keys and then values: `[2, blocks, block size, heads, head_dim]`, or on a GPU, where a head of a
block is read at once, `[2, blocks, heads, block size, head_dim]`: a third of the time less there. A token's slot is
its block times the block size plus its place in the block.

In 8 bits a key or value of one head is int8 with a scale of its own (its greatest magnitude becomes 127): half the
memory of 16 bits, and an error of at most 1/254 of that magnitude in each number. A float of 8 bits would be off by
up to 1/16 of each number instead, and Qwen's keys carry large biases.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from worker.model.config import QwenConfig


class KVCache:
    """Keys and values of `blocks` blocks, stored in `dtype`, or in 8 bits and read in `dtype` where `quantized`."""

    def __init__(
        self,
        config: QwenConfig,
        *,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        quantized: bool,
    ) -> None:
        self.blocks, self.block_size, self.dtype = blocks, block_size, dtype
        self.device, self.quantized = device, quantized
        self.by_head = device.type == "cuda"
        block = (config.num_heads, block_size) if self.by_head else (block_size, config.num_heads)
        shape = (2, blocks, *block, config.head_dim)
        stored = torch.int8 if quantized else dtype
        # Memory of the host is not touched before it is written, so a cache costs what was used of it.
        self.layers = [torch.empty(shape, dtype=stored, device=device) for _ in range(config.num_layers)]
        self.scales = [
            torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
            for _ in range(config.num_layers if quantized else 0)
        ]

    @staticmethod
    def bytes_per_token(config: QwenConfig, dtype: torch.dtype, *, quantized: bool) -> int:
        """Keys and values of all layers, scales included."""
        a_head = config.head_dim + 4 if quantized else config.head_dim * dtype.itemsize
        return 2 * config.num_layers * config.num_heads * a_head

    @functools.cached_property
    def addresses(self) -> np.ndarray:
        """Where keys (row 0) and values (row 1) of every layer begin in memory: uintp `[2, layers]`."""
        return np.array([[layer[part].data_ptr() for layer in self.layers] for part in (0, 1)], np.uintp)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store `[2, n, heads, head_dim]` at int64 slots `[n]`."""
        if not self.quantized:
            self._put(self.layers[layer], slots, keys_values.to(self.dtype))
            return
        scales = keys_values.abs().amax(-1, keepdim=True).float() / 127
        codes = (keys_values / scales.clamp(min=1e-30)).round().to(torch.int8)
        self._put(self.layers[layer], slots, codes)
        self._put(self.scales[layer], slots, scales)

    def read(self, layer: int, blocks: Tensor, first: int | None, length: int) -> Tensor:
        """The first `length` tokens of a sequence, `[2, length, heads, head_dim]` in `dtype`.

        `first` is the first of `blocks` where they lie side by side: then nothing is copied.
        """
        found = self._at(self.layers[layer], blocks, first, length)
        if not self.quantized:
            return found
        return found.to(self.dtype) * self._at(self.scales[layer], blocks, first, length).to(self.dtype)

    def _put(self, stored: Tensor, slots: Tensor, values: Tensor) -> None:
        if self.by_head:
            # Indices on both sides of a slice: their dimension comes first.
            stored[:, slots // self.block_size, :, slots % self.block_size] = values.transpose(0, 1)
        else:
            stored.flatten(1, 2)[:, slots] = values

    def _at(self, stored: Tensor, blocks: Tensor, first: int | None, length: int) -> Tensor:
        if self.by_head:
            mine = stored.index_select(1, blocks) if first is None else stored.narrow(1, first, len(blocks))
            return mine.transpose(2, 3).flatten(1, 2).narrow(1, 0, length)
        if first is not None:
            return stored.flatten(1, 2).narrow(1, first * self.block_size, length)
        return stored.index_select(1, blocks).flatten(1, 2).narrow(1, 0, length)
