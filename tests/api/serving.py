"""The API under real uvicorn in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from fastapi import FastAPI

from api.app import create_app
from api.prompt_length import PromptLength
from api.server import Server
from api.services import Services
from api.settings import ApiSettings

PATIENCE = 20.0


class Served:
    """A running server and what a test needs of it."""

    def __init__(self, server: Server, app: FastAPI) -> None:
        self.server = server
        self.app = app

    @property
    def url(self) -> str:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    @property
    def services(self) -> Services:
        return cast(Services, self.app.state.services)


@contextmanager
def serving(settings: ApiSettings, prompt_length: PromptLength | None = None) -> Iterator[Served]:
    app = create_app(settings, prompt_length)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive(), "the server ended at its start"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield Served(server, app)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
