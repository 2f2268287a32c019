"""What can be wrong with the tensors of a checkpoint, in words: each check answers a sentence, or None.

The loader stops at the first; `verify` lists them all.
"""

import torch
from torch import Tensor

from worker.model.config import QuantizationConfig
from worker.model.gptq import WORD_BITS
from worker.model.layout import Expected
from worker.model.weight_files import Stored


def header_fault(expected: Expected, stored: dict[str, Stored]) -> str | None:
    """A required tensor is missing, or one has another type or shape than the config calls for."""
    found = stored.get(expected.name)
    if found is None:
        return f"{expected.name} is in none of the checkpoint's files" if expected.required else None
    if found.dtype not in expected.dtypes or found.shape != expected.shape:
        wanted = f"{' or '.join(expected.dtypes)} {list(expected.shape)}"
        return f"{expected.name} in {found.file.name} is {found.dtype} {list(found.shape)}, expected {wanted}"
    return None


def zeros_fault(qzeros: Tensor, quantization: QuantizationConfig) -> str | None:
    """A symmetric layer has the same zero point everywhere. Where it has not, every weight would be read wrong."""
    if not quantization.sym or bool(
        (qzeros == _symmetric_word(quantization.bits, stored_minus_one=True)).all()
    ):
        return None
    if bool((qzeros == _symmetric_word(quantization.bits, stored_minus_one=False)).all()):
        return (
            "has its zero points stored as in version 2 of the GPTQ format (checkpoint_format gptq_v2); "
            "only version 1 can be read"
        )
    return f"is not symmetric as quantization_config says: not every zero point is {2 ** (quantization.bits - 1)}"


def groups_fault(g_idx: Tensor, quantization: QuantizationConfig) -> str | None:
    """g_idx names a group that is not there."""
    groups = -(-len(g_idx) // quantization.group_size)
    low, high = int(g_idx.min()), int(g_idx.max())
    fine = low >= 0 and high < groups
    return None if fine else f"names groups {low} to {high}; there are 0 to {groups - 1}"


def _symmetric_word(bits: int, *, stored_minus_one: bool) -> int:
    """The int32 that a symmetric layer's qzeros are full of: 0x77777777 in version 1 at 4 bits."""
    zero = 2 ** (bits - 1) - stored_minus_one
    word = sum(zero << shift for shift in range(0, WORD_BITS, bits))
    return int(torch.tensor(word).to(torch.int32))
