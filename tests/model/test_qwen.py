"""The decoder against transformers' Qwen2ForCausalLM: every position, however the ids are fed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.oracle import oracle_logits
from tests.model.reader import Reader
from tests.model.tiny import Tiny, tiny_model
from worker.model.checkpoint import load_model
from worker.model.config import load_config
from worker.model.qwen import QwenModel
from worker.model.rope import rotation

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}

# Every piece of another length.
IDS = torch.randint(0, 512, (300,), generator=torch.Generator().manual_seed(7))
PIECES = (1, 130, 2, 137, 1, 29)

MODELS = {
    "int4": Tiny(),
    "int4, symmetric, groups of 128": Tiny(sym=True, group_size=128),
    "int4, act-order": Tiny(act_order=True),
    "int4, every layer with a bias": Tiny(other_biases="random"),
    "int4, groups of 32, no biases stored": Tiny(group_size=32, other_biases="absent"),
    "int8": Tiny(bits=8),
    "fp16, head of 128": Tiny(bits=None, head_dim=128, other_biases="absent"),
    "bf16, as the demo's sizes": Tiny(
        bits=None, dtype=torch.bfloat16, hidden=192, rope_base=1e5, norm_eps=1e-5, c_attn_bias=False
    ),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    tiny: Tiny = request.param
    return tiny


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(tiny: Tiny) -> Tensor:
    return oracle_logits(tiny, IDS)


@pytest.fixture(scope="module", params=["dequantized", "int4"])
def model(request: pytest.FixtureRequest, folder: Path) -> QwenModel:
    """In fp32, unpacked at load or in every call: both are exact."""
    return load_model(folder, device="cpu", weights=request.param, dtype=torch.float32)


def test_prefill(model: QwenModel, expected: Tensor) -> None:
    logits = Reader(model).read(IDS)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_decode(model: QwenModel, expected: Tensor) -> None:
    reader = Reader(model)
    steps = [reader.read(token.view(1)) for token in IDS]
    torch.testing.assert_close(torch.cat(steps), expected, **TOLERANCE)


def test_prefill_in_pieces(model: QwenModel, expected: Tensor) -> None:
    reader = Reader(model)
    torch.testing.assert_close(
        torch.cat([reader.read(piece) for piece in IDS.split(PIECES)]), expected, **TOLERANCE
    )


def test_logits_of_some_rows_alone(model: QwenModel, expected: Tensor) -> None:
    rows = torch.tensor([17, 3])

    def blind(_: int, qkv: Tensor) -> Tensor:
        return qkv[:, -model.config.num_heads :].float()

    every, some = model.forward(IDS[:20], blind), model.forward(IDS[:20], blind, rows)
    assert some.shape == (2, 512)
    torch.testing.assert_close(some, every[rows], **TOLERANCE)


def test_two_sequences_take_turns(tmp_path: Path) -> None:
    """The model keeps nothing between calls: what one sequence sees does not depend on the other."""
    model = load_model(tiny_model(tmp_path), device="cpu", weights="dequantized")
    sequences = IDS[:40].view(2, 20)
    alone = [Reader(model).read(ids) for ids in sequences]
    readers = [Reader(model) for _ in sequences]
    in_turns = [
        torch.cat([readers[which].read(sequences[which, position].view(1)) for which in (0, 1)])
        for position in range(20)
    ]
    torch.testing.assert_close(torch.stack(in_turns, dim=1), torch.stack(alone), **TOLERANCE)


def test_long_context_scaling_would_change_nothing(tmp_path: Path, golden: dict[str, Any]) -> None:
    """Qwen's dynamic NTK and logn start just behind the context that is served, so neither is built."""
    context = load_config(tiny_model(tmp_path)).context_length
    alpha, logn = (
        {int(length): factor for length, factor in golden["long_context"][name].items()}
        for name in ("ntk_alpha", "logn_factor_by_1based_position")
    )
    assert {factor for length, factor in (*alpha.items(), *logn.items()) if length <= context} == {1}
    assert alpha[context + 1] > 1
    assert logn[context + 1] > 1


def test_rotation_against_its_formula() -> None:
    base, dim, positions = 10000.0, 8, 50
    x = torch.randn(positions, 2, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = (
        rotation(100, dim, base, torch.device("cpu")).at(torch.arange(30, 30 + positions)).apply(x.float())
    )
    for d in range(dim // 2):
        angle = torch.arange(30, 30 + positions, dtype=torch.float64) * base ** (-2 * d / dim)
        cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)
        low, high = x[..., d], x[..., d + dim // 2]
        torch.testing.assert_close(turned[..., d].double(), low * cos - high * sin, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            turned[..., d + dim // 2].double(), high * cos + low * sin, rtol=0, atol=1e-5
        )
