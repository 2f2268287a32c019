"""The real stack with the real demo model: ready, chatted with, wounded, and gone without a trace."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from qwenq.chat import printable
from qwenq.home import Home
from tests.qwenq.running import PATIENCE, Running, have_ended, running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("up") / "data")


@pytest.fixture(scope="module")
def stack(home: Home, demo_model: Path) -> Iterator[Running]:
    """`qwenq up`, ready; in a folder that holds packages of our names, as the folder of any other project may."""
    elsewhere = home.directory.parent
    for name in ("api", "worker", "storage", "qwenq"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "__init__.py").write_text("raise ImportError('this is not ours')")
    command = ["-P", "-m", "qwenq", "up", "--data-dir", home.directory, "--port", "0", "--model", demo_model]
    with running([sys.executable, *command], cwd=elsewhere, env={"QWENQ_THREADS": "2"}) as stack:
        stack.wait_for("qwenq is ready at")
        yield stack


@contextmanager
def chatting(home: Home, *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "qwenq", "chat", "--data-dir", home.directory, *options],
        env={name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def chat(home: Home, text: str, *options: str) -> str:
    with chatting(home, *options) as process:
        told, _ = process.communicate(text, timeout=PATIENCE)
    assert process.returncode == 0
    return told


def client_of(home: Home) -> OpenAI:
    env = home.env()
    return OpenAI(base_url=env["OPENAI_BASE_URL"], api_key=env["OPENAI_API_KEY"])


def model_of(home: Home) -> str:
    with client_of(home) as client:
        return next(iter(client.models.list())).id


def pid_of(home: Home, name: str) -> int:
    return int(home.state()["children"][name]["pid"])


def test_a_chat_goes_on_where_another_left(stack: Running, home: Home) -> None:
    first = chat(home, "/system Answer in one short sentence.\nHello!\n/nonsense\n/quit\nnot sent\n")
    conversation = re.findall(r"conv_\w+", first)[0]
    second = chat(home, "How are you?\n", "--conversation", conversation)
    with client_of(home) as client:
        items = client.conversations.items.list(conversation, order="asc").data
    turns = [(item.role, item.content[0].text) for item in items]
    assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0][1] == "Hello!"
    assert turns[2][1] == "How are you?"
    # The terminal's width folds lines, nothing else is changed.
    assert (
        printable(turns[1][1]).split()
        == first.partition(f"{model_of(home)}> ")[2].partition("you>")[0].split()
    )
    assert (
        printable(turns[3][1]).split()
        == second.partition(f"{model_of(home)}> ")[2].partition("you>")[0].split()
    )


def test_ctrl_c_cancels_the_answer_and_not_the_chat(stack: Running, home: Home) -> None:
    seen = len(stack.lines)
    with chatting(home) as process:
        assert process.stdin is not None
        process.stdin.write("Write a very long story about the sea. Tell every detail.\n")
        process.stdin.flush()
        # It asks for the answer, so it is waiting for it.
        stack.wait_for(r"^api +\| .*method=GET .*path=/v1/responses/resp_", after=seen)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate("Hello!\n", timeout=PATIENCE)
    assert process.returncode == 0
    _, _, rest = told.partition("\ncancelled\n")
    assert rest.startswith("you> ")
    assert f"{model_of(home)}> " in rest


def test_what_it_wrote_is_private_and_true(stack: Running, home: Home) -> None:
    everything = [path for path in home.directory.rglob("*") if path.is_file()]
    assert {"env", "qwenq.db", "secret.key", "up.json", "valkey.conf"} <= {path.name for path in everything}
    assert not [path for path in everything if stat.S_IMODE(path.stat().st_mode) & 0o077]
    env, state = home.env(), home.state()
    assert {"OPENAI_API_KEY", "QWENQ_WEBHOOK_SECRET", "OPENAI_WEBHOOK_SECRET"} <= env.keys()
    assert state["ready"]
    assert state["pid"] == stack.process.pid
    assert env["OPENAI_BASE_URL"] == state["base_url"] == f"http://127.0.0.1:{state['ports']['api']}/v1"


def test_nothing_listens_beyond_loopback(stack: Running, home: Home) -> None:
    listening = [
        connection.laddr
        for process in psutil.Process(stack.process.pid).children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == set(home.state()["ports"].values())


def test_a_killed_api_comes_back_on_its_port(stack: Running, home: Home) -> None:
    seen, pid = len(stack.lines), pid_of(home, "api")
    os.kill(pid, signal.SIGKILL)
    stack.wait_for(r"^up +\| api was ended by SIGKILL; starting it again", after=seen)
    stack.wait_for(r"^api +\| .*Uvicorn running on", after=seen)
    assert pid_of(home, "api") != pid
    assert model_of(home)


def test_sigkill_leaves_nothing(stack: Running, home: Home) -> None:
    descendants = [process.pid for process in psutil.Process(stack.process.pid).children(recursive=True)]
    assert len(descendants) >= 6  # the engine is a child of the worker
    stack.signal(signal.SIGKILL)
    assert have_ended(*descendants)
    with home.locked():  # the next stack may have the directory
        pass
