"""What can be told without a GPU of the kernels in CUDA C++: whom they serve, and how work is divided among them."""

import re
from itertools import chain

import pytest
import torch

from worker.engine.attention import AttentionShape
from worker.engine.gpu.cuda_attention import DIVISIONS, CudaPaged, division_for
from worker.engine.graphs import BUCKETS
from worker.model.gpu import wgmma
from worker.model.gpu.cuda import LARGEST_SHARED
from worker.model.gpu.halves import Halves
from worker.model.gpu.linear import GpuLinear, packed
from worker.model.gpu.plan import Role
from worker.model.gpu.rows import MOST, TILES, Int4Rows, compiled, tilings_for

ROLES: tuple[Role, ...] = ("c_attn", "attn_c_proj", "gate_up", "mlp_c_proj")


def layer(inputs: int, outputs: int, group: int) -> dict[Role, GpuLinear]:
    linear = GpuLinear(
        packed(torch.zeros(inputs, outputs, dtype=torch.uint8)),
        torch.ones(outputs, inputs // group).half(),
        None,
        inputs,
        group,
    )
    return dict.fromkeys(ROLES, linear)


@pytest.mark.parametrize(
    ("inputs", "outputs", "group", "reason"),
    [
        (256, 64, 64, "needs groups of 128 inputs .* not 256 in 64s to 64"),
        (256, 40, 128, "a multiple of 16 outputs, not 256 in 128s to 40"),
        (256, 64, 128, "runs on NVIDIA GPUs, not on cpu"),
    ],
)
def test_why_not_names_what_it_cannot(inputs: int, outputs: int, group: int, reason: str) -> None:
    one = layer(inputs, outputs, group)
    assert re.search(reason, str(Int4Rows.why_not([one])))
    assert compiled([one]) is None


def test_every_tile_fits_into_a_block() -> None:
    assert max(TILES) == MOST
    for most, tiles in TILES.items():
        assert set(tiles) == set(ROLES)
        for tile in tiles.values():
            assert tile.warps * 32 <= 1024
            assert 4 * -(-most // 8) * (128 * tile.warps * tile.tiles + 8) <= LARGEST_SHARED
            # A cluster shares a tile's outputs in pieces of 16, the unit of the sums of squares.
            assert tile.tiles % tile.cluster == 0


def shaped(width: int, mlp: int) -> dict[Role, GpuLinear]:
    """Products of a layer without weights."""
    sizes: dict[Role, tuple[int, int]] = {
        "c_attn": (width, 3 * width),
        "attn_c_proj": (width, width),
        "gate_up": (width, 2 * mlp),
        "mlp_c_proj": (mlp, width),
    }
    return {
        role: GpuLinear(torch.empty(outputs, 0), torch.empty(outputs, 0), None, inputs, 128)
        for role, (inputs, outputs) in sizes.items()
    }


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_every_launch_is_one_that_the_chip_takes(capability: tuple[int, int]) -> None:
    qwen = shaped(2048, 5504)
    tilings = tilings_for(capability, qwen)
    assert max(tilings) == (wgmma.MOST if capability == (9, 0) else MOST)
    for most, tiles in chain(tilings.items(), wgmma.BESIDE.items()):
        for role, linear in qwen.items():
            plan = tiles[role].plan(most, role, linear)
            assert plan.threads <= 1024
            assert plan.shared <= LARGEST_SHARED
            assert plan.cluster <= 8
            assert plan.blocks % plan.cluster == 0


def test_warpgroups_have_registers_and_copies_do_not_meet_products() -> None:
    qwen = shaped(2048, 5504)
    for most, tiles in chain(wgmma.TILES.items(), wgmma.BESIDE.items()):
        for role, tile in tiles.items():
            assert tile.limit * 128 * tile.teams <= 65536
            _, _, _, groups, turn, stages, *_ = (
                tile.plan(most, role, qwen[role]).instance.split("<")[1].split(", ")
            )
            assert int(stages) == int(groups) // int(turn) or int(stages) >= 3
    # Two blocks of attention, of 128 threads with 128 registers, have room beside them.
    for tiles in wgmma.BESIDE.values():
        assert all(tile.limit * 128 * tile.teams <= 65536 - 2 * 128 * 128 for tile in tiles.values())


def test_what_is_computed_in_halves() -> None:
    assert [bucket for bucket in BUCKETS if Halves.serves(bucket)] == [64, 96, 128]


def test_a_wider_model_keeps_to_the_kernel_for_few_rows() -> None:
    assert max(tilings_for((9, 0), shaped(4096, 11008))) == MOST


def test_numbers_that_follow_each_other_are_what_one_instruction_multiplies() -> None:
    """Lane c has the words from input 32c on: of each of its 16 pairs, one instruction of 16 inputs takes two."""
    order = wgmma.rearranged(torch.arange(256).view(1, 256))[0].view(
        2, 16, 4, 2
    )  # group, pair of a lane, lane, of a pair
    for group, pair, c, of in ((0, 0, 0, 0), (0, 0, 3, 1), (1, 5, 2, 0), (1, 15, 3, 1)):
        assert order[group, pair, c, of] == 128 * group + 32 * c + 2 * pair + of


def test_attention_fills_the_chip_and_has_a_kernel_for_every_division() -> None:
    divisions = {pairs: division_for(pairs) for pairs in range(1, 5000)}
    assert set(divisions.values()) <= set(DIVISIONS)
    assert divisions[16] == (8, 8)
    assert divisions[128] == (16, 1)
    assert divisions[1024] == (4, 1)


def test_attention_says_whom_it_does_not_serve() -> None:
    def shape(
        dim: int = 128, dtype: torch.dtype = torch.float16, *, quantized: bool = False
    ) -> AttentionShape:
        return AttentionShape(16, dim, 16, dtype, quantized, deterministic=False)

    backend, device = CudaPaged(), torch.device("cpu")
    assert "serves float16, not bfloat16" in str(backend.why_not(device, shape(dtype=torch.bfloat16)))
    assert "heads of 128 and blocks of 16, not 64 and 16" in str(backend.why_not(device, shape(64)))
    for quantized in (False, True):
        assert "not on cpu" in str(backend.why_not(device, shape(quantized=quantized)))
