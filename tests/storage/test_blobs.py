"""The store of files' bytes: whole or not there, and what nobody knows can be found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from storage.blobs import Folder


def test_what_was_written_is_read_and_deleted(tmp_path: Path) -> None:
    store = Folder(tmp_path / "new" / "files")
    draft = store.draft("file_a")
    for part in (b"one\n", b"", b"two\n"):
        draft.write(part)
    with pytest.raises(FileNotFoundError):
        store.open("file_a")
    draft.finish()
    assert (draft.size, draft.sha256) == (8, hashlib.sha256(b"one\ntwo\n").hexdigest())
    with store.open("file_a") as opened:
        store.delete("file_a")
        opened.seek(4)
        assert opened.read() == b"two\n"  # whoever reads it reads on
    with pytest.raises(FileNotFoundError):
        store.open("file_a")
    store.delete("file_a")


@pytest.mark.parametrize("finished", [False, True])
def test_a_draft_that_is_discarded_leaves_nothing(tmp_path: Path, finished: bool) -> None:
    draft = Folder(tmp_path).draft("file_a")
    draft.write(b"x")
    if finished:
        draft.finish()
    draft.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_written_once(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    draft = store.draft("file_a")
    with pytest.raises(FileExistsError):
        store.draft("file_a")
    draft.discard()


def test_old_bytes_are_found_by_key_drafts_too(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    assert list(Folder(tmp_path / "missing").older_than(0)) == []
    for key in ("file_old", "file_draft", "file_new"):
        draft = store.draft(key)
        draft.write(b"x")
        if key != "file_draft":
            draft.finish()
        else:
            unfinished = draft
    for name in ("file_old", "file_draft.partial"):
        os.utime(tmp_path / name, (1, 1))
    assert sorted(store.older_than(3600)) == ["file_draft", "file_old"]
    store.delete("file_draft")
    unfinished.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file_new", "file_old"]
