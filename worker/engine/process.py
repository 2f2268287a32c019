"""The engine as a process of its own: ``python -m worker.engine.process FD``, started by `worker.engine.child`.

FD is an inherited socket that carries `worker.engine.messages`. One thread takes what arrives, so the pipe is read
even in the middle of a long forward pass; one sends heartbeats; the main thread runs the loop. When the pipe closes
the worker is gone, and the process ends at once, whatever it is doing.

SIGINT and SIGTERM are ignored: a terminal or a service manager sends them to every process of the worker, and it
is for the worker to let running answers finish first.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from worker.engine.config import EngineConfig
from worker.engine.errors import EngineStartError
from worker.engine.messages import Cancel, FromEngine, Heartbeat, StartFailed, ToEngine
from worker.engine.outgoing import Outgoing
from worker.engine.request import GenerationRequest
from worker.engine.stats import EngineStats
from worker.model.errors import CheckpointError

if TYPE_CHECKING:  # imports torch, which takes seconds: the heartbeats begin first
    from worker.engine.core import EngineCore

HEARTBEAT_SECONDS = 0.5
# One turn of the loop (a piece of a prompt, a token) that takes longer hangs, and the heartbeats stop.
TURN_LIMIT_SECONDS = 120.0

logger = logging.getLogger("worker.engine")


class Pipe:
    """The engine's end of the pipe. Whoever finds it closed ends the process: there is nobody to work for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self) -> ToEngine:
        try:
            message: ToEngine = self._connection.recv()
        except (EOFError, OSError):
            _leave()
        return message

    def send(self, message: FromEngine) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            _leave()


def _leave() -> NoReturn:
    os._exit(0)  # from any thread, and without waiting for the main one


class Pulse:
    """When the loop last came round, and how it stood. Before it began (the model loads) nothing can be late."""

    def __init__(self) -> None:
        self._last: float | None = None
        self.stats: EngineStats | None = None

    def mark(self, stats: EngineStats) -> None:
        self._last, self.stats = time.monotonic(), stats

    @property
    def regular(self) -> bool:
        return self._last is None or time.monotonic() - self._last < TURN_LIMIT_SECONDS


def main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _log_to_stderr()
    pipe, pulse, commands = Pipe(Connection(int(sys.argv[1]))), Pulse(), SimpleQueue[ToEngine]()
    config = pipe.receive()
    if not isinstance(config, EngineConfig):
        raise TypeError(f"the first message must be an EngineConfig, not {type(config).__name__}")
    threading.Thread(target=_beat, args=(pipe, pulse), name="heartbeat", daemon=True).start()
    threading.Thread(target=_listen, args=(pipe, commands), name="listener", daemon=True).start()
    core = _load(config, pipe)
    gc.collect()
    gc.freeze()  # torch's objects never go; to look through all of them, which Python does anew, takes 100 ms
    outgoing = Outgoing(pipe.send)
    while True:
        pulse.mark(core.stats)
        _obey(commands, core, outgoing)
        outgoing.put(core.step())


def _load(config: EngineConfig, pipe: Pipe) -> "EngineCore":
    """Load the model and report it, or report why not and end."""
    try:
        from worker.engine.loading import load

        core, info = load(config)
    except (CheckpointError, EngineStartError) as error:
        logger.error("cannot start: %s", error)
        pipe.send(StartFailed(str(error)))
    except Exception as error:
        logger.exception("cannot start")
        pipe.send(StartFailed(f"the model could not be loaded: {type(error).__name__}: {error}"))
    else:
        pipe.send(info)
        return core
    sys.exit(1)


def _obey(commands: SimpleQueue[ToEngine], core: "EngineCore", outgoing: Outgoing) -> None:
    """Take all commands that have come; with nothing to do, wait a moment for one."""
    while True:
        try:
            command = commands.get(block=not core.busy, timeout=HEARTBEAT_SECONDS)
        except Empty:
            return
        match command:
            case GenerationRequest():
                outgoing.expect(command)
                core.submit(command)
            case Cancel(request_id):
                core.cancel(request_id)


def _listen(pipe: Pipe, commands: SimpleQueue[ToEngine]) -> NoReturn:
    while True:
        commands.put(pipe.receive())


def _beat(pipe: Pipe, pulse: Pulse) -> NoReturn:
    while True:
        if pulse.regular:
            pipe.send(Heartbeat(pulse.stats))
        time.sleep(HEARTBEAT_SECONDS)


class OneLine(logging.Formatter):
    """One event, one line, tracebacks too: the logs of several processes are read in one stream."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s engine[%(process)d] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: logger.critical(
        "the engine ends", exc_info=(kind, error, trace)
    )


if __name__ == "__main__":
    main()
