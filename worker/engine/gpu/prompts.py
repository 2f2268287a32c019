"""Attention of rows whose keys and values are written to the pages first: pieces of prompts, answers beside them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from worker.engine.gpu import tiles
from worker.engine.gpu.tiles import SPARE
from worker.engine.kv_cache import KVCache
from worker.model.gpu import support
from worker.model.rope import Rotation

# cuDNN plans for every length anew, 50 ms each: prompts are filled up to a multiple of this. Below the first multiple
# that is worth it our own kernel is as fast.
CUDNN_STEP, CUDNN_LEAST, CUDNN_MOST = 512, 1024, 8192
ADDERS = 8  # programs that add up the rows of a tile, a part and head
STAGES = 3  # turns whose keys and values are under way
FEW = 16  # rows of a tile that tensor cores take at once


class Tile(NamedTuple):
    """Rows of a tile, keys a turn, warps; `spare` as in `worker.engine.gpu.tiles`."""

    rows: int
    keys: int
    warps: int
    spare: int


# By the most rows of a step. A long prompt has tiles enough without cutting the keys.
TILES = ((16, Tile(16, 64, 4, SPARE)), (32, Tile(32, 64, 4, SPARE)), (1024, Tile(64, 64, 4, SPARE)))
LARGE = Tile(128, 128, 8, 0)
ROOM = 64  # rows of the largest tile whose keys are cut


def tile_for(rows: int) -> Tile:
    """The tile for a step of so many rows."""
    return next((tile for most, tile in TILES if rows <= most), LARGE)


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the attention of a step reads besides queries, keys and values.

    slots   of every row, int64 or int32 `[rows]`;
    tables  int32 `[sequences, blocks]`;
    items   int32 `[items, FIELDS]`, of tiles as `tile` has them; those with no rows are none.
    """

    slots: Tensor
    tables: Tensor
    items: Tensor
    tile: Tile


class PromptAttention:
    """The launches; its room serves one after the other."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def store(self, qkv: Tensor, layer: int, cache: KVCache, slots: Tensor, rotation: Rotation) -> Tensor:
        """Turn queries and keys, keep keys and values: all three `[rows, 3 * heads, D]`, in the dtype of the cache."""
        from worker.engine.gpu.attention_kernel import rotate_and_store

        rows, three_heads, dim = qkv.shape
        turned = torch.empty(rows, three_heads, dim, dtype=cache.dtype, device=qkv.device)
        keys, values = cache.layers[layer]
        scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
        launch = support.dependent_launch(qkv.device)
        rotate_and_store[(rows,)](
            qkv,
            keys,
            values,
            scales[0],
            scales[1],
            slots,
            rotation.cos,
            rotation.sin,
            turned,
            H=three_heads // 3,
            D=dim,
            PAGE=cache.block_size,
            BY_HEAD=cache.by_head,
            QUANTIZED=cache.quantized,
            HEADS=1 << (three_heads // 3 - 1).bit_length(),
            PDL=launch,
            **({"launch_pdl": True} if launch else {}),
        )
        return turned

    def attend(self, turned: Tensor, layer: int, cache: KVCache, pieces: Pieces, out: Tensor) -> None:
        """The items' rows of `turned`, which `store` gave, into those of `out`, `[rows, heads, D]`."""
        from worker.engine.gpu.prompt_kernel import add_parts, prompt_attention

        heads, dim = out.shape[1:]
        keys, values = cache.layers[layer]
        scales = cache.scales[layer] if cache.quantized else cache.layers[layer]
        tile, launch = pieces.tile, support.dependent_launch(out.device)
        partial, stats = self._room(heads, dim, out.device)
        prompt_attention[(len(pieces.items), heads)](
            turned,
            keys,
            values,
            scales[0],
            scales[1],
            pieces.tables,
            pieces.items,
            out,
            partial,
            stats,
            pieces.tables.stride(0),
            dim**-0.5,
            turned.stride(0),
            H=heads,
            D=dim,
            PAGE=cache.block_size,
            BY_HEAD=cache.by_head,
            QUANTIZED=cache.quantized,
            BM=tile.rows,
            BN=tile.keys,
            STAGES=STAGES,
            FEW=FEW,
            ROOM=ROOM,
            PDL=launch,
            num_warps=tile.warps,
            **({"launch_pdl": True} if launch else {}),
        )
        if tile.spare:
            add_parts[(min(SPARE, len(pieces.items)), heads, ADDERS)](
                pieces.items,
                out,
                partial,
                stats,
                H=heads,
                D=dim,
                ROOM=ROOM,
                SPARE=SPARE,
                PDL=launch,
                num_warps=1,
                **({"launch_pdl": True} if launch else {}),
            )

    def _room(self, heads: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where parts leave what they found. Captured graphs hold its address."""
        size = (heads, dim, device)
        if size not in self._rooms:
            lines = SPARE * heads * ROOM
            self._rooms[size] = torch.empty(lines * dim, device=device), torch.empty(lines * 2, device=device)
        return self._rooms[size]


def cut(stretches: np.ndarray, tile: Tile) -> np.ndarray:
    """As `worker.engine.gpu.tiles.items`."""
    return tiles.items(stretches, tile.rows, tile.spare)


def by_cudnn(start: int, count: int, cache: KVCache) -> bool:
    """Whether a piece of a prompt is the whole of a long one, which cuDNN computes faster."""
    whole = start == 0 and CUDNN_LEAST <= count <= CUDNN_MOST
    return whole and cache.device.type == "cuda" and not cache.quantized


def whole(turned: Tensor) -> Tensor:
    """Causal attention of a whole prompt by cuDNN: `[n, 3 * heads, D]` -> `[n, heads, D]`."""
    count = len(turned)
    if short := -count % CUDNN_STEP:  # causal: no row looks at what is behind it
        turned = torch.cat([turned, turned.new_zeros(short, *turned.shape[1:])])
    q, k, v = turned.transpose(0, 1).unsqueeze(0).chunk(3, dim=1)
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]):
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed[0].transpose(0, 1)[:count]
