"""Attention on a GPU: answers and prompts by our kernels over the pages, whole prompts by cuDNN's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from worker.engine.batch import Batch, Span
from worker.engine.kv_cache import KVCache
from worker.model.gpu import support
from worker.model.rope import Rotation

if TYPE_CHECKING:
    from worker.engine.attention import AttentionShape


# cuDNN plans for every length anew, 50 ms each: prompts are filled up to a multiple of this. Below the first multiple
# that is worth it our own kernel is as fast.
CUDNN_STEP, CUDNN_LEAST, CUDNN_MOST = 512, 1024, 8192


# Positions that a piece of a prompt looks at, up to which small tiles are faster.
PROMPT_SHORT = 1024


@dataclass(frozen=True, slots=True)
class Cut:
    """How a past is cut: at most `split` parts of at least `least` tokens, `tile` tokens a turn, by `warps` warps."""

    split: int
    least: int
    tile: int
    warps: int


# By the most rows of a launch: enough programs to fill the multiprocessors. Found with `bench/layers.py` on an H200.
CUTS = (
    (2, Cut(32, 32, 16, 2)),
    (4, Cut(16, 64, 16, 2)),
    (8, Cut(8, 128, 32, 4)),
    (16, Cut(4, 128, 16, 2)),
    (32, Cut(2, 256, 32, 4)),
)
UNCUT = Cut(1, 64, 16, 2)


def cut_for(rows: int) -> Cut:
    """The cut for a launch of so many rows."""
    return next((cut for most, cut in CUTS if rows <= most), UNCUT)


class TritonPaged:
    """Our own kernels, in Triton; cuDNN's where a long prompt is computed as a whole."""

    name = "triton-paged"

    def __init__(self) -> None:
        self._planned: tuple[Batch, Tensor] | None = None
        self._scratch: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def why_not(self, device: torch.device, shape: "AttentionShape") -> str | None:
        if shape.deterministic:
            return "computes a row of a prompt in another order than a row of an answer"
        if shape.dtype == torch.float32 and not support.INTERPRETED:
            return "serves float16 and bfloat16, not float32"
        if shape.head_dim & (shape.head_dim - 1) or shape.head_dim < 16:
            return f"needs a power of two, 16 or more, in a head, not {shape.head_dim}"
        return support.why_not(device)

    def attend(self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation) -> Tensor:
        heads, count = qkv.shape[1] // 3, batch.answers
        mixed = qkv.new_empty(len(qkv), heads, qkv.shape[2])
        if count:
            turns = Rotation(rotation.cos[:count], rotation.sin[:count])
            mixed[:count] = self.decode(
                qkv[:count], layer, cache, self._tables(batch), batch.positions[:count], turns
            )
        if count < len(batch.spans):
            self._prompts(qkv, layer, cache, batch, rotation, mixed)
        return mixed

    def _prompts(
        self, qkv: Tensor, layer: int, cache: KVCache, batch: Batch, rotation: Rotation, mixed: Tensor
    ) -> None:
        """The rows of prompts of a batch, into `mixed`."""
        from worker.engine.gpu.attention_kernel import rotate_and_store

        first, heads, dim = batch.answers, qkv.shape[1] // 3, qkv.shape[2]
        turned = torch.empty(len(qkv) - first, 3 * heads, dim, dtype=cache.dtype, device=qkv.device)
        keys, values = cache.layers[layer]
        scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
        launch = support.dependent_launch(qkv.device)
        rotate_and_store[(len(turned),)](
            qkv[first:],
            keys,
            values,
            scales[0],
            scales[1],
            batch.slots[first:],
            rotation.cos[first:],
            rotation.sin[first:],
            turned,
            H=heads,
            D=dim,
            PAGE=cache.block_size,
            BY_HEAD=cache.by_head,
            QUANTIZED=cache.quantized,
            HEADS=1 << (heads - 1).bit_length(),
            PDL=launch,
            **({"launch_pdl": True} if launch else {}),
        )
        for span in batch.spans[first:]:
            mine = turned[span.row - first :][: span.count]
            answer = mixed[span.row : span.row + span.count]
            if self._by_cudnn(span, cache):
                answer.copy_(_whole(mine))
            else:
                _piece(mine, layer, cache, span, answer)

    def _by_cudnn(self, span: Span, cache: KVCache) -> bool:
        return (
            cache.device.type == "cuda"
            and span.start == 0
            and CUDNN_LEAST <= span.count <= CUDNN_MOST
            and not cache.quantized
        )

    def decode(
        self,
        qkv: Tensor,
        layer: int,
        cache: KVCache,
        tables: Tensor,
        positions: Tensor,
        rotation: Rotation,
        cut: Cut | None = None,
    ) -> Tensor:
        """One row a sequence: `[rows, heads, D]`, in qkv's dtype. Shapes alone decide what is launched.

        tables     int32 `[rows, blocks]`: the block of every `block_size` positions.
        positions  int64 `[rows]`.
        """
        from worker.engine.gpu.attention_kernel import decode_attention

        rows, three_heads, dim = qkv.shape
        heads, how = three_heads // 3, cut or cut_for(rows)
        out = qkv.new_empty(rows, heads, dim)
        keys, values = cache.layers[layer]
        scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
        partial, stats, counters = self._room(rows * heads, how.split, dim, qkv.device)
        launch = support.dependent_launch(qkv.device)
        decode_attention[(rows * heads, how.split)](
            qkv,
            keys,
            values,
            scales[0],
            scales[1],
            tables,
            positions,
            rotation.cos,
            rotation.sin,
            out,
            partial,
            stats,
            counters,
            tables.stride(0),
            dim**-0.5,
            H=heads,
            D=dim,
            PAGE=cache.block_size,
            BT=how.tile,
            SPLIT=how.split,
            LEAST=how.least,
            BY_HEAD=cache.by_head,
            QUANTIZED=cache.quantized,
            PDL=launch,
            num_warps=how.warps,
            **({"launch_pdl": True} if launch else {}),
        )
        return out

    def warm(self, cache: KVCache, heads: int) -> None:
        """As `DecodeAttention` says: cuDNN's plans."""
        config = (3 * heads, cache.layers[0].shape[-1])
        if cache.device.type != "cuda" or cache.quantized:
            return
        for length in range(CUDNN_LEAST, CUDNN_MOST + 1, CUDNN_STEP):
            _whole(torch.zeros(length, *config, dtype=cache.dtype, device=cache.device))

    def _tables(self, batch: Batch) -> Tensor:
        """Of a batch's answers; made once for all layers of a step."""
        if self._planned is None or self._planned[0] is not batch:
            blocks = [span.blocks for span in batch.spans[: batch.answers]]
            self._planned = batch, pad_sequence(blocks, batch_first=True).to(torch.int32)
        return self._planned[1]

    def _room(self, pairs: int, split: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Where parts leave what they found; the counters are 0 between launches.

        One room a size, for ever: captured graphs hold its address. Launches use it one after the other.
        """
        size = (pairs, split, dim)
        if size not in self._scratch:
            self._scratch[size] = (
                torch.empty(pairs * split * dim, device=device),
                torch.empty(pairs * split * 2, device=device),
                torch.zeros(pairs, dtype=torch.int32, device=device),
            )
        return self._scratch[size]


def _piece(turned: Tensor, layer: int, cache: KVCache, span: Span, answer: Tensor) -> None:
    """Attention of a piece of a prompt over the pages, into `answer` `[n, heads, D]`. turned `[n, 3 * heads, D]`."""
    from worker.engine.gpu.prompt_kernel import prompt_attention

    count, heads, dim = answer.shape
    keys, values = cache.layers[layer]
    scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
    tile, warps = (128, 8) if span.length > PROMPT_SHORT else (64, 4)
    launch = support.dependent_launch(turned.device)
    prompt_attention[(-(-count // tile), heads)](
        turned,
        keys,
        values,
        scales[0],
        scales[1],
        span.blocks,
        answer,
        span.start,
        count,
        dim**-0.5,
        turned.stride(0),
        H=heads,
        D=dim,
        PAGE=cache.block_size,
        BY_HEAD=cache.by_head,
        QUANTIZED=cache.quantized,
        BM=tile,
        BN=tile,
        STAGES=3,
        PDL=launch,
        num_warps=warps,
        **({"launch_pdl": True} if launch else {}),
    )


def _whole(turned: Tensor) -> Tensor:
    """Causal attention of a whole prompt by cuDNN: `[n, 3 * heads, D]` -> `[n, heads, D]`."""
    count = len(turned)
    if short := -count % CUDNN_STEP:  # causal: no row looks at what is behind it
        turned = torch.cat([turned, turned.new_zeros(short, *turned.shape[1:])])
    q, k, v = turned.transpose(0, 1).unsqueeze(0).chunk(3, dim=1)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed[0].transpose(0, 1)[:count]
