"""`Idempotency-Key`: a POST that is sent again returns the object its first sending created.

The key is stored in the transaction that creates the object, so that either both exist or neither.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from storage import clock
from storage.errors import Conflict
from storage.models import IdempotencyKey


class KeyReused(Conflict):
    """The key was used before with another body."""


def find(session: Session, project_id: str, key: str, fingerprint: str) -> str | None:
    """Return the id of the object that this key created, or None when the key is new.

    Raises:
        KeyReused: the first request's body was another.
    """
    used = session.get(IdempotencyKey, (project_id, key))
    if used is None:
        return None
    if used.fingerprint != fingerprint:
        raise KeyReused(
            "This Idempotency-Key was used before with another request body. "
            "Use a new key for a new request, or send the first body again."
        )
    return used.object_id


def remember(session: Session, project_id: str, key: str, fingerprint: str, object_id: str) -> None:
    """Bind the key to the object.

    Raises:
        sqlalchemy.exc.IntegrityError: another request with this key came first; roll back and `find` it.
    """
    session.add(
        IdempotencyKey(
            project_id=project_id,
            key=key,
            fingerprint=fingerprint,
            object_id=object_id,
            created_at=clock.read(session),
        )
    )
    session.flush()
