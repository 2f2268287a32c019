"""How a layer's product is launched by a kernel in CUDA C++: what `rows.py` and `wgmma.py` plan and compile."""

from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from worker.model.gpu.linear import GpuLinear

GROUP = 128  # inputs that share a scale

Role = Literal["c_attn", "attn_c_proj", "gate_up", "mlp_c_proj"]
NORMED = ("c_attn", "gate_up")
END = {"c_attn": 0, "attn_c_proj": 2, "gate_up": 1, "mlp_c_proj": 2}  # as in `int4.cuh`


class Plan(NamedTuple):
    """An instance of a template and its launch; blocks are those of all clusters. `source` may want more than 9.0."""

    source: Path
    instance: str
    blocks: int
    threads: int
    shared: int
    cluster: int


class Tile(Protocol):
    """How a kernel cuts a product."""

    def plan(self, most: int, role: Role, linear: GpuLinear, /) -> Plan:
        """For up to `most` rows."""
        ...


def flag(value: bool) -> str:
    """As C++ writes it."""
    return str(value).lower()
