"""How fast the engine runs on this machine, and how fast the machine would let it.

    python bench/engine.py [--model DIR | --random] [--parts decode,turns] [--json FILE]

The engine's own loop is measured, scheduler and sampler included, without its process and pipe; random prompts, the end
of answers suppressed. A line stands beside its limit where it has one:

decode   a step reads every weight once (of the embedding one row) and the keys and values of all its sequences: those
         bytes by the read bandwidth that the same threads reach on a plain array. Where a batch has more to
         multiply than to read, the matrix products by the rate of a large one of torch's, in 16 or 32 bits: a kernel
         that multiplies in 8 bits may pass it.
         The context is the mean of what is measured.
prefill  the matrix products of the layers for every token by that rate.
memory   the weights, and the keys and values of one context.
turns    the first token of turn 10 with the cache against the same without: all tokens by those that are new.

On an H200 the recorded figures of others stand beside ours (`peers.py`).
"""

import gc
import itertools
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from worker.engine.child import THREAD_SETTINGS

os.environ |= THREAD_SETTINGS | os.environ  # before torch starts its threads, as in the engine process

import limits
import peers
import random_model
import torch
import typer
from rich.console import Console
from rich.table import Table

from qwenq.model_choice import chosen
from qwenq.problems import Problem
from worker.engine.config import Device, EngineConfig, EngineInfo, KVCacheFormat, Weights
from worker.engine.core import EngineCore
from worker.engine.errors import EngineStartError
from worker.engine.loading import STEP_TOKENS, load
from worker.engine.request import Failed, GenerationRequest, SamplingParams, Tokens
from worker.model.errors import CheckpointError

GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}
QWEN = {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.1}  # what Qwen recommends
PARTS = ("prefill", "decode", "throughput", "turns", "memory")


@dataclass
class Figure:
    """One line: the median of the repeats beside its limit. Of memory less is better, of all else more."""

    name: str
    unit: str
    repeats: list[float]
    limit: float | None = None
    others: peers.Peers = peers.NONE

    @property
    def reached(self) -> float:
        return statistics.median(self.repeats)

    @property
    def fraction(self) -> float | None:
        if self.limit is None:
            return None
        return self.limit / self.reached if self.unit == "GB" else self.reached / self.limit


class Bench:
    """An engine and random prompts for it."""

    def __init__(self, core: EngineCore, info: EngineInfo, repeats: int) -> None:
        self.core, self.info, self.repeats = core, info, repeats
        self.model, self.cache = core.runner.model, core.runner.cache
        self._draw = random.Random(0)
        self._number = 0
        self._bandwidth = self._rate = 0.0

    def ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._draw.randrange(self.info.n_vocab) for _ in range(count))

    def submit(
        self, prompt: tuple[int, ...], tokens: int, how: dict[str, float], salt: str | None = None
    ) -> str:
        """Ask for an answer. Without a salt nothing of it is found in the cache."""
        self._number += 1
        name = str(self._number)
        sampling = SamplingParams(
            **how, top_k=0, seed=self._number, max_new_tokens=tokens, stop_token_ids=(), stop_strings=()
        )
        self.core.submit(GenerationRequest(name, prompt, (), sampling, None, cache_salt=salt or name))
        return name

    def tokens(self) -> Iterator[Tokens]:
        """The tokens of one step."""
        for event in self.core.step():
            if isinstance(event, Failed):
                raise typer.BadParameter(event.message)
            if isinstance(event, Tokens):
                yield event

    def answer(
        self, prompt: tuple[int, ...], tokens: int, salt: str | None = None
    ) -> tuple[float, tuple[int, ...]]:
        """(seconds to the first token, the answer) of one request alone."""
        begin, first, ids = time.perf_counter(), 0.0, list[int]()
        self.submit(prompt, tokens, GREEDY, salt)
        while self.core.busy:
            for event in self.tokens():
                first = first or time.perf_counter() - begin
                ids += event.token_ids
        return first, tuple(ids)

    @property
    def kind(self) -> str:
        return self.model.device.type

    def mean_context(self) -> int:
        """Tokens of a sequence that runs, on average."""
        running = self.core.scheduler.running
        return sum(len(sequence.ids) for sequence in running) // len(running)

    def look_at_the_machine(self) -> None:
        """Measured again and again: other work on the machine can only make it look slower than it is."""
        self._bandwidth = max(self._bandwidth, limits.read_bandwidth(self.model.device))
        self._rate = max(self._rate, limits.multiply_rate(self.model.device))

    def prefill_limit(self) -> float:
        """Tokens per second."""
        self.look_at_the_machine()
        return self._rate / limits.token_operations(self.model, head=False)

    def step_limit(self, rows: int, positions: int) -> float:
        """Steps per second when `rows` sequences of so many positions have one token each."""
        self.look_at_the_machine()
        read = limits.weight_bytes(self.model) + rows * positions * limits.token_bytes(self.model, self.cache)
        return min(
            self._bandwidth / read, self._rate / (rows * limits.token_operations(self.model, head=True))
        )


def prefill(bench: Bench, lengths: list[int]) -> Iterator[Figure]:
    """Tokens per second of a prompt, up to the first token of its answer."""
    for length in lengths:
        bench.answer(bench.ids(length), 1)
        repeats = [length / bench.answer(bench.ids(length), 1)[0] for _ in range(bench.repeats)]
        beside = peers.PREFILL.get(length, peers.NONE)
        yield Figure(f"prefill of {length}", "tok/s", repeats, bench.prefill_limit(), beside)


def decode(bench: Bench, batches: list[int], context: int, steps: int) -> Iterator[Figure]:
    """Tokens per second of all answers together, while so many run."""
    kinds = (("", GREEDY), (", top-p 0.8, penalty 1.1", QWEN))
    for rows, (label, how) in itertools.product(batches, kinds):
        # So long that the mean over all that is measured is the context asked for: answers grow while they are
        # measured, and the first ones before that, while the last prompts are read.
        begin_at = max(
            1, context - steps * bench.repeats // 2 - rows * context // (2 * STEP_TOKENS[bench.kind])
        )
        names = {bench.submit(bench.ids(begin_at), context + 10 * steps, how) for _ in range(rows)}
        waiting = set(names)
        while waiting:
            waiting -= {event.request_id for event in bench.tokens()}
        repeats, mean = [], bench.mean_context()
        for _ in range(bench.repeats):
            begin = time.perf_counter()
            produced = sum(len(list(bench.tokens())) for _ in range(steps))
            repeats.append(produced / (time.perf_counter() - begin))
        mean = (mean + bench.mean_context()) // 2
        for name in names:
            bench.core.cancel(name)
        list(bench.tokens())
        limit = rows * bench.step_limit(rows, mean)
        beside = peers.DECODE.get(rows, peers.NONE) if how is GREEDY and context == 512 else peers.NONE
        yield Figure(f"decode, batch {rows}, context {mean}{label}", "tok/s", repeats, limit, beside)


def throughput(bench: Bench, requests: int, longest: int) -> Iterator[Figure]:
    """Answer tokens per second of requests of many lengths that come all at once, prompts included in the time."""
    begin, produced = time.perf_counter(), 0
    draw = random.Random(1)
    for _ in range(requests):
        bench.submit(bench.ids(draw.randint(1, longest)), draw.randint(1, longest), QWEN)
    while bench.core.busy:
        produced += len(list(bench.tokens()))
    yield Figure(
        f"{requests} requests at once, prompts and answers of 1 to {longest}",
        "tok/s",
        [produced / (time.perf_counter() - begin)],
    )


def turns(bench: Bench, history: int) -> Iterator[Figure]:
    """A conversation of ten turns; then its last turn as if nobody had ever seen it."""
    new, answered = max(1, history // 9 - 16), 16
    for repeat in range(bench.repeats):
        said: tuple[int, ...] = ()
        for _ in range(9):
            said += bench.ids(new)
            said += bench.answer(said, answered, salt=f"turns {repeat}")[1]
        last = said + bench.ids(20)
        warm, _ = bench.answer(last, 1, salt=f"turns {repeat}")
        cold, _ = bench.answer(last, 1)
        block = bench.cache.block_size
        # The last token of an answer was never computed, and blocks are found only whole.
        fresh = len(last) - (len(said) - 1) // block * block
        if repeat == 0:
            ratios = Figure(f"turn 10, {len(said)} tokens before: cold / warm", "times", [])
            warms, colds = Figure("  first token, warm", "ms", []), Figure("  first token, cold", "ms", [])
            ratios.limit = len(last) / fresh
        ratios.repeats.append(cold / warm)
        warms.repeats.append(1000 * warm)
        colds.repeats.append(1000 * cold)
    yield from (ratios, warms, colds)


def memory(bench: Bench) -> Iterator[Figure]:
    """The most that the process, or on a GPU its tensors, have taken in all this."""
    if bench.model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(bench.model.device)
    else:
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    context = bench.info.context_length * limits.token_bytes(bench.model, bench.cache)
    needed = limits.weight_bytes(bench.model) + bench.model.wte.nbytes + context
    yield Figure("peak memory, loading included", "GB", [peak / 1e9], needed / 1e9)


def table(info: EngineInfo, figures: list[Figure]) -> Table:
    kernels = ", ".join(sorted(set(info.backends.values())))
    shown = Table(title=f"{info.model}, {info.device}\n{kernels}", min_width=80)
    shown.add_column("")
    for heading in ("limit", "reached", "of it", "slowest to fastest", ""):
        shown.add_column(heading, justify="right")
    beside = any(figure.others != peers.NONE for figure in figures) and "H200" in info.device
    for heading in peers.COLUMNS if beside else ():
        shown.add_column(heading, justify="right")
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:,.4g}"
        fraction = "" if figure.fraction is None else f"{figure.fraction:.0%}"
        spread = (
            f"{min(figure.repeats):,.4g} to {max(figure.repeats):,.4g}" if len(figure.repeats) > 1 else ""
        )
        others = ["" if other is None else f"{other:,.0f}" for other in figure.others] if beside else []
        shown.add_row(figure.name, limit, f"{figure.reached:,.4g}", fraction, spread, figure.unit, *others)
    return shown


def main(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; QWENQ_MODEL or the demo model by default.")
    ] = None,
    random_folder: Annotated[
        Path | None,
        typer.Option("--random", help="Instead: random weights of the 1.8B model, written here if absent."),
    ] = None,
    layers: Annotated[int, typer.Option(help="Layers of the random model.")] = 24,
    device: Annotated[Device, typer.Option()] = "auto",
    weights: Annotated[Weights, typer.Option()] = "int4",
    kv_cache: Annotated[KVCacheFormat, typer.Option()] = "auto",
    attention: Annotated[str | None, typer.Option(help="Force an attention backend.")] = None,
    deterministic: Annotated[bool, typer.Option()] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
    parts: Annotated[str, typer.Option(help="What to measure, of these.")] = ",".join(PARTS),
    prompts: Annotated[str, typer.Option(help="Prompt lengths for prefill.")] = "512,2048",
    batches: Annotated[str | None, typer.Option(help="Batch sizes for decode; by the device.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Mean context while decoding is measured.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps a repeat.")] = 32,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the throughput run.")] = 32,
    longest: Annotated[int, typer.Option(min=1, help="Their longest prompt and answer.")] = 64,
    history: Annotated[int, typer.Option(min=9, help="Tokens before turn 10.")] = 4000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure the engine, each figure beside the limit that this machine sets."""
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    console = Console()
    try:
        path = random_model.write(random_folder, layers=layers) if random_folder else chosen(model)
        config = EngineConfig(
            path,
            device,
            weights,
            threads,
            max_running=256,
            kv_cache=kv_cache,
            attention=attention,
            deterministic=deterministic,
        )
        core, info = load(config)
        gc.collect()
        gc.freeze()  # as the engine process does
    except (CheckpointError, EngineStartError, Problem) as error:
        raise typer.BadParameter(str(error)) from None
    bench = Bench(core, info, repeats)
    gpu = bench.model.device.type == "cuda"
    rows = _numbers(batches or ("1,8,32,64,256" if gpu else "1,2,4,8"))
    measure = {
        "prefill": lambda: prefill(bench, _numbers(prompts)),
        "decode": lambda: decode(bench, rows, context, steps),
        "throughput": lambda: throughput(bench, requests, longest),
        "turns": lambda: turns(bench, history),
        "memory": lambda: memory(bench),
    }
    figures: list[Figure] = []
    for part in PARTS:
        if part in wanted:
            with console.status(part):
                figures += measure[part]()
    stats = core.stats
    console.print(table(info, figures))
    console.print(f"host {stats.host_ms_per_step:.3f} ms a step over {stats.steps} steps")
    if json_file is not None:
        lines = [
            asdict(figure) | {"reached": figure.reached, "fraction": figure.fraction} for figure in figures
        ]
        report = {"engine": asdict(info), "stats": asdict(stats), "figures": lines}
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
