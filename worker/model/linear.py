"""Linear layers behind one small protocol, so that the decoder knows nothing of how weights are stored.

A `Linear` is called with activations `[n, in]` and answers `[n, out]`, both in the model's dtype. Quantised
weights get theirs from a `LinearBackend`; `worker.model.backends` holds the ordered list of them. Two need nothing
of the machine and live here: plain matrices, and the reference that every other backend is compared with.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model import gptq


class Linear(Protocol):
    """One layer, ready to compute: x `[n, in]` -> `[n, out]`."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class GptqWeight:
    """The four tensors of a quantised layer as `worker.model.gptq` describes them, on the device that computes."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bits: int
    group_size: int

    @property
    def in_features(self) -> int:
        return self.g_idx.shape[0]

    @property
    def out_features(self) -> int:
        return self.qweight.shape[1]

    @property
    def act_order(self) -> bool:
        """Whether groups are not simply consecutive inputs."""
        return not torch.equal(self.g_idx.cpu(), gptq.trivial_g_idx(self.in_features, self.group_size))

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight `[in, out]`; exact in fp32."""
        return gptq.dequantize(
            self.qweight, self.qzeros, self.scales, self.g_idx, bits=self.bits, dtype=dtype
        )


class LinearBackend(Protocol):
    """One way of multiplying with a quantised weight."""

    @property
    def name(self) -> str: ...

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        """Why this backend cannot serve `weight` on its device with activations in `dtype`; None when it can."""

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        """The layer; `weight` passed `why_not`, and is not kept where the backend makes its own packing of it."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A plain matrix in the dtype of the activations. weight `[out, in]`, bias `[out]`."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Reference:
    weight: GptqWeight
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        y = x @ self.weight.dequantize(x.dtype)
        return y if self.bias is None else y + self.bias


class ReferenceBackend:
    """Unpacks the whole matrix in every call: any device, dtype, width and group order; slow, and in fp32 exact."""

    name = "reference"

    def why_not(self, weight: GptqWeight, dtype: torch.dtype) -> str | None:
        return None

    def build(self, weight: GptqWeight, bias: Tensor | None, dtype: torch.dtype) -> Linear:
        return _Reference(weight, bias)
