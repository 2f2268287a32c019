"""The decoder on a CPU in one call for all layers, or in two a layer where others attend.

The formulas are those of `worker.model.qwen`. One token of a small model has hundreds of small operations; called one
by one from Python they take longer than the reading of the weights, and even 90 calls take a quarter of a step.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.cpu import library
from worker.model.cpu.linear import PackedLinear
from worker.model.qwen import Attend, Block, QwenModel


@runtime_checkable
class KernelAttend(Protocol):
    """An `Attend` of the kernels."""

    @property
    def whole(self) -> int | None:
        """The address of the `library.Attention` that attends for every row; None where there is none."""


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """`struct` holds addresses in the tensors of `block`."""

    block: Block
    struct: library.Layer


@dataclass(frozen=True, slots=True)
class CpuQwenModel(QwenModel):
    """The residual stream and all between the products stay fp32. A row's result depends on no other row."""

    layers: Sequence[FusedLayer]
    addresses: ctypes.Array[ctypes.c_void_p]  # of `layers`

    @torch.inference_mode()
    def hidden(self, ids: Tensor, attend: Attend) -> Tensor:
        """As `QwenModel.hidden`."""
        hidden = F.embedding(ids, self.wte).to(torch.float32)
        whole = attend.whole if isinstance(attend, KernelAttend) else None
        if whole is None:
            self._by_layer(hidden, attend)
        else:
            kernels, threads = library.load(), torch.get_num_threads()
            kernels.qwenq_layers(self.addresses, len(self.layers), whole, hidden.data_ptr(), threads)
        return hidden

    def _by_layer(self, hidden: Tensor, attend: Attend) -> None:
        """All layers, into `hidden`."""
        kernels, threads, count = library.load(), torch.get_num_threads(), len(hidden)
        heads = (3 * self.config.num_heads, self.config.head_dim)
        for index, layer in enumerate(self.layers):
            at = ctypes.addressof(layer.struct)
            qkv = hidden.new_empty(count, *heads)
            kernels.qwenq_before_attention(at, hidden.data_ptr(), count, qkv.data_ptr(), threads)
            mixed = attend(index, qkv).to(torch.float32).contiguous()
            kernels.qwenq_after_attention(at, mixed.data_ptr(), hidden.data_ptr(), count, threads)


def fused(model: QwenModel) -> QwenModel:
    """The same model with fewer calls, where all its layers are in the packing of the kernels; else `model` itself."""
    if not all(isinstance(linear, PackedLinear) for block in model.blocks for linear in _linears(block)):
        return model
    layers = [_layer(block, model.config.norm_eps) for block in model.blocks]
    same: dict[str, Any] = {field.name: getattr(model, field.name) for field in fields(model)}
    addresses = (ctypes.c_void_p * len(layers))(*(ctypes.addressof(layer.struct) for layer in layers))
    return CpuQwenModel(**same, layers=layers, addresses=addresses)


def _linears(block: Block) -> tuple[object, ...]:
    return (block.c_attn, block.attn_c_proj, block.w1, block.w2, block.mlp_c_proj)


def _layer(block: Block, eps: float) -> FusedLayer:
    linears = (ctypes.pointer(cast(PackedLinear, linear).struct) for linear in _linears(block))
    return FusedLayer(block, library.Layer(block.ln_1.data_ptr(), block.ln_2.data_ptr(), *linears, eps))
