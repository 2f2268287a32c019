"""torch's own 4-bit product, on CPUs and on NVIDIA GPUs. Weights stay 4-bit in memory, activations are bf16.

Both kernels take one (scale, zero) pair of bf16 a group and output, and compute with the weight

    (code - 8) * scale + zero

so a GPTQ zero point z becomes zero = (8 - z) * scale. GPTQ's fp16 scales lose three bits in bf16: to first order in the
unit roundoff u = 2**-8, a weight differs from the exact one by at most u * scale * (|code - z| + |8 - z|). The packed
layout depends on the machine, so packing happens at load and is never stored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model import gptq
from worker.model.linear import GptqWeight, Linear

GROUP_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class _CpuLinear:
    packed: Tensor
    scales_and_zeros: Tensor
    group_size: int
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.packed, self.group_size, self.scales_and_zeros
        )
        return y if self.bias is None else y.add_(self.bias)


class Int4PackCpu:
    """`aten::_weight_int4pack_mm_for_cpu`. In bf16 alone: with fp32 activations it is 30 to 50 times slower."""

    name = "int4pack-cpu"

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        if weight.qweight.device.type != "cpu":
            return f"runs on CPUs, not on {weight.qweight.device.type}"
        if weight.out_features % 16:
            return f"needs a multiple of 16 outputs, not {weight.out_features}"
        return _format_why_not(weight, dtype)

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        codes = _codes_by_output(weight).to(torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        return _CpuLinear(packed, _scales_and_zeros(weight), weight.group_size, bias)


@dataclass(frozen=True, slots=True)
class _CudaLinear:
    packed: Tensor
    scales_and_zeros: Tensor
    group_size: int
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x, self.packed, self.group_size, self.scales_and_zeros)
        return y if self.bias is None else y.add_(self.bias)


class Int4PackCuda:
    """`aten::_weight_int4pack_mm` on GPUs with bf16 tensor cores (compute capability 8.0 and later)."""

    name = "int4pack-cuda"

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        device = weight.qweight.device
        if device.type != "cuda":
            return f"runs on NVIDIA GPUs, not on {device.type}"
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return f"needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
        if weight.out_features % 8:
            return f"needs a multiple of 8 outputs, not {weight.out_features}"
        if weight.in_features % 32:
            return f"needs a multiple of 32 inputs, not {weight.in_features}"
        return _format_why_not(weight, dtype)

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        codes = _codes_by_output(weight)
        nibbles = codes[:, ::2] << 4 | codes[:, 1::2]  # the even input in the high half
        packed = torch.ops.aten._convert_weight_to_int4pack(nibbles, _inner_k_tiles(weight.in_features))
        return _CudaLinear(packed, _scales_and_zeros(weight), weight.group_size, bias)


def _inner_k_tiles(in_features: int) -> int:
    """How many tiles of 16 inputs a thread's load holds: the most, of 8, 4 and 2, that divide the inputs."""
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)


def _format_why_not(weight: GptqWeight, dtype: torch.dtype) -> str | None:
    if weight.bits != 4:
        return f"reads 4-bit weights, not {weight.bits}-bit"
    if weight.group_size not in GROUP_SIZES:
        return f"needs a group size of {', '.join(map(str, GROUP_SIZES))}, not {weight.group_size}"
    if weight.in_features % weight.group_size:
        return f"needs whole groups: {weight.in_features} inputs are not a multiple of {weight.group_size}"
    if weight.act_order:
        return "needs consecutive inputs in a group, and this layer was quantised with act-order (desc_act)"
    if dtype != torch.bfloat16:
        return f"computes in bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


def _codes_by_output(weight: GptqWeight) -> Tensor:
    """Codes uint8 `[out, in]`."""
    return gptq.unpack_weight(weight.qweight, weight.bits).T.contiguous()


def _scales_and_zeros(weight: GptqWeight) -> Tensor:
    """bf16 `[groups, out, 2]`."""
    # The zero is taken from the rounded scale: both carry the same relative error, so a zero weight stays near 0.
    scales = weight.scales.to(torch.bfloat16).to(torch.float32)
    zeros = (8 - gptq.unpack_zeros(weight.qzeros, weight.bits)) * scales
    return torch.stack([scales, zeros], dim=-1).to(torch.bfloat16).contiguous()
