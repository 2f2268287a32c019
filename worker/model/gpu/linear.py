"""Int4 products on a GPU: fp16 in and out, fp32 sums, the exact weights.

Packing: `words` int32 `[out, in / 8]` and `scales` fp16 `[out, groups]`, a row of each for an output. Word j of a row
has the codes of inputs 8j to 8j + 7; those of inputs 8j + 2p and 8j + 2p + 1 are its nibbles p and p + 4, which one
mask takes out as a pair.

Up to FEW rows are multiplied by the kernel that reads every weight once and multiplies in registers (`few_rows`).
Eight products at a time are summed in fp16, so a sum is off by at most 2**-10 of the sum of their magnitudes, and
overflows only from activations of 16,000 on. On newer GPUs the decoder has `worker.model.gpu.rows` for that, on the
same packing. More rows go through cuBLAS on the weights in 16 bits: a copy that is kept, or one that is made for the
call; there a weight is rounded to 11 bits, as fp16 activations are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model import gptq
from worker.model.gpu import support
from worker.model.linear import GptqWeight, Linear

FEW = 4

# (outputs a program, words a turn, warps) by the rows of a call and whether a row has more than 256 words: the fastest
# of those that were tried on an H200.
TILES = {
    (1, False): (8, 256, 4),
    (2, False): (16, 256, 4),
    (4, False): (16, 256, 4),
    (1, True): (8, 512, 8),
    (2, True): (8, 256, 8),
    (4, True): (8, 256, 4),
}


@dataclass(frozen=True, slots=True)
class GpuLinear:
    """A layer in the packing above. `words` and `scales` may be every second row of a larger packing."""

    words: Tensor
    scales: Tensor
    bias: Tensor | None
    in_features: int
    group_size: int

    @property
    def out_features(self) -> int:
        return len(self.words)

    def every_second(self, first: int) -> "GpuLinear":
        """Of the outputs, from `first` on; in the same memory."""
        bias = None if self.bias is None else self.bias[first::2].contiguous()
        return GpuLinear(self.words[first::2], self.scales[first::2], bias, self.in_features, self.group_size)

    def __call__(self, x: Tensor, /) -> Tensor:
        if len(x) <= FEW:
            return self.few(x, x.new_empty(len(x), self.out_features))
        return F.linear(x, self.dense(), self.bias)

    def few(
        self,
        x: Tensor,
        out: Tensor,
        *,
        gamma: Tensor | None = None,
        eps: float = 0.0,
        silu: bool = False,
        add: bool = False,
        tile: tuple[int, int, int] | None = None,
    ) -> Tensor:
        """`out`, with the product of up to FEW rows written to it, or added where `add` is set (then it is fp32).

        x is fp16; or fp32, and normed with `gamma` and `eps` first. `silu`: outputs alternate between gate and up,
        and `out` takes silu(gate) * up.
        """
        from worker.model.gpu.kernels import few_rows

        rows = 1 << (len(x) - 1).bit_length()
        outputs, turn, warps = tile or TILES[rows, self.words.shape[1] > 256]
        real, launch = not support.INTERPRETED, support.dependent_launch(x.device)
        few_rows[(-(-self.out_features // outputs),)](
            x,
            x if gamma is None else gamma,
            eps,
            self.words,
            self.scales,
            x if self.bias is None else self.bias,
            out,
            len(x),
            self.out_features,
            self.words.stride(0),
            self.scales.stride(0),
            INPUTS=self.in_features,
            GROUP=self.group_size,
            ROWS=rows,
            BN=outputs,
            BW=turn,
            NORM=gamma is not None,
            SILU=silu,
            BIAS=self.bias is not None,
            ADD=add,
            ASM=real,
            PDL=launch,
            num_warps=warps,
            **({"launch_pdl": True} if launch else {}),
        )
        return out

    def dense(self) -> Tensor:
        """The weight in fp16, `[out, in]`."""
        from worker.model.gpu.kernels import dequantize

        weight = self.scales.new_empty(self.out_features, self.in_features)
        dequantize[(self.out_features,)](
            self.words,
            self.scales,
            weight,
            self.words.stride(0),
            self.scales.stride(0),
            INPUTS=self.in_features,
            GROUP=self.group_size,
            BW=256,
        )
        return weight


def packed(codes: Tensor) -> Tensor:
    """Codes uint8 `[in, out]` -> words."""
    inputs, outputs = codes.shape
    nibbles = codes.T.reshape(outputs, inputs // 8, 4, 2).transpose(2, 3).reshape(outputs, inputs // 8, 8)
    words = torch.zeros(outputs, inputs // 8, dtype=torch.int32, device=codes.device)
    for place in range(8):
        words |= nibbles[:, :, place].to(torch.int32) << (4 * place)
    return words


class TritonInt4:
    """Our own kernels, in Triton."""

    name = "triton-int4"

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        if (reason := support.why_not(weight.qweight.device)) is not None:
            return reason
        if weight.bits != 4:
            return f"reads 4-bit weights, not {weight.bits}-bit"
        if dtype != torch.float16:
            return f"computes in float16, not {str(dtype).removeprefix('torch.')}"
        if weight.scales.dtype != torch.float16:
            return f"reads float16 scales, not {str(weight.scales.dtype).removeprefix('torch.')}"
        if weight.group_size % 32 or weight.in_features % weight.group_size:
            return f"needs whole groups of a multiple of 32 inputs, not {weight.in_features} in {weight.group_size}s"
        if weight.act_order:
            return (
                "needs consecutive inputs in a group, and this layer was quantised with act-order (desc_act)"
            )
        if not bool((gptq.unpack_zeros(weight.qzeros, weight.bits) == 8).all()):
            return "needs symmetric weights, and this layer has zero points other than 8"
        return None

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        return GpuLinear(
            packed(gptq.unpack_weight(weight.qweight, weight.bits)),
            weight.scales.T.contiguous(),
            bias,
            weight.in_features,
            weight.group_size,
        )
