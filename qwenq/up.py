"""`qwenq up`: the whole stack on this machine, for one person, on loopback.

The story: hold the data directory, choose the model, migrate, make the API key, then start Valkey, the API, the
workers and beat as child processes and keep them running until Ctrl-C (`qwenq.stack`). Everything that must
outlive a stop lies in the data directory (`qwenq.home`).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import anyio

from qwenq import model_choice, valkey
from qwenq.home import Home
from qwenq.problems import Problem, load_settings
from qwenq.stack import HOST, Stack

# Under `up`, and only there, webhooks may go to this machine.
LOOPBACK_NETWORKS = '["127.0.0.0/8", "::1/128"]'
PROJECT, KEY_NAME = "local", "qwenq up"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose.

    Attributes:
        directory: the data directory.
        port: of the API; 0 takes a free one.
        model: a checkpoint folder; None for QWENQ_MODEL or the demo model.
        grace: seconds that programs have to end by themselves at a stop.
    """

    directory: Path
    port: int
    model: Path | None
    grace: float


def up(options: Options) -> None:
    """Run the stack until a signal ends it.

    Raises:
        Problem: it could not be brought up.
    """
    os.umask(0o077)  # conversations and keys are for this user alone, in whatever directory they lie
    home = Home(options.directory)
    with home.locked():
        port = free_or_refused(options.port)
        model = model_choice.chosen(options.model)
        broker = valkey.prepare(home.valkey)
        client = prepare(home, port=port, model=model, redis_url=broker.url)
        try:
            failure = anyio.run(Stack(home, port, broker, client, options.grace).run)
        finally:
            home.forget_state()
    if failure:
        raise Problem(failure)


def prepare(home: Home, *, port: int, model: Path, redis_url: str) -> dict[str, str]:
    """Turn this process's environment into that of the stack, migrate, and make what has to exist once.

    Returns:
        the variables that a client of this stack needs, its address apart.

    Raises:
        Problem: a setting is wrong, as the children would find; then nothing has been started.
    """
    from api.settings import ApiSettings
    from migrations.run import upgrade
    from storage import webhook_secret
    from worker.settings import GenerateSettings

    kept = home.credentials()
    signing_secret = kept.get("webhook_secret") or webhook_secret.new_secret()
    database_url = f"sqlite:///{home.database}"
    os.environ |= {
        "QWENQ_HOST": HOST,
        "QWENQ_PORT": str(port),
        "QWENQ_DATABASE_URL": database_url,
        "QWENQ_REDIS_URL": redis_url,
        "QWENQ_FILES_DIR": str(home.files),
        "QWENQ_SECRET_KEY": home.secret_key(),
        "QWENQ_MODEL": str(model),
        "QWENQ_WEBHOOK_SECRET": signing_secret,
        "QWENQ_WEBHOOK_ALLOWED_NETWORKS": LOOPBACK_NETWORKS,
    }
    os.environ.setdefault("QWENQ_MODEL_NAME", model.name)
    for settings in (ApiSettings, GenerateSettings):
        load_settings(settings)
    upgrade(database_url)
    api_key = usable_key(database_url, kept.get("api_key"))
    home.keep_credentials({"api_key": api_key, "webhook_secret": signing_secret})
    return {
        "OPENAI_API_KEY": api_key,
        "OPENAI_WEBHOOK_SECRET": signing_secret,
        "QWENQ_WEBHOOK_SECRET": signing_secret,
        "QWENQ_DATABASE_URL": database_url,
    }


def usable_key(database_url: str, secret: str | None) -> str:
    """`secret` if it is a key of this database, else a new key of the local project."""
    from storage import keys
    from storage.database import Database

    database = Database(database_url)
    try:
        with database.begin() as session:
            if secret and keys.project_of(session, secret):
                return secret
            return keys.create(session, PROJECT, KEY_NAME).secret
    finally:
        database.close()


def free_or_refused(port: int) -> int:
    """`port` itself, or a free one for 0.

    Raises:
        Problem: somebody listens there.
    """
    if port == 0:
        return valkey.free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API itself will
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Problem(
                f"port {port} on {HOST} cannot be used ({error.strerror}): choose another with --port N, or 0 for any"
            ) from None
    return port
