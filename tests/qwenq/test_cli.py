"""Every command as a user types it: its help is quick, and what is wrong is said by name."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import inspect

from storage import keys
from storage.database import Database
from tests.qwenq.running import running

COMMANDS = [
    [],
    ["up"],
    ["api"],
    ["worker"],
    ["migrate"],
    ["secret-key"],
    ["chat"],
    ["model"],
    ["model", "demo"],
    ["model", "pull"],
    ["model", "verify"],
    ["keys"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "revoke"],
]


def qwenq(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("QWENQ_", "OPENAI_"))
    }
    return subprocess.run(
        [sys.executable, "-m", "qwenq", *map(str, arguments)],
        env={**inherited, "COLUMNS": "200", **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_quick_and_names_the_command(command: list[str]) -> None:
    started = time.monotonic()
    shown = qwenq(*command, "--help")
    assert time.monotonic() - started < 2
    assert shown.returncode == 0
    assert f"qwenq {' '.join(command)}".rstrip() + " [OPTIONS]" in shown.stdout


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, qwenq.cli; print(*{'torch', 'sqlalchemy', 'celery', 'openai', 'uvicorn'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


def test_secret_key_is_one() -> None:
    made = qwenq("secret-key")
    Fernet(made.stdout.strip())


def test_migrate_makes_the_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    assert qwenq("migrate", QWENQ_DATABASE_URL=url).returncode == 0
    database = Database(url)
    assert "responses" in inspect(database.engine).get_table_names()
    database.close()


def test_a_key_is_made_listed_and_revoked(database: Database, database_url: str) -> None:
    limits = ("--requests-per-minute", "30", "--tokens-per-minute", "0")
    made = qwenq(
        "keys",
        "create",
        "--project",
        "shop",
        "--name",
        "[back] end",
        *limits,
        QWENQ_DATABASE_URL=database_url,
    )
    key_id, secret = re.findall(r"^(?:id|secret) +(\S+)$", made.stdout, re.MULTILINE)
    with database.read() as session:
        assert keys.project_of(session, secret)

    listed = qwenq("keys", "list", QWENQ_DATABASE_URL=database_url).stdout
    row = rf"^{key_id}  shop     \[back\] end  \.\.\.{secret[-4:]}  30       none     20\d\d-"
    assert re.search(row, listed, re.MULTILINE)
    assert secret not in listed

    assert qwenq("keys", "revoke", key_id, QWENQ_DATABASE_URL=database_url).returncode == 0
    with database.read() as session:
        assert keys.project_of(session, secret) is None
    again = qwenq("keys", "revoke", key_id, QWENQ_DATABASE_URL=database_url)
    assert again.returncode == 1
    assert again.stderr.startswith(f"qwenq: no key in use has the id '{key_id}'")


def test_keys_without_tables_say_what_to_do(tmp_path: Path) -> None:
    refused = qwenq("keys", "list", QWENQ_DATABASE_URL=f"sqlite:///{tmp_path / 'empty.db'}")
    assert refused.returncode == 1
    assert "has `qwenq migrate` run?" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        (["migrate"], "QWENQ_DATABASE_URL", "mysql://nowhere"),
        (["keys", "list"], "QWENQ_DATABASE_URL", "no url"),
        (["worker", "webhooks"], "QWENQ_CONCURRENCY", "many"),
        (["worker", "beat"], "QWENQ_SECRET_KEY", "short"),
        (["worker"], "QWENQ_MODEL", "/no/such/folder"),
        (["api"], "QWENQ_LEASE_SECONDS", "0"),
        (["api"], "QWENQ_SECRET_KEY", None),
    ],
)
def test_a_wrong_setting_is_refused_by_name(command: list[str], variable: str, value: str | None) -> None:
    env = {"QWENQ_SECRET_KEY": Fernet.generate_key().decode(), "QWENQ_MODEL": "/", variable: value}
    refused = qwenq(*command, **{name: text for name, text in env.items() if text is not None})
    assert refused.returncode == 1
    assert f"{variable} is" in refused.stderr
    assert "It may be: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path) -> None:
    # `python -m` looks here first.
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(name='uvicorn')")
    refused = qwenq("api", cwd=tmp_path)
    assert refused.returncode == 1
    assert "pip install 'qwenq[api]'" in refused.stderr


def test_verify_names_what_is_missing(tmp_path: Path) -> None:
    refused = qwenq("model", "verify", tmp_path)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert str(tmp_path) in refused.stderr


def test_a_celery_process_takes_the_place_of_the_command(broker_url: str, tmp_path: Path) -> None:
    env = {
        "QWENQ_SECRET_KEY": Fernet.generate_key().decode(),
        "QWENQ_REDIS_URL": broker_url,
        "QWENQ_DATABASE_URL": f"sqlite:///{tmp_path / 'qwenq.db'}",
        "QWENQ_LOG_LEVEL": "INFO",
    }
    with running(
        [sys.executable, "-P", "-m", "qwenq", "worker", "webhooks"], env=env, cwd=tmp_path
    ) as worker:
        worker.wait_for(r"webhooks@\S+ ready")
        command = Path(f"/proc/{worker.process.pid}/cmdline").read_text().split("\0")
        assert "celery" in command
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0, "\n".join(worker.lines)
