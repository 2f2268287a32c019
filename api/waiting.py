"""Waiting for a response's end on behalf of a caller whose connection stays open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from api.errors import BadRequest
from api.live import Live, Stopping
from storage.models import Json

T = TypeVar("T")
Unended = Literal["timeout", "gone", "stopping"]
Outcome = Literal["ended"] | Unended

PREFERENCE = re.compile(r"\bwait=(\d{1,6})\b")
LONGEST_PREFERENCE = 600


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """What was waited for."""

    value: T


async def for_end(
    request: Request, live: Live, response_ids: Sequence[str], seconds: float | None
) -> Outcome:
    """Wait until the responses have ended, `seconds` are over, the caller is gone or the process is to stop.

    The request's body must have been read.
    """
    found = await _while_there(request, _all(live, response_ids), seconds)
    return found if isinstance(found, str) else "ended"


async def for_result(request: Request, live: Live, response_id: str) -> Ended[Json | None] | Unended:
    """Wait as `for_end` does, without a limit, for the Response object; None when it was deleted."""
    return await _while_there(request, live.result(response_id), None)


async def _while_there(
    request: Request, work: Coroutine[Any, Any, T], seconds: float | None
) -> Ended[T] | Unended:
    end = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        done, _ = await asyncio.wait({end, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if end in done:
            return Ended(await end)
        return "gone" if done else "timeout"
    except Stopping:
        return "stopping"
    finally:
        end.cancel()
        gone.cancel()


async def _all(live: Live, response_ids: Sequence[str]) -> None:
    await asyncio.gather(*(live.wait(response_id) for response_id in response_ids))


def preference(request: Request) -> int | None:
    """Return N of the header ``Prefer: wait=N`` (RFC 7240), in seconds.

    Raises:
        BadRequest: it is more than the service waits.
    """
    found = PREFERENCE.search(request.headers.get("prefer", ""))
    if found is None:
        return None
    seconds = int(found[1])
    if seconds > LONGEST_PREFERENCE:
        raise BadRequest(
            f"Invalid header 'Prefer': the service waits at most {LONGEST_PREFERENCE} seconds.",
            param="prefer",
        )
    return seconds


async def disconnected(receive: Receive) -> None:
    """Return when the caller has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
