"""The noise of sampling: a pure function of (seed, position, token id), so nothing is stored and nothing is shared.

It is a counter-based generator: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014) started at a key made of seed and position and read at the token id. The same answer comes out whatever else
is in the batch, and again when an attempt resumes in the middle. The integers and the uniforms are the same bits
on every device; the two logarithms are taken in double precision, where devices differ in the last bit at most.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def gumbel(seed: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, one value for each of `token_ids` (int64, any shape).

    `seed` counts modulo 2**64; `position` is the position in the answer, from 0.
    """
    hashed = _mix_tensor(token_ids * _signed(_GAMMA) + key(seed, position))
    # 52 bits and a half: exact in a double, and never 0 or 1, whose logarithms would be infinite.
    uniform = (_shift(hashed, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def key(seed: int, position: int) -> int:
    """What seed and position come to: the generator's state at token id 0, as an int64."""
    return _signed(_mix(_mix(seed & _MASK) + position & _MASK) + _GAMMA & _MASK)


def _mix(x: int) -> int:
    """The first output of SplitMix64 with state `x`."""
    x = x + _GAMMA & _MASK
    x = (x ^ x >> 30) * _MIX[0] & _MASK
    x = (x ^ x >> 27) * _MIX[1] & _MASK
    return x ^ x >> 31


def _mix_tensor(x: Tensor) -> Tensor:
    """SplitMix64's output function on int64, whose products wrap as the unsigned ones do."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[1])
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: `>>` copies the sign bit, which the mask takes away."""
    return x >> bits & (1 << (64 - bits)) - 1


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
