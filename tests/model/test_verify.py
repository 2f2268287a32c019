"""Each kind of damage is found and named, all of it at once; what may differ is accepted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.damage import WEIGHTS, edit_json, edit_tensors
from tests.model.tiny import Tiny, tiny_model
from worker.model.verify import verify


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "tiny", layers=1, sym=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 8, "sym": True},
        {"bits": None, "dtype": torch.bfloat16},
        {"shards": 3, "act_order": True},
        {"other_biases": "absent"},
    ],
    ids=lambda options: ", ".join(map(str, options)) or "int4",
)
def test_complete_checkpoints(tmp_path: Path, options: dict[str, Any]) -> None:
    assert verify(tiny_model(tmp_path, layers=1, **options)) == []


def test_a_folder_without_config(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path)
    assert "config.json: no such file" in problem


def test_all_findings_at_once(checkpoint: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.ln_f.weight"]
        tensors["transformer.h.0.mlp.w1.scales"] = tensors["transformer.h.0.mlp.w1.scales"][:-1].clone()
        tensors["transformer.h.0.mlp.w2.qweight"] = tensors["transformer.h.0.mlp.w2.qweight"].to(torch.int64)
        tensors["transformer.h.1.ln_1.weight"] = torch.zeros(256)

    edit_tensors(checkpoint, change)
    (checkpoint / "qwen.tiktoken").unlink()
    assert [problem.replace(f"{checkpoint}", "") for problem in verify(checkpoint)] == [
        ": needs one rank file *.tiktoken, has 0",
        "transformer.h.0.mlp.w1.scales in model.safetensors is F16 [3, 384], expected F16 or BF16 or F32 [4, 384]",
        "transformer.h.0.mlp.w2.qweight in model.safetensors is I64 [32, 384], expected I32 [32, 384]",
        "transformer.ln_f.weight is in none of the checkpoint's files",
        "transformer.h.1.ln_1.weight in model.safetensors is no tensor of this model",
    ]


def test_the_bias_that_the_architecture_has_must_be_there(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop("transformer.h.0.attn.c_attn.bias"))
    (problem,) = verify(checkpoint)
    assert problem.startswith("transformer.h.0.attn.c_attn.bias is in none")


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_of_another_format(tmp_path: Path, bits: int) -> None:
    """Version 2 stores 8 where version 1 stores 7; a mixture is not symmetric at all."""
    folder = tiny_model(tmp_path, layers=1, sym=True, bits=bits)
    first, second = "transformer.h.0.attn.c_attn.qzeros", "transformer.h.0.attn.c_proj.qzeros"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[first] += 0x11111111 if bits == 4 else 0x01010101
        tensors[second][0, 0] += 1

    edit_tensors(folder, change)
    version, mixture = verify(folder)
    assert version.startswith(f"{first} has its zero points stored as in version 2")
    assert mixture.startswith(f"{second} is not symmetric")


def test_group_indices_out_of_range(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors["transformer.h.0.mlp.c_proj.g_idx"].fill_(6))
    assert verify(checkpoint) == ["transformer.h.0.mlp.c_proj.g_idx names groups 6 to 6; there are 0 to 5"]


def test_a_truncated_file(checkpoint: Path) -> None:
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    (problem,) = verify(checkpoint)
    assert problem.startswith(f"{file}: cannot be read")
    assert problem.endswith("download it again")


def test_missing_shards_are_named_once_each(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, layers=1, shards=4)
    for number in (1, 3):
        (folder / f"model-0000{number}-of-00004.safetensors").unlink()
    problems = verify(folder)
    assert [problem.rpartition("/")[2] for problem in problems] == [
        "model-00001-of-00004.safetensors: no such file; download it again",
        "model-00003-of-00004.safetensors: no such file; download it again",
    ]


def test_an_index_that_is_not_one(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, layers=1, shards=2)
    edit_json(folder / "model.safetensors.index.json", weight_map=["a"])
    (problem,) = verify(folder)
    assert "model.safetensors.index.json: weight_map must say" in problem


def test_a_packing_that_cannot_be(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", intermediate_size=2 * 100)
    (problem,) = verify(checkpoint)
    assert "256x100 matrix cannot be packed: both sides must be multiples of 8 at 4 bits" in problem


def test_a_broken_generation_config(checkpoint: Path) -> None:
    edit_json(checkpoint / "generation_config.json", top_p=7)
    (problem,) = verify(checkpoint)
    assert "generation_config.json: top_p" in problem


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, layers=1, vocab_size=470)
    (problem,) = verify(folder)
    assert problem.endswith("need 480 rows, vocab_size in config.json is 470")


def test_qwens_own_rank_file(tmp_path: Path, qwen_rank_file: Path) -> None:
    """Qwen's file passes, with Windows line ends too; another of its length does not."""
    ranks = qwen_rank_file.read_bytes()
    folder = Tiny(layers=1, vocab_size=151_936, hidden=64).write(tmp_path)
    file = folder / "qwen.tiktoken"

    file.write_bytes(ranks.replace(b"\n", b"\r\n"))
    assert verify(folder) == []

    lines = ranks.splitlines()
    (a, _), (b, _) = lines[-1].split(), lines[-2].split()
    lines[-2:] = [a + b" 151641", b + b" 151642"]
    file.write_bytes(b"\n".join(lines))
    (problem,) = verify(folder)
    assert "as long as Qwen's rank file but not the same" in problem
