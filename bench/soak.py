"""Memory over time, under more than fits: ``python -m bench.soak --minutes 30``.

The whole service under callers that never rest, with a KV cache that is too small for what they ask at once: again and
again so many answers are asked for together, and with them one of the longest prompt there may be, so that answers are
put off, preempted and computed again. Every one must end by itself. Every few seconds the memory of the API, the
worker and its engine is read: the last third of the run is held against the one before it.
"""

import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from bench.alone import WORDS, body, rendered
from bench.stack import DatabaseKind, Stack
from qwenq.model_choice import chosen
from worker.model.config import load_config, load_generation_defaults
from worker.model.tokenizer import Tokenizer

SAMPLE_SECONDS = 5.0
# What the allocators of three processes may still spread out: of the larger part, and at least so much.
FLAT, FLAT_MEGABYTES = 0.05, 16.0


def longest(model: Path, answer: int) -> tuple[str, int]:
    """A text whose prompt leaves `answer` tokens of the context, and the prompt's length."""
    tokenizer, context = Tokenizer.load(model), load_config(model).context_length
    defaults = load_generation_defaults(model)
    text = "time"
    for _ in range(2):  # a word more is a token more
        built = rendered(body(text, answer), tokenizer, defaults, context)
        text += " time" * (context - answer - len(built.ids))
    return text, context - answer


class Soak:
    """The callers, what became of their jobs, and the memory of the processes."""

    def __init__(self, stack: Stack, at_once: int, long_text: str) -> None:
        self._stack, self._at_once, self._long = stack, at_once, long_text
        self._draw = random.Random(0)
        self.ended: dict[str, int] = {}
        self.long_tokens: set[int] = set()
        self.memory: dict[str, list[float]] = {name: [] for name in ("api", "worker", "engine")}

    async def run(self, seconds: float) -> None:
        sampling = asyncio.create_task(self._sample())
        limits = httpx.Limits(max_connections=self._at_once + 1)
        async with httpx.AsyncClient(
            base_url=self._stack.base_url,
            headers=self._stack.key("soak"),
            trust_env=False,
            timeout=1800,
            limits=limits,
        ) as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                short = [self._one(client, self._short()) for _ in range(self._at_once)]
                await asyncio.gather(self._one(client, body(self._long, 1), long=True), *short)
        if sampling.done():
            sampling.result()  # why
        sampling.cancel()

    def _short(self) -> dict[str, Any]:
        text = " ".join(self._draw.choices(WORDS, k=self._draw.randint(4, 60)))
        return body(text, self._draw.randint(1, 48))

    async def _one(self, client: httpx.AsyncClient, asked: dict[str, Any], *, long: bool = False) -> None:
        answer = await client.post("/v1/responses", json=asked)
        what = str(answer.status_code)
        if answer.status_code == 200:
            shown = answer.json()
            what = shown["status"]
            if long:
                self.long_tokens.add(shown["usage"]["input_tokens"])
        self.ended[what] = self.ended.get(what, 0) + 1

    async def _sample(self) -> None:
        while True:
            for name, found in self.memory.items():
                found.append(self._stack.megabytes(name))
            await asyncio.sleep(SAMPLE_SECONDS)


def main(
    minutes: Annotated[float, typer.Option(min=0.1)] = 30.0,
    at_once: Annotated[int, typer.Option(min=1, help="Answers that are asked for together.")] = 256,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="By default one context.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint; QWENQ_MODEL or the demo model by default.")
    ] = None,
    database: Annotated[DatabaseKind, typer.Option()] = "sqlite",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Run until the time is over and the last answers have ended; exit 1 if one failed or memory grew."""
    path = chosen(model).resolve()
    context = load_config(path).context_length
    text, tokens = longest(path, 1)
    settings = {
        "QWENQ_MODEL": str(path),
        "QWENQ_CONCURRENCY": str(at_once),
        "QWENQ_KV_CACHE_TOKENS": str(kv_cache_tokens or context),
        "QWENQ_CONTEXT_LENGTH": str(context),
        "QWENQ_JOB_TIMEOUT": "3600",
    }
    with Stack(database, settings) as stack:
        stack.start("api", "worker", "webhooks", "beat")
        soak = Soak(stack, at_once, text)
        asyncio.run(soak.run(60 * minutes))
        metrics = httpx.get(f"http://127.0.0.1:{stack.worker_port}/metrics", trust_env=False).text
    counted = {
        name: float(value)
        for name, value in (line.split() for line in metrics.splitlines() if line.startswith("qwenq_engine_"))
    }
    console, fine = Console(), set(soak.ended) <= {"completed", "incomplete"} and soak.long_tokens == {tokens}
    table = Table(title=f"{path.name}: memory over {minutes:g} minutes, MB")
    for heading in ("", "first third", "second third", "last third", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found in soak.memory.items():
        third = len(found) / 3
        parts = [statistics.median(found[int(n * third) : max(int((n + 1) * third), 1)]) for n in range(3)]
        grown = parts[2] - parts[1]
        fine &= grown <= max(FLAT * parts[1], FLAT_MEGABYTES)
        table.add_row(name, *(f"{value:.0f}" for value in (*parts, max(found))))
    console.print(table)
    console.print(f"ended: {soak.ended}; longest prompt: {soak.long_tokens} tokens, as meant: {tokens}")
    steps = counted["qwenq_engine_steps_total"]
    host = 1000 * counted["qwenq_engine_host_seconds_total"] / max(steps, 1)
    console.print(
        f"{counted['qwenq_engine_preemptions_total']:.0f} preemptions in {steps:.0f} steps, host {host:.3f} ms a step"
    )
    if json_file is not None:
        report = {"ended": soak.ended, "memory": soak.memory, "engine": counted}
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    raise typer.Exit(0 if fine else 1)


if __name__ == "__main__":
    typer.run(main)
