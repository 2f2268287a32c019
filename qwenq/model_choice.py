"""Which checkpoint a local stack serves, and where the demo model lives when nobody says.

The demo model is built once a user and shared by all data directories; `QWENQ_MODEL` or `--model` names another.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qwenq.problems import Problem
from qwenq.processes import tied

VARIABLE = "QWENQ_MODEL"
# In every checkpoint folder, and needed by everything that reads one.
MARK = "config.json"


def demo_folder() -> Path:
    """Where the demo model is kept for this user."""
    return _cache() / "demo"


def folder_of(repo: str) -> Path:
    """Where a downloaded repository (`OWNER/NAME`) is kept for this user."""
    return _cache() / repo.rpartition("/")[2]


def chosen(option: Path | None) -> Path:
    """The checkpoint folder that `--model`, else `QWENQ_MODEL`, else the demo names; the demo is built if need be.

    Raises:
        Problem: the folder is no checkpoint, or the demo could not be built.
    """
    named = option or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        return built_demo()
    path = named.expanduser().resolve()
    if not (path / MARK).is_file():
        source = "--model" if option else VARIABLE
        raise Problem(
            f"{source} is {path}, which holds no {MARK}: name a checkpoint folder, or leave it out for the demo model"
        )
    return path


def built_demo() -> Path:
    """The demo model's folder, built now if it is not there.

    In a process of its own: building needs torch and half a gigabyte, which a supervisor would keep for its life.

    Raises:
        Problem: it could not be built.
    """
    path = demo_folder()
    if not (path / MARK).is_file():
        command = (sys.executable, "-P", "-m", "qwenq", "model", "demo", str(path))
        made = subprocess.run(tied(command), check=False)  # noqa: S603
        if made.returncode != 0:
            raise Problem(
                f"the demo model could not be built (status {made.returncode}); its output is above"
            )
    return path


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("qwenq") / "models"
