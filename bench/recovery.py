"""How long a running answer stands still when its worker is lost: ``python -m bench.recovery``.

Two workers are up; one of them, in the middle of an answer, gets SIGKILL (or SIGTERM with no grace time, so that it
gives the answer back at once). Measured from the signal: until the next attempt is claimed, and until a reader of the
stream has its next token, all with a tiny model, so that nothing is measured but the queue. Real processes, PostgreSQL
and Valkey of the run's own.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
from redis import Redis
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import select

from migrations.run import upgrade
from storage import stream
from storage.database import Database
from storage.models import Response
from tests.faults.run import model
from tests.faults.servers import Broker, Postgres, until
from tests.faults.stack import LEASE_SECONDS, Stack

PACE = 0.005  # seconds a token
TOKENS_BEFORE = 30
BLOWS = {"SIGKILL": signal.SIGKILL, "drain": signal.SIGTERM}
# Seconds until the next token.
TARGETS = {"SIGKILL": LEASE_SECONDS + 5, "drain": 2.0}


@dataclass
class Figure:
    """Seconds from the blow on, one for each repeat."""

    claimed: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


class House:
    """The service with two workers, and one caller."""

    def __init__(self, directory: Path) -> None:
        self.postgres = Postgres(directory / "postgres")
        upgrade(self.postgres.url)
        self.database = Database(self.postgres.url)
        self.broker = Broker(directory / "valkey", directory / "valkey.log")
        self.broker.start()
        self.redis: Redis = self.broker.client()
        self.stack = Stack(
            directory,
            database_url=self.postgres.url,
            redis_url=self.broker.url,
            model=model(directory / "model"),
            workers=2,
            without="",
            pace=PACE,
        )
        self.stack.own["generate"] = {"QWENQ_DRAIN_SECONDS": "0"}
        self.client = httpx.Client(
            base_url=self.stack.base_url,
            headers={"authorization": f"Bearer {self.stack.api_key}"},
            trust_env=False,
            timeout=15,
        )

    def open(self) -> None:
        for name in self.stack.programs:
            self.stack.start(name)
        until("the workers", self.both_ready, 180)
        until("the API", self._api_answers, 60)

    def both_ready(self) -> bool:
        return all(worker.ready for worker in self.stack.workers)

    def _api_answers(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def blow(self, number: signal.Signals) -> tuple[float, float]:
        """Hit the worker of a running answer; return the seconds until the next claim and the next token."""
        until("both workers", self.both_ready, 120)
        body = {"input": "Tell me all.", "background": True, "max_output_tokens": 4000, "temperature": 0.9}
        response_id = str(self.client.post("/v1/responses", json=body).raise_for_status().json()["id"])
        until("tokens", lambda: self._tokens(response_id) >= TOKENS_BEFORE, 60)
        worker = str(self._row(response_id)[1]).rpartition(":")[2]
        program = next(program for program in self.stack.workers if str(program.pid) == worker)
        began = time.time()
        self.stack.signal(program.name, number)
        claimed = self._next(response_id, began)
        self.client.post(f"/v1/responses/{response_id}/cancel").raise_for_status()
        self.stack.wait(program.name, 30)
        self.stack.start(program.name)
        return claimed

    def _next(self, response_id: str, began: float) -> tuple[float, float]:
        claimed = 0.0
        while time.time() < began + 60:
            if not claimed and self._row(response_id)[0] > 1:
                claimed = time.time() - began
            if self._has_gone_on(response_id):
                now = time.time() - began
                return claimed or now, now
            time.sleep(0.005)  # how exact a figure is
        raise TimeoutError("nobody went on with the answer within a minute")

    def _row(self, response_id: str) -> tuple[int, str | None]:
        with self.database.read() as session:
            query = select(Response.attempt, Response.worker).where(Response.id == response_id)
            attempt, worker = session.execute(query).one()
        return attempt, worker

    def _tokens(self, response_id: str) -> int:
        return len(stream.tail(self.redis, response_id).chunk.token_ids)

    def _has_gone_on(self, response_id: str) -> bool:
        newest = self.redis.xrevrange(stream.key(response_id), count=1)
        return any(not entry_id.startswith("1-") and "first" in fields for entry_id, fields in newest)  # type: ignore[union-attr]

    def close(self) -> None:
        self.client.close()
        self.redis.close()
        self.stack.close()
        self.broker.stop(signal.SIGTERM)
        self.database.close()
        self.postgres.close()


def table(figures: dict[str, Figure]) -> Table:
    shown = Table(title=f"recovery of a running answer, lease {LEASE_SECONDS:g} s, seconds")
    shown.add_column("")
    for heading in ("times", "min", "median", "p95", "max", "at most"):
        shown.add_column(heading, justify="right")
    for blow, figure in figures.items():
        for what, seconds in (("next claim", figure.claimed), ("next token", figure.token)):
            p95 = statistics.quantiles(seconds, n=20, method="inclusive")[18]
            row = [min(seconds), statistics.median(seconds), p95, max(seconds)]
            target = f"{TARGETS[blow]:g}" if what == "next token" else ""
            shown.add_row(f"{blow}: {what}", str(len(seconds)), *(f"{value:.2f}" for value in row), target)
    return shown


def main(
    times: Annotated[int, typer.Option(min=2, help="How often each blow is dealt.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Measure how long a running answer stands still after SIGKILL of its worker and after a drain."""
    directory = Path(tempfile.mkdtemp(prefix="qwenq-recovery-"))
    house = House(directory)
    figures = {name: Figure() for name in BLOWS}
    try:
        house.open()
        for name, number in BLOWS.items():
            for _ in track(range(times), name):
                claimed, token = house.blow(number)
                figures[name].claimed.append(claimed)
                figures[name].token.append(token)
    finally:
        house.close()
        shutil.rmtree(directory, ignore_errors=True)
    Console().print(table(figures))
    if json_file is not None:
        rows = {name: {"claimed": f.claimed, "token": f.token} for name, f in figures.items()}
        json_file.write_text(json.dumps({"lease_seconds": LEASE_SECONDS, "seconds": rows}, indent=2) + "\n")
    late = [name for name, figure in figures.items() if max(figure.token) > TARGETS[name]]
    raise typer.Exit(1 if late else 0)


if __name__ == "__main__":
    typer.run(main)
