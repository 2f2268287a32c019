"""The subscription to ends, on a real Valkey that also falls silent."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from api.ends import Ends
from storage import stream
from tests.faults.servers import Broker


def test_a_server_that_falls_silent_is_noticed_and_one_that_has_nothing_to_say_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.ends.LISTEN_SECONDS", 0.2)
    server = Broker(tmp_path / "valkey", tmp_path / "valkey.log")
    server.start()

    async def run() -> None:
        ends, heard, listening = Ends(server.url), list[str](), asyncio.Event()
        task = asyncio.create_task(ends.listen(listening.set, heard.append))
        await asyncio.wait_for(listening.wait(), 10)
        with pytest.raises(TimeoutError):  # it is asked several times, and answers
            await asyncio.wait_for(asyncio.shield(task), 1.5)
        with server.client() as redis:
            stream.end(redis, "resp_a", 1)
            pid = redis.info("server")["process_id"]
        async with asyncio.timeout(10):
            while heard != ["resp_a"]:
                await asyncio.sleep(0.01)
        assert ends.lately("resp_a")
        assert not ends.lately("resp_b")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisError):
                await asyncio.wait_for(task, 10)
        finally:
            os.kill(pid, signal.SIGCONT)

    try:
        asyncio.run(run())
    finally:
        server.stop(signal.SIGTERM)
