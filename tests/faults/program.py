"""One process of the product as the fault run starts it: ``python -m tests.faults.program ROLE [WITHOUT]``.

It runs what `qwenq api` and `qwenq worker ROLE` run, in this process, after the places of death were marked
(`tests.faults.deaths`), its clock was made one that can be set (`tests.faults.clocks`), the engine was slowed down and
one protection, if named, was switched off.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from tests.faults import clocks, deaths, sabotage


def main(role: str, without: str) -> None:
    """Run `role` (api, generate, webhooks or beat) until it ends."""
    clocks.install()
    if without:
        sabotage.SWITCH_OFF[without]()  # type: ignore[index]
    if role == "api":
        deaths.in_api()
        from qwenq.cli import main as qwenq

        sys.argv = ["qwenq", "api"]
        qwenq()
        return
    if role == "generate":
        deaths.in_worker()
        _start_slow_engines()
    if role == "webhooks":
        deaths.in_webhook_worker()
    from celery.__main__ import main as celery

    from worker.celery_command import command

    arguments = command(role)  # type: ignore[arg-type]
    # `qwenq worker` replaces itself with this command line (python -m celery ...); here it runs in place.
    sys.argv = ["celery", *arguments[arguments.index("celery") + 1 :]]
    celery()


def _start_slow_engines() -> None:
    from worker.engine import child

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        slow = ["tests.faults.slow_engine" if word == "worker.engine.process" else word for word in command]
        if slow == command:
            raise RuntimeError(f"this is not how an engine was started when this was written: {command}")
        return subprocess.Popen(slow, **options)

    child.subprocess = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
