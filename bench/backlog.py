"""What a long queue costs: ``python -m bench.backlog``.

The same calls on an empty PostgreSQL and on one with 100,000 queued jobs: submit, status and list through a real API
process, the claim (and the answer that ends it) through the functions that a worker calls. Printed: median and 95th
percentile of each, and their ratio, which is to stay under 2. The two states take turns, so that other work on the
machine disturbs both alike.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import typer
from cryptography.fernet import Fernet
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import text

from migrations.run import upgrade
from qwenq.valkey import free_port
from storage import keys, leases, terminal
from storage.database import Database
from tests.faults.servers import Broker, Postgres, until

PROJECTS = 20
LIMIT = 2.0
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

# Twenty projects wait side by side, the caller's own is one of them; every tenth job is a later turn of a conversation
# and cannot be claimed yet. What they ask is what a job that was really submitted asks.
FILL = """
INSERT INTO responses (id, project_id, conversation_id, turn, tier, rank, ready, request, status, created_at,
                       available_at, max_run_seconds, knocked_at, attempt, failures, message_id, seed)
SELECT 'resp_backlog' || i, CASE WHEN i % :projects = 1 THEN project_id ELSE 'backlog' || (i % :projects) END,
       CASE WHEN i % 10 = 0 THEN 'conv' || i END, 1, 'default',
       1000 + (i / :projects) * 0.25, i % 10 <> 0, request, 'queued',
       extract(epoch from now()) - 1000 + i * 0.001, 0, 600, extract(epoch from now()) + 3600, 0, 0, 'msg_b' || i, 1
FROM responses CROSS JOIN generate_series(1, :count) AS i
"""


class Api:
    """One API process on a database of its own, with or without a backlog."""

    def __init__(self, directory: Path, server_url: str, broker_url: str, name: str, backlog: int) -> None:
        admin = Database(server_url)
        with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.close()
        url = server_url.replace("/postgres?", f"/{name}?")
        upgrade(url)
        self.database = Database(url)
        with self.database.begin() as session:
            key = keys.create(session, "bench", "bench").secret
            for number in range(PROJECTS):
                session.execute(
                    text("INSERT INTO projects (id, name, created_at) VALUES (:id, :id, 0)"),
                    {"id": f"backlog{number}"},
                )
        port = free_port()
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qwenq", "api"],
                env={
                    **os.environ,
                    "QWENQ_DATABASE_URL": url,
                    "QWENQ_REDIS_URL": broker_url,
                    "QWENQ_SECRET_KEY": Fernet.generate_key().decode(),
                    "QWENQ_PORT": str(port),
                    "QWENQ_MAX_QUEUED": "1000000",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=30,
        )
        until("the API", self._ready, 60)
        self.submit()
        if backlog:
            with self.database.begin() as session:
                session.execute(text(FILL), {"count": backlog, "projects": PROJECTS})
        with self.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def submit(self) -> None:
        answer = self.client.post("/v1/responses", json={"input": "Hello", "background": True})
        self.last = answer.raise_for_status().json()["id"]

    def status(self) -> None:
        self.client.get(f"/v1/responses/{self.last}").raise_for_status()

    def listing(self) -> None:
        self.client.get("/v1/responses").raise_for_status()

    def claim(self) -> None:
        with self.database.begin() as session:
            job = leases.claim(session, "bench", 30, 3)
        if job is None:
            raise RuntimeError(f"nothing to claim; see {self.log}")
        self.claimed = job

    def finish(self) -> None:
        with self.database.begin() as session:
            terminal.close_answered(
                session, self.claimed.id, self.claimed.attempt, terminal.Answer("Hello", USAGE, None)
            )

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(30)
        self.database.close()


def timed(call: Callable[[], None]) -> float:
    """Return how many milliseconds the call took."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def main(
    jobs: Annotated[int, typer.Option(min=1, help="How many jobs wait.")] = 100_000,
    times: Annotated[int, typer.Option(min=20, help="How often each call is made in each state.")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure submit, claim, status and list on an empty queue and on a long one."""
    directory = Path(tempfile.mkdtemp(prefix="qwenq-backlog-"))
    postgres = Postgres(directory / "postgres")
    broker = Broker(directory / "valkey", directory / "valkey.log")
    broker.start()
    apis: list[Api] = []
    try:
        for name, backlog in (("empty", 0), ("long", jobs)):
            apis.append(Api(directory, postgres.url, broker.url, name, backlog))
        calls = ("submit", "status", "listing", "claim", "finish")
        figures: dict[str, tuple[list[float], list[float]]] = {call: ([], []) for call in calls}
        for _ in track(range(times), f"{jobs} jobs"):
            for call in calls:
                for api, column in zip(apis, figures[call], strict=True):
                    column.append(timed(getattr(api, call)))
    finally:
        for api in apis:
            api.close()
        broker.stop(signal.SIGTERM)
        postgres.close()
        shutil.rmtree(directory, ignore_errors=True)
    worst = _show(figures, jobs)
    if json_file is not None:
        json_file.write_text(json.dumps({"jobs": jobs, "milliseconds": figures}) + "\n")
    raise typer.Exit(1 if worst > LIMIT else 0)


def _show(figures: dict[str, tuple[list[float], list[float]]], jobs: int) -> float:
    """Print the table and return the largest ratio of medians."""
    table = Table(title=f"milliseconds, empty queue and {jobs} queued jobs (limit: {LIMIT:g} times)")
    table.add_column("call")
    for heading in ("median", "p95", "median, long", "p95, long", "ratio of medians"):
        table.add_column(heading, justify="right")
    ratios = []
    for call, (empty, long) in figures.items():
        ratios.append(statistics.median(long) / statistics.median(empty))
        cells = [
            value
            for column in (empty, long)
            for value in (statistics.median(column), statistics.quantiles(column, n=20)[18])
        ]
        table.add_row(call, *(f"{value:.2f}" for value in cells), f"{ratios[-1]:.2f}")
    Console().print(table)
    return max(ratios)


if __name__ == "__main__":
    typer.run(main)
