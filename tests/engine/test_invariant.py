"""The deterministic setting: a row of a layer is the same bits beside any other rows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worker.engine.invariant import TILE, Tiled, batch_invariant
from worker.model.qwen import QwenModel


@pytest.mark.parametrize("rows", [1, 2, TILE - 1, TILE, TILE + 1, 40])
def test_a_row_is_the_same_in_any_batch(model: QwenModel, rows: int) -> None:
    ids = torch.arange(rows) + 100

    def blind(_: int, qkv: Tensor) -> Tensor:
        return qkv[:, -model.config.num_heads :].float()

    served = batch_invariant(model)
    together = served.forward(ids, blind)
    for row in range(rows):
        assert torch.equal(together[row], served.forward(ids[row : row + 1], blind)[0])
    torch.testing.assert_close(together, model.forward(ids, blind), rtol=1e-4, atol=1e-4)


def test_a_kernel_that_treats_places_differently_is_called_row_by_row(model: QwenModel) -> None:
    def crooked(x: Tensor) -> Tensor:
        return x + torch.arange(len(x)).unsqueeze(1)

    def straight(x: Tensor) -> Tensor:
        return 2 * x

    tiles = [batch_invariant(replace(model, lm_head=linear)).lm_head for linear in (crooked, straight)]
    assert [tile.tile for tile in tiles if isinstance(tile, Tiled)] == [1, TILE]
    x = torch.randn(TILE + 3, 5)
    assert torch.equal(tiles[0](x), x)
    assert torch.equal(tiles[1](x), 2 * x)
