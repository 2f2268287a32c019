"""The quantiser: never worse than plain min/max rounding, near a brute-force search, exact where it can be."""

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.model.rtn import Quantized, quantize_rtn_ls

GROUP = 32
Float = NDArray[np.float32]


def weights(inputs: int, outputs: int, *, shift: float = 0.0) -> Float:
    """Normal weights, each output scaled differently, as in a network."""
    random = np.random.default_rng(5)
    spread = random.uniform(0.01, 2.0, outputs)
    return ((random.standard_normal((inputs, outputs)) + shift) * spread).astype(np.float32)


def restored(found: Quantized, group: int = GROUP) -> Float:
    """The weights a reader gets from what is stored."""
    steps = found.codes.astype(np.float32) - np.repeat(found.zeros, group, axis=0)
    restored: Float = steps * np.repeat(found.scales.astype(np.float32), group, axis=0)
    return restored


def errors(weight: Float, found: Quantized) -> NDArray[np.float64]:
    """Squared error of each group `[groups, outputs]`."""
    difference = (restored(found) - weight).astype(np.float64)
    squared: NDArray[np.float64] = (difference**2).reshape(-1, GROUP, weight.shape[1]).sum(axis=1)
    return squared


def min_max_errors(weight: Float) -> NDArray[np.float64]:
    """Squared error of rounding on the 16 levels between a group's least and greatest weight."""
    blocks = weight.reshape(-1, GROUP, weight.shape[1]).astype(np.float64)
    low, high = (
        np.minimum(blocks.min(axis=1, keepdims=True), 0),
        np.maximum(blocks.max(axis=1, keepdims=True), 0),
    )
    scale = (high - low) / 15
    zero = np.clip(np.rint(-low / scale), 1, 15)
    codes = np.clip(np.rint(blocks / scale) + zero, 0, 15)
    squared: NDArray[np.float64] = ((scale * (codes - zero) - blocks) ** 2).sum(axis=1)
    return squared


def searched_error(group: Float) -> float:
    """The least squared error of one group over every zero point and a fine grid of scales."""
    best = np.inf
    for zero in range(1, 16):
        widest = max(-group.min() / zero, group.max() / max(15 - zero, 1))
        for shrink in np.linspace(0.5, 1.05, 300):
            scale = float(np.float16(widest * shrink))
            codes = np.clip(np.rint(group / scale), -zero, 15 - zero)
            best = min(best, float(((scale * codes - group) ** 2).sum()))
    return best


@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0])
def test_better_than_min_max(shift: float) -> None:
    """Over many groups; a single one may lose, because the grid of scales does not hold min/max itself."""
    weight = weights(512, 64, shift=shift)
    ratio = errors(weight, quantize_rtn_ls(weight, GROUP)) / min_max_errors(weight)
    assert ratio.mean() < 0.94
    assert ratio.max() < 1.5


def test_close_to_an_exhaustive_search() -> None:
    weight = weights(GROUP, 40)
    best = np.array([searched_error(weight[:, o]) for o in range(40)])
    ratio = errors(weight, quantize_rtn_ls(weight, GROUP))[0] / best
    assert ratio.min() > 0.99, "an error below the exhaustive search's is computed wrongly"
    assert ratio.mean() < 1.04
    assert ratio.max() < 1.3


def test_weights_on_a_grid_are_exact() -> None:
    """What has 16 levels already, some zero point in 1..15 and an fp16 step comes back bit for bit."""
    random = np.random.default_rng(3)
    codes = random.integers(0, 16, (64, 40))
    codes[0], codes[1], codes[32], codes[33] = 0, 15, 0, 15  # every group uses its full range
    zeros = random.integers(2, 14, (2, 40))
    steps = codes - np.repeat(zeros, GROUP, axis=0)
    weight = (steps * np.float32(0.125)).astype(np.float32)
    found = quantize_rtn_ls(weight, GROUP)
    assert np.array_equal(restored(found), weight)
    assert np.array_equal(found.zeros, zeros)


@pytest.mark.parametrize("sign", [1, -1])
def test_weights_of_one_sign(sign: int) -> None:
    """All above or all below zero: no scale may become negative, infinite or zero."""
    weight = (sign * np.abs(weights(64, 16)) + sign * 0.05).astype(np.float32)
    found = quantize_rtn_ls(weight, GROUP)
    assert np.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    relative = np.linalg.norm(restored(found) - weight) / np.linalg.norm(weight)
    assert relative < 0.05


def test_zeros_stay_zero() -> None:
    found = quantize_rtn_ls(np.zeros((GROUP, 8), np.float32), GROUP)
    assert (restored(found) == 0).all()


def test_outputs_do_not_touch_each_other() -> None:
    """Quantising part of the outputs gives part of the result: what repeating heads afterwards relies on."""
    weight = weights(64, 24)
    whole, part = quantize_rtn_ls(weight, GROUP), quantize_rtn_ls(weight[:, 5:13], GROUP)
    for all_outputs, some_outputs in zip(whole, part, strict=True):
        assert np.array_equal(all_outputs[:, 5:13], some_outputs)


def test_ragged_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="48 inputs are not a multiple of group size 32"):
        quantize_rtn_ls(np.zeros((48, 8), np.float32), 32)
