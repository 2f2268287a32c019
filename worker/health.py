"""`GET /livez` of a worker, for the orchestrator: 200 while it works, 503 with the reason when it does not.

`GET /metrics` is for Prometheus, and for the networks that may read it.

Celery's own `inspect ping` asks through the broker, so a broker outage would make healthy workers look dead.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from storage import metrics


class HealthServer:
    """Answers on `port` of `host` (empty: all interfaces) from a thread of its own.

    `check` returns a fault or None, `page` the metrics, and `may_read` says whether an address gets them.
    """

    def __init__(
        self,
        port: int,
        check: Callable[[], str | None],
        page: Callable[[], bytes],
        may_read: Callable[[str], bool],
        host: str = "",
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/livez":
                    fault = check()
                    self._json(200 if fault is None else 503, fault)
                elif self.path != "/metrics":
                    self._json(404, f"there is no {self.path} here, only /livez and /metrics")
                elif not may_read(self.client_address[0]):
                    self._json(403, "QWENQ_METRICS_NETWORKS does not name your network")
                else:
                    self._answer(200, metrics.CONTENT_TYPE, page())

            def _json(self, status: int, fault: str | None) -> None:
                body = {"status": "ok"} if fault is None else {"status": "error", "detail": fault}
                self._answer(status, "application/json", json.dumps(body).encode())

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", content_type)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """A probe every few seconds is not news."""

        # All interfaces by default: an orchestrator asks from outside the container. It tells no more than its health.
        self._server = ThreadingHTTPServer((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
