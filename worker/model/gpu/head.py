"""The output head on a GPU: fp16 as the checkpoint has it, or 8 bits where that is asked for.

At batch 1 the head is half of the bytes of a step. In 8 bits a weight is off by up to 1/254 of the greatest of its
token's row; activations and sums stay as they are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.gpu import support

AT_ONCE = 8192  # rows that are quantised together


@dataclass(frozen=True, slots=True)
class GpuHead:
    """Weight fp16 `[vocab, hidden]`: one row by our kernel, more by cuBLAS."""

    weight: Tensor

    def __call__(self, x: Tensor, /) -> Tensor:
        return _one_row(x, self.weight, None) if len(x) == 1 else F.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class GpuInt8Head:
    """Codes int8 `[vocab, hidden]`, and a scale fp32 a token `[vocab]`."""

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "GpuInt8Head":
        scales = weight.abs().amax(1).float() / 127
        codes = torch.empty_like(weight, dtype=torch.int8)
        for begin in range(0, len(weight), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            codes[some] = (weight[some].float() / scales[some, None].clamp(min=1e-30)).round().to(torch.int8)
        return cls(codes, scales)

    def __call__(self, x: Tensor, /) -> Tensor:
        if len(x) == 1:
            return _one_row(x, self.codes, self.scales)
        from worker.model.gpu.kernels import int8_rows

        outputs, inputs = self.codes.shape
        rows, pdl = len(x), support.dependent_launch(x.device)
        out = x.new_empty(rows, outputs)
        most = min(64, max(16, 1 << (rows - 1).bit_length()))
        across, turn = (64, 128) if most < 64 else (128, 64)
        int8_rows[(-(-outputs // across), -(-rows // most))](
            x,
            self.codes,
            self.scales,
            out,
            rows,
            outputs,
            INPUTS=inputs,
            BM=most,
            BN=across,
            BK=turn,
            PDL=pdl,
            num_warps=4,
            **({"launch_pdl": True} if pdl else {}),
        )
        return out


def _one_row(x: Tensor, weight: Tensor, scales: Tensor | None) -> Tensor:
    from worker.model.gpu.kernels import one_row

    (outputs, inputs), pdl = weight.shape, support.dependent_launch(x.device)
    across, warps = (16, 8) if scales is None else (8, 4)
    out = x.new_empty(1, outputs)
    one_row[(-(-outputs // across),)](
        x,
        weight,
        x if scales is None else scales,
        out,
        outputs,
        INPUTS=inputs,
        BN=across,
        BK=min(2048, 1 << (inputs - 1).bit_length()),
        BITS=16 if scales is None else 8,
        PDL=pdl,
        num_warps=warps,
        **({"launch_pdl": True} if pdl else {}),
    )
    return out
