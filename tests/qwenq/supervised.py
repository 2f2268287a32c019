"""`python -m tests.qwenq.supervised SPEC`: a real supervisor over small real programs, for tests to watch and to kill.

SPEC is JSON: `programs` ({"name", "code" (Python) or "command", "last"}), `ready` (false: `start` never returns),
`problem` (raised by `start` once the programs run), and the supervisor's `grace`, `healthy_seconds` and `first_delay`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console

from qwenq import supervisor
from qwenq.printer import Printer
from qwenq.problems import Problem
from qwenq.processes import Program

# What every child may use: it says its pid, and then lives on until a signal ends it.
PRELUDE = """
import os, signal, subprocess, sys, time
# Not `print`: a handler that prints while the main program does raises RuntimeError.
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def on_term(do): signal.signal(signal.SIGTERM, do)
# Python runs a handler between two instructions: a signal that comes right before a wait would be found behind it, so
# there is a byte for each signal to wait for.
told, tell = os.pipe()
os.set_blocking(tell, False)
signal.set_wakeup_fd(tell)
def live():
    while True: os.read(told, 1)
"""


def program(spec: dict[str, Any]) -> Program:
    """The program that one entry of `programs` describes."""
    command = spec.get("command") or [sys.executable, "-c", PRELUDE + spec["code"]]
    return Program(
        name=spec["name"],
        command=tuple(command),
        environment=os.environ,
        directory=Path.cwd(),
        last=spec.get("last", False),
    )


async def main(spec: dict[str, Any]) -> int:
    """Run the supervisor; its failure is the last line and status 1."""
    supervisor.FIRST_DELAY = spec.get("first_delay", 0.05)
    printer = Printer(Console(), ["sup", *(each["name"] for each in spec["programs"])])
    watched = supervisor.Supervisor(
        lambda name, text: printer.line(name or "sup", text),
        grace=spec.get("grace", 30),
        healthy_seconds=spec.get("healthy_seconds", 60),
    )

    async def start() -> None:
        for each in spec["programs"]:
            watched.launch(program(each))
        if "problem" in spec:
            raise Problem(spec["problem"])
        if not spec.get("ready", True):
            await anyio.sleep_forever()
        printer.line("sup", "ready")

    failure = await watched.run(start)
    printer.line("sup", f"failure: {failure}" if failure else "stopped")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(anyio.run(main, json.loads(sys.argv[1])))
