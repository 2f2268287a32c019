"""The decoder on a GPU with five launches a layer for few rows, and eight for many.

The formulas are those of `worker.model.qwen`. For few rows norms, bias, SiLU and the residual are parts of the
products, which read the weights in 4 bits: on tensor cores where `worker.model.gpu.rows` can serve, else up to FEW rows
by `GpuLinear.few`. More rows go through cuBLAS on the layers in 16 bits, kept beside the packed ones where that was
asked for, else made for the call; norms and residual are one launch there. Up to 128 answers may be computed in halves
instead (`halves.py`). One row can have all layers in one launch: `stack`, which attends by itself and is for whoever
has the cache that it reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.gpu import rows as tensor_cores
from worker.model.gpu import stack as one_launch
from worker.model.gpu import support
from worker.model.gpu.linear import FEW, GpuLinear, TritonInt4
from worker.model.gpu.plan import Role
from worker.model.gpu.rows import Int4Rows, Stream
from worker.model.gpu.stack import Int4Stack, StackLayer
from worker.model.linear import Linear
from worker.model.qwen import Attend, Block, QwenModel

FREE_MEMORY = 0.1  # of what is free, the most that copies may take


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """w1 and w2 of the block are every second row of `gate_up`: gate, up, gate, up."""

    ln_1: Tensor
    c_attn: GpuLinear
    attn_c_proj: GpuLinear
    ln_2: Tensor
    gate_up: GpuLinear
    mlp_c_proj: GpuLinear

    @property
    def linears(self) -> tuple[GpuLinear, ...]:
        return (self.c_attn, self.attn_c_proj, self.gate_up, self.mlp_c_proj)

    @property
    def roles(self) -> dict[Role, GpuLinear]:
        return {
            "c_attn": self.c_attn,
            "attn_c_proj": self.attn_c_proj,
            "gate_up": self.gate_up,
            "mlp_c_proj": self.mlp_c_proj,
        }


class Copies:
    """The layers in 16 bits: for each layer c_attn, c_proj, gate and up, and the MLP's c_proj, `[out, in]`."""

    def __init__(self, layers: Sequence[GpuLayer]) -> None:
        self.layers = [[linear.dense() for linear in layer.linears] for layer in layers]

    @staticmethod
    def nbytes(layers: Sequence[GpuLayer]) -> int:
        return sum(2 * one.out_features * one.in_features for layer in layers for one in layer.linears)


@dataclass(frozen=True, slots=True)
class GpuQwenModel(QwenModel):
    """The residual stream stays fp32; what goes into a product is fp16.

    copies  see above; None makes them anew.
    rows    the kernels on tensor cores; None where they cannot serve.
    stack   all layers of one row, attention included, in one launch; None where it cannot serve.
    """

    layers: Sequence[GpuLayer]
    copies: Copies | None
    rows: Int4Rows | None
    stack: Int4Stack | None

    @torch.inference_mode()
    def hidden(self, ids: Tensor, attend: Attend) -> Tensor:
        """As `QwenModel` says."""
        if self.rows is not None and len(ids) <= self.rows.most:
            return self.on_tensor_cores(self.rows, ids, attend)
        hidden = self._embed(ids)
        run = self._few if len(ids) <= FEW else self._many
        run(hidden, attend)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """As `QwenModel` says."""
        return self.lm_head(self._add_norm(hidden.contiguous(), None, self.ln_f))

    def unfused(self) -> QwenModel:
        """The same weights, one call for each product."""
        return QwenModel(**{field.name: getattr(self, field.name) for field in fields(QwenModel)})

    def _embed(self, ids: Tensor, stream: Stream | None = None, *, placed: bool = False) -> Tensor:
        from worker.model.gpu.kernels import embed

        width = self.config.hidden_size
        hidden = torch.empty(len(ids), width, device=self.device) if stream is None else stream.hidden
        embed[(len(ids),)](
            ids,
            self.wte,
            hidden,
            self.layers[0].ln_1,
            hidden if stream is None else stream.scaled,
            hidden if stream is None else stream.squares,
            width,
            WIDTH=1 << (width - 1).bit_length(),
            SCALED=stream is not None,
            PLACED=placed,
            num_warps=8,
            **self._launch,
        )
        return hidden

    def on_tensor_cores(self, rows: Int4Rows, ids: Tensor, attend: Attend) -> Tensor:
        """As `hidden`, by these kernels."""
        count, eps = len(ids), self.config.norm_eps
        shape = (3 * self.config.num_heads, self.config.head_dim)
        stream = Stream.empty(count, self.config.hidden_size, self.device)
        self._embed(ids, stream, placed=rows.placed(count))
        norms = [*(layer.ln_1 for layer in self.layers[1:]), None]
        for index, (layer, following) in enumerate(zip(self.layers, norms, strict=True)):
            qkv = self._new(count, layer.c_attn.out_features)
            rows.normed("c_attn", layer.c_attn, stream, eps, qkv)
            mixed = attend(index, qkv.view(count, *shape)).flatten(1).to(torch.float16)
            rows.add("attn_c_proj", layer.attn_c_proj, mixed, stream, layer.ln_2)
            inner = self._new(count, layer.mlp_c_proj.in_features)
            rows.normed("gate_up", layer.gate_up, stream, eps, inner)
            rows.add("mlp_c_proj", layer.mlp_c_proj, inner, stream, following)
        return stream.hidden

    def _few(self, hidden: Tensor, attend: Attend) -> None:
        """All layers, on the residual stream in place."""
        count, eps, shape = (
            len(hidden),
            self.config.norm_eps,
            (3 * self.config.num_heads, self.config.head_dim),
        )
        for index, layer in enumerate(self.layers):
            qkv = self._new(count, layer.c_attn.out_features)
            layer.c_attn.few(hidden, qkv, gamma=layer.ln_1, eps=eps)
            mixed = attend(index, qkv.view(count, *shape)).flatten(1).to(torch.float16)
            layer.attn_c_proj.few(mixed, hidden, add=True)
            inner = self._new(count, layer.mlp_c_proj.in_features)
            layer.gate_up.few(hidden, inner, gamma=layer.ln_2, eps=eps, silu=True)
            layer.mlp_c_proj.few(inner, hidden, add=True)

    def _many(self, hidden: Tensor, attend: Attend) -> None:
        count, shape = len(hidden), (3 * self.config.num_heads, self.config.head_dim)
        normed = self._add_norm(hidden, None, self.layers[0].ln_1)
        for index, layer in enumerate(self.layers):
            kept: Sequence[Tensor | None] = self.copies.layers[index] if self.copies else (None,) * 4
            c_attn, attn_c_proj, gate_up, mlp_c_proj = kept
            qkv = self._product(layer.c_attn, c_attn, normed).view(count, *shape)
            mixed = attend(index, qkv).flatten(1).to(torch.float16)
            added = self._product(layer.attn_c_proj, attn_c_proj, mixed)
            del qkv, mixed  # of a long prompt this is what its memory goes to
            normed = self._add_norm(hidden, added, layer.ln_2)
            added = self._product(layer.gate_up, gate_up, normed)
            added = self._silu_times_up(added)
            added = self._product(layer.mlp_c_proj, mlp_c_proj, added)
            if index + 1 < len(self.layers):
                normed = self._add_norm(hidden, added, self.layers[index + 1].ln_1)
            else:
                hidden += added

    def _product(self, linear: GpuLinear, copy: Tensor | None, x: Tensor) -> Tensor:
        return F.linear(x, linear.dense() if copy is None else copy, linear.bias)

    def _add_norm(self, hidden: Tensor, added: Tensor | None, gamma: Tensor) -> Tensor:
        from worker.model.gpu.kernels import add_norm

        count, width = hidden.shape
        out = self._new(count, width)
        add_norm[(count,)](
            hidden,
            hidden if added is None else added,
            gamma,
            out,
            self.config.norm_eps,
            width,
            WIDTH=1 << (width - 1).bit_length(),
            ADD=added is not None,
            num_warps=8,
            **self._launch,
        )
        return out

    def _silu_times_up(self, x: Tensor) -> Tensor:
        from worker.model.gpu.kernels import silu_times_up

        count, width = len(x), x.shape[1] // 2
        out, block = self._new(count, width), 2048
        silu_times_up[(count, -(-width // block))](x, out, width, BLOCK=block, num_warps=8, **self._launch)
        return out

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float16, device=self.device)

    @property
    def _launch(self) -> dict[str, bool]:
        return {"PDL": True, "launch_pdl": True} if support.dependent_launch(self.device) else {"PDL": False}


def fused(model: QwenModel, *, copies: bool) -> QwenModel:
    """The same model with fewer launches where all its layers are in the packing of the kernels; else `model` itself.

    `copies` keeps the layers in 16 bits too where there is ample memory for it.
    """
    if not all(_ours(linear) for block in model.blocks for linear in _linears(block)):
        return model
    blocks, layers = zip(*map(_layer, model.blocks), strict=True)
    copies = copies and Copies.nbytes(layers) < FREE_MEMORY * torch.cuda.mem_get_info(model.device)[0]
    same: dict[str, Any] = {field.name: getattr(model, field.name) for field in fields(model)}
    same |= {"blocks": blocks}
    rows = tensor_cores.compiled([layer.roles for layer in layers])
    if rows is not None:
        named = {TritonInt4.name: f"cuda-int4 (up to {rows.most} rows)"}
        same |= {"backends": {kind: named.get(name, name) for kind, name in model.backends.items()}}
    return GpuQwenModel(
        **same,
        layers=layers,
        copies=Copies(layers) if copies else None,
        rows=rows,
        stack=one_launch.compiled(
            [StackLayer(layer.ln_1, layer.roles, layer.ln_2) for layer in layers],
            model.wte,
            eps=model.config.norm_eps,
        ),
    )


def _ours(linear: Linear) -> bool:
    return isinstance(linear, GpuLinear)


def _linears(block: Block) -> tuple[Linear, ...]:
    return (block.c_attn, block.attn_c_proj, block.w1, block.w2, block.mlp_c_proj)


def _layer(block: Block) -> tuple[Block, GpuLayer]:
    """The layer, and the block with w1 and w2 as parts of it: nothing is held twice."""
    c_attn, attn_c_proj, w1, w2, mlp_c_proj = (_packed(linear) for linear in _linears(block))
    gate_up = GpuLinear(
        _alternating(w2.words, w1.words),
        _alternating(w2.scales, w1.scales),
        _alternating(_bias(w2), _bias(w1)) if w1.bias is not None or w2.bias is not None else None,
        w1.in_features,
        w1.group_size,
    )
    gate, up = (gate_up.every_second(place) for place in (0, 1))
    layer = GpuLayer(block.ln_1, c_attn, attn_c_proj, block.ln_2, gate_up, mlp_c_proj)
    return Block(block.ln_1, c_attn, attn_c_proj, block.ln_2, up, gate, mlp_c_proj), layer


def _alternating(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], 1).flatten(0, 1)


def _bias(linear: GpuLinear) -> Tensor:
    return linear.scales.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _packed(linear: Linear) -> GpuLinear:
    if not isinstance(linear, GpuLinear):
        raise TypeError(f"not in the packing of the kernels: {type(linear).__name__}")
    return linear
