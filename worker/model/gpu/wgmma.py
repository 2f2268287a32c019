"""How `int4_wgmma.cu` cuts a layer's products: from 9 to 64 rows, on GPUs of compute capability 9.0 alone."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from worker.model.gpu.cuda import LARGEST_SHARED
from worker.model.gpu.linear import GpuLinear
from worker.model.gpu.plan import END, GROUP, NORMED, Plan, Role, flag

CAPABILITY = (9, 0)  # what is compiled for it runs on no other, not even a later one
SOURCE = Path(__file__).with_name("int4_wgmma.cu")


class WgmmaTile(NamedTuple):
    """See the source's template."""

    tiles: int
    teams: int
    turn: int
    stages: int
    cluster: int
    limit: int

    def plan(self, most: int, role: Role, linear: GpuLinear) -> Plan:
        """For up to `most` rows, a multiple of 16."""
        groups = -(-linear.in_features // (GROUP * self.cluster))
        turn = min(self.turn, groups)
        turns = -(-groups // turn)
        groups, stages, across = turns * turn, min(self.stages, turns), 64 * self.tiles * self.teams
        numbers = (most, self.tiles, self.teams, groups, turn, stages, self.cluster, self.limit)
        names = (*map(str, numbers), flag(role != "attn_c_proj"), flag(role in NORMED), str(END[role]))
        x, weights = stages * turn * 2 * GROUP * most, groups * across * GROUP // 2
        scales = groups * across * 2
        parts = -(-most // 8 * across // 64 // self.cluster)
        return Plan(
            SOURCE,
            f"int4_wgmma<{', '.join(names)}>",
            self.cluster * -(-linear.out_features // across),
            128 * self.teams,
            1024
            + x
            + weights
            + scales
            + 2048 * parts * self.cluster,  # 1024 to begin at a multiple of as many
            self.cluster,
        )


def fits(layer: dict[Role, GpuLinear], tilings: dict[int, dict[Role, WgmmaTile]]) -> bool:
    """Whether a block has the shared memory for its weights: those of a wider model are too many."""
    plans = (
        tiles[role].plan(most, role, linear)
        for most, tiles in tilings.items()
        for role, linear in layer.items()
    )
    return all(plan.shared <= LARGEST_SHARED - 256 for plan in plans)  # 256 for what is not dynamic


def rearranged(x: Tensor) -> Tensor:
    """`[rows, inputs]` in the order in which the kernels read it: pair q of 32c on is pair 4q + c of a group."""
    return x.view(len(x), -1, 4, 16, 2).transpose(2, 3).reshape(x.shape)


# By the most rows: the fastest of those that were tried on an H100 with Qwen-1.8B's shapes, in a chain of the four
# (docs/benchmarks.md). From some 100 rows on cuBLAS on a copy in 16 bits is as fast.
TILES: dict[int, dict[Role, WgmmaTile]] = {
    16: {
        "c_attn": WgmmaTile(1, 1, 2, 2, 4, 96),
        "attn_c_proj": WgmmaTile(1, 4, 1, 2, 8, 96),
        "gate_up": WgmmaTile(1, 2, 2, 2, 4, 96),
        "mlp_c_proj": WgmmaTile(1, 1, 2, 3, 8, 96),
    },
    32: {
        "c_attn": WgmmaTile(1, 2, 2, 2, 4, 104),
        "attn_c_proj": WgmmaTile(1, 2, 2, 1, 8, 104),
        "gate_up": WgmmaTile(2, 3, 2, 2, 4, 120),
        "mlp_c_proj": WgmmaTile(1, 2, 2, 4, 6, 104),
    },
    48: {
        "c_attn": WgmmaTile(1, 2, 2, 2, 4, 104),
        "attn_c_proj": WgmmaTile(1, 2, 2, 1, 8, 104),
        "gate_up": WgmmaTile(1, 3, 2, 3, 2, 104),
        "mlp_c_proj": WgmmaTile(1, 2, 1, 3, 6, 104),
    },
    64: {
        "c_attn": WgmmaTile(1, 4, 2, 2, 4, 128),
        "attn_c_proj": WgmmaTile(1, 2, 1, 4, 4, 128),
        "gate_up": WgmmaTile(1, 3, 1, 4, 2, 128),
        "mlp_c_proj": WgmmaTile(1, 2, 1, 3, 6, 128),
    },
}
MOST = max(TILES)

# The same for a half of the rows of a step whose other half attends meanwhile (`halves.py`), found on an H200: a block
# has two teams, so that attention finds registers beside it.
BESIDE: dict[int, dict[Role, WgmmaTile]] = {
    32: {
        "c_attn": WgmmaTile(1, 2, 2, 2, 4, 104),
        "attn_c_proj": WgmmaTile(1, 2, 2, 1, 8, 104),
        "gate_up": WgmmaTile(1, 2, 2, 2, 4, 104),
        "mlp_c_proj": WgmmaTile(1, 2, 2, 4, 6, 104),
    },
    48: {
        "c_attn": WgmmaTile(1, 2, 1, 4, 4, 104),
        "attn_c_proj": WgmmaTile(1, 2, 2, 1, 8, 104),
        "gate_up": WgmmaTile(1, 2, 1, 4, 4, 104),
        "mlp_c_proj": WgmmaTile(1, 2, 2, 4, 6, 104),
    },
    64: {
        "c_attn": WgmmaTile(1, 2, 1, 4, 2, 128),
        "attn_c_proj": WgmmaTile(1, 2, 1, 4, 4, 128),
        "gate_up": WgmmaTile(1, 2, 1, 4, 2, 128),
        "mlp_c_proj": WgmmaTile(1, 2, 1, 4, 6, 128),
    },
}
