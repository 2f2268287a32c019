"""One of our services as a process: command, environment and health check of docker-compose.yml, without Docker.

What only Docker could bring is replaced: the host names `postgres` and `valkey` by the test's own servers, the volume
of checkpoints by a folder, and ports by free ones (containers may share a number, processes may not).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from qwenq.valkey import free_port
from storage import webhook_secret
from tests.compose import stack

PATIENCE = 50  # seconds for one process on a busy machine; the file's own `start_period` is longer
PASSWORD = "p4ssw0rd"
PORTS = ("QWENQ_PORT", "QWENQ_HEALTH_PORT")


@dataclass(frozen=True)
class Host:
    """Where the services find what they share."""

    database: str
    broker: str
    checkpoint: Path

    @contextmanager
    def start(self, name: str, directory: Path) -> Iterator[Started]:
        """Run a service for the time of the block; nothing of it is left afterwards."""
        service = self.service(name)
        environment = self._here(service["environment"])
        output = directory / f"{name}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "qwenq", *service["command"]],
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Started(process, environment, output, service)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def service(self, name: str) -> dict[str, Any]:
        """What the file says of a service, with secrets of the right form."""
        secrets = {
            "POSTGRES_PASSWORD": PASSWORD,
            "QWENQ_SECRET_KEY": Fernet.generate_key().decode(),
            "QWENQ_WEBHOOK_SECRET": webhook_secret.new_secret(),
        }
        found: dict[str, Any] = stack.load(secrets)["services"][name]
        return found

    def _here(self, environment: dict[str, str]) -> dict[str, str]:
        replaced = {
            f"postgresql://qwenq:{PASSWORD}@postgres:5432/qwenq": self.database,
            "redis://valkey:6379/0": self.broker,
            "/models/Qwen-1_8B-Chat-Int4": str(self.checkpoint),
        }
        here = {key: replaced.get(value, value) for key, value in environment.items()}
        ports = {key: str(free_port()) for key in PORTS if key in environment}
        return {**here, **ports, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Started:
    """A service's process."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path
    service: dict[str, Any]

    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the service's own health check once."""
        kind, python, *arguments = self.service["healthcheck"]["test"]
        assert (kind, python) == ("CMD", "python")
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            cwd=stack.DOCKERFILE.parent,  # the images have the script in their working directory
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Try until the condition holds; fail when the process ends first."""

        def tried() -> bool:
            assert self.process.poll() is None, self.output()
            return condition()

        tries = Retrying(
            retry=retry_if_result(lambda held: not held),
            stop=stop_after_delay(PATIENCE),
            wait=wait_fixed(0.1),
        )
        try:
            tries(tried)
        except RetryError:
            pytest.fail(f"not after {PATIENCE} s:\n{self.output()}")

    def end(self) -> int:
        """Wait until it ends by itself; the exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there after {PATIENCE} s:\n{self.output()}")

    def stop(self) -> int:
        """Send SIGTERM, as `docker compose stop` does; the exit status, which must come within the grace period."""
        grace = stack.seconds(self.service.get("stop_grace_period", "10s"))
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(grace)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there {grace} s after SIGTERM:\n{self.output()}")
