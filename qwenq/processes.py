"""One child process of the local stack: started in a session of its own, its output read line by line.

A session of its own, because Ctrl-C in a terminal goes to the whole foreground group: the order in which the
stack is stopped is the supervisor's decision. It also makes the child's process group its own, so that whatever
it started (the engine of a worker) can be ended together with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream

LAUNCHER = Path(__file__).with_name("launch.py")
LONGEST_LINE = 64 * 1024  # bytes; a longer one is passed on in parts
DRAIN_SECONDS = 1.0  # for the last output of a process that has ended


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: stands before each line of its output.
        command: the executable and its arguments.
        environment: all of its environment, nothing is inherited.
        directory: its working directory.
        last: ended only after every program without this mark has ended.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    last: bool = False


def tied(command: tuple[str, ...]) -> tuple[str, ...]:
    """`command`, started so that it is killed when this process dies (`qwenq.launch`)."""
    return (sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *command)


class Child:
    """A program's process, one at a time; `run` may be called again when it has ended.

    Args:
        program: what to run.
        say: called with each line of output, without its newline.
        on_change: called after `pid` has changed.
    """

    def __init__(self, program: Program, say: Callable[[str], None], on_change: Callable[[], None]) -> None:
        self.program = program
        self.pid: int | None = None
        self.starts = 0
        self._say = say
        self._on_change = on_change
        self._asked_to_end = False

    async def run(self) -> int:
        """Start the program and wait for its end; nothing of its process group is left afterwards.

        Returns:
            the exit status, negative for the number of the signal that ended it.
        """
        async with await anyio.open_process(
            tied(self.program.command),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env=self.program.environment,
            cwd=self.program.directory,
            start_new_session=True,
        ) as process:
            self._set_pid(process.pid)
            try:
                if self._asked_to_end:  # while the process was being made
                    self.terminate()
                async with anyio.create_task_group() as tasks:
                    if process.stdout:
                        tasks.start_soon(self._pass_lines, process.stdout)
                    status = await process.wait()
                    self.kill()
                    # A process that left the group could hold the pipe open for ever.
                    tasks.cancel_scope.deadline = anyio.current_time() + DRAIN_SECONDS
            finally:
                self.kill()
                self._set_pid(None)
        return status

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM), now or as soon as it has been made.

        Only the process itself: what it started is its own to end in good order.
        """
        self._asked_to_end = True
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all of its group at once (SIGKILL)."""
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
                os.killpg(self.pid, signal.SIGKILL)

    def _set_pid(self, pid: int | None) -> None:
        self.pid = pid
        self.starts += pid is not None
        self._on_change()

    async def _pass_lines(self, stream: ByteReceiveStream) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._say(line.decode(errors="replace").rstrip("\r"))
        if rest:
            self._say(rest.decode(errors="replace"))
