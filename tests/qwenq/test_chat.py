"""Where a chat goes and with which key, and what it lets through to the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenq.chat import address, printable
from qwenq.home import Home
from qwenq.problems import Problem

LOCAL = ("http://127.0.0.1:8000/v1", "sk-local")


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of a local stack, and an environment that names no other."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    home = Home(tmp_path)
    home.write_env({"OPENAI_BASE_URL": LOCAL[0], "OPENAI_API_KEY": LOCAL[1]})
    return home


def test_without_anything_the_local_stack_is_taken(local: Home) -> None:
    assert address(None, None, local) == LOCAL


def test_a_key_alone_in_the_environment_is_not_for_us(local: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    assert address(None, None, local) == LOCAL


def test_the_environment_wins_over_the_local_stack(local: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert address(None, None, local) == ("http://other/v1", "sk-other")


def test_options_win_over_everything(local: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert address("http://third/v1", "sk-third", local) == ("http://third/v1", "sk-third")
    assert address("http://third/v1", None, local) == ("http://third/v1", "sk-other")
    assert address(None, "sk-third", local) == ("http://other/v1", "sk-third")


def test_a_local_key_goes_to_the_local_stack_only(local: Home) -> None:
    with pytest.raises(Problem, match="no API key for http://elsewhere/v1"):
        address("http://elsewhere/v1", None, local)


def test_without_a_stack_it_says_what_to_do(
    local: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Problem, match="no address: start a stack with `qwenq up`"):
        address(None, None, Home(tmp_path / "none"))


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\n\tç 你好 👋\x9b2J\u200d") == "a]0;titleb\n\tç 你好 👋2J\u200d"
