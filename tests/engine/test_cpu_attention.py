"""The C++ attention: bits that depend on a row's own sequence and nothing else, and numbers that are none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.test_attention import BLOCK, DEVICES, HEADS, Fake, Room, shape
from tests.model.tiny import tiny_model
from worker.engine.batch import build
from worker.engine.cpu_attention import CpuPaged, CpuRows
from worker.engine.kv_cache import KVCache
from worker.engine.scheduler import Work
from worker.model.checkpoint import load_model
from worker.model.cpu import library
from worker.model.rope import rotation

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))
CPU = DEVICES[0]
LENGTH = 75  # not in whole fours, registers or blocks


def attended(company: int, *, narrow: bool, spoil: float = 0.0) -> Tensor:
    """The last row of one sequence, `[heads, dim]`, beside `company` other sequences. `spoil` is put into a key."""
    room = Room(CPU, shape(CPU, narrow=narrow))
    blocks = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    sequences = [Fake([0] * 80, blocks[n * 5 : n * 5 + 5]) for n in range(company + 1)]
    for count, start in ((LENGTH - 1, 0), (1, LENGTH - 1)):
        plan = [Work(sequence, start, count) for sequence in sequences]
        batch = build(plan, BLOCK, CPU)
        qkv = torch.cat(
            [
                torch.randn(
                    count, 3 * HEADS, room.dim, generator=torch.Generator().manual_seed(n * 7 + count)
                )
                for n in range(len(plan))
            ]
        )
        if spoil and count > 1:
            qkv[30, HEADS + 1, 5] = spoil
        mixed = CpuRows().attend(qkv, 0, room.cache, batch, room.turns.at(batch.positions))
    return mixed[0]


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "fp16"])
def test_a_row_has_the_same_bits_in_any_company_on_any_threads_and_with_any_instructions(
    narrow: bool,
) -> None:
    alone, threads = attended(0, narrow=narrow), torch.get_num_threads()
    assert torch.equal(attended(11, narrow=narrow), alone)
    try:
        library.use("avx2")
        assert torch.equal(attended(0, narrow=narrow), alone)
        library.use()
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(attended(0, narrow=narrow), alone)
            assert torch.equal(attended(2, narrow=narrow), alone)
    finally:
        torch.set_num_threads(threads)
        library.use()


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "fp16"])
def test_a_key_that_is_no_number_is_not_hidden(narrow: bool) -> None:
    got, right = attended(0, narrow=narrow, spoil=torch.nan), attended(0, narrow=narrow)
    assert not got[1].isfinite().any()
    assert torch.equal(got[[0, 2]], right[[0, 2]])


@pytest.mark.parametrize("spoil", [1e5, -1e6])
def test_a_key_too_great_for_fp16_is_refused(spoil: float) -> None:
    """Whatever its sign: an infinity would leave a finite answer without that position."""
    got, right = attended(0, narrow=True, spoil=spoil), attended(0, narrow=True)
    assert not got[1].isfinite().any()
    assert torch.equal(got[[0, 2]], right[[0, 2]])


def test_all_layers_in_one_call_are_the_same_bits_as_one_by_one(tmp_path: Path) -> None:
    """Answers of two sequences behind their prompts, which torch has a part in."""
    model = load_model(tiny_model(tmp_path), device="cpu", weights="int4")
    config = model.config
    cache = KVCache(config, blocks=8, block_size=BLOCK, dtype=torch.float16, device=CPU, quantized=False)
    turns = rotation(64, config.head_dim, config.rope_base, CPU)
    one, two = Fake([7, 3, 9, 11, 2] * 5, [5, 2]), Fake([4] * 20, [1, 6])

    def logits(plan: list[Work], *, in_one: bool) -> Tensor:
        batch = build(plan, BLOCK, CPU)
        step = CpuPaged().step(cache, batch, turns.at(batch.positions), config.num_heads)
        assert (step.whole is None) == (len(plan) < len(batch.ids))
        return model.forward(batch.ids, step if in_one else lambda layer, qkv: step(layer, qkv), batch.chosen)

    logits([Work(one, 0, 24), Work(two, 0, 19)], in_one=True)
    answers = [Work(one, 24, 1), Work(two, 19, 1)]
    right = logits(answers, in_one=False)
    for layer in cache.layers:
        layer[:, 2, 8] = layer[:, 6, 3] = torch.nan  # what the answers' rows have stored
    assert torch.equal(logits(answers, in_one=True), right)
    assert right.isfinite().all()
