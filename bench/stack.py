"""The whole service as processes of a measurement's own: Valkey, SQLite or PostgreSQL, API, workers, beat."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, Self

import httpx
from cryptography.fernet import Fernet
from redis import Redis
from redis.exceptions import RedisError

from migrations.run import upgrade
from qwenq import valkey
from qwenq.processes import tied
from storage import keys
from storage.database import Database

DatabaseKind = Literal["sqlite", "postgresql"]
ROLES = {
    "api": ("api",),
    "worker": ("worker", "generate"),
    "webhooks": ("worker", "webhooks"),
    "beat": ("worker", "beat"),
}


class Stack:
    """Processes by name. As a context manager it ends them and deletes what they wrote."""

    def __init__(self, database: DatabaseKind, settings: dict[str, str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="qwenq-bench-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._postgres = None
        url = f"sqlite:///{self.directory / 'qwenq.db'}"
        if database == "postgresql":
            from tests.faults.servers import Postgres

            self._postgres = Postgres(self.directory / "postgres")
            url = self._postgres.url
        upgrade(url)
        self.database = Database(url)
        broker = valkey.prepare(self.directory / "valkey")
        self.port, self.worker_port = valkey.free_port(), valkey.free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "QWENQ_DATABASE_URL": url,
            "QWENQ_REDIS_URL": broker.url,
            "QWENQ_SECRET_KEY": Fernet.generate_key().decode(),
            "QWENQ_PORT": str(self.port),
            "QWENQ_FILES_DIR": str(self.directory / "files"),
            "QWENQ_HEALTH_HOST": "127.0.0.1",
            "QWENQ_LOG_LEVEL": "WARNING",
            "PYTHONSAFEPATH": "1",
            **settings,
        }
        self._run("valkey", broker.program.command)
        self.redis = Redis.from_url(broker.url)
        self.wait_until("valkey", self._broker_answers, 30)

    def start(self, *names: str) -> None:
        """Start these and wait until the API and the worker, if they are among them, are ready."""
        for name in names:
            health = {"QWENQ_HEALTH_PORT": str(self.worker_port if name == "worker" else 0)}
            self._run(name, (sys.executable, "-P", "-m", "qwenq", *ROLES[name]), health)
        if "api" in names:
            self.wait_until("api", lambda: self._answers(f"{self.base_url}/readyz"), 60)
        if "worker" in names:
            self.wait_until(
                "worker", lambda: self._answers(f"http://127.0.0.1:{self.worker_port}/livez"), 600
            )

    def key(self, project: str) -> dict[str, str]:
        """A new key of this project, as a header."""
        with self.database.begin() as session:
            return {"authorization": f"Bearer {keys.create(session, project, 'bench').secret}"}

    def megabytes(self, name: str) -> float:
        """Resident memory of a process; `engine` is the worker's child."""
        pid = self._processes["worker" if name == "engine" else name].pid
        if name == "engine":
            # Of whichever of the worker's threads has started it.
            tasks = Path(f"/proc/{pid}/task").iterdir()
            pid = next(int(child) for task in tasks for child in (task / "children").read_text().split())
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def wait_until(self, name: str, ready: object, seconds: float) -> None:
        """Wait for a process. RuntimeError with the end of its log when it ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                log = (self.directory / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} is not ready:\n{log[-2000:]}")
            time.sleep(0.02)

    def close(self) -> None:
        for name in reversed(self._processes):  # Valkey last
            process = self._processes[name]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.redis.close()
        self.database.close()
        if self._postgres is not None:
            self._postgres.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, name: str, command: tuple[str, ...], more: dict[str, str] | None = None) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                tied(command), env=self.environment | (more or {}), stdout=log, stderr=log, cwd=self.directory
            )

    def _broker_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    @staticmethod
    def _answers(url: str) -> bool:
        try:
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
