"""A batch while its worker is killed twice, and the API that feeds it once: ``python -m bench.batch``.

Real processes (one worker), PostgreSQL and Valkey of the run's own, a tiny random model. Fails unless every line of
the input is answered exactly once, in order, and no line became two jobs.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from migrations.run import upgrade
from tests.acceptance import batch_run
from tests.acceptance.house import House
from tests.faults.servers import Broker, Postgres
from tests.model.tiny import tiny_model

KILLED = ("worker", "api", "worker")


def main(
    lines: Annotated[int, typer.Option(min=10, max=50_000, help="Requests in the batch.")] = 2000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Run one batch and kill its processes on the way."""
    directory = Path(tempfile.mkdtemp(prefix="qwenq-batch-"))
    postgres = Postgres(directory / "postgres")
    broker = Broker(directory / "valkey", directory / "valkey.log")
    try:
        upgrade(postgres.url)
        broker.start()
        house = House(
            directory,
            database_url=postgres.url,
            redis_url=broker.url,
            model=tiny_model(directory / "model"),
        )
        try:
            house.open()
            outcome = batch_run.run(house, lines, KILLED)
        finally:
            house.close()
    finally:
        broker.stop(signal.SIGTERM)
        postgres.close()
        shutil.rmtree(directory, ignore_errors=True)
    Console().print(
        f"{outcome.lines} lines, each answered once, in {outcome.seconds:.1f} s "
        f"({outcome.lines / outcome.seconds:.1f} a second); SIGKILL of {', '.join(outcome.killed)}; "
        f"{outcome.jobs} jobs, {outcome.second_attempts} of them begun again"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(outcome), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
