"""`qwenq chat`: a conversation in the terminal, through the official client and a running stack.

Every turn is a background response that is polled: it can be cancelled with Ctrl-C, and it goes on when the
connection is lost or the API is started again meanwhile.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenq import home
from qwenq.problems import Problem, extra

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI
    from openai.types.responses import Response
    from rich.console import Console
    from rich.status import Status

POLL_SECONDS = 0.2
RUNNING = ("queued", "in_progress")
HELP = (
    "/new starts another conversation, /system TEXT sets the system prompt (none: the default), /quit leaves"
)


def chat(
    base_url: Annotated[
        str | None, typer.Option(help="Address of the API; otherwise OPENAI_BASE_URL.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Otherwise OPENAI_API_KEY.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    conversation: Annotated[str | None, typer.Option(help="Id of a conversation to go on with.")] = None,
    data_dir: Annotated[
        Path, typer.Option(help="Of the local stack to talk to when no address is given.")
    ] = home.DEFAULT,
) -> None:
    """Chat in the terminal with a running stack."""
    with extra("up"):
        from openai import OpenAI
        from rich.console import Console

    url, key = address(base_url, api_key, home.Home(data_dir))
    with OpenAI(base_url=url, api_key=key) as client:
        Chat(client, Console(), system=system, conversation=conversation).run()


def address(base_url: str | None, api_key: str | None, local: home.Home) -> tuple[str, str]:
    """Where to go and with which key: the options, else the environment, else what `qwenq up` wrote.

    A key goes only to the address it came with: an OPENAI_API_KEY that stands alone in the environment is
    OpenAI's own.

    Raises:
        Problem: there is no address or no key.
    """
    given = base_url or os.environ.get("OPENAI_BASE_URL")
    variables = {**os.environ, "OPENAI_BASE_URL": given} if given else local.env()
    url, key = variables.get("OPENAI_BASE_URL"), api_key or variables.get("OPENAI_API_KEY")
    if not url:
        raise Problem(
            f"no address: start a stack with `qwenq up` (nothing is in {local.env_file}), or give --base-url"
        )
    if not key:
        raise Problem(
            f"no API key for {url}: set OPENAI_API_KEY or give --api-key (`qwenq keys create` makes one)"
        )
    return url, key


class Chat:
    """One terminal's conversation."""

    def __init__(
        self, client: OpenAI, console: Console, *, system: str | None, conversation: str | None
    ) -> None:
        self._client = client
        self._console = console
        self._system = system
        self._conversation = conversation
        self._model = ""

    def run(self) -> None:
        """Read lines until /quit or the end of the input.

        Raises:
            Problem: the API cannot be reached, or refuses the key.
        """
        import readline  # noqa: F401 - gives `input` its line editing and history

        from openai import APIConnectionError, APIStatusError

        try:
            self._model = next(iter(self._client.models.list())).id
        except APIConnectionError:
            raise Problem(f"nothing answers at {self._client.base_url}: is the stack running?") from None
        except APIStatusError as error:
            raise Problem(message_of(error)) from None
        self._tell(f"{self._model} at {self._client.base_url}. {HELP}")
        while True:
            try:
                line = input("you> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line == "/quit":
                return
            try:
                self._obey(line)
            except KeyboardInterrupt:
                self._tell("interrupted; a question that was accepted is answered nevertheless")
            except APIConnectionError:
                self._tell("nothing answers: the stack is down or starting. What was accepted is not lost.")
            except APIStatusError as error:
                self._tell(message_of(error))

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/new":
            self._conversation = None
            self._tell("a new conversation")
        elif command == "/system":
            self._system = rest.strip() or None
            self._tell(f"system prompt: {self._system or 'the default'}")
        elif command.startswith("/"):
            self._tell(HELP)
        elif line:
            self._turn(line)

    def _turn(self, text: str) -> None:
        if self._conversation is None:
            self._conversation = self._client.conversations.create().id
            self._tell(f"conversation {self._conversation}")
        response = self._client.responses.create(
            model=self._model,
            input=text,
            instructions=self._system,
            conversation=self._conversation,
            background=True,
        )
        response = self._finished(response)
        if response.output_text:
            self._console.print(
                f"{self._model}> {printable(response.output_text)}", markup=False, highlight=False
            )
        if response.status == "failed" and response.error:
            self._tell(f"failed: {response.error.message}")
        elif response.status != "completed":
            details = response.incomplete_details
            self._tell(f"{response.status}: {details.reason}" if details else str(response.status))

    def _finished(self, response: Response) -> Response:
        with self._console.status(str(response.status)) as status:
            try:
                return self._polled(response, status)
            except KeyboardInterrupt:
                status.update("cancelling")
                # The worker ends it between two tokens, so its answer so far comes a moment later.
                return self._polled(self._client.responses.cancel(response.id), status)

    def _polled(self, response: Response, status: Status) -> Response:
        while response.status in RUNNING:
            time.sleep(POLL_SECONDS)
            response = self._client.responses.retrieve(response.id)
            status.update(str(response.status))
        return response

    def _tell(self, text: str) -> None:
        self._console.print(printable(text), style="dim", markup=False, highlight=False)


def message_of(error: APIStatusError) -> str:
    """The API's own words in an `APIStatusError`."""
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else str(error)


def printable(text: str) -> str:
    """`text` without control characters: a model's answer must not drive the terminal."""
    return "".join(
        letter for letter in text if letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F
    )
