"""Steps with pieces of prompts as graphs, alone or beside answers. What a graph is, and who replays it: `graphs`.

A step is filled up to the next shape: rows that write to a block that is nobody's, and choices that nobody reads. Only
the rows after which a token is chosen go through the head.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Several

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import PieceAttention
from worker.engine.gpu.prompts import Pieces, cut
from worker.engine.gpu.sampler import CudaSampler, GreedySampler
from worker.engine.gpu.tiles import FIELDS
from worker.engine.kv_cache import KVCache
from worker.engine.mixed_inputs import MixedInputs, Shape
from worker.engine.scheduler import Work
from worker.engine.sequence import PENDING, Sequence
from worker.engine.static_inputs import StaticInputs
from worker.model.qwen import QwenModel
from worker.model.rope import Rotation

# Rows that a step is filled up to: of one prompt alone, of several sequences, of a whole prompt by other kernels.
ROWS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
WHOLE = (1024, 1536, 2048)
NOTHING = np.zeros((0, FIELDS), np.int32)


def shapes_for(attention: PieceAttention, cache: KVCache, sequences: int) -> list[Shape]:
    """Of steps with at most so many sequences, the smallest first; of two, the one for whole prompts."""
    shapes = [Shape(rows, 1, False) for rows in ROWS]
    shapes += [Shape(rows, 1, True) for rows in WHOLE if attention.serves_whole(rows, cache)]
    if sequences > 1:
        shapes += [Shape(rows, min(rows, sequences), False) for rows in ROWS]
    return sorted(shapes, key=lambda shape: (shape.rows, not shape.whole))


class MixedSteps:
    """`inputs` have the blocks of the plan's works in their tables, one a row, and room for every shape's numbers."""

    def __init__(
        self,
        model: QwenModel,
        cache: KVCache,
        attention: PieceAttention,
        sampler: CudaSampler | GreedySampler,
        *,
        inputs: StaticInputs,
        shapes: Several[Shape],
        rotation: Rotation,
        scratch: int,
    ) -> None:
        """`scratch` is nobody's block."""
        self._model, self._cache, self._attention, self._sampler = model, cache, attention, sampler
        self._tables, self._rotation, self.shapes = inputs.tables, rotation, shapes
        self._scratch = scratch * cache.block_size
        self._inputs = {shape: MixedInputs(shape, inputs) for shape in shapes}

    def shape_for(self, plan: Several[Work]) -> Shape | None:
        """The least that the plan fits into, if there is one."""
        rows, alone = sum(work.count for work in plan), len(plan) == 1
        for shape in self.shapes:
            fits = shape.rows >= rows and shape.sequences >= len(plan) and alone == (shape.sequences == 1)
            if fits and (not shape.whole or plan[0].start == 0):
                return shape
        return None

    def fill(self, shape: Shape, plan: Several[Work], places: Mapping[Sequence, int]) -> list[Work]:
        """The inputs of a step; the works that complete, whose tokens are chosen in this order.

        `places`: where the tokens are that are pending, in those of the step before.
        """
        inputs, size = self._inputs[shape], self._cache.block_size
        host, answers = inputs.host, [work for work in plan if work.count == 1]  # which are the first
        row = len(answers)
        stretches = np.empty((len(plan), 4), np.int64)
        if answers:
            given, starts = zip(
                *((work.sequence.ids[work.start], work.start) for work in answers), strict=True
            )
            host.given[:row], host.positions[:row] = given, starts
            host.sources[:row] = [
                places[work.sequence] if token == PENDING else -1
                for work, token in zip(answers, given, strict=True)
            ]
            host.slots[:row] = [
                work.sequence.blocks[work.start // size] * size + work.start % size for work in answers
            ]
            stretches[:row] = np.stack([np.arange(row), np.ones(row), starts, np.arange(row)], 1)
        ends = list(range(row))  # the last row of each work
        for index, work in enumerate(plan[row:], row):
            rows, at = slice(row, row + work.count), np.arange(work.start, work.start + work.count)
            host.given[rows] = work.sequence.ids[work.start : work.start + work.count]
            host.positions[rows] = at
            before = work.start // size
            host.slots[rows] = np.array(work.sequence.blocks[before:])[at // size - before] * size + at % size
            host.sources[rows] = -1
            stretches[index] = row, work.count, work.start, index
            row += work.count
            ends.append(row - 1)
        works = [work for work in plan if work.completes]
        chosen = [end for work, end in zip(plan, ends, strict=True) if work.completes]
        host.places[:] = -1
        host.chosen[: len(works)], host.places[chosen] = chosen, np.arange(len(works))
        inputs.clear(row, len(works), self._scratch)
        if not shape.whole:
            inputs.divide(cut(stretches, shape.tile) if plan else NOTHING)
        return works

    def step(self, shape: Shape, tokens: Tensor) -> Tensor:
        """What a graph consists of: reads the inputs, writes the first of `tokens`.

        The rows after which tokens are chosen, fp32 `[sequences, hidden]`, as `QwenModel.hidden` gives them.
        """
        inputs = self._inputs[shape]
        ids, turns = self._sampler.begin(inputs.reads, tokens, self._rotation)
        pieces = Pieces(inputs.slots, self._tables, inputs.items, shape.tile)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            if shape.whole:
                return self._attention.whole(qkv, layer, self._cache, inputs.slots, turns)
            return self._attention.pieces(qkv, layer, self._cache, pieces, turns)

        hidden = torch.index_select(self._model.hidden(ids, attend), 0, inputs.chosen)
        self._sampler.choose(self._model.head(hidden), tokens[: shape.sequences])
        return hidden
