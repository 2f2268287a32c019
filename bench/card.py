"""The tables of speed and memory of Qwen-1.8B-Chat's model card, measured here beside what the card says.

    python bench/card.py --folder DIR [--kinds int4,bf16] [--seconds 60]

As on the card: batch 1, one token of context, the end of answers suppressed, 2,048 and 8,192 tokens in all; the most
memory that tensors take while 2,048 tokens are read and while 8,192 are generated. The card's figures are of
transformers on an A100 with flash-attention 2; ours are of random weights, greedy. The KV cache has room for just what
is measured, and copies of the layers in 16 bits are not kept.

int8 and fp32 have no kernels of ours on a GPU: int8 is unpacked to bf16 when it is loaded, fp32 runs on torch's own.
"""

import gc
import os
import time
from pathlib import Path
from typing import Annotated, NamedTuple

from worker.engine.child import THREAD_SETTINGS

os.environ |= THREAD_SETTINGS | os.environ  # before torch starts its threads, as in the engine process

import peers
import random_model
import torch
import typer
from engine import GREEDY, Bench
from rich.console import Console
from rich.table import Table

from worker.engine.config import EngineConfig, EngineInfo
from worker.engine.loading import assemble
from worker.model.checkpoint import load_model
from worker.model.tokenizer import Tokenizer

SHORT, LONG = 2048, 8192


class Card(NamedTuple):
    """Of the model card: tokens a second and GB for SHORT and LONG."""

    short_speed: float
    long_speed: float
    short_memory: float
    long_memory: float


CARD = {
    "fp32": Card(52.96, 47.35, 8.45, 13.06),
    "bf16": Card(54.09, 54.04, 4.23, 6.48),
    "int8": Card(55.56, 55.62, 3.48, 5.34),
    "int4": Card(71.07, 76.45, 2.91, 4.80),
}
FILES: dict[str, random_model.Kind] = {"fp32": "bf16", "bf16": "bf16", "int8": "int8", "int4": "int4"}


def engine(folder: Path, kind: str, tokens: int, device: torch.device, layers: int) -> Bench:
    """One that can keep so many tokens."""
    gc.collect()  # the engine before this one may hold itself
    path = random_model.write(folder / FILES[kind], layers=layers, kind=FILES[kind])
    model = load_model(
        path,
        device=device,
        weights="int4" if kind == "int4" else "dequantized",
        dtype={"fp32": torch.float32, "int4": None}.get(kind, torch.bfloat16),
    )
    tokenizer = Tokenizer.load(path)
    core = assemble(model, tokenizer, EngineConfig(path, max_running=1, kv_cache_tokens=tokens))
    backends = core.runner.backends
    return Bench(core, EngineInfo(kind, str(device), backends, core.context_length, tokenizer.n_vocab), 1)


def speed(bench: Bench, tokens: int, seconds: float) -> tuple[float, int]:
    """(tokens per second, how many were generated) of one answer from one token, or of what was done by then."""
    name, produced = bench.submit(bench.ids(1), tokens, GREEDY), 0
    begin = time.perf_counter()
    while bench.core.busy and time.perf_counter() - begin < seconds:
        produced += sum(len(event.token_ids) for event in bench.tokens())
    spent = time.perf_counter() - begin
    bench.core.cancel(name)
    list(bench.tokens())
    return produced / spent, produced


def peak(device: torch.device) -> float:
    """GB that tensors took at most since the last call."""
    if device.type != "cuda":
        return float("nan")
    most = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return most


def main(
    folder: Annotated[Path, typer.Option(help="Random weights are kept here, 1.9 to 3.7 GB a kind.")],
    kinds: Annotated[str, typer.Option(help="Of these.")] = ",".join(CARD),
    seconds: Annotated[float, typer.Option(min=1, help="At most for one answer.")] = 60,
    layers: Annotated[int, typer.Option(help="Of the random model.")] = 24,
) -> None:
    """Measure the card's tables."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown = Table(title=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    for heading in ("", "what", "reached", "card", "vLLM", "llama.cpp", "prototype", "to reach"):
        shown.add_column(heading, justify="left" if heading in ("", "what") else "right")
    for kind in kinds.split(","):
        card = CARD[kind]
        bench = engine(folder, kind, SHORT + 16, device, layers)
        bench.answer(bench.ids(SHORT), 1)
        peak(device)
        bench.answer(bench.ids(SHORT), 1)
        reading = peak(device)
        del bench
        bench = engine(folder, kind, LONG, device, layers)
        speed(bench, 32, seconds)
        for tokens, theirs in ((SHORT, card.short_speed), (LONG - 1, card.long_speed)):
            peak(device)
            reached, produced = speed(bench, tokens, seconds)
            beside = peers.GENERATE.get(tokens, peers.NONE) if kind == "int4" else peers.NONE
            others = ["" if other is None else f"{other:,.0f}" for other in beside]
            cut = "" if produced == tokens else f" (the first {produced})"
            shown.add_row(
                kind, f"{tokens} tokens from 1, tok/s{cut}", f"{reached:,.1f}", f"{theirs}", *others
            )
        to_reach = {"int4": ("2.5", "3.7")}.get(kind, ("", ""))
        none = ("", "", "")
        shown.add_row(
            kind, f"reading {SHORT}, GB", f"{reading:.2f}", f"{card.short_memory}", *none, to_reach[0]
        )
        shown.add_row(
            kind,
            f"generating {LONG - 1}, GB",
            f"{peak(device):.2f}",
            f"{card.long_memory}",
            *none,
            to_reach[1],
        )
        del bench
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
