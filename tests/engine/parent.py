"""A worker in miniature: starts an engine, gives it a long answer to write, says so, and waits to be killed.

Usage: python -m tests.engine.parent CHECKPOINT
"""

import logging
import sys
import threading
from pathlib import Path

from tests.engine.answers import ask
from worker.engine.client import Engine
from worker.engine.config import EngineConfig


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    with Engine(EngineConfig(Path(sys.argv[1]), device="cpu", threads=1)) as engine:
        engine.wait_ready(60)
        assert engine.submit(ask(tokens=8000)).next_event(60)
        print("generating", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
