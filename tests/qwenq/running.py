"""A process under test and what it prints: wait for a line, send a signal, see what is left of it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Far more than anything here takes; a test that waits this long has failed.
PATIENCE = 60.0


class Running:
    """Standard output and error of one process, read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` in the lines from number `after` on; fails when the output ends before it."""
        with self._more:
            found: list[re.Match[str]] = []

            def seen() -> bool:
                found[:] = [match for line in self.lines[after:] if (match := re.search(pattern, line))]
                return bool(found) or not self._reader.is_alive()

            self._more.wait_for(seen, PATIENCE)
            assert found, f"no line matched {pattern!r} in:\n" + "\n".join(self.lines)
            return found[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end and return the exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def pid_of(self, name: str, *, after: int = 0) -> int:
        """The pid that the child `name` printed as `pid N`."""
        return int(self.wait_for(rf"^{name} +\| pid (\d+)$", after=after)[1])

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self._more:
                    self.lines.append(line.rstrip("\n"))
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()


@contextmanager
def running(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Running]:
    """Run a command for the time of the block and kill it then; its children are tied to it."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "NO_COLOR": "1", **(env or {})},
        cwd=cwd,
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


def have_ended(*pids: int) -> bool:
    """Wait until none of these processes runs any more; False when one still does after a long while (Linux)."""
    return all(_has_ended(pid) for pid in pids)


def _has_ended(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Readable once the process has ended, reaped or not.
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)
