"""Bytes that are too many for SQL rows: the content of files, each under its file's id.

`Blobs` is all that the service asks of a store. `Folder` keeps them in a local folder, which the API processes of an
installation share. A row in SQL says that a file exists; bytes without a row are what a crash left, or what an ended
file has left, and are removed after a while (`api.clerk`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

PARTIAL = ".partial"


class Draft(Protocol):
    """Bytes on their way into a store. Nobody sees them before `finish`."""

    key: str
    size: int

    @property
    def sha256(self) -> str:
        """The digest of what was written, in hexadecimal."""

    def write(self, data: bytes) -> None:
        """Append. Raises OSError when the store takes no more."""

    def finish(self) -> None:
        """Keep what was written, durably and in one step."""

    def discard(self) -> None:
        """Forget it; after `finish` too."""


class Blobs(Protocol):
    """A store of bytes by key."""

    def draft(self, key: str) -> Draft:
        """Begin to write under a new key."""

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader. Raises FileNotFoundError when there is nothing under this key."""

    def delete(self, key: str) -> None:
        """Remove what is there, if anything is. Whoever reads it already reads on."""

    def older_than(self, seconds: float) -> Iterator[str]:
        """Yield the keys, of drafts too, that nothing was written to for so long."""


class FolderDraft:
    """A file beside its future name."""

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.size = 0
        self._digest = hashlib.sha256()
        self._path = folder / key
        self._partial = folder / f"{key}{PARTIAL}"
        self._file = self._partial.open("xb")

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self._path)
        _sync(self._path.parent)

    def discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)


class Folder:
    """A local folder, made when the first file is written. May be used from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draft(self, key: str) -> FolderDraft:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FolderDraft(self._folder, key)

    def open(self, key: str) -> BinaryIO:
        return (self._folder / key).open("rb")

    def delete(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)
        (self._folder / f"{key}{PARTIAL}").unlink(missing_ok=True)

    def older_than(self, seconds: float) -> Iterator[str]:
        if not self._folder.is_dir():
            return
        before = time.time() - seconds
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    old = entry.is_file() and entry.stat().st_mtime < before
                except FileNotFoundError:  # somebody else has just removed it
                    continue
                if old:
                    yield entry.name.removesuffix(PARTIAL)


def _sync(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
