"""The sampler as launches whose shape does not depend on what is sampled, for graphs. Tokens stay on the GPU.

It serves what most requests ask for: temperature, top-k, top-p, repetition penalty, with the noise of
`worker.engine.noise`. Where `worker.engine.sampler` computes in double precision this has temperature, top-p and scores
in single, and masses rounded to 2**-39 of the greatest. So the two may part where a probability meets the edge of top-p
within 1e-7, or two tokens come as near each other in the draw. A row's token does not depend on what else is in the
batch. Everything else is left to that one.
"""

import ctypes
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worker.engine.noise import key
from worker.engine.request import SamplingParams
from worker.engine.sequence import PENDING, Sequence
from worker.engine.static_inputs import Reads, StaticInputs
from worker.model.gpu import cuda, support
from worker.model.rope import Rotation

# As sampling.cuh has them.
THREADS, BLOCK, BINS, LISTED = 256, 4096, 1024, 4096
# Noise is between -3.7 and 36.8 (`worker.engine.noise`): what is further below the best than this is never drawn.
OUT_OF_REACH = 41.0
LEAST, MOST = 1e-30, 1e30


class _Tally(ctypes.Structure):
    """`Tally` of sampling.cuh, for its size."""

    _fields_ = [
        ("masses", ctypes.c_uint64 * (BINS + 1)),
        ("counts", ctypes.c_uint32 * BINS),
        ("listed", ctypes.c_uint32 * 2),
        ("edges", ctypes.c_uint64 * 4),
        ("list", ctypes.c_uint64 * LISTED),
    ]


class CudaSampler:
    """Reads the parameters from `inputs`; `capacity` rows at most."""

    def __init__(self, inputs: StaticInputs, *, n_vocab: int, columns: int, dtype: torch.dtype) -> None:
        """Of logits in fp16 or fp32 with so many columns, of which the first `n_vocab` may be chosen.

        Raises `CompileError` where the kernels cannot be compiled.
        """
        self._inputs, self._n_vocab, self._columns = inputs, n_vocab, columns
        device, rows, blocks = inputs.device, inputs.capacity, -(-n_vocab // BLOCK)
        self._blocks, self._words = blocks, -(-n_vocab // 32)
        self._slots: OrderedDict[Sequence, tuple[int, int]] = OrderedDict()  # slot, ids that are in it
        # Twice as many as can be in a step: the one that was used longest ago is in none.
        self._seen = torch.zeros(2 * rows, self._words, dtype=torch.int32, device=device)
        self._tops = torch.empty(rows, blocks, dtype=torch.int64, device=device)
        self._tallies = torch.empty(rows, ctypes.sizeof(_Tally), dtype=torch.uint8, device=device)
        self._winners = torch.empty(rows, blocks, dtype=torch.float64, device=device)
        self._winner_ids = torch.empty(rows, blocks, dtype=torch.int32, device=device)
        self._prepared: list[Sequence | None] = [None] * rows  # whose parameters are in a row
        self._wide = "true" if dtype == torch.float32 else "false"
        steps = [f"{step}<{self._wide}>" for step in ("survey", "weigh", "collect", "choose")]
        names = [*steps, "observe", "begin<int>", "begin<long long>"]
        self._kernels = cuda.load(Path(__file__).with_name("sampling.cu"), names, device)

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
        # Within what single precision holds: a top-p of 0 would keep nothing.
        host.floats[0, row] = min(max(params.temperature, LEAST), MOST) if params.temperature else 0
        host.floats[1, row] = max(params.top_p, LEAST)
        host.floats[2, row] = min(max(params.repetition_penalty, LEAST), MOST)
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
        rows, dim = len(reads.given), table.cos.shape[-1]
        ids = torch.empty(rows, dtype=torch.int64, device=tokens.device)
        turns = Rotation(*torch.empty(2, rows, 1, dim, device=tokens.device))
        self._kernels["begin<long long>" if reads.given.dtype == torch.int64 else "begin<int>"](
            (1, rows),
            128,
            (
                tokens,
                reads.given,
                reads.sources,
                reads.positions,
                reads.places,
                self._inputs.ints,
                self._seen,
                table.cos,
                table.sin,
                ids,
                *turns,
                self._words,
                self._inputs.capacity,
                dim,
            ),
        )
        return ids, turns

    def observe(self, ids: Tensor) -> None:
        """These are what the rows read in a step that did not begin with `begin`."""
        self._kernels["observe"](
            (1, len(ids)), 32, (ids, self._inputs.ints, self._seen, self._words, self._inputs.capacity)
        )

    def choose(self, logits: Tensor, tokens: Tensor) -> None:
        """Write the next token of every row of `logits` into `tokens`, int64; -1 where they are not finite."""
        inputs, seen = self._inputs, self._seen
        sizes = (self._columns, self._n_vocab, self._words, inputs.capacity)
        how = (logits, seen, inputs.floats, inputs.ints)
        found = (self._winners, self._winner_ids)
        steps: tuple[tuple[str, int, tuple[Tensor | int, ...]], ...] = (
            ("survey", self._blocks, (*how, self._tops, self._tallies, *sizes)),
            ("weigh", self._blocks, (*how, self._tops, self._tallies, *sizes)),
            ("collect", self._blocks, (*how, inputs.keys, self._tops, self._tallies, *found, *sizes)),
            (
                "choose",
                1,
                (*how, inputs.keys, self._tops, self._tallies, *found, tokens, *sizes, self._blocks),
            ),
        )
        for step, blocks, arguments in steps:
            self._kernels[f"{step}<{self._wide}>"](
                (blocks, len(logits)), THREADS, arguments, overlap=support.dependent_launch(logits.device)
            )

    def _reach(self, params: SamplingParams) -> float:
        if params.top_p >= 1:
            return OUT_OF_REACH
        # All that lies further weighs less than what top-p cuts off. With top-k the mass that it is a part of is less
        # than all: what lies further adds less than e**-8 of what is cut off.
        return min(OUT_OF_REACH, math.log(self._n_vocab / (1 - params.top_p)) + (8 if params.top_k else 0.01))

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
