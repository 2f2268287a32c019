"""The packing: golden integers exactly, every round trip, and dequantisation against the formula written as a loop."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.model import gptq

widths = st.sampled_from([4, 8])


@st.composite
def matrices(draw: st.DrawFn, low: int, high_of_bits: int) -> tuple[int, Tensor]:
    """Bits, and an integer matrix in low..2**bits-1+high_of_bits with both sides multiples of a word."""
    bits = draw(widths)
    per_word = gptq.values_per_word(bits)
    rows, columns = draw(st.integers(1, 4)) * per_word, draw(st.integers(1, 4)) * per_word
    value = st.integers(low, 2**bits - 1 + high_of_bits)
    values = draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))
    return bits, torch.tensor(values).reshape(rows, columns)


@pytest.mark.parametrize(
    ("example", "inputs"),
    [("pack_example", "inputs_0_to_7_of_one_output_column"), ("high_nibble_sign_example", "inputs")],
)
def test_golden_weights(golden: dict[str, Any], example: str, inputs: str) -> None:
    vector = golden["gptq"][example]
    column = torch.tensor(vector[inputs]).unsqueeze(1)
    packed = gptq.pack_weight(column, 4)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [[vector["qweight_int32"]]]
    assert torch.equal(gptq.unpack_weight(packed, 4), column.to(torch.uint8))


def test_golden_symmetric_zeros(golden: dict[str, Any]) -> None:
    eights = torch.full((1, 8), 8)
    packed = gptq.pack_zeros(eights, 4)
    assert packed.tolist() == [[golden["gptq"]["sym_qzeros_int32"]]]
    assert packed.item() == int(golden["gptq"]["sym_qzeros_hex"], 16)
    assert torch.equal(gptq.unpack_zeros(packed, 4), eights.int())


@settings(deadline=None)  # the first case pays for torch's start
@given(matrices(low=0, high_of_bits=0))
def test_codes_survive_packing(case: tuple[int, Tensor]) -> None:
    bits, codes = case
    packed = gptq.pack_weight(codes, bits)
    assert packed.shape == (codes.shape[0] * bits // 32, codes.shape[1])
    assert torch.equal(gptq.unpack_weight(packed, bits), codes.to(torch.uint8))


@settings(deadline=None)  # the first case pays for torch's start
@given(matrices(low=1, high_of_bits=1))
def test_zeros_survive_packing(case: tuple[int, Tensor]) -> None:
    bits, zeros = case
    packed = gptq.pack_zeros(zeros, bits)
    assert packed.shape == (zeros.shape[0], zeros.shape[1] * bits // 32)
    assert torch.equal(gptq.unpack_zeros(packed, bits), zeros.int())


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize_is_the_formula(bits: int) -> None:
    """Each element by itself, with groups in no order: exactly scale * (code - zero), then rounded once."""
    random = torch.Generator().manual_seed(1)
    inputs, outputs, groups = 32, 16, 4
    codes = torch.randint(0, 2**bits, (inputs, outputs), generator=random)
    zeros = torch.randint(1, 2**bits + 1, (groups, outputs), generator=random)
    scales = torch.rand(groups, outputs, generator=random).to(torch.float16)
    g_idx = torch.randint(0, groups, (inputs,), generator=random).to(torch.int32)
    packed = (gptq.pack_weight(codes, bits), gptq.pack_zeros(zeros, bits), scales, g_idx)

    exact = gptq.dequantize(*packed, bits=bits)

    assert exact.dtype == torch.float32
    for i in range(inputs):
        for o in range(outputs):
            group = int(g_idx[i])
            assert exact[i, o].item() == scales[group, o].item() * (int(codes[i, o]) - int(zeros[group, o]))
    half = gptq.dequantize(*packed, bits=bits, dtype=torch.bfloat16)
    assert torch.equal(half, exact.to(torch.bfloat16))


def test_trivial_groups() -> None:
    assert gptq.trivial_g_idx(6, 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert gptq.trivial_g_idx(6, 2).dtype == torch.int32


def test_shapes_of_the_real_model() -> None:
    """The narrow matrix of Qwen-1.8B: 5504 inputs are 43 whole groups of 128."""
    assert gptq.packed_shapes(5504, 2048, bits=4, group_size=128) == (
        (688, 2048),
        (43, 256),
        (43, 2048),
        (5504,),
    )


def test_shapes_agree_with_packing() -> None:
    shapes = gptq.packed_shapes(64, 24, bits=8, group_size=32)
    assert gptq.pack_weight(torch.zeros(64, 24), 8).shape == shapes.qweight
    assert gptq.pack_zeros(torch.ones(2, 24), 8).shape == shapes.qzeros


@pytest.mark.parametrize("bad", [-1, 16])
def test_a_code_that_does_not_fit_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15"):
        gptq.pack_weight(torch.full((8, 8), bad), 4)


@pytest.mark.parametrize("bad", [0, 17])
def test_a_zero_point_that_version_1_cannot_store_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=r"zero points must lie in 1\.\.16"):
        gptq.pack_zeros(torch.full((8, 8), bad), 4)


def test_a_ragged_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        gptq.pack_weight(torch.zeros(12, 8), 4)
    with pytest.raises(ValueError, match="multiples of 8 at 4 bits"):
        gptq.packed_shapes(64, 20, bits=4, group_size=32)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="only 4 and 8"):
        gptq.packed_shapes(64, 64, bits=3, group_size=32)
