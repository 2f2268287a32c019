"""What the state functions refuse, as a tree.

StorageError
├── NotFound               no such object in this project
├── Conflict               the object's state does not allow it
└── LeaseLost              a worker writes for a job that it no longer holds
"""

from __future__ import annotations


class StorageError(Exception):
    """Base of this tree."""


class NotFound(StorageError):
    """No object of this kind and id in the caller's project."""

    def __init__(self, kind: str, object_id: str) -> None:
        super().__init__(f"No {kind} with id '{object_id}' was found.")
        self.kind = kind
        self.object_id = object_id


class Conflict(StorageError):
    """The object exists, but its state does not allow what was asked; the message says why."""


class LeaseLost(StorageError):
    """The attempt is no longer current: its lease ran out and was taken over, or the job has ended.

    Whoever gets this stops work on the job and writes nothing more for it.
    """

    def __init__(self, response_id: str, attempt: int) -> None:
        super().__init__(f"attempt {attempt} of {response_id} no longer holds the lease")
