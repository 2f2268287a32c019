"""The data directory: private files, made once, one stack at a time."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from qwenq.home import Home, write_private
from qwenq.problems import Problem


@pytest.fixture
def home(tmp_path: Path) -> Home:
    directory = tmp_path / "data"
    directory.mkdir()
    return Home(directory)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "file", "one")
        write_private(tmp_path / "file", "two")
        with Home(tmp_path / "deep" / "data").locked():
            pass
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o600
    assert (tmp_path / "file").read_text() == "two"
    assert mode(tmp_path / "deep" / "data") == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file"]


def test_the_secret_key_is_made_once(home: Home) -> None:
    key = home.secret_key()
    Fernet(key)
    assert Home(home.directory).secret_key() == key
    assert mode(home.directory / "secret.key") == 0o600


def test_credentials_are_kept(home: Home) -> None:
    assert home.credentials() == {}
    home.keep_credentials({"api_key": "sk-1"})
    assert home.credentials() == {"api_key": "sk-1"}


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_damaged_credentials_are_named(home: Home, damage: str) -> None:
    (home.directory / "credentials.json").write_text(damage)
    with pytest.raises(Problem, match=r"credentials\.json is damaged: delete it"):
        home.credentials()


def test_a_shell_and_we_read_the_same_env(home: Home) -> None:
    variables = {
        "OPENAI_API_KEY": "sk-1",
        "QWENQ_WEBHOOK_SECRET": "whsec_a+b/c==",
        "ODD": 'it\'s $HOME # "x"',
    }
    home.write_env(variables)
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    shell = subprocess.run(
        ["bash", "-c", f'source "{home.env_file}" && exec "{sys.executable}" -c "$0"', show],
        env={},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert variables.items() <= json.loads(shell.stdout).items()
    assert home.env() == variables
    assert mode(home.env_file) == 0o600


def test_nothing_is_there_before_the_first_start(home: Home) -> None:
    assert home.env() == {}
    assert home.state() == {}
    home.forget_state()


def test_one_stack_at_a_time(home: Home) -> None:
    with home.locked():
        home.write_state({"pid": 4711})
        with (
            pytest.raises(Problem, match=r"another `qwenq up` \(process 4711\) already runs on .*data"),
            Home(home.directory).locked(),
        ):
            pass
    with Home(home.directory).locked():
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match=r"file/data cannot be used"), Home(tmp_path / "file" / "data").locked():
        pass
