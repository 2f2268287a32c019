"""Decode attention in CUDA C++, however a past is divided, against the formula in fp64 on what the cache holds."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from worker.engine.gpu import cuda_attention
from worker.engine.gpu.cuda_attention import DIVISIONS, CudaPaged, Division
from worker.engine.kv_cache import KVCache
from worker.model.config import QwenConfig
from worker.model.gpu import support
from worker.model.rope import Rotation, rotation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = support.why_not_compiled(DEVICE)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the kernels cannot run here: they {REASON}")

HEADS, DIM, PAGE = 4, 128, 16
PASTS = [0, 1, 15, 16, 17, 100, 511, 1300]
BLOCKS = 200


@dataclass
class Room:
    """A cache in which a row has its past, and everything else is not a number."""

    cache: KVCache
    tables: Tensor
    positions: Tensor
    turns: Rotation
    qkv: Tensor

    def decode(self) -> Tensor:
        return CudaPaged().decode(self.qkv, 1, self.cache, self.tables, self.positions, self.turns)

    def kept(self, row: int, count: int) -> Tensor:
        """Keys and values of its first tokens in fp64, `[2, heads, count, D]`."""
        places = torch.arange(count, device=DEVICE)
        at = self.tables[row, places // PAGE].long(), places % PAGE
        found = self.cache.layers[1][:, at[0], :, at[1]].double()
        if self.cache.quantized:
            found = found * self.cache.scales[1][:, at[0], :, at[1]].double()
        return found.permute(1, 2, 0, 3)

    def right(self, row: int) -> Tensor:
        """`[heads, D]` in fp64: the new token as it is where the cache rounds to 8 bits, else as it is kept."""
        turned = self.turned(row)
        now = turned[HEADS:].view(2, HEADS, 1, DIM)
        if not self.cache.quantized:
            now = now.half().double()
        keys, values = torch.cat([self.kept(row, int(self.positions[row])), now], 2)
        scores = (keys @ turned[:HEADS, :, None])[..., 0] * DIM**-0.5
        return (scores.softmax(1)[:, None] @ values)[:, 0]

    def turned(self, row: int) -> Tensor:
        """Query, key and value of the new token, `[3 * heads, D]` in fp64, the first two turned."""
        x = self.qkv[row].double()
        angles = Rotation(self.turns.cos[row, 0].double(), self.turns.sin[row, 0].double())
        return torch.cat(
            [x[: 2 * HEADS] * angles.cos + x[: 2 * HEADS].roll(DIM // 2, 1) * angles.sin, x[2 * HEADS :]]
        )


@pytest.fixture(params=[False, True], ids=["fp16", "int8"])
def room(request: pytest.FixtureRequest) -> Room:
    config = QwenConfig(
        model_type="qwen",
        hidden_size=HEADS * DIM,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        kv_channels=DIM,
        intermediate_size=64,
        vocab_size=8,
    )
    draw = torch.Generator(DEVICE).manual_seed(0)
    how = {"blocks": BLOCKS, "block_size": PAGE, "dtype": torch.float16, "device": DEVICE}
    cache = KVCache(config, **how, quantized=request.param)
    for stored in (*cache.layers, *cache.scales):
        stored.fill_(77 if stored.dtype == torch.int8 else torch.nan)
    pages = max(PASTS) // PAGE + 1
    tables = torch.randperm(BLOCKS, device=DEVICE, generator=draw).to(torch.int32)
    tables = tables[torch.arange(len(PASTS) * pages, device=DEVICE) % BLOCKS].view(len(PASTS), pages).clone()
    first = 0
    for row, past in enumerate(PASTS):  # of its own as many as it needs: a block is nobody else's
        own = past // PAGE + 1
        tables[row, :own] = torch.arange(first, first + own, device=DEVICE).flip(0)
        first += own
        for place in range(past):
            block = int(tables[row, place // PAGE])
            shape = (2, HEADS, DIM)
            if request.param:
                codes = torch.randint(-127, 128, shape, device=DEVICE, generator=draw)
                cache.layers[1][:, block, :, place % PAGE] = codes.to(torch.int8)
                far = 10 ** (3 * torch.rand(*shape[:2], 1, device=DEVICE, generator=draw) - 4)
                cache.scales[1][:, block, :, place % PAGE] = far
            else:
                cache.layers[1][:, block, :, place % PAGE] = torch.randn(
                    shape, device=DEVICE, generator=draw
                ).half()
    assert first <= BLOCKS
    positions = torch.tensor(PASTS, device=DEVICE)
    turns = rotation(2048, DIM, 10000.0, DEVICE).at(positions)
    qkv = torch.randn(len(PASTS), 3 * HEADS, DIM, device=DEVICE, generator=draw).half()
    return Room(cache, tables, positions, turns, qkv)


@pytest.fixture(params=DIVISIONS, ids=lambda division: f"{division.warps} warps, {division.cluster} blocks")
def division(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Division:
    monkeypatch.setattr(cuda_attention, "division_for", lambda pairs: request.param)
    return request.param


def test_every_division_is_the_formula(room: Room, division: Division) -> None:
    right = [room.right(row) for row in range(len(PASTS))]
    got = room.decode()
    for row, past in enumerate(PASTS):
        error = (got[row].double() - right[row]).norm() / right[row].norm()
        assert error < 1e-3, (past, float(error))
    assert torch.equal(room.decode(), got)


def test_the_new_token_is_kept_and_nothing_else_is_touched(room: Room, division: Division) -> None:
    before = [stored.clone() for stored in (*room.cache.layers, *room.cache.scales)]
    room.decode()
    for row, past in enumerate(PASTS):
        new, kept = room.turned(row)[HEADS:].view(2, HEADS, DIM), room.kept(row, past + 1)[:, :, past]
        allowed = new.abs().amax(2, keepdim=True) * (0.501 / 127 if room.cache.quantized else 2**-11)
        assert ((new - kept).abs() <= allowed).all()
        block, place = int(room.tables[row, past // PAGE]), past % PAGE
        for stored, old in zip((*room.cache.layers, *room.cache.scales), before, strict=True):
            stored[:, block, :, place] = old[:, block, :, place]
    for stored, old in zip((*room.cache.layers, *room.cache.scales), before, strict=True):
        assert torch.equal(stored.nan_to_num(5), old.nan_to_num(5))


def test_what_is_not_a_number_stays_so_and_spoils_no_other(room: Room, division: Division) -> None:
    """In the query, the new key and the new value; then from what was kept of them."""
    clean = room.decode()
    for part in range(3):
        for wrong in (torch.nan, torch.inf):
            # A key of infinity may have a score of minus infinity, and then weighs nothing, which is right.
            nothing = part == 1 and wrong == torch.inf
            spoiled = room.qkv.clone()
            spoiled[5, part * HEADS + 2, 7] = wrong
            got = Room(room.cache, room.tables, room.positions, room.turns, spoiled).decode()
            assert nothing or not got[5, 2].isfinite().all()
            got[5, 2] = clean[5, 2]
            assert torch.equal(got, clean)
            if part == 0:
                continue
            assert not room.kept(5, PASTS[5] + 1)[part - 1, 2, -1].isfinite().all()
            later = room.positions.clone()
            later[5] += 1
            after = Room(room.cache, room.tables, later, room.turns, room.qkv).decode()
            assert (nothing and not room.cache.quantized) or not after[5, 2].isfinite().all()
            room.decode()  # the new token as it should be
