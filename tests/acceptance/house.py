"""The service as real processes: API, workers and beat on a database and a Valkey of the test's choosing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.fernet import Fernet
from openai import OpenAI

from qwenq.valkey import free_port
from storage import keys, webhook_secret
from storage.database import Database

# Two workers, so that one can take over from the other; `worker-2` starts when a test asks for it. A name that is not
# here is another API process.
PROGRAMS = {
    "api": ("api",),
    "worker": ("worker", "generate"),
    "worker-2": ("worker", "generate"),
    "webhooks": ("worker", "webhooks"),
    "beat": ("worker", "beat"),
}
LEASE_SECONDS = 2.0
# A worker that is told to go gives its answers back at once: with a second left, a fast one would end them.
OWN = {"worker": {"QWENQ_DRAIN_SECONDS": "0"}, "worker-2": {"QWENQ_DRAIN_SECONDS": "0"}}

T = TypeVar("T")


def until(what: str, probe: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Return the first truthy answer of `probe`, asked again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.05)  # between two looks; the condition is `probe`
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


class House:
    """Programs by name, each with a log file; `close` ends them all and says what was left."""

    def __init__(self, directory: Path, *, database_url: str, redis_url: str, model: Path) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.database = Database(database_url)
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.webhook_secret = webhook_secret.new_secret()
        self.environment = {
            **os.environ,
            "QWENQ_DATABASE_URL": database_url,
            "QWENQ_REDIS_URL": redis_url,
            "QWENQ_SECRET_KEY": Fernet.generate_key().decode(),
            "QWENQ_WEBHOOK_SECRET": self.webhook_secret,
            "QWENQ_WEBHOOK_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "QWENQ_WEBHOOK_RETRY_DELAYS": "[0.2, 0.2]",
            "QWENQ_MODEL": str(model),
            "QWENQ_LEASE_SECONDS": str(LEASE_SECONDS),
            "QWENQ_CHECKPOINT_SECONDS": "0.5",
            "QWENQ_DRAIN_SECONDS": "1",
            "QWENQ_CONCURRENCY": "4",
            "QWENQ_THREADS": "1",
            "QWENQ_HOST": "127.0.0.1",
            "QWENQ_PORT": str(self.port),
        }
        with self.database.begin() as session:
            self.api_key = keys.create(session, f"house-{self.port}", "acceptance").secret
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, **environment: str) -> None:
        """Start a program, with more settings than the house has; it is not necessarily ready."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "qwenq", *PROGRAMS.get(name, ("api",))],
                env={**self.environment, **OWN.get(name, {}), **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )

    def open(self) -> None:
        """Start everything but the second worker and wait until the API and the engine are there."""
        for name in ("api", "webhooks", "beat"):
            self.start(name)
        self.start_again("worker")
        self.wait_for_api()

    def start_again(self, name: str) -> None:
        """Start a worker that was ended and wait until its engine is ready."""
        known = self.log(name).count("engine ready")
        self.start(name)
        self.wait_for_engine(name, known + 1)

    def back_to_one_worker(self) -> None:
        """Leave the first worker alone, whatever a test has ended and started."""
        if "worker-2" in self.running:
            self.stop("worker-2")
        if "worker" not in self.running:
            self.start_again("worker")

    def wait_for_api(self) -> None:
        until("the API", self._api_is_ready)

    def wait_for_engine(self, name: str, count: int = 1) -> None:
        """Wait until the log of a worker has told `count` times that its engine is ready."""
        until(f"the engine of {name}", lambda: self.log(name).count("engine ready") >= count, 120)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(30)

    def stop(self, name: str, seconds: float = 30.0) -> int:
        """SIGTERM; return the exit status."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(seconds)

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self) -> OpenAI:
        """The official client, without retries: a test wants to see the first answer."""
        return OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key=self.api_key,
            webhook_secret=self.webhook_secret,
            max_retries=0,
            timeout=120,
        )

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for name, process in self.running.items():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
                raise AssertionError(f"{name} did not end after SIGTERM:\n{self.log(name)[-2000:]}") from None
        self.database.close()

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            assert self.running["api"].poll() is None, self.log("api")[-3000:]
            return False
