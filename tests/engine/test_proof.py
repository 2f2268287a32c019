"""One launch in place of many proves itself at the start: what is computed rightly passes, what is wrong does not."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.engine.conftest import CONTEXT
from worker.engine import attention
from worker.engine.kv_cache import KVCache
from worker.engine.proof import LIMIT, deviation
from worker.model.qwen import QwenModel
from worker.model.rope import Rotation, rotation

SIZE = 16


class OneLaunch:
    """Computes as the model does, but for what `pages` makes of the table, `spoil` of a result, and `stores`."""

    def __init__(self, model: QwenModel, decode: attention.DecodeAttention, cache: KVCache) -> None:
        self.model, self.decode, self.cache = model, decode, cache
        self.pages: Callable[[Tensor, int], Tensor] = lambda table, _position: table
        self.stores = True
        self.spoil: Callable[[Tensor, Tensor], Tensor] = lambda _position, hidden: hidden

    def __call__(
        self, token: Tensor, _caches: Sequence[Tensor], table: Tensor, position: Tensor, turns: Rotation
    ) -> Tensor:
        def attend(layer: int, qkv: Tensor) -> Tensor:
            pages = self.pages(table, int(position))
            return self.decode.decode(qkv, layer, self.cache, pages, position, turns)

        before = [layer.clone() for layer in self.cache.layers]
        found = self.spoil(position, self.model.hidden(token, attend))
        if not self.stores:
            for layer, kept in zip(self.cache.layers, before, strict=True):
                layer.copy_(kept)
        return found


@pytest.fixture
def one_launch(model: QwenModel) -> OneLaunch:
    (decode,) = (one for one in attention._EVERYWHERE["cpu"] if one.name == "torch-gathered")
    assert isinstance(decode, attention.DecodeAttention)
    cache = KVCache(
        model.config, blocks=12, block_size=SIZE, dtype=torch.float32, device=model.device, quantized=False
    )
    for layer in cache.layers:
        layer.zero_()  # what reads a page too early finds a number, and is wrong by one
    return OneLaunch(model, decode, cache)


def deviates(one: OneLaunch) -> float:
    config = one.model.config
    turns = rotation(CONTEXT, config.head_dim, config.rope_base, one.model.device)
    return deviation(one, one.model, one.decode, one.cache, turns)


def test_what_is_right_passes(one_launch: OneLaunch) -> None:
    assert deviates(one_launch) < 1e-5 < LIMIT


def test_what_is_wrong_at_one_place_does_not(one_launch: OneLaunch) -> None:
    one_launch.spoil = lambda position, hidden: hidden + (0 if position != 70 else 0.05) * hidden.flip(-1)
    assert deviates(one_launch) > LIMIT


def test_what_reads_another_page_does_not(one_launch: OneLaunch) -> None:
    one_launch.pages = lambda table, position: table.roll(1, 1) if position == 50 else table
    assert deviates(one_launch) > LIMIT


def test_what_takes_pages_in_their_order_does_not(one_launch: OneLaunch) -> None:
    one_launch.pages = lambda table, position: table.sort().values if position == 50 else table
    assert deviates(one_launch) > LIMIT


def test_what_keeps_no_keys_and_values_does_not(one_launch: OneLaunch) -> None:
    one_launch.stores = False
    assert deviates(one_launch) > LIMIT


def test_what_is_not_a_number_does_not(one_launch: OneLaunch) -> None:
    one_launch.spoil = lambda position, hidden: hidden if position != 3 else hidden * math.nan
    assert not deviates(one_launch) < LIMIT
