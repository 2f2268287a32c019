"""All layers for one row in one launch (`int4_stack.cu`): at one row launches cost as much as what they read.

Each block of the kernel needs a multiprocessor of its own, all of them at once; the width of the residual stream says
how many there are. Where it cannot serve, the launches of `worker.model.gpu.rows` do.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.model.gpu import cuda, support
from worker.model.gpu.linear import GpuLinear
from worker.model.gpu.plan import GROUP, Role
from worker.model.rope import Rotation

SOURCE = Path(__file__).with_name("int4_stack.cu")
CAPABILITY = (9, 0)  # it was tried there alone
ROOM = cuda.LARGEST_SHARED - 1024  # bytes of a block's shared memory, without what the system takes
PAGE = 16  # tokens
ROLES: tuple[Role, ...] = ("c_attn", "attn_c_proj", "gate_up", "mlp_c_proj")

logger = logging.getLogger(__name__)


class StackLayer(NamedTuple):
    """Norms fp32 `[hidden]`."""

    ln_1: Tensor
    roles: dict[Role, GpuLinear]
    ln_2: Tensor


class Sizes(NamedTuple):
    """As in the source, of which it is the half that the launch needs."""

    hidden: int
    inner: int

    @classmethod
    def of(cls, roles: dict[Role, GpuLinear]) -> "Sizes":
        return cls(roles["c_attn"].in_features, roles["mlp_c_proj"].in_features)

    @property
    def warps(self) -> int:
        """Of a block, those that multiply; and the model's heads."""
        return self.hidden // GROUP

    @property
    def blocks(self) -> int:
        return self.hidden // 16

    @property
    def turns(self) -> int:
        """Most groups of mlp_c_proj's inputs a warp."""
        return -(-self.inner // (GROUP * self.warps))

    @property
    def most(self) -> int:
        """Outputs of gate and up that a block has; some have eight less."""
        return 8 * -(-self.inner // (4 * self.blocks))

    @property
    def stage(self) -> int:
        """Bytes."""
        return 8 * self.hidden

    @property
    def scales(self) -> int:
        """Of a block's outputs."""
        return self.warps * (64 + self.most + 16 * self.turns)

    @property
    def beside(self) -> int:
        """Bytes of shared memory beside the ring."""
        outputs = 16 * -(-self.most // 16)
        return self.warps * (8 * outputs + 384 * self.turns + 4 * GROUP + 16) + 4 * self.scales + 32

    @property
    def stages(self) -> int:
        """Of the ring, with two barriers each."""
        return (ROOM - self.beside) // (self.stage + 16)

    @property
    def packets(self) -> int:
        """Of 8 bytes; a block's number of the last turn stands in half of one."""
        streams, parts = self.hidden + 2 * self.blocks, 2 * GROUP * self.blocks
        return streams + 2 * self.hidden + self.inner // 2 + parts + -(-self.blocks // 2)


QWEN = Sizes(2048, 5504)


class Int4Stack:
    """The launch for the layers of one model. Raises `cuda.CompileError`."""

    def __init__(self, layers: Sequence[StackLayer], wte: Tensor, *, eps: float) -> None:
        """`wte` fp16 `[vocab, hidden]`."""
        self._layers, self._wte, self._eps = layers, wte, eps
        self._sizes = sizes = Sizes.of(layers[0].roles)
        name = f"int4_stack<{sizes.hidden}, {sizes.inner}, {sizes.stages}>"
        self._kernel = cuda.load(SOURCE, [name], wte.device)[name]
        self._scales = [_by_block(layer.roles, sizes) for layer in layers]
        self._packets = torch.zeros(sizes.packets, dtype=torch.int64, device=wte.device)
        self._tables: dict[int, Tensor] = {}

    @staticmethod
    def why_not(layers: Sequence[StackLayer], wte: Tensor) -> str | None:
        """Why these layers cannot be served; None when they can."""
        device, sizes = wte.device, Sizes.of(layers[0].roles)
        if (reason := support.why_not_compiled(device)) is not None:
            return reason
        if torch.cuda.get_device_capability(device) != CAPABILITY:
            return "needs compute capability 9.0"
        if sizes != QWEN:
            return f"was made for {QWEN.hidden} and {QWEN.inner} wide layers, not {sizes.hidden} and {sizes.inner}"
        if sizes.blocks > torch.cuda.get_device_properties(device).multi_processor_count:
            return f"needs {sizes.blocks} multiprocessors"
        if wte.dtype != torch.float16:
            return f"reads float16 embeddings, not {str(wte.dtype).removeprefix('torch.')}"
        expected: dict[Role, tuple[int, int]] = {
            "c_attn": (sizes.hidden, 3 * sizes.hidden),
            "attn_c_proj": (sizes.hidden, sizes.hidden),
            "gate_up": (sizes.hidden, 2 * sizes.inner),
            "mlp_c_proj": (sizes.inner, sizes.hidden),
        }
        for layer in layers:
            for role, shape in expected.items():
                linear = layer.roles[role]
                if (linear.in_features, linear.out_features) != shape or linear.group_size != GROUP:
                    return f"needs {role} {shape} in groups of {GROUP}"
                if not linear.words.is_contiguous():
                    return "needs the rows of a packing side by side"
                if (linear.bias is None) == (role == "c_attn"):
                    return "adds a bias to c_attn, and to nothing else"
        return None

    def __call__(
        self, token: Tensor, caches: Sequence[Tensor], table: Tensor, position: Tensor, rotation: Rotation
    ) -> Tensor:
        """The residual stream behind the last layer, fp32 `[1, hidden]`; keys and values are in the cache then.

        token, position  int64 `[1]`.
        caches           of each layer fp16 `[2, blocks, heads, PAGE, 128]`, always the same ones.
        table            int32 `[1, blocks]`: the blocks of the row's pages.
        """
        hidden = torch.empty(1, self._sizes.hidden, device=self._wte.device)
        arguments = (
            self._pointers(caches),
            len(self._layers),
            token,
            self._wte,
            table,
            position,
            rotation.cos,
            rotation.sin,
            self._packets,
            hidden,
            self._eps,
            GROUP**-0.5,
        )
        shared = self._sizes.beside + self._sizes.stages * (self._sizes.stage + 16)
        threads = 32 * self._sizes.warps + 32
        self._kernel((self._sizes.blocks, 1), threads, arguments, shared=shared, overlap=True)
        return hidden

    def _pointers(self, caches: Sequence[Tensor]) -> Tensor:
        """int64 `[layers, 10]`, as `Layer` in the source. Made once for some caches: graphs hold its address."""
        key = caches[0].data_ptr()
        if key not in self._tables:
            rows = []
            for layer, scales, (keys, values) in zip(self._layers, self._scales, caches, strict=True):
                words = [layer.roles[role].words for role in ROLES]
                rest = [scales, layer.roles["c_attn"].bias, layer.ln_1, layer.ln_2, keys, values]
                rows.append([tensor.data_ptr() for tensor in (*words, *rest) if tensor is not None])
            self._tables[key] = torch.tensor(rows, dtype=torch.int64, device=self._wte.device)
        return self._tables[key]


def compiled(layers: Sequence[StackLayer], wte: Tensor, *, eps: float) -> Int4Stack | None:
    """The launch for these layers; None, and the log says why, where it cannot serve."""
    reason = Int4Stack.why_not(layers, wte)
    if reason is None:
        try:
            return Int4Stack(layers, wte, eps=eps)
        except (cuda.CompileError, RuntimeError) as error:
            reason = f"could not be compiled: {error}"
    logger.info("one launch for all layers %s", reason)
    return None


def _by_block(roles: dict[Role, GpuLinear], sizes: Sizes) -> Tensor:
    """fp16 `[blocks, scales]`: the scales of all outputs of a block after each other, as `Sizes` in the source says."""
    c_attn, attn_c_proj, gate_up, down = (roles[role].scales for role in ROLES)
    blocks, device = sizes.blocks, gate_up.device
    first = torch.arange(blocks, device=device) * (sizes.inner // 4) // blocks * 8
    rows = (first[:, None] + torch.arange(sizes.most, device=device)).clamp(max=len(gate_up) - 1)
    missing = sizes.turns * sizes.warps - down.shape[1]
    parts = (c_attn, attn_c_proj, gate_up[rows.flatten()], F.pad(down, (0, missing)))
    return torch.cat([part.reshape(blocks, -1) for part in parts], 1)
