"""Runs the application under uvicorn, as the service's own processes and `qwenq api` do."""

from __future__ import annotations

import gc
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.prompt_length import PromptLength
from api.services import Services
from api.settings import ApiSettings

# Longer than clients and proxies keep an idle connection, so that it is they who close it.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """A server that tells waiting requests and open streams of its end.

    uvicorn waits for open requests when it is asked to stop. Those that wait for an answer would hold it up to
    the limit and then be cut off; told at once, they say "503, try again", and streams end with a comment that
    says how to go on.
    """

    def __init__(self, app: FastAPI, settings: ApiSettings) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,  # `api.gate` writes it
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. Runs as a signal handler; may be called from another thread."""
        services: Services | None = getattr(self._app.state, "services", None)
        if services is not None:
            services.live.close_soon()
        super().handle_exit(sig, frame)


def serve(settings: ApiSettings, prompt_length: PromptLength | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = Server(create_app(settings, prompt_length), settings)
    gc.collect()
    gc.freeze()  # modules and schemas: to look through them again and again halts every request for 50 to 100 ms
    server.run()
