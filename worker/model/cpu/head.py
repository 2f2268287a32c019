"""The output head on a CPU: 16 bits as stored, or 8 bits where that is asked for.

At this size of model the head is half of the bytes of a token. In 16 bits its products are exact in fp32, and so are
the logits up to fp32's summing: better than torch's, which rounds them to the dtype of the activations. In 8 bits the
weights lose up to 1/254 of the greatest of their group of 32 inputs, and activations are rounded as in
`worker.model.cpu.linear`.
"""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.model.cpu import library
from worker.model.cpu.linear import PANEL, PackedLinear

GROUP = 32
AT_ONCE = 128 * PANEL  # rows that are quantised together: a whole head in fp32 would be gigabytes


@dataclass(frozen=True, slots=True)
class Head:
    """weight fp16 or bf16 `[vocab, hidden]`; x in any dtype, logits in fp32."""

    weight: Tensor
    struct: library.Matrix

    @classmethod
    def of(cls, weight: Tensor) -> "Head":
        weight = weight.contiguous()
        vocab, hidden = weight.shape
        struct = library.Matrix(weight.data_ptr(), hidden, vocab, library.DTYPES[weight.dtype])
        return cls(weight, struct)

    def __call__(self, x: Tensor, /) -> Tensor:
        x = x.to(torch.float32).contiguous()
        y = x.new_empty(len(x), self.weight.shape[0])
        library.load().qwenq_dense(
            ctypes.addressof(self.struct), x.data_ptr(), len(x), y.data_ptr(), torch.get_num_threads()
        )
        return y


@dataclass(frozen=True, slots=True)
class Int8Head:
    """The same in 8 bits."""

    linear: PackedLinear

    @classmethod
    def of(cls, weight: Tensor) -> "Int8Head":
        parts = [_quantized(rows) for rows in torch.split(weight, AT_ONCE)]
        return cls(PackedLinear.join(parts))

    def __call__(self, x: Tensor, /) -> Tensor:
        return self.linear(x.to(torch.float32))


def _quantized(rows: Tensor) -> PackedLinear:
    """Symmetric codes about 128, in groups of 32 inputs."""
    outputs, inputs = rows.shape
    padded = torch.nn.functional.pad(rows.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    # The scale first, in the 16 bits it is stored in: codes are then the nearest to what will be computed with.
    scales = (padded.abs().amax(-1) / 127).to(torch.float16)
    steps = padded / scales.float().clamp(min=2**-24).unsqueeze(-1)
    codes = (steps.round().clamp(-127, 127) + 128).to(torch.uint8).flatten(1)[:, :inputs]
    return PackedLinear.pack(
        codes.T, scales.T, torch.full_like(scales.T, 128, dtype=torch.int32), None, bits=8, group_size=GROUP
    )
