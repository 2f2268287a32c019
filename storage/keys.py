"""API keys and the projects they belong to.

A key is `sk-qwenq-` and 32 random bytes in hexadecimal. With that much randomness a plain SHA-256 is as safe
as a slow hash, and a lookup by it compares nothing that an attacker could time.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage import clock, ids
from storage.database import changed
from storage.models import ApiKey, Project


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made; `secret` is in no table and cannot be shown again."""

    id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and the limits of the key that it showed; None where the service's own apply."""

    key_id: str
    project_id: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as a list shows it. Times are unix seconds."""

    id: str
    project: str
    name: str
    hint: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: float
    revoked_at: float | None


def create(
    session: Session,
    project_name: str,
    key_name: str,
    *,
    secret: str | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> NewKey:
    """Make a key for a project, and the project when there is none of that name.

    Args:
        secret: the key itself, where one was chosen beforehand; a new random one otherwise.
        requests_per_minute, tokens_per_minute: the key's own limits, 0 for none; None for the service's.
    """
    moment = clock.read(session)
    project = session.scalar(select(Project).where(Project.name == project_name))
    if project is None:
        project = Project(id=ids.new("proj"), name=project_name, created_at=moment)
        session.add(project)
        session.flush()
    secret = secret or f"sk-qwenq-{secrets.token_hex(32)}"
    key = ApiKey(
        id=ids.new("key"),
        project_id=project.id,
        name=key_name,
        secret_sha256=_digest(secret),
        hint=secret[-4:],
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        created_at=moment,
    )
    session.add(key)
    session.flush()
    return NewKey(key.id, secret)


def list_keys(session: Session) -> list[ListedKey]:
    """Return all keys, oldest first, revoked ones too."""
    rows = session.execute(
        select(ApiKey, Project.name)
        .join(Project, Project.id == ApiKey.project_id)
        .order_by(ApiKey.created_at)
    )
    return [
        ListedKey(
            key.id,
            project,
            key.name,
            key.hint,
            key.requests_per_minute,
            key.tokens_per_minute,
            key.created_at,
            key.revoked_at,
        )
        for key, project in rows
    ]


def revoke(session: Session, key_id: str) -> bool:
    """Refuse the key from now on; return False when there is no such key in use."""
    done = changed(
        session,
        update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=clock.now()),
    )
    return done == 1


def caller_of(session: Session, secret: str) -> Caller | None:
    """Return whose key this is, or None when it is nobody's or was revoked."""
    key = session.scalar(
        select(ApiKey).where(ApiKey.secret_sha256 == _digest(secret), ApiKey.revoked_at.is_(None))
    )
    if key is None:
        return None
    return Caller(key.id, key.project_id, key.requests_per_minute, key.tokens_per_minute)


def project_of(session: Session, secret: str) -> str | None:
    """Return the id of the project whose key this is, or None."""
    caller = caller_of(session, secret)
    return None if caller is None else caller.project_id


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
