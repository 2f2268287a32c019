"""``python -m tests.faults``: one fault run; `make faults` calls it. Exit status 1 if any promise was broken."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Annotated

import typer
from rich.console import Console

from tests.faults import report
from tests.faults.run import FULL, SHORT, Run, keep
from tests.faults.sabotage import PROTECTIONS


def main(
    seed: Annotated[int | None, typer.Option(help="Draws load and faults; a random one by default.")] = None,
    short: Annotated[bool, typer.Option("--short", help="About two minutes instead of ten.")] = False,
    without: Annotated[
        str, typer.Option(help="Switch one protection off: fencing, sweeper, outbox or checkpoint.")
    ] = "",
) -> None:
    """Break a running service at random and check what it promised."""
    if without and without not in PROTECTIONS:
        raise typer.BadParameter(f"{without} is none of {', '.join(PROTECTIONS)}")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = Console()
    again = f"make faults SEED={seed}" + (" SHORT=1" if short else "")
    again += f" WITHOUT={without}" if without else ""
    console.print(f"seed {seed} ({again})", highlight=False)
    began = time.monotonic()
    outcome = asyncio.run(_run(console, seed, short, without, began))
    report.show(console, outcome, again)
    raise typer.Exit(1 if outcome.breaches else 0)


async def _run(console: Console, seed: int, short: bool, without: str, began: float) -> report.Outcome:
    with console.status("") as status:

        def say(words: str) -> None:
            console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {words}", highlight=False)

        run = Run(seed, SHORT if short else FULL, short=short, without=without, kept=keep(seed), say=say)

        async def progress() -> None:
            while True:
                callers = run.callers
                status.update(
                    f"{time.monotonic() - began:.0f} s: {len(callers.accepted)} jobs accepted, "
                    f"{len(callers.ended)} seen to end"
                )
                await asyncio.sleep(1)

        watching = asyncio.create_task(progress())
        try:
            return await run()
        finally:
            watching.cancel()


if __name__ == "__main__":
    typer.run(main)
