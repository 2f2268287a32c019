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
from worker.engine.gpu.sampler import GreedySampler, TritonSampler
from worker.engine.gpu.tiles import Stretch
from worker.engine.kv_cache import KVCache
from worker.engine.mixed_inputs import Mirror, MixedInputs, Shape
from worker.engine.scheduler import Work
from worker.engine.sequence import PENDING, Sequence
from worker.model.qwen import QwenModel
from worker.model.rope import Rotation

# Rows that a step is filled up to: of one prompt alone, of several sequences, of a whole prompt by other kernels.
ROWS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
WHOLE = (1024, 1536, 2048)


class MixedSteps:
    """`tables` int32 `[sequences, blocks]` are the blocks of the plan's works, one a row; `scratch` nobody's block."""

    def __init__(
        self,
        model: QwenModel,
        cache: KVCache,
        attention: PieceAttention,
        sampler: TritonSampler | GreedySampler,
        *,
        tables: Tensor,
        rotation: Rotation,
        scratch: int,
        sequences: int,
    ) -> None:
        """`sequences`: at most so many in a step."""
        self._model, self._cache, self._attention, self._sampler = model, cache, attention, sampler
        self._tables, self._rotation = tables, rotation
        self._scratch = scratch * cache.block_size
        shapes = [Shape(rows, 1, False) for rows in ROWS]
        shapes += [Shape(rows, 1, True) for rows in WHOLE if attention.serves_whole(rows, cache)]
        if sequences > 1:
            shapes += [Shape(rows, min(rows, sequences), False) for rows in ROWS]
        memory = Mirror(max(shape.numbers for shape in shapes), model.device)
        self._inputs = {shape: MixedInputs(shape, memory) for shape in shapes}
        # The smallest first; of two, the one for whole prompts, which reads no pages.
        self.shapes = sorted(shapes, key=lambda shape: (shape.rows, not shape.whole))

    def shape_for(self, plan: Several[Work]) -> Shape | None:
        """The least that the plan fits into."""
        rows, alone = sum(work.count for work in plan), len(plan) == 1
        for shape in self.shapes:
            fits = shape.rows >= rows and alone == (shape.sequences == 1)
            if fits and (not shape.whole or plan[0].start == 0):
                return shape
        return None

    def fill(self, shape: Shape, plan: Several[Work], places: Mapping[Sequence, int]) -> list[Work]:
        """The inputs of a step; the works that complete, whose tokens are chosen in this order.

        `places`: where the tokens are that are pending, in those of the step before.
        """
        inputs, size = self._inputs[shape], self._cache.block_size
        inputs.ready()
        host, works, stretches, row = inputs.host, list[Work](), list[Stretch](), 0
        for index, work in enumerate(plan):
            sequence, end, rows = work.sequence, work.start + work.count, slice(row, row + work.count)
            host.given[rows] = sequence.ids[work.start : end]
            host.places[rows] = host.sources[rows] = -1
            if work.count == 1:
                host.positions[row] = work.start
                host.slots[row] = sequence.blocks[work.start // size] * size + work.start % size
                if sequence.ids[work.start] == PENDING:
                    host.sources[row] = places[sequence]
            else:
                at = np.arange(work.start, end)
                host.positions[rows] = at
                host.slots[rows] = np.array(sequence.blocks)[at // size] * size + at % size
            stretches.append(Stretch(row, work.count, work.start, index))
            row += work.count
            if work.completes:
                host.places[row - 1], host.chosen[len(works)] = len(works), row - 1
                works.append(work)
        inputs.clear(row, len(works), self._scratch)
        inputs.divide([] if shape.whole else cut(stretches, shape.tile))
        inputs.upload()
        return works

    def empty(self, shape: Shape) -> None:
        """The inputs of a step in which nothing is done."""
        self.fill(shape, [], {})

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
