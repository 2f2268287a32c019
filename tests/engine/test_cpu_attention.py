"""The C++ attention: bits that depend on a row's own sequence and nothing else, and numbers that are none."""

import pytest
import torch
from torch import Tensor

from tests.engine.test_attention import BLOCK, DEVICES, HEADS, Fake, Room, shape
from worker.engine.batch import build
from worker.engine.cpu_attention import CpuRows
from worker.engine.scheduler import Work
from worker.model.cpu import library

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


@pytest.mark.parametrize("spoil", [1e6, -1e6])
def test_a_key_too_great_for_fp16_is_refused_unless_it_weighs_nothing(spoil: float) -> None:
    got, right = attended(0, narrow=True, spoil=spoil), attended(0, narrow=False, spoil=spoil)
    if got[1].isfinite().all():
        torch.testing.assert_close(got[1], right[1], rtol=0, atol=2e-3)
    else:
        assert not got[1].isfinite().any()
    torch.testing.assert_close(got[[0, 2]], right[[0, 2]], rtol=0, atol=2e-3)
