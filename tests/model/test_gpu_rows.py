"""What can be told without a GPU of the kernels in CUDA C++: whom they serve, and how work is divided among them."""

import re

import pytest
import torch

from worker.engine.attention import AttentionShape
from worker.engine.gpu.cuda_attention import DIVISIONS, CudaPaged, division_for
from worker.model.gpu.cuda import LARGEST_SHARED
from worker.model.gpu.linear import GpuLinear, packed
from worker.model.gpu.rows import MOST, TILES, Int4Rows, Role, compiled

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
    assert "float16 from the cache" in str(backend.why_not(device, shape(quantized=True)))
    assert "float16 from the cache" in str(backend.why_not(device, shape(dtype=torch.bfloat16)))
    assert "heads of 128 and blocks of 16, not 64 and 16" in str(backend.why_not(device, shape(64)))
    assert "not on cpu" in str(backend.why_not(device, shape()))
