"""`qwenq model`: get a checkpoint and check it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwenq import model_choice
from qwenq.problems import Problem, extra

QWEN = "Qwen/Qwen-1_8B-Chat-Int4"

app = typer.Typer(help="Get a model checkpoint and check it.", no_args_is_help=True)


class Source(StrEnum):
    """Where `pull` downloads from."""

    huggingface = "huggingface"
    modelscope = "modelscope"


@contextmanager
def _checkpoint_errors() -> Iterator[None]:
    from worker.model.errors import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise Problem(str(error)) from None


@app.command()
def demo(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Where to; the user's cache by default.", show_default=False),
    ] = None,
) -> None:
    """Build the demo model: a real small chat model (SmolLM2-135M-Instruct) in the format of Qwen int4."""
    from rich.progress import Progress

    with extra("worker"):
        from worker.model.demo import build_demo

    with _checkpoint_errors(), Progress() as progress:
        path = build_demo(directory or model_choice.demo_folder(), progress=progress)
    typer.echo(path)


@app.command()
def pull(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Where to; the user's cache by default.", show_default=False),
    ] = None,
    repo: Annotated[str, typer.Option(help="Repository of the checkpoint.")] = QWEN,
    source: Annotated[Source, typer.Option(help="Hub to download from.")] = Source.huggingface,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a checkpoint, going on where an earlier try stopped, and check that it is complete."""
    with extra("worker"):
        from worker.model.pull import licence_notice
        from worker.model.pull import pull as download

    if repo == QWEN:
        typer.echo(licence_notice(), err=True)
    with _checkpoint_errors():
        path = download(
            repo, directory or model_choice.folder_of(repo), source=source.value, revision=revision
        )
    typer.echo(path)


@app.command()
def verify(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")]) -> None:
    """Tell whether a checkpoint folder holds every tensor in the expected shape."""
    with extra("worker"):
        from worker.model.verify import verify as faults_of

    if faults := faults_of(directory):
        raise Problem(
            f"{directory} is not a complete checkpoint:\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    typer.echo(f"{directory} is complete")
