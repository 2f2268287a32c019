"""The GPTQ file format, version 1: packing integers into int32 words and getting weights back.

A quantised linear layer is stored as four tensors (AutoGPTQ's layout; a matrix is `[in, out]`, the transpose
of `nn.Linear.weight`). With `per_word = 32 // bits` and `groups = ceil(in / group_size)`:

    qweight  int32  [in / per_word, out]      word r holds the codes of inputs per_word*r .. of one output
    qzeros   int32  [groups, out / per_word]  word c holds the zeros of outputs per_word*c .. of one group
    scales   fp16   [groups, out]
    g_idx    int32  [in]                      the group an input belongs to; i // group_size without act-order

The first value of a word is in its lowest bits. Version 1 stores every zero point **minus one**, so the zeros
1..2**bits can be written and the symmetric 4-bit zero 8 reads 0x77777777. The weight is

    W[i, o] = scales[g_idx[i], o] * (code[i, o] - zero[g_idx[i], o])

This module knows tensors only: nothing of files, layers or the model.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

WORD_BITS = 32


class PackedShapes(NamedTuple):
    """Shapes of the four tensors of one quantised linear layer."""

    qweight: tuple[int, int]
    qzeros: tuple[int, int]
    scales: tuple[int, int]
    g_idx: tuple[int]


def packed_shapes(in_features: int, out_features: int, *, bits: int, group_size: int) -> PackedShapes:
    """Shapes a layer of `in_features` -> `out_features` has on disk. ValueError where words do not divide."""
    per_word = values_per_word(bits)
    if in_features % per_word or out_features % per_word:
        raise ValueError(
            f"a {in_features}x{out_features} matrix cannot be packed: "
            f"both sides must be multiples of {per_word} at {bits} bits"
        )
    groups = math.ceil(in_features / group_size)
    return PackedShapes(
        qweight=(in_features // per_word, out_features),
        qzeros=(groups, out_features // per_word),
        scales=(groups, out_features),
        g_idx=(in_features,),
    )


def values_per_word(bits: int) -> int:
    """How many codes one int32 holds: 8 of 4 bits, 4 of 8 bits. Other widths are not of this format."""
    if bits not in (4, 8):
        raise ValueError(f"GPTQ weights of {bits} bits are not supported: only 4 and 8")
    return WORD_BITS // bits


def pack_weight(codes: Tensor, bits: int) -> Tensor:
    """Integer codes `[in, out]` in 0..2**bits-1 -> qweight int32 `[in / per_word, out]`."""
    return _pack_rows(_in_range(codes, 0, 2**bits - 1, "codes"), bits)


def unpack_weight(qweight: Tensor, bits: int) -> Tensor:
    """qweight int32 `[in / per_word, out]` -> codes uint8 `[in, out]`."""
    return _unpack_rows(qweight, bits).to(torch.uint8)


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Zero points `[groups, out]` in 1..2**bits -> qzeros int32 `[groups, out / per_word]`."""
    stored = _in_range(zeros, 1, 2**bits, "zero points") - 1
    return _pack_rows(stored.T, bits).T.contiguous()


def unpack_zeros(qzeros: Tensor, bits: int) -> Tensor:
    """qzeros int32 `[groups, out / per_word]` -> zero points int32 `[groups, out]` in 1..2**bits."""
    return _unpack_rows(qzeros.T, bits).T.contiguous() + 1


def trivial_g_idx(in_features: int, group_size: int) -> Tensor:
    """The g_idx int32 `[in]` of a layer quantised without act-order: i // group_size."""
    return torch.arange(in_features, dtype=torch.int32) // group_size


def dequantize(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor,
    *,
    bits: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weight `[in, out]` of one layer, in `dtype`, on the tensors' device.

    Computed in fp32, where the product of an fp16 scale and a code difference is exact; only the
    conversion to another `dtype` rounds. Any g_idx is honoured, act-order included.
    """
    group = g_idx.to(torch.int64)
    steps = unpack_weight(qweight, bits).to(torch.int32) - unpack_zeros(qzeros, bits)[group]
    return (steps.to(torch.float32) * scales.to(torch.float32)[group]).to(dtype)


def _pack_rows(values: Tensor, bits: int) -> Tensor:
    """`[n, m]` -> int32 `[n / per_word, m]`: consecutive rows share a word, first row in the lowest bits."""
    per_word = values_per_word(bits)
    rows, columns = values.shape
    if rows % per_word:
        raise ValueError(f"cannot pack {rows} values {per_word} to a word: not a multiple")
    grouped = values.reshape(rows // per_word, per_word, columns).to(torch.int64)
    # Summed in 64 bits and cut to 32 afterwards: the top value of a word reaches the sign bit.
    return (grouped << _shifts(bits, values.device)).sum(dim=1).to(torch.int32)


def _unpack_rows(words: Tensor, bits: int) -> Tensor:
    """int32 `[n / per_word, m]` -> int32 `[n, m]`; the mask undoes the sign extension of the shift."""
    rows, columns = words.shape
    shifted = words.unsqueeze(1) >> _shifts(bits, words.device).to(torch.int32)
    values = torch.bitwise_and(shifted, 2**bits - 1)
    return values.reshape(rows * values_per_word(bits), columns)


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Bit positions of a word's values, int64 `[per_word, 1]`."""
    return (torch.arange(values_per_word(bits), device=device) * bits).unsqueeze(1)


def _in_range(values: Tensor, low: int, high: int, what: str) -> Tensor:
    if values.numel() and not (low <= int(values.min()) and int(values.max()) <= high):
        raise ValueError(f"{what} must lie in {low}..{high}, got {int(values.min())}..{int(values.max())}")
    return values.to(torch.int64)
