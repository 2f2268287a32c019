"""The main job, once through the whole stack on a real small model; exit status 0 when all of it held.

A conversation of two turns with a system prompt, through the official `openai` client and in the background. Between
the turns the API and the worker are killed with SIGKILL; the second turn has to know what the first one said.
Each turn's webhook is received here and checked with `client.webhooks.unwrap`.

    python examples/demo.py            takes about a minute, once the model is there
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
from dotenv import dotenv_values
from openai import OpenAI
from openai.types.responses import Response
from rich.console import Console
from rich.panel import Panel
from tenacity import Retrying, retry_if_exception_type, retry_if_not_result, stop_after_delay, wait_fixed

SYSTEM = "You are Robo, a friendly robot."
TURNS = ("My dog's name is Max.", "What is my dog's name?")
# The model may have to be downloaded and converted first.
START_SECONDS = 900.0
TURN_SECONDS = 120.0

console = Console(highlight=False)
Delivered = tuple[str, dict[str, str]]
T = TypeVar("T")


def until(seconds: float, probe: Callable[[], T | None]) -> T:
    """Return the first answer of `probe` that is not empty; connection errors mean "not yet"."""
    tries = Retrying(
        retry=retry_if_not_result(bool)
        | retry_if_exception_type((OSError, httpx.HTTPError, json.JSONDecodeError)),
        wait=wait_fixed(0.2),
        stop=stop_after_delay(seconds),
        reraise=True,
    )
    found = tries(probe)
    assert found is not None
    return found


def receive(arrived: queue.Queue[Delivered]) -> ThreadingHTTPServer:
    """Start a small webhook receiver on a free loopback port."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            arrived.put((body, dict(self.headers.items())))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet: what arrives is printed below."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Stack:
    """`qwenq up` on a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qwenq", "up", "--data-dir", str(directory), "--port", "0"]
        )
        self.state = until(START_SECONDS, self._ready)
        self.environment = dotenv_values(directory / "env")

    def client(self) -> OpenAI:
        """The official client, told where to go by the file that `up` wrote."""
        return OpenAI(
            base_url=self.environment["OPENAI_BASE_URL"],
            api_key=self.environment["OPENAI_API_KEY"],
            webhook_secret=self.environment["OPENAI_WEBHOOK_SECRET"],
        )

    def kill(self, *names: str) -> None:
        """SIGKILL these programs and wait until `up` has started each again and the API answers."""
        before = self._read()["children"]
        for name in names:
            os.kill(before[name]["pid"], signal.SIGKILL)

        def restarted() -> bool:
            after = self._read()["children"]
            return all(after[name]["pid"] not in (None, before[name]["pid"]) for name in names)

        until(60, restarted)
        address = self.environment["OPENAI_BASE_URL"]
        until(60, lambda: httpx.get(f"{address}/../readyz", trust_env=False).is_success)

    def stop(self) -> int:
        """Ctrl-C; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / "up.json").read_text())
        return state

    def _ready(self) -> dict[str, Any] | None:
        if self.process.poll() is not None:
            raise SystemExit(f"`qwenq up` ended with status {self.process.returncode}; its output is above")
        state = self._read()
        return state if state["ready"] else None


def turn(stack: Stack, conversation: str, text: str, hook: str, arrived: queue.Queue[Delivered]) -> Response:
    """Hand in one turn, wait for its webhook, check the signature, and fetch the answer it tells of."""
    client = stack.client()
    accepted = client.responses.create(
        model="default",
        instructions=SYSTEM,
        conversation=conversation,
        input=text,
        background=True,
        temperature=0,
        max_output_tokens=40,
        extra_body={"webhook": {"url": hook}},
    )
    console.print(f"[dim]accepted[/] {accepted.id} [dim]as[/] {accepted.status}")
    body, headers = arrived.get(timeout=TURN_SECONDS)
    event = client.webhooks.unwrap(body, headers)  # raises when the signature is wrong
    console.print(
        f"[dim]webhook[/]  {event.type} [dim]signed and verified, webhook-id[/] {headers['webhook-id']}"
    )
    answer = client.responses.retrieve(accepted.id)
    if event.data.id != accepted.id or event.type != f"response.{answer.status}":
        raise SystemExit(f"the webhook tells of {event.data.id} ({event.type}), not of {accepted.id}")
    return answer


def main() -> int:
    """Run the demo; return the exit status."""
    arrived: queue.Queue[Delivered] = queue.Queue()
    receiver = receive(arrived)
    hook = f"http://127.0.0.1:{receiver.server_port}/hook"
    with tempfile.TemporaryDirectory(prefix="qwenq-demo-") as directory:
        stack = Stack(Path(directory))
        try:
            conversation = stack.client().conversations.create()
            first = turn(stack, conversation.id, TURNS[0], hook, arrived)
            console.print("[bold]killing the API and the worker (SIGKILL)[/]")
            stack.kill("api", "worker")
            second = turn(stack, conversation.id, TURNS[1], hook, arrived)
        finally:
            status = stack.stop()
            receiver.shutdown()
    transcript = [("system", SYSTEM), ("user", TURNS[0]), ("assistant", first.output_text)]
    transcript += [("user", TURNS[1]), ("assistant", second.output_text)]
    console.print(
        Panel(
            "\n".join(f"[bold]{role:>9}[/]  {text.strip()}" for role, text in transcript),
            title="one conversation, with a restart in between",
            expand=False,
        )
    )
    if "max" not in second.output_text.lower():
        console.print("[red]the second turn does not know what the first one said[/]")
        return 1
    if status != 0:
        console.print(f"[red]`qwenq up` ended with status {status}[/]")
        return 1
    console.print(
        "[green]the second turn knew the first, both webhooks were verified, the stack stopped cleanly[/]"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
