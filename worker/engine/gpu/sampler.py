"""The sampler as launches whose shape does not depend on what is sampled, for graphs. Tokens stay on the GPU.

It serves what most requests ask for: temperature, top-k, top-p, repetition penalty, with the noise of
`worker.engine.noise`. Where `worker.engine.sampler` computes in double precision this computes in single, so the two
may part where a probability meets the edge of top-p within rounding. Everything else is left to that one.
"""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from worker.engine.noise import key
from worker.engine.request import SamplingParams
from worker.engine.sequence import PENDING, Sequence
from worker.engine.static_inputs import Reads, StaticInputs
from worker.model.gpu import support
from worker.model.rope import Rotation

BLOCK = 4096  # of the vocabulary, a program
CHUNK = 8192  # of what may be kept, a turn


class TritonSampler:
    """Reads the parameters from `inputs`; `capacity` rows at most."""

    def __init__(self, inputs: StaticInputs, *, n_vocab: int, columns: int) -> None:
        """`columns` of the logits, of which the first `n_vocab` may be chosen."""
        self._inputs, self._n_vocab, self._columns = inputs, n_vocab, columns
        device, rows, blocks = inputs.device, inputs.capacity, -(-n_vocab // BLOCK)
        self._blocks, self._words = blocks, -(-n_vocab // 32)
        self._slots: OrderedDict[Sequence, tuple[int, int]] = OrderedDict()  # slot, ids that are in it
        # Twice as many as can be in a step: the one that was used longest ago is in none.
        self._seen = torch.zeros(2 * rows, self._words, dtype=torch.int32, device=device)

        def room(width: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(rows, width, dtype=dtype, device=device)

        self._tops, self._masses = room(blocks, torch.float32), room(blocks, torch.float32)
        self._top_ids, self._bad = room(blocks, torch.int32), room(blocks, torch.int32)
        self._counts, self._winner_ids = room(blocks, torch.int32), room(blocks, torch.int32)
        self._winners = room(blocks, torch.float64)
        self._prepared: list[Sequence | None] = [None] * rows  # whose parameters are in a row
        self._found, self._found_ids = room(n_vocab, torch.float32), room(n_vocab, torch.int32)

    def serves(self, sequence: Sequence) -> bool:
        """Whether its next token may be chosen here."""
        return sequence.plain

    def prepare(self, row: int, sequence: Sequence) -> None:
        """Fill in the inputs of a row whose next token is chosen."""
        params, host = sequence.request.sampling, self._inputs.host
        if params.repetition_penalty != 1:
            host.ints[1, row] = self._slot(sequence)
        if params.temperature:
            host.keys[row] = key(params.seed, len(sequence.ids) - len(sequence.request.prompt_ids))
        if self._prepared[row] is sequence:
            return  # all else stays
        self._prepared[row] = sequence
        host.floats[0, row] = min(max(params.temperature, 1e-30), 1e30) if params.temperature else 0
        host.floats[1, row] = params.top_p
        host.floats[2, row] = params.repetition_penalty
        host.floats[3, row] = self._reach(params)
        host.ints[0, row] = params.top_k if params.top_k < self._n_vocab else 0
        if params.repetition_penalty == 1:
            host.ints[1, row] = -1

    def clear(self, begin: int, end: int) -> None:
        """Nobody's rows: whatever they choose, it is soon done."""
        host = self._inputs.host
        host.ints[:, begin:end] = ((0,), (-1,))
        host.floats[0, begin:end] = 0
        self._prepared[begin:end] = [None] * (end - begin)

    def begin(self, reads: Reads, tokens: Tensor, table: Rotation) -> tuple[Tensor, Rotation]:
        """What each row reads, int64 `[rows]`, out of `tokens` where it was pending; its rotation, out of `table`."""
        from worker.engine.gpu import sampler_kernels as kernels

        rows, dim = len(reads.given), table.cos.shape[-1]
        ids = torch.empty(rows, dtype=torch.int64, device=tokens.device)
        turns = Rotation(*torch.empty(2, rows, 1, dim, device=tokens.device))
        kernels.begin[(rows,)](
            tokens,
            reads.given,
            reads.sources,
            reads.positions,
            reads.given if reads.places is None else reads.places,
            self._inputs.ints,
            self._seen,
            table.cos,
            table.sin,
            ids,
            *turns,
            self._words,
            self._inputs.capacity,
            D=dim,
            PLACED=reads.places is not None,
            num_warps=4,
        )
        return ids, turns

    def observe(self, ids: Tensor) -> None:
        """These are what the rows read in a step that did not begin with `begin`."""
        from worker.engine.gpu import sampler_kernels as kernels

        kernels.observe[(len(ids),)](
            ids, self._inputs.ints, self._seen, self._words, self._inputs.capacity, PDL=False
        )

    def choose(self, logits: Tensor, tokens: Tensor) -> None:
        """Write the next token of every row of `logits` into `tokens`, int64; -1 where they are not finite."""
        from worker.engine.gpu import sampler_kernels as kernels

        rows, inputs, pdl = len(logits), self._inputs, support.dependent_launch(logits.device)
        launch = {"PDL": pdl, "num_warps": 8} | ({"launch_pdl": True} if pdl else {})
        sizes = (self._columns, self._n_vocab, self._words, inputs.capacity)
        by_block = {"BLOCK": BLOCK, "BLOCKS": self._blocks, **launch}
        padded = 1 << (self._blocks - 1).bit_length()
        kernels.survey[(rows, self._blocks)](
            logits,
            self._seen,
            inputs.floats,
            inputs.ints,
            self._tops,
            self._top_ids,
            self._bad,
            *sizes,
            **by_block,
        )
        kernels.weigh[(rows, self._blocks)](
            logits,
            self._seen,
            inputs.floats,
            inputs.ints,
            self._tops,
            self._counts,
            self._masses,
            *sizes,
            PADDED=padded,
            **by_block,
        )
        kernels.collect[(rows, self._blocks)](
            logits,
            self._seen,
            inputs.floats,
            inputs.ints,
            inputs.keys,
            self._tops,
            self._counts,
            self._found,
            self._found_ids,
            self._winners,
            self._winner_ids,
            *sizes,
            PADDED=padded,
            **by_block,
        )
        kernels.choose[(rows,)](
            inputs.floats,
            inputs.ints,
            inputs.keys,
            self._tops,
            self._top_ids,
            self._bad,
            self._counts,
            self._masses,
            self._winners,
            self._winner_ids,
            self._found,
            self._found_ids,
            tokens,
            self._n_vocab,
            inputs.capacity,
            BLOCKS=self._blocks,
            PADDED=padded,
            CHUNK=CHUNK,
            **(launch | {"num_warps": 16}),
        )

    def _reach(self, params: SamplingParams) -> float:
        if params.top_p >= 1:
            return 1e30
        # With top-k the mass that top-p is taken of is less than all; what lies further adds nothing to either.
        return math.log(self._n_vocab / (1 - params.top_p)) + (8 if params.top_k else 0.01)

    def _slot(self, sequence: Sequence) -> int:
        """Where the ids of a sequence are kept, all but the last: that one the row reads in this step."""
        length = len(sequence.ids)
        slot, count = self._slots.pop(sequence, (-1, -1))
        if slot < 0:
            free = len(self._slots)
            slot = free if free < len(self._seen) else self._slots.popitem(last=False)[1][0]
        if count != length - 1:
            marks = np.zeros(32 * self._words, bool)
            ids = np.array(sequence.ids, np.int64)
            marks[ids[ids != PENDING]] = True
            bits = torch.from_numpy(np.packbits(marks, bitorder="little").view(np.int32))
            self._inputs.send(bits, self._seen[slot])
        self._slots[sequence] = slot, length
        return slot


class GreedySampler:
    """The most probable token, on any device; nothing else."""

    def __init__(self, inputs: StaticInputs, *, n_vocab: int) -> None:
        self._inputs, self._n_vocab = inputs, n_vocab

    def serves(self, sequence: Sequence) -> bool:
        params = sequence.request.sampling
        return sequence.plain and params.temperature == 0 and params.repetition_penalty == 1

    def prepare(self, row: int, sequence: Sequence) -> None:
        pass

    def clear(self, begin: int, end: int) -> None:
        pass

    def begin(self, reads: Reads, tokens: Tensor, table: Rotation) -> tuple[Tensor, Rotation]:
        ids = torch.where(reads.sources >= 0, tokens[reads.sources.clamp(min=0)], reads.given)
        return ids.clamp(min=0), table.at(reads.positions)

    def observe(self, ids: Tensor) -> None:
        pass

    def choose(self, logits: Tensor, tokens: Tensor) -> None:
        scores = logits[:, : self._n_vocab]
        tokens.copy_(torch.where(scores.isfinite().all(1), scores.argmax(1), -1))
