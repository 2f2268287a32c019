"""The command line: `qwenq up`, and one command for each process of a larger installation.

Each command imports what it needs when it runs, so that help answers at once and `qwenq api` works where torch
is not installed.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwenq import home, keys, model
from qwenq.chat import chat
from qwenq.problems import Problem, extra, load_settings

app = typer.Typer(
    name="qwenq",
    help="A chat service: jobs over HTTP, a Redis queue, a worker with an int4 Qwen model, signed webhooks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Role(StrEnum):
    """What a Celery process does."""

    generate = "generate"
    webhooks = "webhooks"
    beat = "beat"


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option(help="Everything the stack keeps.")] = home.DEFAULT,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 takes a free one.")] = 8000,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder; otherwise QWENQ_MODEL, else the demo model.", show_default=False
        ),
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish running answers at a stop.")] = 30.0,
) -> None:
    """Run the whole stack on this machine: API, workers, beat and an embedded Valkey. Loopback only."""
    with extra("up"):
        from qwenq import up as stack

        stack.up(stack.Options(directory=data_dir, port=port, model=model, grace=grace))


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; otherwise QWENQ_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; otherwise QWENQ_PORT.")] = None,
) -> None:
    """Run the HTTP API."""
    with extra("api"):
        from api.server import serve
        from api.settings import ApiSettings
        from qwenq.counting import CheckpointCounter
        from storage.logging import configure

    settings = load_settings(ApiSettings)
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    configure("api", settings)
    prompt_length = None
    if settings.model is not None:
        prompt_length = CheckpointCounter(settings.model, settings.context_length)
    serve(settings.model_copy(update=chosen), prompt_length)


@app.command()
def worker(
    role: Annotated[
        Role, typer.Argument(help="What to do: answer, deliver webhooks, or sweep.")
    ] = Role.generate,
) -> None:
    """Run a Celery process in place of this one, so that signals reach it."""
    with extra("worker"):
        from worker.celery_command import command
        from worker.settings import GenerateSettings, WorkerSettings

        load_settings(GenerateSettings if role is Role.generate else WorkerSettings)
        arguments = command(role.value)
    sys.stdout.flush()
    os.execv(arguments[0], arguments)  # noqa: S606 - no shell is wanted


@app.command()
def migrate() -> None:
    """Bring the database that QWENQ_DATABASE_URL names to the newest schema."""
    from migrations.run import upgrade
    from storage.settings import DatabaseSettings

    upgrade(load_settings(DatabaseSettings).database_url)


@app.command()
def secret_key() -> None:
    """Print a new QWENQ_SECRET_KEY, which stored webhook secrets are encrypted with."""
    from cryptography.fernet import Fernet

    typer.echo(Fernet.generate_key().decode())


app.command()(chat)
app.add_typer(model.app, name="model")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Run the command line; a `Problem` becomes its message and exit status 1."""
    try:
        app()
    except Problem as problem:
        typer.echo(f"qwenq: {problem}", err=True)
        sys.exit(1)
