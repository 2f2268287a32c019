"""One engine process as its owner sees it: start it, write to it, hear from it, end it. No torch.

A new interpreter is started, so nothing is forked with threads in it and no `__main__` is imported again.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from queue import SimpleQueue

from worker.engine.config import EngineConfig
from worker.engine.messages import FromEngine, ToEngine

# OpenMP's threads wait for one another by spinning, by default for milliseconds. Beside any other busy process they
# spin away the time slice that the one they wait for needs: on two cores, one of them busy, less than a tenth of the
# speed. A short spin costs nothing where the cores are free.
THREAD_SETTINGS = {"GOMP_SPINCOUNT": "1000"}


class Child:
    """A running engine process. `send` may be called from any thread, `receive` from one."""

    def __init__(self, config: EngineConfig) -> None:
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(  # noqa: S603 our own interpreter and module
            [sys.executable, "-m", "worker.engine.process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=THREAD_SETTINGS | os.environ,
        )
        theirs.close()  # else this process would keep the pipe open for an engine that has died
        self._last_heard = time.monotonic()
        self._outbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        self.send(config)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def silent_for(self) -> float:
        """Seconds since anything was heard, at first since the start."""
        return time.monotonic() - self._last_heard

    def send(self, message: ToEngine) -> None:
        """Hand a message over. Never blocks; to a process that has died it says nothing."""
        self._outbox.put(message)

    def receive(self, timeout: float) -> FromEngine | None:
        """The next message; None when none comes for `timeout` seconds. `EOFError` when the process has ended."""
        try:
            if not self._connection.poll(timeout):
                return None
            message: FromEngine = self._connection.recv()
        except OSError as error:  # a pipe reset with messages of ours unread
            raise EOFError from error
        self._last_heard = time.monotonic()
        return message

    def kill(self) -> None:
        """Send SIGKILL. The engine holds nothing worth a farewell. Harmless when it has ended."""
        self._process.kill()

    def reap(self) -> str:
        """Make sure that the process has ended, free everything, and say how it ended."""
        self._process.kill()
        code = self._process.wait()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return
