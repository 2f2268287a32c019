"""The embedded broker: a real server with our configuration."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import redis

from qwenq import valkey
from qwenq.problems import Problem
from qwenq.processes import Child


def serve(server: valkey.Valkey, check: Callable[[], None]) -> list[str]:
    """Run `server`, call `check` once it answers, end it in good order; return what it printed."""
    lines: list[str] = []

    async def run() -> None:
        child = Child(server.program, lines.append, lambda: None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child.run)
            await valkey.wait_until_it_answers(server.url)
            await anyio.to_thread.run_sync(check)
            child.terminate()

    anyio.run(run)
    return lines


def test_it_keeps_what_it_was_given(tmp_path: Path) -> None:
    directory = tmp_path / 'odd "name" \\ here'
    first = valkey.prepare(directory)

    def write() -> None:
        with redis.Redis.from_url(first.url) as client:
            settings = client.config_get("*")
            client.set("kept", "yes")
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["bind"] == "127.0.0.1"

    serve(first, write)
    second = valkey.prepare(directory)
    assert second.url != first.url

    def read() -> None:
        with redis.Redis.from_url(second.url) as client:
            assert client.get("kept") == b"yes"

    serve(second, read)


def test_it_asks_for_its_password(tmp_path: Path) -> None:
    server = valkey.prepare(tmp_path / "valkey")
    assert stat.S_IMODE((tmp_path / "valkey" / "valkey.conf").stat().st_mode) == 0o600

    def intrude() -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH")

    serve(server, intrude)


def test_a_server_that_never_answers_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "ANSWER_SECONDS", 0.3)
    url = f"redis://127.0.0.1:{valkey.free_port()}/0"
    with pytest.raises(Problem, match=r"valkey has not answered for 0\.3 s"):
        anyio.run(valkey.wait_until_it_answers, url)
