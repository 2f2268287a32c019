"""What the service around the engine costs: ``python -m bench.service``.

    --parts throughput   answer tokens per second through API, Redis, Celery and SQL, beside the engine's own on the
                         same requests, so many callers at a time, each waiting for its answer
            latency      what an idle system adds to a job of one token
            turns        the first token of turn 10 of a long conversation, beside the same prompt that nobody has seen
            submissions  jobs taken a second by one API process, with no worker beside it; its memory after that

Everything runs on this machine: the servers, the load, the database and Valkey. SQLite needs nothing installed;
PostgreSQL needs the package of the tests.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from worker.engine.child import THREAD_SETTINGS

os.environ |= THREAD_SETTINGS | os.environ  # before torch starts its threads, as in the engine process

import httpcore
import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from bench import random_model
from bench.alone import WORDS, Alone, Load, body
from bench.stack import DatabaseKind, Stack
from qwenq.model_choice import chosen
from storage.models import Response
from worker.engine.config import Device, EngineConfig

PARTS = ("throughput", "latency", "turns", "submissions")
CACHE_TOKENS = 1280  # of each caller, on a GPU


@dataclass
class Figure:
    """One line. `target` is to be passed upwards, or with `at_most` downwards."""

    name: str
    unit: str
    repeats: list[float]
    target: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> float:
        return statistics.median(self.repeats)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        met = self.reached <= self.target if self.at_most else self.reached >= self.target
        return (
            ("at most " if self.at_most else "at least ") + f"{self.target:g}" + ("" if met else ", missed")
        )


async def served(stack: Stack, load: Load, seed: int) -> tuple[float, list[float]]:
    """Answer tokens per second through the service, `callers` at a time, and the milliseconds of each call."""
    waiting, produced, took = load.asked(seed), 0, list[float]()
    async with httpx.AsyncClient(
        base_url=stack.base_url,
        headers=stack.key("bench"),
        trust_env=False,
        timeout=600,
        limits=httpx.Limits(max_connections=load.callers),
    ) as client:

        async def caller() -> None:
            nonlocal produced
            while waiting:
                begun = time.perf_counter()
                answer = await client.post("/v1/responses", json=waiting.pop())
                produced += answer.raise_for_status().json()["usage"]["output_tokens"]
                took.append(1000 * (time.perf_counter() - begun))

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(load.callers)))
        return produced / (time.perf_counter() - begin), took


def stretches(stack: Stack, jobs: int) -> tuple[list[float], list[float]]:
    """Of the newest jobs the milliseconds from acceptance to claim, and from claim to end."""
    newest = select(Response).order_by(Response.created_at.desc()).limit(jobs)
    with stack.database.read() as session:
        rows = [
            (job.created_at, job.started_at or 0.0, job.completed_at or 0.0)
            for job in session.scalars(newest)
        ]
    return [1000 * (begun - made) for made, begun, _ in rows], [
        1000 * (end - begun) for _, begun, end in rows
    ]


def throughput(stack: Stack, alone: Alone, load: Load, repeats: int) -> Iterator[Figure]:
    """By turns, so that what else the machine does meets both."""
    warm = Load(load.callers, load.callers, load.prompt_words, 4)
    alone.tokens_per_second(warm, 1000)
    asyncio.run(served(stack, warm, 1001))
    own, through, calls, waits, runs = [], [], list[float](), list[float](), list[float]()
    for repeat in range(repeats):
        own.append(alone.tokens_per_second(load, repeat))  # the same requests, which neither has seen before
        rate, took = asyncio.run(served(stack, load, repeat))
        through.append(rate)
        waited, ran = stretches(stack, load.jobs)
        calls, waits, runs = [*calls, *took], [*waits, *waited], [*runs, *ran]
    what = f"{load.callers} callers, answers of {load.answer_tokens}"
    yield Figure(f"{what}: the engine alone", "tok/s", own)
    yield Figure(f"{what}: through the service", "tok/s", through)
    ratios = [one / other for one, other in zip(through, own, strict=True)]
    yield Figure("  of the engine's own", "", ratios, target=0.95)
    yield Figure("  a call of its callers", "ms", calls)
    yield Figure("  of it from acceptance to claim", "ms", waits)
    yield Figure("  of it from claim to end", "ms", runs)


def latency(stack: Stack, alone: Alone, times: int) -> Iterator[Figure]:
    """A job of one token on an idle system, and the same in the engine alone."""
    one = Load(1, 1, 4, 1)
    whole, own = [], []
    with httpx.Client(
        base_url=stack.base_url, headers=stack.key("bench"), trust_env=False, timeout=600
    ) as client:
        for number in range(times):
            own.append(1000 / alone.tokens_per_second(one, 5000 + number))
            (text,) = one.texts(6000 + number)
            began = time.perf_counter()
            client.post("/v1/responses", json=body(text, 1)).raise_for_status()
            whole.append(1000 * (time.perf_counter() - began))
    waited, _ = stretches(stack, times)
    yield Figure("one token through the service, idle", "ms", whole)
    yield Figure("  in the engine alone", "ms", own)
    added = [statistics.median(whole) - statistics.median(own)]
    yield Figure("  added, p50", "ms", added, target=25, at_most=True)
    yield Figure("  of it from acceptance to claim", "ms", waited)


async def _first_token(stack: Stack, key: dict[str, str], asked: dict[str, Any]) -> float:
    """Seconds from the request to the first text of its stream."""
    async with httpx.AsyncClient(
        base_url=stack.base_url, headers=key, trust_env=False, timeout=600
    ) as client:
        begin = time.perf_counter()
        async with client.stream("POST", "/v1/responses", json=asked | {"stream": True}) as answer:
            found = 0.0
            async for line in answer.raise_for_status().aiter_lines():
                if not found and line == "event: response.output_text.delta":
                    found = time.perf_counter() - begin
        return found


def turns(stack: Stack, history: int, repeats: int) -> Iterator[Figure]:
    """A conversation of ten turns; then the same items in a project that has never been here."""
    warms, colds, tokens = [], [], 0
    for repeat in range(repeats):
        draw = random.Random(repeat)
        key = stack.key(f"turns {repeat}")
        with httpx.Client(base_url=stack.base_url, headers=key, trust_env=False, timeout=600) as client:
            conversation = client.post("/v1/conversations", json={}).raise_for_status().json()["id"]
            for _ in range(9):
                text = " ".join(draw.choices(WORDS, k=max(1, history // 9 - 24)))
                asked = body(text, 16, conversation=conversation)
                usage = client.post("/v1/responses", json=asked).raise_for_status().json()["usage"]
            tokens = usage["total_tokens"]
            listed = client.get(
                f"/v1/conversations/{conversation}/items", params={"limit": 100, "order": "asc"}
            )
            items = [
                {
                    "type": "message",
                    "role": item["role"],
                    "content": "".join(p["text"] for p in item["content"]),
                }
                for item in listed.raise_for_status().json()["data"]
            ]
        last = body("And now?", 8, conversation=conversation)
        warms.append(1000 * asyncio.run(_first_token(stack, key, last)))
        asked = body("", 8) | {"input": [*items, {"type": "message", "role": "user", "content": "And now?"}]}
        colds.append(1000 * asyncio.run(_first_token(stack, stack.key(f"cold {repeat}"), asked)))
    name = f"turn 10 through the service, {tokens} tokens before: cold / warm"
    yield Figure(name, "times", [cold / warm for cold, warm in zip(colds, warms, strict=True)], target=8)
    yield Figure("  first token, warm", "ms", warms)
    yield Figure("  first token, cold", "ms", colds)


async def _submitted(stack: Stack, seconds: float, connections: int) -> tuple[float, list[float]]:
    """Jobs taken a second, and the milliseconds of each."""
    headers = stack.key("submissions") | {"content-type": "application/json"}
    asked = json.dumps(body("Hello, how are you?", 16, background=True)).encode()
    took: list[float] = []

    async with httpcore.AsyncConnectionPool(max_connections=connections) as client:
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (begin := time.perf_counter()) < end:
                answer = await client.request(
                    "POST", f"{stack.base_url}/v1/responses", headers=list(headers.items()), content=asked
                )
                if answer.status != 200:
                    raise RuntimeError(answer.content.decode())
                took.append(1000 * (time.perf_counter() - begin))

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(connections)))
        return len(took) / (time.perf_counter() - begin), took


def submissions(stack: Stack, seconds: float, connections: int, repeats: int) -> Iterator[Figure]:
    rates, p99 = [], []
    asyncio.run(_submitted(stack, 1.0, connections))
    for _ in range(repeats):
        rate, took = asyncio.run(_submitted(stack, seconds, connections))
        rates.append(rate)
        p99.append(statistics.quantiles(took, n=100)[98])
    yield Figure(f"jobs taken by one API process, {connections} callers", "a second", rates, target=400)
    yield Figure("  p99", "ms", p99, target=100, at_most=True)
    yield Figure(
        "memory of the API process after them", "MB", [stack.megabytes("api")], target=150, at_most=True
    )


def table(title: str, figures: list[Figure]) -> Table:
    shown = Table(title=title)
    shown.add_column("")
    for heading in ("median", "least to most", "", "target"):
        shown.add_column(heading, justify="right" if heading != "target" else "left")
    for figure in figures:
        spread = f"{min(figure.repeats):.4g} to {max(figure.repeats):.4g}" if len(figure.repeats) > 1 else ""
        shown.add_row(figure.name, f"{figure.reached:.4g}", spread, figure.unit, figure.verdict)
    return shown


def main(
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint; QWENQ_MODEL or the demo model by default.")
    ] = None,
    random_folder: Annotated[
        Path | None,
        typer.Option("--random", help="Instead: random weights of the 1.8B model, written here if absent."),
    ] = None,
    device: Annotated[Device, typer.Option()] = "auto",
    database: Annotated[DatabaseKind, typer.Option()] = "sqlite",
    parts: Annotated[str, typer.Option(help="What to measure, of these.")] = ",".join(PARTS),
    callers: Annotated[int, typer.Option(min=1, help="Callers at a time, and slots of the worker.")] = 64,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs of a throughput run.")] = 192,
    answer_tokens: Annotated[int, typer.Option(min=1)] = 64,
    prompt_words: Annotated[int, typer.Option(min=1)] = 24,
    history: Annotated[int, typer.Option(min=9, help="Tokens before turn 10.")] = 4000,
    seconds: Annotated[float, typer.Option(min=1, help="Of one run of submissions.")] = 10.0,
    connections: Annotated[int, typer.Option(min=1, help="Callers that submit side by side.")] = 16,
    times: Annotated[int, typer.Option(min=2, help="Jobs of the latency run.")] = 50,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure the service beside its engine."""
    wanted = parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        raise typer.BadParameter(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    path = (random_model.write(random_folder, layers=24) if random_folder else chosen(model)).resolve()
    settings = {
        "QWENQ_MODEL": str(path),
        "QWENQ_DEVICE": device,
        "QWENQ_CONCURRENCY": str(callers),
        "QWENQ_MAX_QUEUED": "1000000",
    }
    figures: list[Figure] = []
    console = Console()
    if "submissions" in wanted:
        with Stack(database, settings) as stack, console.status("submissions"):
            stack.start("api")
            figures += submissions(stack, seconds, connections, repeats)
    if set(wanted) - {"submissions"}:
        # Two engines on one GPU: each would take all of its memory, and the second would miss what the first has.
        cache = max(8192, callers * CACHE_TOKENS) if device != "cpu" and torch.cuda.is_available() else None
        if cache is not None:
            settings["QWENQ_KV_CACHE_TOKENS"] = str(cache)
        alone = Alone(EngineConfig(path, device, max_running=callers, kv_cache_tokens=cache))
        with Stack(database, settings) as stack:
            stack.start("api", "worker", "webhooks", "beat")
            if "throughput" in wanted:
                load = Load(jobs, callers, prompt_words, answer_tokens)
                with console.status("throughput"):
                    figures += throughput(stack, alone, load, repeats)
            if "latency" in wanted:
                with console.status("latency"):
                    figures += latency(stack, alone, times)
            if "turns" in wanted:
                with console.status("turns"):
                    figures += turns(stack, history, repeats)
        alone.close()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    console.print(table(f"{path.name}, {database}, commit {commit.stdout.strip() or 'unknown'}", figures))
    if json_file is not None:
        lines = [asdict(figure) | {"reached": figure.reached} for figure in figures]
        json_file.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(typer.run(main))
