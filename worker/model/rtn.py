"""Rounding to nearest with a least-squares scale: 4-bit quantisation without calibration data.

Knows matrices only. A group is `group_size` consecutive inputs of one output; each gets an integer zero point and
an fp16 scale. The search tries every zero point with a few shrunken min/max scales, refines each scale once by
least squares, and keeps the pair with the smallest squared error. Scales are rounded to fp16 *before* codes are
computed, because fp16 is what the file stores and the reader multiplies by.

numpy and not torch: its element-wise kernels add a group's terms in the same order on every machine and at
any thread count, so the same weights give the same bytes everywhere.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_CODE = 15
# Zero 16 can be written in the format too, but readers that mask (stored + 1) & 15 take it for 0.
ZEROS = range(1, MAX_CODE + 1)
SHRINKS = (0.7, 0.8, 0.9, 1.0)
SMALLEST_SCALE = np.float32(6e-8)  # fp16's least subnormal: nothing below can be stored

Float = NDArray[np.float32]


class Quantized(NamedTuple):
    """A matrix `[in, out]` in 4 bits; weight = scales * (codes - zeros), group g holding inputs g*size onwards."""

    codes: NDArray[np.uint8]  # [in, out], 0..15
    zeros: NDArray[np.uint8]  # [in / group_size, out], 1..15
    scales: NDArray[np.float16]  # [in / group_size, out], positive


def quantize_rtn_ls(weight: Float, group_size: int) -> Quantized:
    """Quantise `weight` fp32 `[in, out]`. ValueError unless `in` is a multiple of `group_size`."""
    inputs, outputs = weight.shape
    if inputs % group_size:
        raise ValueError(f"{inputs} inputs are not a multiple of group size {group_size}")
    groups = inputs // group_size
    result = Quantized(
        codes=np.empty((inputs, outputs), np.uint8),
        zeros=np.empty((groups, outputs), np.uint8),
        scales=np.empty((groups, outputs), np.float16),
    )
    # One row of groups at a time: its working set (group_size * outputs floats, twice) stays in the cache.
    for g in range(groups):
        rows = slice(g * group_size, (g + 1) * group_size)
        block = np.ascontiguousarray(weight[rows], dtype=np.float32)
        zeros, scales = _search(block)
        result.zeros[g], result.scales[g] = zeros, scales
        result.codes[rows] = np.clip(np.rint(block / scales) + zeros, 0, MAX_CODE)
    return result


def _search(block: Float) -> tuple[Float, Float]:
    """Best (zeros, scales), each `[out]`, of one group per column of `block` `[group_size, out]`."""
    low, high = block.min(axis=0), block.max(axis=0)
    energy = np.add.reduce(block * block, axis=0)
    best_error = np.full_like(low, np.inf)
    best_scale = np.ones_like(low)
    best_zero = np.ones_like(low)
    codes, product = np.empty_like(block), np.empty_like(block)
    for zero in ZEROS:
        steps_above = MAX_CODE - zero
        full = -low / zero if steps_above == 0 else np.maximum(-low / zero, high / steps_above)
        for shrink in SHRINKS:
            scale = full * np.float32(shrink)
            for _ in range(2):  # as shrunken, then refined
                scale = np.maximum(scale, SMALLEST_SCALE).astype(np.float16).astype(np.float32)
                np.multiply(block, 1 / scale, out=codes)
                np.rint(codes, out=codes)
                np.clip(codes, -zero, steps_above, out=codes)
                dot = np.add.reduce(np.multiply(block, codes, out=product), axis=0)
                norm = np.add.reduce(np.multiply(codes, codes, out=product), axis=0)
                # |scale*codes - w|^2, expanded: both sums are needed for the refined scale anyway.
                error = scale * (scale * norm - 2 * dot) + energy
                better = error < best_error
                best_error = np.where(better, error, best_error)
                best_scale = np.where(better, scale, best_scale)
                best_zero = np.where(better, np.float32(zero), best_zero)
                scale = dot / np.maximum(norm, 1)
    return best_zero, best_scale
