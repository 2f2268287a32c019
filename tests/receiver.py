"""A webhook receiver on loopback that keeps what it got and answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    body: str
    headers: dict[str, str]


class Receiver:
    """`statuses` are given out in order, then 200 for ever; `before_answer` runs once the event was read."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hook"
        self.got: list[Received] = []
        self.statuses: list[int] = []
        self.answer_headers: dict[str, str] = {}
        self.before_answer: Callable[[], None] | None = None

    def about(self, response_id: str) -> list[Received]:
        return [one for one in list(self.got) if response_id in one.body]


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            state.got.append(Received(body, dict(self.headers.items())))
            if state.before_answer is not None:
                state.before_answer()
            with suppress(BrokenPipeError):  # whoever asked may be gone
                self.send_response(state.statuses.pop(0) if state.statuses else 200)
                for name, value in state.answer_headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
