"""Node and what `npm ci` puts beside the driver scripts, installed at first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

FOLDER = Path(__file__).parent / "node"


def installed(folder: Path, *, required: bool) -> Path:
    """Install what the folder's lock file names and return the folder.

    Without Node the test is skipped and says so. It is too when the packages cannot be had, unless they are `required`.
    """
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("there is no Node on this machine: the Node SDK was NOT tried")
    lock = folder / "package-lock.json"
    ready = folder / "node_modules" / ".ready"
    # Test processes that run side by side install into one folder.
    with FileLock(Path(tempfile.gettempdir()) / "qwenq-npm-ci.lock", timeout=300):
        _install(npm, folder, ready, lock, required=required)
    return folder


def _install(npm: str, folder: Path, ready: Path, lock: Path, *, required: bool) -> None:
    if not ready.exists() or ready.read_text() != lock.read_text():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=240
        )
        if done.returncode != 0:
            reason = f"npm ci failed, the Node SDK was NOT tried: {done.stderr.strip()[-400:]}"
            if required:
                pytest.fail(reason)
            pytest.skip(reason)
        ready.write_text(lock.read_text())


def node(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Node in the folder and return what it printed; fail with it when its exit status is not 0."""
    done = subprocess.run(
        ["node", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def compiled(folder: Path) -> list[str]:
    """Check all of the folder with the TypeScript compiler and return its errors."""
    done = subprocess.run(
        [folder / "node_modules" / ".bin" / "tsc", "--pretty", "false"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    errors = done.stdout.splitlines()
    assert bool(errors) == (done.returncode != 0), done.stderr
    return errors
