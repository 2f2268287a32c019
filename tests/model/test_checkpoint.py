"""Every form of checkpoint loads into the weights it was made from; a broken one is refused by name."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.damage import WEIGHTS, edit_json, edit_tensors
from tests.model.reader import Reader
from tests.model.tiny import Tiny, tiny_model
from worker.model.checkpoint import load_model
from worker.model.cpu import library
from worker.model.errors import BackendError, CheckpointError
from worker.model.linear import Dense
from worker.model.qwen import QwenModel

FORMS = [
    Tiny(bits=bits, group_size=group_size, sym=sym, act_order=act_order, shards=shards, other_biases=biases)
    for bits, group_size, sym, act_order, shards, biases in (
        (4, 32, False, False, 1, "zero"),
        (4, 64, True, False, 3, "absent"),
        (4, 128, True, False, 1, "random"),
        (4, 64, False, True, 2, "zero"),
        (8, 128, True, False, 1, "zero"),
        (8, 32, False, True, 2, "random"),
    )
] + [
    Tiny(bits=None, dtype=dtype, shards=shards, other_biases="absent")
    for dtype, shards in ((torch.float16, 1), (torch.bfloat16, 2))
]


@pytest.mark.parametrize("tiny", FORMS, ids=repr)
def test_dequantised_weights_are_exact(tmp_path: Path, tiny: Tiny) -> None:
    model = load_model(tiny.write(tmp_path), device="cpu", weights="dequantized")
    assert model.dtype == torch.float32
    found = {
        "transformer.wte.weight": model.wte.float(),
        "transformer.ln_f.weight": model.ln_f,
        "lm_head.weight": model.lm_head.weight,
    }
    for layer, block in enumerate(model.blocks):
        name = f"transformer.h.{layer}"
        found |= {f"{name}.ln_1.weight": block.ln_1, f"{name}.ln_2.weight": block.ln_2}
        linears = {
            "attn.c_attn": block.c_attn,
            "attn.c_proj": block.attn_c_proj,
            "mlp.w1": block.w1,
            "mlp.w2": block.w2,
            "mlp.c_proj": block.mlp_c_proj,
        }
        for kind, linear in linears.items():
            assert isinstance(linear, Dense)
            found[f"{name}.{kind}.weight"] = linear.weight
            if linear.bias is not None:
                found[f"{name}.{kind}.bias"] = linear.bias
    # A bias of zeros is as good as none.
    expected = {name: tensor for name, tensor in tiny.dense.items() if tensor.any()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_int4_stays_within_the_kernels_rounding(tmp_path: Path) -> None:
    """The whole model in 4 bits against fp32. `test_linear` bounds one layer; here roundings add up at random.

    Along the path of a logit lie 9 layers' products (4 in each of 2 blocks, and the head). Each rounds activations,
    scales and results to 8 bits: relative errors of at most 2**-8 and of half that in the mean square, three times.
    So the logits' relative error is about 2**-9 * sqrt(3 * 9) = 1 %, and 4 % are far outside of chance; a
    wrong zero point or nibble order makes it 100 %.
    """
    folder = tiny_model(tmp_path)
    ids = torch.randint(0, 512, (200,), generator=torch.Generator().manual_seed(3))
    int4, exact = (
        Reader(model).read(ids)
        for model in (
            load_model(folder, device="cpu", weights="int4"),
            load_model(folder, device="cpu", weights="dequantized"),
        )
    )
    error = (int4 - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.04
    assert int4.dtype == torch.float32


def test_the_default_on_a_cpu_is_the_int4_kernel(tmp_path: Path) -> None:
    model = load_model(tiny_model(tmp_path), device="cpu", weights="int4")
    assert model.dtype == torch.bfloat16
    compiled = library.why_not() is None
    kernel = "cpu-int8" if compiled else "int4pack-cpu"
    assert model.backends == {
        "attn.c_attn": kernel,
        "attn.c_proj": kernel,
        "lm_head": "cpu float16" if compiled else "dense float16",
        "mlp.c_proj": kernel,
        "mlp.w1": kernel,
        "mlp.w2": kernel,
    }


def test_act_order_and_int8_are_named_for_what_they_are(tmp_path: Path) -> None:
    for name, options in {"act-order": {"act_order": True}, "int8": {"bits": 8}}.items():
        model = load_model(tiny_model(tmp_path / name, **options), device="cpu", weights="int4")
        assert model.backends["mlp.w1"] == "reference"


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_held_once_and_packed(tmp_path: Path, bits: int) -> None:
    tiny = Tiny(bits=bits)
    model = load_model(tiny.write(tmp_path), device="cpu", weights="int4")
    weights = tiny.layers * sum(inputs * outputs for inputs, outputs in tiny.linears.values())
    held = sum(tensor.nbytes for tensor in distinct_tensors(model.blocks))
    packed = weights * bits / 8
    # Beside the codes: a scale and a zero point of 2 bytes each for a group of 64, biases, norms, group indices.
    assert packed < held < 1.25 * packed


def distinct_tensors(value: object) -> Iterator[Tensor]:
    """All tensors in a tree of dataclasses and lists, one for each storage."""
    seen: set[int] = set()

    def walk(part: object) -> Iterator[Tensor]:
        if isinstance(part, Tensor):
            if part.data_ptr() not in seen:
                seen.add(part.data_ptr())
                yield part
        elif is_dataclass(part):
            for field in fields(part):
                yield from walk(getattr(part, field.name))
        elif isinstance(part, list):
            for item in part:
                yield from walk(item)

    return walk(value)


def test_a_forced_backend_serves_or_fails(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    assert (
        load_model(folder, device="cpu", weights="int4", backend="reference").backends["mlp.w1"]
        == "reference"
    )
    with pytest.raises(BackendError, match="int4pack-cuda runs on NVIDIA GPUs, not on cpu"):
        load_model(folder, device="cpu", weights="int4", backend="int4pack-cuda")


def load(folder: Path) -> QwenModel:
    return load_model(folder, device="cpu", weights="int4")


def damaged(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, change)


def truncate(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


NAME = "transformer.h.1.mlp.w2"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, [WEIGHTS, "cannot be read", "download it again"]),
        (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS, "no such file"]),
        (damaged(lambda tensors: tensors.pop(f"{NAME}.scales")), [f"{NAME}.scales is in none of"]),
        (
            damaged(
                lambda tensors: tensors.update({f"{NAME}.qweight": tensors[f"{NAME}.qweight"][1:].clone()})
            ),
            [WEIGHTS, f"{NAME}.qweight", "is I32 [31, 384], expected I32 [32, 384]"],
        ),
        (
            damaged(lambda tensors: tensors.update({f"{NAME}.scales": tensors[f"{NAME}.qzeros"].clone()})),
            [WEIGHTS, f"{NAME}.scales", "is I32", "expected F16 or BF16 or F32 [4, 384]"],
        ),
        (
            damaged(lambda tensors: tensors[f"{NAME}.qzeros"].fill_(0x88888888 - 2**32)),
            [WEIGHTS, f"{NAME}.qzeros", "version 2 of the GPTQ format", "only version 1 can be read"],
        ),
        (
            damaged(lambda tensors: tensors[f"{NAME}.qzeros"][0, 0].add_(1)),
            [WEIGHTS, f"{NAME}.qzeros is not symmetric as quantization_config says"],
        ),
        (
            damaged(lambda tensors: tensors[f"{NAME}.g_idx"][5].fill_(4)),
            [WEIGHTS, f"{NAME}.g_idx names groups 0 to 4; there are 0 to 3"],
        ),
        (lambda folder: edit_json(folder / "config.json", model_type="llama"), ["config.json", "model_type"]),
        (
            lambda folder: edit_json(folder / "config.json", intermediate_size=2 * 386),
            ["256x386 matrix cannot be packed"],
        ),
    ],
)
def test_refused_by_name(tmp_path: Path, damage: Callable[[Path], object], words: list[str]) -> None:
    folder = tiny_model(tmp_path, sym=True)
    load(folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def test_a_loaded_model_does_not_need_its_file(tmp_path: Path) -> None:
    """A checkpoint that is downloaded again must not pull the weights away from under a running engine."""
    model = load(tiny_model(tmp_path))
    ids = torch.arange(20)
    before = Reader(model).read(ids)
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert torch.equal(Reader(model).read(ids), before)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors: no such file"):
        load(folder)


def test_a_checkpoint_that_is_plain_but_says_it_is_not(tmp_path: Path) -> None:
    quantization: dict[str, Any] = {"bits": 4, "group_size": 64}
    folder = tiny_model(tmp_path, bits=None)
    edit_json(folder / "config.json", quantization_config=quantization)
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\.attn\.c_attn\.qweight is in none of"):
        load(folder)
