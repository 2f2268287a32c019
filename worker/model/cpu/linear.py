"""Products with quantised weights in the packing of the C++ kernels, `src/types.h`.

Activations are rounded to 8 bits in blocks of 32 inputs, each with a scale of its own, as llama.cpp does it: in a block
whose greatest magnitude is m, a number changes by at most m / 254. The products are then exact integers within a
block, and the blocks are summed in fp32 in one order. So a row's result is the same bits beside any other rows, on
any number of threads and with any of the instruction sets.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model import gptq
from worker.model.cpu import library
from worker.model.linear import GptqWeight, Linear

PANEL = 32  # outputs that are stored together


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A layer of 4 or 8 bits. `struct` holds addresses in the tensors."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None
    struct: library.Packed

    @classmethod
    def pack(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, *, bits: int, group_size: int
    ) -> "PackedLinear":
        """codes uint8 `[in, out]`, scales fp16 and zeros int32 `[groups, out]`, bias `[out]`."""
        (inputs, outputs), per_four_bytes = codes.shape, 32 // bits
        padding = (0, -outputs % PANEL, 0, -inputs % library.BLOCK)
        padded = torch.nn.functional.pad(codes, padding)
        # [inputs, outputs] -> [steps, nibble, quad, panels, PANEL] -> [panels, steps, PANEL, quad, nibble]
        split = padded.view(-1, per_four_bytes // 4, 4, padded.shape[1] // PANEL, PANEL)
        ordered = split.permute(3, 0, 4, 2, 1)
        packed = ordered[..., 0] | ordered[..., 1] << 4 if bits == 4 else ordered[..., 0]
        packed = packed.contiguous()
        symmetric = bool((zeros == 2 ** (bits - 1)).all())
        stored_zeros = None if symmetric else _by_panel((zeros - 1).to(torch.uint8))
        wide_bias = None if bias is None else bias.to(torch.float32).contiguous()
        shape = (inputs, outputs, group_size, bits)
        return cls._of(packed, _by_panel(scales.to(torch.float16)), stored_zeros, wide_bias, shape)

    @classmethod
    def join(cls, parts: Sequence["PackedLinear"]) -> "PackedLinear":
        """Symmetric layers of the same inputs and no bias, one behind the other; all but the last of whole panels."""
        first = parts[0].struct
        outputs = sum(part.struct.out_features for part in parts)
        return cls._of(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            None,
            None,
            (first.in_features, outputs, first.group_size, first.bits),
        )

    @classmethod
    def _of(
        cls, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]
    ) -> "PackedLinear":
        addresses = (codes.data_ptr(), scales.data_ptr(), library.address(zeros), library.address(bias))
        return cls(codes, scales, zeros, bias, library.Packed(*addresses, *shape))

    def __call__(self, x: Tensor, /) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(len(x), self.struct.out_features)
        library.load().qwenq_linear(
            ctypes.addressof(self.struct),
            x.data_ptr(),
            library.DTYPES[x.dtype],
            len(x),
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y


class CpuKernels:
    """Our own kernels, in C++ with AVX2 or AVX-512."""

    name = "cpu-int8"

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        if weight.qweight.device.type != "cpu":
            return f"runs on CPUs, not on {weight.qweight.device.type}"
        # In fp32 a caller wants fp32's rounding, not that of 8 bits.
        if dtype != torch.bfloat16:
            return f"serves bfloat16, not {str(dtype).removeprefix('torch.')}"
        if weight.scales.dtype != torch.float16:
            return f"reads float16 scales, not {str(weight.scales.dtype).removeprefix('torch.')}"
        if weight.group_size % library.BLOCK:
            return f"needs a group size in multiples of {library.BLOCK}, not {weight.group_size}"
        if weight.act_order:
            return (
                "needs consecutive inputs in a group, and this layer was quantised with act-order (desc_act)"
            )
        return library.why_not()

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        return PackedLinear.pack(
            gptq.unpack_weight(weight.qweight, weight.bits),
            weight.scales,
            gptq.unpack_zeros(weight.qzeros, weight.bits),
            bias,
            bits=weight.bits,
            group_size=weight.group_size,
        )


def _by_panel(x: Tensor) -> Tensor:
    """`[groups, out]` -> `[panels, groups, PANEL]`, zeros behind the last output."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % PANEL))
    return padded.view(len(x), -1, PANEL).transpose(0, 1).contiguous()
