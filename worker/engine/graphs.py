"""The runner for GPUs: steps are CUDA graphs, and nothing waits for the device until a token is needed here.

A graph holds one step: ids from the step before it, layers, head, sampler. Steps that have one row a sequence have
graphs by the size of their batch; a smaller batch is filled up with rows that write to a block of the cache that is
nobody's. Steps with pieces of prompts have graphs in `mixed`. What has none, a long prompt or one that is scored, is
plain calls, but its tokens too stay on the device until the next step is launched.

What a graph reads lies in `StaticInputs`. A row reads its id there, or, while that is pending, from `_tokens`, where
the step before wrote it.
"""

import logging
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.attention import DecodeAttention, PieceAttention
from worker.engine.batch import build, on_device
from worker.engine.gpu.cuda_attention import CudaPaged
from worker.engine.gpu.sampler import CudaSampler, GreedySampler
from worker.engine.kv_cache import KVCache
from worker.engine.mixed import MixedSteps, shapes_for
from worker.engine.mixed_inputs import Shape
from worker.engine.proof import LIMIT, deviation
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.runner import NOT_FINITE, EagerRunner, Launched, Outcome, scores
from worker.engine.sampler import NonFiniteLogits
from worker.engine.scheduler import Work
from worker.engine.sequence import PENDING, Sequence
from worker.engine.static_inputs import StaticInputs
from worker.model.gpu import cuda
from worker.model.gpu.decoder import GpuQwenModel
from worker.model.gpu.halves import Halves
from worker.model.gpu.stack import Int4Stack
from worker.model.qwen import QwenModel
from worker.model.rope import Rotation

LONG = 1100  # tokens of a prompt for which no graph is captured, but the kernels of the longest are taken
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)

logger = logging.getLogger(__name__)


class Replay(NamedTuple):
    """A captured step: what to call, and where the rows are afterwards after which tokens were chosen."""

    replay: Callable[[], None]
    hidden: Tensor


class InFlight:
    """A step that is under way, and whose tokens are being copied to the host."""

    def __init__(
        self, plan: Several[Work], works: Several[Work], tokens: Tensor, known: dict[int, Outcome]
    ) -> None:
        """tokens int64, one for each of `works`, which are of the plan; `known`: outcomes by id() of their work."""
        self._plan, self._works, self._known = plan, works, known
        self._event = torch.cuda.Event() if tokens.is_cuda else None  # type: ignore[no-untyped-call]
        self._tokens = torch.empty(len(tokens), dtype=torch.int64, pin_memory=tokens.is_cuda)
        self._tokens.copy_(tokens, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def outcomes(self) -> list[Outcome]:
        """As `Launched` says."""
        if self._event is not None:
            self._event.synchronize()
        chosen: dict[int, Outcome] = {}
        for work, token in zip(self._works, self._tokens.tolist(), strict=True):
            if work.completes:
                chosen[id(work)] = token if token >= 0 else NonFiniteLogits(NOT_FINITE)
        chosen |= self._known
        return [chosen.get(id(work)) for work in self._plan]


class GraphRunner(EagerRunner):
    """`max_running`: the most rows of a decode step. The cache has a block more than the scheduler knows, the last."""

    def __init__(
        self, model: QwenModel, cache: KVCache, attention: DecodeAttention, *, n_vocab: int, max_running: int
    ) -> None:
        super().__init__(model, cache, attention, n_vocab=n_vocab, by_row=False)
        self._decode = attention.decode
        self._stack: Int4Stack | None = None
        self._halves: Halves | None = None
        if isinstance(model, GpuQwenModel) and isinstance(attention, CudaPaged) and not cache.quantized:
            self._stack = model.stack  # it attends itself, as that backend does
            # That backend keeps nothing between its launches. In 8 bits it is too short to multiply under.
            self._halves = Halves.compiled(model, max_running)
        self._scratch = cache.blocks - 1
        largest = next((bucket for bucket in BUCKETS if bucket >= max_running), BUCKETS[-1])
        self._buckets = [bucket for bucket in BUCKETS if bucket <= largest]
        capacity, width = max(largest, max_running), -(-model.config.context_length // cache.block_size)
        shapes = shapes_for(attention, cache, capacity) if isinstance(attention, PieceAttention) else []
        numbers = max((shape.numbers for shape in shapes), default=0)
        self._inputs = StaticInputs(capacity, width, model.device, numbers=numbers)
        self._tokens = torch.zeros(capacity, dtype=torch.int64, device=model.device)
        self._places: dict[Sequence, int] = {}  # whose token of the last step is where
        # Whose blocks are in a row of the tables, how many, of which of its residences.
        self._tabled: list[tuple[Sequence | None, int, int]] = [(None, 0, 0)] * capacity
        self._sampler = (
            CudaSampler(
                self._inputs, n_vocab=n_vocab, columns=model.config.vocab_size, dtype=model.head_dtype
            )
            if model.device.type == "cuda" and cuda.why_not() is None
            else GreedySampler(self._inputs, n_vocab=n_vocab)
        )
        self._mixed = (
            MixedSteps(
                model,
                cache,
                attention,
                self._sampler,
                inputs=self._inputs,
                shapes=shapes,
                rotation=self._rotation,
                scratch=self._scratch,
            )
            if isinstance(attention, PieceAttention)
            else None
        )
        self._graphs: dict[int | Shape, Replay] = {}
        if model.device.type == "cuda":
            attention.warm(cache, model.config.num_heads)
            self._prove_stack(attention)
            self._graphs = self._captured()
            self._warm()

    def may_lag(self, sequences: Iterable[Sequence]) -> bool:
        """Where every token can be chosen on the device."""
        return all(map(self._sampler.serves, sequences))

    @torch.inference_mode()
    def launch(self, plan: Several[Work]) -> Launched:
        """As `Runner` says."""
        works, known = list(plan), dict[int, Outcome]()
        if any(map(scores, plan)):
            works, known = self._plain_step(plan)
        elif plan[-1].count == 1 and len(plan) <= self._buckets[-1]:
            known = self._choose_otherwise(works, self._decode_step(plan))
        elif self._mixed is not None and (shape := self._mixed.shape_for(plan)) is not None:
            works, hidden = self._shaped_step(self._mixed, shape, plan)
            known = self._choose_otherwise(works, hidden)
        else:
            works, known = self._plain_step(plan)
        self._places = {work.sequence: row for row, work in enumerate(works) if work.completes}
        return InFlight(plan, works, self._tokens[: len(works)], known)

    def _decode_step(self, plan: Several[Work]) -> Tensor:
        """A graph over all rows; what `model.hidden` gives."""
        count, bucket = len(plan), next(bucket for bucket in self._buckets if bucket >= len(plan))
        self._inputs.ready()
        changed = self._fill_tables(plan, bucket)
        host, given = self._inputs.host, [work.sequence.ids[work.start] for work in plan]
        host.given[:count], host.positions[:count] = given, [work.start for work in plan]
        host.sources[:count] = [
            self._places[work.sequence] if token == PENDING else -1
            for work, token in zip(plan, given, strict=True)
        ]
        for row, work in enumerate(plan):
            self._sampler.prepare(row, work.sequence)
        host.given[count:bucket] = host.positions[count:bucket] = 0
        host.sources[count:bucket] = -1
        self._sampler.clear(count, bucket)
        self._inputs.upload(bucket, tables=changed)
        return self._replayed(bucket, lambda: self._step(bucket))

    def _shaped_step(self, mixed: MixedSteps, shape: Shape, plan: Several[Work]) -> tuple[list[Work], Tensor]:
        """A graph over a step with pieces of prompts: the works that complete, and what `model.hidden` gives there."""
        self._inputs.ready()
        changed = self._fill_tables(plan, len(plan))
        works = mixed.fill(shape, plan, self._places)
        for row, work in enumerate(works):
            self._sampler.prepare(row, work.sequence)
        self._sampler.clear(len(works), shape.sequences)
        self._inputs.upload(len(plan), tables=changed, numbers=shape.numbers)
        return works, self._replayed(shape, lambda: mixed.step(shape, self._tokens))

    def _replayed(self, name: int | Shape, step: Callable[[], Tensor]) -> Tensor:
        """What a step gives: its graph's, where there are graphs."""
        if name not in self._graphs:
            return step()
        self._graphs[name].replay()
        return self._graphs[name].hidden

    def _step(self, rows: int) -> Tensor:
        """What a graph consists of: reads the inputs, writes `_tokens`; what `model.hidden` gives."""
        positions, tables = self._inputs.positions[:rows], self._inputs.tables[:rows]
        ids, turns = self._sampler.begin(self._inputs.reads(rows), self._tokens, self._rotation)

        def attend(layer: int, qkv: Tensor, some: slice = slice(None)) -> Tensor:
            some_turns = Rotation(turns.cos[some], turns.sin[some])
            return self._decode(qkv, layer, self.cache, tables[some], positions[some], some_turns)

        if rows == 1 and self._stack is not None:
            hidden = self._stack(ids, self.cache.layers, tables, positions, turns)
        elif self._halves is not None and self._halves.serves(rows):
            hidden = self._halves(ids, attend)
        else:
            hidden = self.model.hidden(ids, attend)
        self._sampler.choose(self.model.head(hidden), self._tokens[:rows])
        return hidden

    def _plain_step(self, plan: Several[Work]) -> tuple[list[Work], dict[int, Outcome]]:
        """Plain calls; the works that complete, and what is known already."""
        batch = build(plan, self.cache.block_size, self.model.device)
        waiting = [
            (row, work)
            for row, work in enumerate(plan[: batch.answers])
            if work.sequence.ids[work.start] == PENDING
        ]
        if waiting:
            rows = on_device([row for row, _ in waiting], self.model.device)
            places = on_device([self._places[work.sequence] for _, work in waiting], self.model.device)
            batch.ids[rows] = self._tokens[places].clamp(min=0)
        turns = self._rotation.at(batch.positions)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            return self.attention.attend(qkv, layer, self.cache, batch, turns)

        hidden = self.model.hidden(batch.ids, attend)
        works, known = [work for work in plan if work.completes], dict[int, Outcome]()
        if works:
            chosen = hidden[batch.chosen]
            self._inputs.ready()
            for row, work in enumerate(works):
                self._sampler.prepare(row, work.sequence)
            self._inputs.upload(0, tables=False)
            self._sampler.observe(batch.ids[batch.chosen])
            self._sampler.choose(self.model.head(chosen), self._tokens[: len(works)])
            known = self._choose_otherwise(works, chosen)
        for work, span in zip(plan, batch.spans, strict=True):
            if scores(work):
                mine = hidden[span.row : span.row + span.count]
                known[id(work)] = self._read(work, mine, known.get(id(work)))
        return works, known

    def _choose_otherwise(self, works: Several[Work], hidden: Tensor) -> dict[int, Outcome]:
        """By id() of their work: the tokens that the device's sampler cannot choose. `hidden`: a row for each work.

        These rows go through the head again: keeping the logits of every graph would take most of a gigabyte.
        """
        rows = [
            row
            for row, work in enumerate(works)
            if work.completes and not self._sampler.serves(work.sequence)
        ]
        if not rows:
            return {}
        others = [works[row] for row in rows]
        outcomes = self._sample(self.model.logits(hidden[rows]), others)
        return {id(work): outcome for work, outcome in zip(others, outcomes, strict=True)}

    def _fill_tables(self, plan: Several[Work], bucket: int) -> bool:
        """Bring the rows' blocks up to date; whether anything has changed."""
        tables, changed = self._inputs.host.tables, False
        for row in range(bucket):
            sequence = plan[row].sequence if row < len(plan) else None
            blocks = [self._scratch] if sequence is None else sequence.blocks
            there = (sequence, len(blocks), 0 if sequence is None else sequence.residence)
            if self._tabled[row] != there:
                tables[row, : len(blocks)] = blocks
                self._tabled[row], changed = there, True
        return changed

    def _prove_stack(self, attention: DecodeAttention) -> None:
        """Do without the launch for all layers where it does not compute what the others do."""
        if self._stack is None:
            return
        try:
            found = deviation(self._stack, self.model, attention, self.cache, self._rotation)
        except RuntimeError as error:  # of the driver
            logger.warning("one launch for all layers cannot be made here, and is not used: %s", error)
            self._stack = None
            return
        if found < LIMIT:
            logger.info("one launch for all layers is off by %.2g of the logits", found)
        else:
            logger.warning("one launch for all layers is off by %.2g of the logits: not used", found)
            self._stack = None

    def _warm(self) -> None:
        """Compile what only plain calls take: else a prompt would wait for it."""
        count = min(LONG, self.model.config.context_length - 1)
        how = SamplingParams(0.0, 1.0, 0, 1.0, 0, 1, (), ())
        request = GenerationRequest("", (0,) * count, (), how, None)
        sequence = Sequence(request, token_bytes=lambda _: b"", capacity=count + 1)
        sequence.blocks = [self._scratch] * -(-count // self.cache.block_size)
        with torch.inference_mode():
            self._plain_step([Work(sequence, 1, count - 1)])

    def _captured(self) -> dict[int | Shape, Replay]:
        """A graph a shape and a bucket, the largest first, so that the smaller ones use its memory."""
        steps: list[tuple[int | Shape, Callable[[], Tensor]]] = []
        if self._mixed is not None:
            shapes = sorted(self._mixed.shapes, reverse=True)
            steps += [(shape, partial(self._mixed.step, shape, self._tokens)) for shape in shapes]
        steps += [(bucket, partial(self._step, bucket)) for bucket in reversed(self._buckets)]
        self._inputs.host.tables[:] = self._scratch
        self._inputs.host.sources[:] = -1
        self._sampler.clear(0, self._inputs.capacity)
        self._inputs.upload(self._inputs.capacity, tables=True)
        self._tabled = [(None, 1, 0)] * self._inputs.capacity
        graphs, pool = dict[int | Shape, Replay](), torch.cuda.graph_pool_handle()
        for name, step in steps:
            if isinstance(name, Shape) and self._mixed is not None:
                self._mixed.fill(name, [], {})
                self._inputs.upload(0, tables=False, numbers=name.numbers)
            with torch.inference_mode():
                step()  # compiles kernels and makes what they need, which a capture may not
                torch.cuda.synchronize(self.model.device)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    hidden = step()
            graphs[name] = Replay(graph.replay, hidden)
        return graphs
