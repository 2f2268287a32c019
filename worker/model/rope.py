"""Rotary position embedding, rotate-half style: dimension d turns with dimension d + D/2 by position * base**(-2d/D).

Up to Qwen's context of 8192 its dynamic NTK scaling leaves the base as it is and its logn factor is 1, so neither
exists here; positions end at the context length.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """fp32 `[positions, 1, head_dim]` each; `sin` has the sign of the rotation: minus for the lower half."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> "Rotation":
        """The rows of these positions, int64 `[n]`."""
        return Rotation(self.cos[positions], self.sin[positions])

    def apply(self, x: Tensor) -> Tensor:
        """Turn x `[positions, heads, head_dim]`; the result is fp32, whatever x is, as upstream computes it."""
        swapped = x.roll(x.shape[-1] // 2, dims=-1)
        return torch.addcmul(x * self.cos, swapped.to(self.sin.dtype), self.sin)


def rotation(positions: int, head_dim: int, base: float, device: torch.device) -> Rotation:
    """Tables for positions 0 to `positions`, exclusive."""
    even = torch.arange(0, head_dim, 2, dtype=torch.float32)
    frequencies = 1.0 / (base ** (even / head_dim))
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    sin = angles.sin()
    return Rotation(
        cos=torch.cat([angles.cos(), angles.cos()], dim=-1).unsqueeze(1).to(device),
        sin=torch.cat([-sin, sin], dim=-1).unsqueeze(1).to(device),
    )
