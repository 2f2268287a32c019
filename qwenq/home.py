"""The data directory of a local stack (`qwenq up --data-dir`), and the only code that knows what lies where in it.

    qwenq.db          the database
    files/            uploaded files, and what batches write
    valkey/           the broker's append-only file and its configuration
    secret.key        the Fernet key that stored webhook secrets are encrypted with; made once
    credentials.json  the API key and the webhook secret of the local project; made once
    env               shell exports for a client of this stack
    up.json           pids, ports and URLs of the stack that is running; gone when it has stopped
    up.lock           held while a stack runs here

Files that hold secrets are readable by their owner alone and are replaced in one step, never half written.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from qwenq.problems import Problem

DEFAULT = Path(".data")


class Home:
    """Paths and small files of one data directory, which need not exist yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().resolve()
        self.database = self.directory / "qwenq.db"
        self.files = self.directory / "files"
        self.valkey = self.directory / "valkey"
        self.env_file = self.directory / "env"
        self.state_file = self.directory / "up.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and hold it for this process; the kernel lets go of it however the process ends.

        Raises:
            Problem: another stack runs on it, or it cannot be written to.
        """
        from filelock import FileLock, Timeout

        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self.directory / "up.lock")
            lock.acquire(blocking=False)
        except Timeout:
            owner = self.state().get("pid")
            who = f" (process {owner})" if owner else ""
            raise Problem(
                f"another `qwenq up`{who} already runs on {self.directory}: stop it, or take another --data-dir"
            ) from None
        except OSError as error:
            raise Problem(f"the data directory {self.directory} cannot be used: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    def secret_key(self) -> str:
        """The Fernet key of this directory, made at the first call."""
        from cryptography.fernet import Fernet

        path = self.directory / "secret.key"
        if not path.exists():
            write_private(path, Fernet.generate_key().decode() + "\n")
        return path.read_text().strip()

    def credentials(self) -> dict[str, str]:
        """What `keep_credentials` stored last, or nothing.

        Raises:
            Problem: the file is not what was written.
        """
        path = self.directory / "credentials.json"
        try:
            return {str(name): str(value) for name, value in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError):
            raise Problem(f"{path} is damaged: delete it, and the next start makes a new API key") from None

    def keep_credentials(self, credentials: Mapping[str, str]) -> None:
        """Store `credentials` for the next start."""
        write_private(self.directory / "credentials.json", json.dumps(credentials, indent=1) + "\n")

    def write_env(self, variables: Mapping[str, str]) -> None:
        """Write `env`, to be read by `source` or by `env`."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        write_private(self.env_file, "\n".join(lines) + "\n")

    def env(self) -> dict[str, str]:
        """The variables that `write_env` wrote; empty when no stack has been ready here yet."""
        try:
            words = shlex.split(self.env_file.read_text())
        except FileNotFoundError:
            return {}
        return {name: value for name, equals, value in (word.partition("=") for word in words) if equals}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write `up.json`."""
        write_private(self.state_file, json.dumps(state, indent=1) + "\n")

    def state(self) -> dict[str, Any]:
        """What `up.json` says; empty when there is none. It may be stale after a SIGKILL of its writer."""
        try:
            state: dict[str, Any] = json.loads(self.state_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return state

    def forget_state(self) -> None:
        """Remove `up.json`: nothing runs here any more."""
        with suppress(FileNotFoundError):
            self.state_file.unlink()


def write_private(path: Path, text: str) -> None:
    """Put a file with mode 0600 in place of `path` in one step."""
    # NamedTemporaryFile makes its file with mode 0600.
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
