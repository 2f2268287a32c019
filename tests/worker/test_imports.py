"""What the Celery process may not import, and how its command lines look."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cryptography.fernet import Fernet

from worker import celery_command


def test_the_celery_process_has_no_torch() -> None:
    code = "import worker.celery, worker.tasks, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("role", celery_command.ROLES)
def test_command_lines(role: celery_command.Role, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENQ_SECRET_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("QWENQ_CONCURRENCY", "7")
    argv = celery_command.command(role)
    if role == "beat":
        assert "beat" in argv
        return
    assert "--concurrency=7" in argv
    assert ("--queues=generate" in argv) == (role == "generate")
