"""`qwenq keys`: make, list and revoke API keys, in the database that `QWENQ_DATABASE_URL` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from qwenq.problems import Problem, load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@contextmanager
def _transaction() -> Iterator[Session]:
    from sqlalchemy.exc import OperationalError, ProgrammingError

    from storage.database import Database
    from storage.settings import DatabaseSettings

    database = Database(load_settings(DatabaseSettings).database_url)
    try:
        with database.begin() as session:
            yield session
    except (OperationalError, ProgrammingError) as error:
        raise Problem(
            f"the database cannot be used: {error.orig}\nIs QWENQ_DATABASE_URL right, and has `qwenq migrate` run?"
        ) from None
    finally:
        database.close()


@app.command()
def create(
    project: Annotated[
        str, typer.Option(help="Project the key belongs to; made if there is none of that name.")
    ],
    name: Annotated[str, typer.Option(help="What the key is for; shown in the list.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="The key's own limit, 0 for none; the service's if not given.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=0, help="The key's own limit, 0 for none; the service's if not given.")
    ] = None,
) -> None:
    """Make a key. Its secret is printed now and never again."""
    from storage import keys

    with _transaction() as session:
        key = keys.create(
            session,
            project,
            name,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    typer.echo(f"id      {key.id}\nsecret  {key.secret}")


@app.command("list")
def list_() -> None:
    """List all keys, revoked ones too."""
    from storage import keys

    with _transaction() as session:
        rows = [
            (
                key.id,
                key.project,
                key.name,
                f"...{key.hint}",
                _limit(key.requests_per_minute),
                _limit(key.tokens_per_minute),
                _moment(key.created_at),
                _moment(key.revoked_at),
            )
            for key in keys.list_keys(session)
        ]
    # Not a table of rich: it would shorten the ids to fit the terminal, and they are here to be copied.
    rows.insert(0, ("ID", "PROJECT", "NAME", "SECRET", "REQ/MIN", "TOK/MIN", "CREATED", "REVOKED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, from the list.")]) -> None:
    """Refuse a key from now on."""
    from storage import keys

    with _transaction() as session:
        if not keys.revoke(session, key_id):
            raise Problem(f"no key in use has the id '{key_id}'; `qwenq keys list` shows all")
    typer.echo(f"{key_id} is revoked")


def _limit(own: int | None) -> str:
    return "" if own is None else str(own) if own else "none"


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
