"""The Celery command line of each role, with the reason for every flag."""

from __future__ import annotations

import sys
from typing import Literal

from storage.broker import MAINTENANCE_QUEUE
from storage.settings import load
from worker.settings import WorkerSettings

Role = Literal["generate", "webhooks", "beat"]
ROLES: tuple[Role, ...] = ("generate", "webhooks", "beat")


def command(role: Role) -> list[str]:
    """Return the argv that runs `role`.

    Raises:
        storage.settings.SettingsError: a setting is missing or wrong.
    """
    settings = load(WorkerSettings)
    celery = [sys.executable, "-m", "celery", "--quiet", "-A", "worker.celery:app"]
    level = f"--loglevel={settings.log_level}"
    if role == "beat":
        return [*celery, "beat", level, "--pidfile="]
    queues = "generate" if role == "generate" else f"webhooks,{MAINTENANCE_QUEUE}"
    return [
        *celery,
        "worker",
        f"--concurrency={settings.concurrency}",
        f"--queues={queues}",
        f"--hostname={role}@%h",
        # Chatter between workers that nobody reads, and a known source of trouble at reconnects.
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        level,
    ]
