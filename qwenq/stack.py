"""The programs of a local stack from their start to their stop: Valkey first, last to go.

While they run, `up.json` in the data directory tells their pids and ports. It says `ready`, and `env` is written,
once the API accepts jobs and the worker has its model loaded.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.panel import Panel

from qwenq import valkey
from qwenq.home import Home
from qwenq.printer import Printer
from qwenq.problems import Problem
from qwenq.processes import Program
from qwenq.supervisor import Supervisor

HOST = "127.0.0.1"
OWN_NAME = "up"
READY_SECONDS = 600.0  # a cold disk has to deliver the model
# In the order of their start and of their stop: the API stops accepting before the workers finish their answers.
SERVICES = {
    "api": ("api",),
    "worker": ("worker", "generate"),
    "webhooks": ("worker", "webhooks"),
    "beat": ("worker", "beat"),
}


class Stack:
    """The programs, and what is printed and written about them. This process's environment is theirs.

    Args:
        home: the data directory, locked.
        port: of the API.
        broker: Valkey, prepared and not yet started.
        client: the variables that a client needs beside the address.
        grace: seconds that programs have to end by themselves.
    """

    def __init__(
        self, home: Home, port: int, broker: valkey.Valkey, client: Mapping[str, str], grace: float
    ) -> None:
        self._home = home
        self._port = port
        self._broker = broker
        self._worker_port = valkey.free_port()
        self._address = f"http://{HOST}:{port}"
        self._client = {"OPENAI_BASE_URL": f"{self._address}/v1", **client}
        self._ready = False
        self._printer = Printer(Console(), [OWN_NAME, broker.program.name, *SERVICES])
        self._grace = grace
        self._supervisor: Supervisor

    async def run(self) -> str | None:
        """Run until told to stop; return why the stack could not be brought up, or None."""
        self._supervisor = Supervisor(self._say, on_change=self._write_state, grace=self._grace)
        return await self._supervisor.run(self._start)

    async def _start(self) -> None:
        self._say(None, f"starting in {self._home.directory}, model {os.environ['QWENQ_MODEL']}")
        self._supervisor.launch(self._broker.program)
        await valkey.wait_until_it_answers(self._broker.url)
        for name, arguments in SERVICES.items():
            self._supervisor.launch(self._program(name, *arguments))
        # The worker answers /livez once its engine has loaded the model; the API does not know of workers.
        await wait_for(f"{self._address}/readyz")
        await wait_for(f"http://{HOST}:{self._worker_port}/livez")
        self._home.write_env(self._client)
        self._ready = True
        self._write_state()
        self._printer.block(self._announcement())

    def _program(self, name: str, *arguments: str) -> Program:
        health = {
            "QWENQ_HEALTH_HOST": HOST,
            "QWENQ_HEALTH_PORT": str(self._worker_port if name == "worker" else 0),
        }
        return Program(
            name=name,
            # -P, and a directory of ours to work in: a folder named `api` or `worker` where the user stands must
            # not be imported in place of our packages.
            command=(sys.executable, "-P", "-m", "qwenq", *arguments),
            environment={**os.environ, **health, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
            directory=self._home.directory,
        )

    def _announcement(self) -> Panel:
        directory = self._home.directory
        return Panel(
            f"qwenq is ready at {self._client['OPENAI_BASE_URL']}\n\n"
            f"for a client:  source {shlex.quote(str(self._home.env_file))}\n"
            f"to chat:       qwenq chat --data-dir {shlex.quote(str(directory))}\n"
            "to stop:       Ctrl-C",
            expand=False,
        )

    def _say(self, name: str | None, text: str) -> None:
        self._printer.line(name or OWN_NAME, text)

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "ready": self._ready,
            "base_url": self._client["OPENAI_BASE_URL"],
            "redis_url": self._broker.url,
            "database_url": self._client["QWENQ_DATABASE_URL"],
            "ports": {"api": self._port, "valkey": self._broker.port, "worker": self._worker_port},
            "children": {
                name: {"pid": child.pid, "starts": child.starts}
                for name, child in self._supervisor.children.items()
            },
        }
        try:
            self._home.write_state(state)
        except OSError as error:  # a full disk must not end what still runs
            self._say(None, f"cannot write {self._home.state_file}: {error.strerror}")


async def wait_for(url: str) -> None:
    """Return when a GET of `url` answers 200.

    Raises:
        Problem: it has not for a long time.
    """
    import httpx
    from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_fixed

    tries = AsyncRetrying(
        retry=retry_if_exception_type(httpx.HTTPError),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(READY_SECONDS),
    )
    # trust_env: a proxy in the environment is not for loopback.
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:

        async def ask() -> None:
            (await client.get(url)).raise_for_status()

        try:
            await tries(ask)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise Problem(f"{url} has not answered 200 for {READY_SECONDS:g} s: {last}") from None
