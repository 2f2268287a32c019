"""What the command line says when something is wrong: one message for a person, no traceback.

A `Problem` is the only exception that `qwenq.cli.main` turns into text; anything else is a defect and keeps
its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    Settings = TypeVar("Settings", bound=BaseSettings)

OUR_PACKAGES = frozenset({"api", "migrations", "qwenq", "storage", "worker"})


class Problem(Exception):
    """The command cannot go on. The message says what is wrong, where, and what to do."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a third-party import that is not installed into the `pip install` line that brings it.

    Args:
        name: the extra of this project that the imports in the block belong to.

    Raises:
        Problem: a library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in OUR_PACKAGES:
            raise
        raise Problem(
            f"this command needs the library '{module}', which is not installed: pip install 'qwenq[{name}]'"
        ) from None


def load_settings(cls: type[Settings]) -> Settings:
    """Read `cls` from the environment.

    Raises:
        Problem: one line for each wrong or missing variable.
    """
    from storage.settings import SettingsError, load

    try:
        return load(cls)
    except SettingsError as error:
        raise Problem(str(error)) from None
