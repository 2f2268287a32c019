"""`Idempotency-Key`: a POST that is sent again with the same key and body answers with the same object.

The key is stored in the transaction that creates the object (`storage.idempotency`). Of two equal requests at
the same moment one waits for the other's commit and then finds its object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.requests import Request

from api.errors import BadRequest
from storage import idempotency
from storage.database import Database

HEADER = "idempotency-key"
FORM = re.compile(r"[!-~]{1,255}")

Shown = TypeVar("Shown")


@dataclass(frozen=True, slots=True)
class Key:
    """A request's key and the digest of what it was sent with."""

    key: str
    fingerprint: str


async def key_of(request: Request, content: str | None = None) -> Key | None:
    """Return the request's key, or None when it brought none.

    Args:
        content: stands for the body of a request whose body is not JSON.

    Raises:
        BadRequest: it is empty, too long, or holds something else than visible ASCII.
    """
    given = request.headers.get(HEADER)
    if given is None:
        return None
    if not FORM.fullmatch(given):
        raise BadRequest(
            "Invalid header 'Idempotency-Key': use 1 to 255 visible ASCII characters.", param=HEADER
        )
    if content is None:
        content = json.dumps(await request.json(), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(f"{request.method} {request.url.path}\n{content}".encode())
    return Key(given, digest.hexdigest())


def once(
    database: Database,
    project_id: str,
    key: Key | None,
    create: Callable[[Session], tuple[str, Shown]],
    load: Callable[[Session, str], Shown],
) -> Shown:
    """Run `create` in a transaction, or `load` what the key's first request created.

    Args:
        create: stores an object and returns its id and what is shown of it.
        load: returns what is shown of the object with this id.

    Raises:
        storage.idempotency.KeyReused: the first request with this key was another.
    """

    def attempt() -> Shown:
        with database.begin() as session:
            if key is not None:
                found = idempotency.find(session, project_id, key.key, key.fingerprint)
                if found is not None:
                    return load(session, found)
            object_id, shown = create(session)
            if key is not None:
                idempotency.remember(session, project_id, key.key, key.fingerprint, object_id)
            return shown

    try:
        return attempt()
    except IntegrityError:
        if key is None:
            raise
        return attempt()  # an equal request was faster; its object is committed now and will be found
