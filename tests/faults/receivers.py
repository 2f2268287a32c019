"""Webhook receivers: what came to them and how they answered is history; how they answer is a fault's to say.

Modes: `ok` (200), `error` (500), `hang` (no answer until the sender gives up), `drop` (the connection is cut).
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.faults.history import History

MODES = ("error", "hang", "drop")
HANG_SECONDS = 3.0  # longer than QWENQ_WEBHOOK_TIMEOUT
KEPT_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Receivers:
    """One server with a path for each receiver, on a port of its own."""

    def __init__(self, history: History, names: tuple[str, ...]) -> None:
        self.modes = dict.fromkeys(names, "ok")
        modes = self.modes

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                name = self.path.strip("/")
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                mode = modes[name]
                kept = {header: self.headers.get(header, "") for header in KEPT_HEADERS}
                history.add("webhook", receiver=name, headers=kept, body=body, answered=mode)
                if mode == "hang":
                    time.sleep(HANG_SECONDS)
                if mode in ("ok", "error"):
                    self.send_response(200 if mode == "ok" else 500)
                    self.end_headers()
                self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A sender that was killed leaves a broken pipe; that is what the run is about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def heal(self) -> None:
        for name in self.modes:
            self.modes[name] = "ok"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
