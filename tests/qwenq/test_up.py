"""What `qwenq up` refuses before it starts anything, and what it makes once. The running stack: tests/acceptance."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from qwenq import model_choice, up
from qwenq.home import Home
from qwenq.problems import Problem
from storage import keys
from storage.database import Database
from storage.webhook_secret import check_secret
from tests.qwenq.running import running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy that `up` may change, without settings of whoever runs the tests."""
    copy = {name: value for name, value in os.environ.items() if not name.startswith(("QWENQ_", "XDG_"))}
    monkeypatch.setattr(os, "environ", copy)
    return copy


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint to whoever does not load it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "data")
    home.directory.mkdir()
    return home


def prepare(home: Home, model: Path) -> dict[str, str]:
    return up.prepare(home, port=8000, model=model, redis_url="redis://127.0.0.1:6379/0")


def project_of(home: Home, secret: str) -> str | None:
    database = Database(f"sqlite:///{home.database}")
    with database.read() as session:
        project = keys.project_of(session, secret)
    database.close()
    return project


def test_secrets_are_made_once_and_work(home: Home, model: Path, environment: dict[str, str]) -> None:
    first = prepare(home, model)
    check_secret(first["QWENQ_WEBHOOK_SECRET"])
    assert (
        first["OPENAI_WEBHOOK_SECRET"] == first["QWENQ_WEBHOOK_SECRET"] == environment["QWENQ_WEBHOOK_SECRET"]
    )
    assert project_of(home, first["OPENAI_API_KEY"])
    secret_key = environment["QWENQ_SECRET_KEY"]
    assert prepare(home, model) == first
    assert environment["QWENQ_SECRET_KEY"] == secret_key


def test_a_new_database_gets_a_new_key(home: Home, model: Path) -> None:
    first = prepare(home, model)
    for path in home.directory.glob("qwenq.db*"):
        path.unlink()
    second = prepare(home, model)
    assert second["OPENAI_API_KEY"] != first["OPENAI_API_KEY"]
    assert project_of(home, second["OPENAI_API_KEY"])
    assert second["QWENQ_WEBHOOK_SECRET"] == first["QWENQ_WEBHOOK_SECRET"]


def test_the_stack_is_on_loopback_and_may_call_back_there(
    home: Home, model: Path, environment: dict[str, str]
) -> None:
    environment["QWENQ_HOST"] = "0.0.0.0"
    prepare(home, model)
    assert environment["QWENQ_HOST"] == "127.0.0.1"
    assert environment["QWENQ_FILES_DIR"] == str(home.directory / "files")
    assert environment["QWENQ_WEBHOOK_ALLOWED_NETWORKS"] == '["127.0.0.0/8", "::1/128"]'


def test_a_wrong_setting_starts_nothing(home: Home, model: Path, environment: dict[str, str]) -> None:
    environment["QWENQ_LEASE_SECONDS"] = "soon"
    with pytest.raises(Problem, match="QWENQ_LEASE_SECONDS is wrong"):
        prepare(home, model)
    assert not home.database.exists()


def test_a_used_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Problem, match=rf"port {port} on 127\.0\.0\.1 cannot be used .*--port N"):
            up.free_or_refused(port)
    assert up.free_or_refused(port) == port
    assert up.free_or_refused(0) > 0


def test_a_second_stack_on_a_directory_is_refused(home: Home) -> None:
    command = [sys.executable, "-m", "qwenq", "up", "--data-dir", home.directory, "--port", "0"]
    with home.locked(), running(command) as second:
        assert second.end() == 1
        second.wait_for("another `qwenq up` already runs on")


@pytest.mark.parametrize("source", ["--model", "QWENQ_MODEL"])
def test_a_folder_without_a_checkpoint_is_refused(
    tmp_path: Path, environment: dict[str, str], source: str
) -> None:
    if source == "QWENQ_MODEL":
        environment["QWENQ_MODEL"] = str(tmp_path)
    with pytest.raises(Problem, match=rf"^{source} is {tmp_path}, which holds no config\.json"):
        model_choice.chosen(tmp_path if source == "--model" else None)


def test_the_option_wins_over_the_variable(model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    environment["QWENQ_MODEL"] = str(tmp_path)
    assert model_choice.chosen(model) == model
    environment["QWENQ_MODEL"] = str(model)
    assert model_choice.chosen(None) == model


def test_a_demo_model_that_is_there_is_taken(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    folder = model_choice.demo_folder()
    assert folder.is_relative_to(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert model_choice.chosen(None) == folder
