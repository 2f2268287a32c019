"""The decoder on a CPU with two calls a layer: all before attention, and all behind it.

In between stands `Attend`, as in `worker.model.qwen`, whose formulas these are. One token of a small model has hundreds
of small operations; called one by one from Python they take longer than the reading of the weights.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.cpu import library
from worker.model.cpu.linear import PackedLinear
from worker.model.qwen import Attend, Block, QwenModel


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """`struct` holds addresses in the tensors of `block`."""

    block: Block
    struct: library.Layer


@dataclass(frozen=True, slots=True)
class CpuQwenModel(QwenModel):
    """The residual stream and all between the products stay fp32. A row's result depends on no other row."""

    layers: Sequence[FusedLayer]

    @torch.inference_mode()
    def forward(self, ids: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        kernels, threads, count = library.load(), torch.get_num_threads(), len(ids)
        hidden = F.embedding(ids, self.wte).to(torch.float32)
        width, heads = self.config.hidden_size, (3 * self.config.num_heads, self.config.head_dim)
        for index, layer in enumerate(self.layers):
            at = ctypes.addressof(layer.struct)
            qkv = hidden.new_empty(count, *heads)
            kernels.qwenq_before_attention(at, hidden.data_ptr(), count, qkv.data_ptr(), threads)
            mixed = attend(index, qkv).to(torch.float32).contiguous()
            kernels.qwenq_after_attention(at, mixed.data_ptr(), hidden.data_ptr(), count, threads)
        last = hidden if rows is None else hidden[rows]
        normed = F.rms_norm(last, (width,), self.ln_f, self.config.norm_eps)
        return self.lm_head(normed.to(self.head_dtype)).to(torch.float32)


def fused(model: QwenModel) -> QwenModel:
    """The same model with fewer calls, where all its layers are in the packing of the kernels; else `model` itself."""
    if not all(isinstance(linear, PackedLinear) for block in model.blocks for linear in _linears(block)):
        return model
    layers = [_layer(block, model.config.norm_eps) for block in model.blocks]
    same: dict[str, Any] = {field.name: getattr(model, field.name) for field in fields(model)}
    return CpuQwenModel(**same, layers=layers)


def _linears(block: Block) -> tuple[object, ...]:
    return (block.c_attn, block.attn_c_proj, block.w1, block.w2, block.mlp_c_proj)


def _layer(block: Block, eps: float) -> FusedLayer:
    linears = (ctypes.pointer(cast(PackedLinear, linear).struct) for linear in _linears(block))
    return FusedLayer(block, library.Layer(block.ln_1.data_ptr(), block.ln_2.data_ptr(), *linears, eps))
