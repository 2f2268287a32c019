"""The decoder with two calls a layer against the plain one, and the heads of 16 and 8 bits."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.model.reader import Reader
from tests.model.tiny import tiny_model
from worker.model.checkpoint import load_model
from worker.model.cpu import library
from worker.model.cpu.decoder import CpuQwenModel
from worker.model.cpu.head import Head, Int8Head
from worker.model.errors import BackendError
from worker.model.qwen import QwenModel

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))


def test_fused_layers_are_the_plain_ones_without_roundings_to_16_bits(tmp_path: Path) -> None:
    fused = load_model(tiny_model(tmp_path), device="cpu", weights="int4")
    assert isinstance(fused, CpuQwenModel)
    plain = QwenModel(**{field.name: getattr(fused, field.name) for field in fields(QwenModel)})
    exact = load_model(tmp_path, device="cpu", weights="dequantized")
    ids = torch.randint(0, 512, (150,), generator=torch.Generator().manual_seed(5))
    right = Reader(exact).read(ids)

    def error(model: QwenModel) -> float:
        return float((Reader(model).read(ids) - right).norm() / right.norm())

    assert error(fused) < 0.02
    assert error(fused) < error(plain)


def test_a_prompt_that_is_scored_is_read_as_any_other(tmp_path: Path) -> None:
    """Else its neighbours in the batch would get other bits than alone."""
    model = load_model(tiny_model(tmp_path), device="cpu", weights="int4")
    ids, heads = torch.arange(30), model.config.num_heads

    def blind(_: int, qkv: torch.Tensor) -> torch.Tensor:
        return qkv[:, -heads:]

    chosen = torch.tensor([3, 29])
    assert torch.equal(model.forward(ids, blind, chosen), model.logits(model.hidden(ids, blind)[chosen]))


def head(dtype: torch.dtype, vocab: int = 501, hidden: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(vocab, hidden, generator=draw).to(dtype), torch.randn(7, hidden, generator=draw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logits_of_a_head_of_16_bits_are_those_of_fp32(dtype: torch.dtype) -> None:
    weight, x = head(dtype)
    y = Head.of(weight)(x)
    exact = F.linear(x.double(), weight.double())
    # Sixteen lanes of hidden / 16 products, and their sum.
    room = (200 / 16 + 5) * 2**-24 * (x.double().abs() @ weight.double().abs().T)
    assert ((y - exact).abs() <= room).all()
    assert torch.equal(Head.of(weight)(x[3:4]), y[3:4])


def test_a_head_of_8_bits_is_off_by_what_its_codes_lose() -> None:
    weight, x = head(torch.float16, vocab=4500)  # more rows than are quantised at once
    y, exact = Int8Head.of(weight)(x), F.linear(x, weight.float())
    assert y.shape == exact.shape
    # Two roundings with steps of about 2.3 / 127 of a standard deviation, each off by a step / sqrt(12).
    assert float((y - exact).norm() / exact.norm()) < 0.01
    assert torch.equal(Int8Head.of(weight)(x[2:3]), y[2:3])


def test_a_head_of_8_bits_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    with pytest.raises(BackendError, match="the head of 8 bits rounds, and this model computes in float32"):
        load_model(folder, device="cpu", weights="dequantized", head_bits=8)
    assert load_model(folder, device="cpu", weights="int4", head_bits=8).backends["lm_head"] == "cpu-int8"
