"""The product's processes during a fault run: started, signalled, started again, and looked for at the end."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cryptography.fernet import Fernet

from qwenq import valkey
from qwenq.processes import tied
from storage import keys, webhook_secret
from storage.database import Database
from tests.faults import clocks, deaths

ROOT = Path(__file__).parents[2]
MARK = "QWENQ_FAULTS_RUN"  # in the environment of every process of a run, so that none can hide
LEASE_SECONDS = 2.0
CHECKPOINT_SECONDS = 0.3
CONCURRENCY = 4
# So many that no job runs out of them: a job that fails is a breach.
MAX_ATTEMPTS = 20


@dataclass
class Program:
    """One process of the product by its name, life after life."""

    name: str
    role: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    told: int = 0  # how often its log had said "engine ready" before this life
    stopped: bool = False
    wanted: bool = True
    pids: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def count_ready(self) -> int:
        return self.log.read_text(errors="replace").count("engine ready") if self.log.exists() else 0

    @property
    def ready(self) -> bool:
        """Whether it is at work: alive, not stopped, its engine loaded."""
        return self.alive and not self.stopped and self.count_ready() > self.told


class Stack:
    """API, generate workers, webhook worker and beat. Start processes on the main thread only: they end with it."""

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str,
        redis_url: str,
        model: Path,
        workers: int,
        without: str,
        pace: float,
    ) -> None:
        self.without = without
        self.run_id = secrets.token_hex(8)
        self.deaths = directory / "deaths"
        self.deaths.mkdir()
        self.port = valkey.free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.webhook_secret = webhook_secret.new_secret()
        self.secret_key = Fernet.generate_key().decode()
        database = Database(database_url)
        with database.begin() as session:
            self.api_key = keys.create(session, "faults", "load").secret
        database.close()
        self.environment = {
            **os.environ,
            MARK: self.run_id,
            deaths.VARIABLE: str(self.deaths),
            "QWENQ_FAULTS_PACE": str(pace),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "QWENQ_DATABASE_URL": database_url,
            "QWENQ_REDIS_URL": redis_url,
            "QWENQ_SECRET_KEY": self.secret_key,
            "QWENQ_WEBHOOK_SECRET": self.webhook_secret,
            "QWENQ_WEBHOOK_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "QWENQ_WEBHOOK_RETRY_DELAYS": str([0.5, 0.5, 1, 1, 2, 2, *[3] * 40]),
            "QWENQ_WEBHOOK_TIMEOUT": "2",
            "QWENQ_MODEL": str(model),
            "QWENQ_LEASE_SECONDS": str(LEASE_SECONDS),
            "QWENQ_CHECKPOINT_SECONDS": str(CHECKPOINT_SECONDS),
            "QWENQ_DRAIN_SECONDS": "1",
            "QWENQ_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "QWENQ_CONCURRENCY": str(CONCURRENCY),
            "QWENQ_THREADS": "1",
            "QWENQ_HOST": "127.0.0.1",
            "QWENQ_PORT": str(self.port),
            "QWENQ_LOG_FORMAT": "json",
        }
        # What a role has of its own: the webhook worker is not limited by an engine.
        self.own = {"webhooks": {"QWENQ_CONCURRENCY": "16"}}
        roles = {"api": "api", **{f"worker-{n}": "generate" for n in range(1, workers + 1)}}
        roles |= {"webhooks": "webhooks", "beat": "beat"}
        self.programs = {name: Program(name, role, directory / f"{name}.log") for name, role in roles.items()}

    @property
    def workers(self) -> list[Program]:
        return [program for program in self.programs.values() if program.role == "generate"]

    @property
    def secrets(self) -> dict[str, str]:
        """What must stand in no log."""
        return {
            "the API key": self.api_key,
            "the webhooks' secret": self.webhook_secret,
            "the secret key": self.secret_key,
        }

    def start(self, name: str) -> None:
        """Start a program; it is not ready yet."""
        program = self.programs[name]
        program.told, program.stopped, program.wanted = program.count_ready(), False, True
        with program.log.open("ab") as log:
            program.process = subprocess.Popen(
                tied((sys.executable, "-m", "tests.faults.program", program.role, self.without)),
                env={**self.environment, **self.own.get(program.role, {}), clocks.NAME: name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.log.parent,
                start_new_session=True,
            )
        program.pids.append(program.process.pid)

    def start_what_died(self) -> list[str]:
        """Start what is not running and should be: what an init system does. Return the names."""
        dead = [p.name for p in self.programs.values() if p.wanted and not p.alive]
        for name in dead:
            self.start(name)
        return dead

    def signal(self, name: str, number: signal.Signals, *, group: bool = False) -> None:
        """Signal a program, or all of its process group (its engine too)."""
        program = self.programs[name]
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(program.pid, number)
        program.stopped = number == signal.SIGSTOP

    def wait(self, name: str, seconds: float) -> int:
        """Wait for a program's end and return its status."""
        process = self.programs[name].process
        assert process is not None
        return process.wait(seconds)

    def engine_of(self, name: str) -> psutil.Process | None:
        """The engine of a worker: its only child."""
        try:
            children = psutil.Process(self.programs[name].pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None

    def close(self, grace: float = 30.0) -> list[str]:
        """SIGTERM to all; return the words on those that did not obey in time."""
        faults = []
        running = [program for program in self.programs.values() if program.alive]
        for program in running:
            program.wanted = False
            self.signal(program.name, signal.SIGCONT, group=True)
            self.signal(program.name, signal.SIGTERM)
        for program in running:
            try:
                self.wait(program.name, grace)
            except subprocess.TimeoutExpired:
                faults.append(f"{program.name} did not end within {grace:g} s of SIGTERM")
                self.signal(program.name, signal.SIGKILL, group=True)
                self.wait(program.name, 10)
        return faults

    def left_over(self) -> list[psutil.Process]:
        """Processes of this run that still live."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.run_id and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found
