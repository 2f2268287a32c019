"""The API as a process: what importing it costs, how it starts, how it ends."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from storage import keys
from storage.database import Database
from tests.api.fake_worker import until

IMPORT = """
import sys
import api.app
heavy = {"torch", "tiktoken", "transformers", "worker", "openai"} & sys.modules.keys()
print(len(sys.modules), sorted(heavy))
"""
# There were 1,288 in November 2026, which take half a second to two and a half, as the machine is.
MOST_MODULES = 1_500


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("QWENQ_")}
    return clean | {f"QWENQ_{name.upper()}": value for name, value in variables.items()}


def test_importing_needs_no_settings_no_torch_and_few_modules() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment(), capture_output=True, text=True, check=True
    )
    modules, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(modules) < MOST_MODULES


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "QWENQ_SECRET_KEY is not set"),
        ({"secret_key": "short"}, "QWENQ_SECRET_KEY is wrong"),
        ({"webhook_secret": "hunter2"}, "QWENQ_WEBHOOK_SECRET is wrong"),
        ({"port": "99999"}, "QWENQ_PORT is wrong"),
        ({"max_body_bytes": "1"}, "QWENQ_MAX_BODY_BYTES is wrong"),
    ],
)
def test_wrong_settings_end_the_start_with_their_name(variables: dict[str, str], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "api.app:app", "--port", "0"],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert named in done.stderr
    assert "hunter2" not in done.stderr


def test_sigterm_ends_the_process_and_its_waiting_callers(
    database: Database, database_url: str, broker_url: str, secret_key: str
) -> None:
    with database.begin() as session:
        key = keys.create(session, "ours", "test").secret
    process = subprocess.Popen(
        [sys.executable, "-m", "qwenq", "api"],
        env=environment(
            database_url=database_url,
            redis_url=broker_url,
            secret_key=secret_key,
            port="0",
            drain_seconds="20",
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if "running on" in line:
                url = line.split("running on ")[1].split()[0]
                break
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as http:
            until(lambda: http.get("/readyz").status_code == 200)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(http.post, "/v1/responses", json={"input": "a"})

                def listed() -> object:
                    return http.get("/v1/responses").json()["data"]

                until(listed)
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert waiting.result().status_code == 503
                process.wait(20)
        assert time.monotonic() - started < 10
        assert process.returncode in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
