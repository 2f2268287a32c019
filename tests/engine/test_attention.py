"""One suite for all attention backends that can run here, against softmax(q k^T) v written out in fp64."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from worker.engine import attention
from worker.engine.attention import AttentionBackend, AttentionShape
from worker.engine.batch import Batch, build
from worker.engine.kv_cache import KVCache
from worker.engine.scheduler import Work
from worker.model.config import QwenConfig
from worker.model.cpu import library
from worker.model.errors import BackendError
from worker.model.rope import rotation

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
BLOCK, BLOCKS, HEADS, LAYERS = 16, 64, 3, 2


def shape(
    device: torch.device,
    *,
    quantized: bool = False,
    deterministic: bool = False,
    dim: int = 64,
    narrow: bool = False,
) -> AttentionShape:
    """On a GPU fp16 with heads of 128, which our own model has there, else bf16; on a CPU fp32, or fp16 if `narrow`."""
    if device.type == "cpu":
        dtype = torch.float16 if narrow else torch.float32
    else:
        dtype = torch.float16 if dim == 128 else torch.bfloat16
    return AttentionShape(HEADS, dim, BLOCK, dtype, quantized, deterministic)


def usable() -> list[object]:
    cases = []
    for device in DEVICES:
        hows = [
            shape(device, quantized=quantized, dim=dim)
            for quantized in (False, True)
            for dim in ((64, 128) if device.type == "cuda" else (64,))
        ]
        if device.type == "cpu":
            hows.append(shape(device, narrow=True))
        for how in hows:
            for backend in attention.backends(device):
                if backend.why_not(device, how) is None:
                    stored = "int8" if how.quantized else str(how.dtype).removeprefix("torch.")
                    name = f"{backend.name} {device.type} {stored} {how.head_dim}"
                    cases.append(pytest.param(backend, device, how, id=name))
    return cases


@dataclass
class Fake:
    """As much of a sequence as a batch is built from."""

    ids: list[int]
    blocks: list[int] = field(default_factory=list)


class Room:
    """A cache full of NaN with some sequences in it, and every qkv that was ever given, in fp64."""

    def __init__(self, device: torch.device, how: AttentionShape) -> None:
        self.device, self.dim = device, how.head_dim
        config = QwenConfig(
            model_type="qwen",
            hidden_size=HEADS * how.head_dim,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            kv_channels=how.head_dim,
            intermediate_size=64,
            vocab_size=8,
        )
        self.cache = KVCache(
            config,
            blocks=BLOCKS,
            block_size=BLOCK,
            dtype=how.dtype,
            device=device,
            quantized=how.quantized,
        )
        for stored in self.cache.scales if how.quantized else self.cache.layers:
            stored.fill_(torch.nan)
        self.turns = rotation(2048, how.head_dim, 10000.0, device)
        self.draw = torch.Generator().manual_seed(0)
        self.seen: dict[tuple[int, int], Tensor] = {}  # (layer, id of the sequence): [length, 3 * heads, D]

    def attend(self, backend: AttentionBackend, plan: list[Work]) -> tuple[Tensor, Tensor]:
        """(what the backend answers, what is right) for the second layer; the first is there to be left alone."""
        batch = build(plan, BLOCK, self.device)
        answers = [self._layer(backend, layer, plan, batch) for layer in range(LAYERS)]
        return answers[-1]

    def _layer(
        self, backend: AttentionBackend, layer: int, plan: list[Work], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        qkv = torch.randn(len(batch.ids), 3 * HEADS, self.dim, generator=self.draw).to(self.cache.dtype)
        turns = self.turns.at(batch.positions)
        got = backend.attend(qkv.to(self.device), layer, self.cache, batch, turns)
        right = []
        for work, rows in zip(plan, qkv.split([work.count for work in plan]), strict=True):
            key = (layer, id(work.sequence))
            before = self.seen.get(key, rows[:0])
            self.seen[key] = torch.cat([before[: work.start], rows])
            right.append(exact(self.seen[key])[work.start :])
        return got.double().cpu(), torch.cat(right)


def exact(qkv: Tensor) -> Tensor:
    """Causal attention of a whole sequence, `[length, heads, D]` in fp64."""
    dim = qkv.shape[-1]
    turns = rotation(2048, dim, 10000.0, torch.device("cpu")).at(torch.arange(len(qkv)))
    turned = turns.apply(qkv[:, : 2 * HEADS].float()).double()
    queries, keys = turned[:, :HEADS].transpose(0, 1), turned[:, HEADS:].transpose(0, 1)
    scores = queries @ keys.transpose(1, 2) / math.sqrt(dim)
    hidden = torch.ones(len(qkv), len(qkv), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return (weights @ qkv[:, 2 * HEADS :].double().transpose(0, 1)).transpose(0, 1)


def close(got: Tensor, right: Tensor, room: Room) -> None:
    """int8 rounds keys and values by up to 1/254 of the greatest of a head, about 0.01 here; bf16 by 1/256.

    fp16 rounds by 1/2048, and on a CPU nothing else does.
    """
    tolerance = 0.04 if room.cache.quantized or room.cache.dtype != torch.float32 else 1e-5
    if room.device.type == "cpu" and room.cache.dtype == torch.float16:
        tolerance = 2e-3
    torch.testing.assert_close(got, right, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("backend", "device", "how"), usable())
def test_every_backend_gives_the_same_as_the_formula(
    backend: AttentionBackend, device: torch.device, how: AttentionShape
) -> None:
    """Prompts at once and in pieces, answers of many lengths, together; blocks side by side and scattered."""
    room = Room(device, how)
    scattered = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    one = Fake([0] * 200, [50 + n for n in range(13)])
    two = Fake([0] * 200, scattered[:13])
    three = Fake([0] * 60, scattered[13:17])
    plans = [
        [Work(one, 0, 1), Work(two, 0, 17)],
        [Work(one, 1, 1), Work(two, 17, 40), Work(three, 0, 33)],
        [Work(two, 57, 1), Work(three, 33, 1), Work(one, 2, 30)],
        [Work(one, 32, 1), Work(two, 58, 1), Work(three, 34, 1)],
        [Work(three, 35, 1)],
        [Work(one, 33, 128)],
    ]
    for plan in plans:
        close(*room.attend(backend, plan), room)


@pytest.mark.skipif(len(DEVICES) == 1, reason="no GPU")
@pytest.mark.parametrize(("backend", "device", "how"), usable())
def test_a_long_prompt_and_its_answer(
    backend: AttentionBackend, device: torch.device, how: AttentionShape
) -> None:
    """Long enough for the kernels that are for long ones."""
    room = Room(device, how)
    long = Fake([0] * 1024, list(range(63, -1, -1)))
    for plan in ([Work(long, 0, 1020)], [Work(long, 1020, 1)], [Work(long, 1021, 3)]):
        close(*room.attend(backend, plan), room)
    other = Room(device, how)
    close(*other.attend(backend, [Work(Fake([0] * 1024, list(range(64))), 0, 1024)]), other)


@pytest.mark.parametrize(("backend", "device", "how"), usable())
def test_a_shared_beginning_is_read_by_both(
    backend: AttentionBackend, device: torch.device, how: AttentionShape
) -> None:
    room = Room(device, how)
    first, second = Fake([0] * 60, [1, 2, 3, 4]), Fake([0] * 60, [1, 2, 9, 7])
    room.attend(backend, [Work(first, 0, 40)])
    for layer in range(LAYERS):
        room.seen[layer, id(second)] = room.seen[layer, id(first)][:32]
    close(*room.attend(backend, [Work(first, 40, 1), Work(second, 32, 9)]), room)


def test_deterministic_rows_are_the_same_bits_in_any_company() -> None:
    device = DEVICES[-1]
    backend = attention.choose(device, shape(device, deterministic=True))
    results = []
    for company in (False, True):
        room = Room(device, shape(device))
        one, other = Fake([0] * 60, [1, 2, 3, 4]), Fake([0] * 60, [9, 7, 30, 8])
        batch = build([Work(one, 0, 50)], BLOCK, device)
        qkv = torch.randn(50, 3 * HEADS, room.dim, generator=room.draw).to(device, room.cache.dtype)
        pieces = [50] if not company else [1] * 3 + [17, 30]
        got, start = [], 0
        for count in pieces:
            plan = [Work(one, start, count), *([Work(other, start, count)] if company else [])]
            batch = build(plan, BLOCK, device)
            mine = qkv[start : start + count]
            rows = torch.cat([mine, torch.randn_like(mine)]) if company else mine
            out = backend.attend(rows, 0, room.cache, batch, room.turns.at(batch.positions))
            got.append(out[:count])
            start += count
        results.append(torch.cat(got))
    assert torch.equal(*results)


def test_the_first_that_can_is_taken_and_a_forced_one_must() -> None:
    device = torch.device("cpu")
    compiled = library.why_not() is None
    assert attention.choose(device, shape(device)).name == ("cpu-paged" if compiled else "torch-sequences")
    narrow = shape(device, narrow=True)
    if compiled:
        assert attention.choose(device, narrow).name == "cpu-paged"
    with pytest.raises(BackendError, match="torch-sequences is slow in 16 bits on a CPU"):
        attention.choose(device, narrow, forced="torch-sequences")
    deterministic = attention.choose(device, shape(device, deterministic=True))
    assert deterministic.name == ("cpu-rows" if compiled else "torch-rows")
    assert attention.choose(device, shape(device, quantized=True)).name == "torch-sequences"
    assert attention.choose(device, shape(device), forced="torch-gathered").name == "torch-gathered"
    with pytest.raises(
        BackendError, match="no attention backend 'none'; known are cpu-paged, cpu-rows, torch-sequences"
    ):
        attention.choose(device, shape(device), forced="none")
    with pytest.raises(BackendError, match="torch-sequences sums a row in another order"):
        attention.choose(device, shape(device, deterministic=True), forced="torch-sequences")
