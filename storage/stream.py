"""The live tail of every answer that somebody may follow: one Redis Stream a response, and word of each end.

Entry ids are `attempt-position`, chosen by us. A stream accepts only growing ids, so the server itself refuses
an entry of an attempt that another has followed. An entry holds tokens and their text from one position on;
`position` in its id is the one behind its last token, so the log of an attempt has no gap that an id would
not show. Everything here is a copy: if the key is gone, `output_chunks` in SQL has the answer.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from storage.leases import Chunk
from storage.scores import Entry

# Long enough for every job there may be; the key of a finished one goes sooner.
LIFETIME_SECONDS = 24 * 3600
FINISHED_LIFETIME_SECONDS = 600
# The channel on which the id of each response that has ended is told: a hint to ask SQL.
ENDED = "qwenq:ended"
# Behind every position an answer can have: the id of the entry that says "it has ended".
END_POSITION = 2**32


class StaleAttempt(Exception):
    """Another attempt, or the end of the job, stands in the stream already."""


@dataclass(frozen=True, slots=True)
class LiveTail:
    """What a stream holds: tokens contiguous from `chunk.first_index`, and whether the answer has ended."""

    chunk: Chunk
    ended: bool


def connect(url: str) -> Redis:
    """Return a client with time limits on everything: Redis being away is an error here, never a wait."""
    return Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=2, health_check_interval=10, decode_responses=True
    )


def key(response_id: str) -> str:
    """Return the name of the response's stream."""
    return f"qwenq:tail:{response_id}"


def fence(redis: Redis, response_id: str, attempt: int) -> None:
    """Open the stream for `attempt`: from now on no earlier attempt can add to it.

    Raises:
        StaleAttempt: a later attempt, or the end, came first.
    """
    _add(redis, response_id, f"{attempt}-0", {"attempt": str(attempt)})


def seal(redis: Redis, response_id: str, attempt: int) -> LiveTail:
    """Let `attempt` add nothing more, and return what the stream holds of the answer.

    A stream that a later attempt has opened is returned as it is.
    """
    with contextlib.suppress(StaleAttempt):
        _add(redis, response_id, f"{attempt}-{END_POSITION - 1}", {"sealed": "1"})
    return tail(redis, response_id)


def append(
    redis: Redis,
    entries: Iterable[tuple[str, int, Chunk]],
    ended: Iterable[tuple[str, int]] = (),
    untailed: Iterable[str] = (),
) -> list[str]:
    """Add chunks of several answers, `(response_id, attempt, chunk)`, in one round trip, and behind them mark the
    answers as `ended` that are, as `end` does; of `untailed` ones, which have no stream, the end is told alone.

    Returns:
        the ids of the responses whose stream refused the entry because the attempt is stale.
    """
    pipe = redis.pipeline(transaction=False)
    response_ids = []
    for response_id, attempt, chunk in entries:
        response_ids.append(response_id)
        fields: dict[str, str] = {
            "first": str(chunk.first_index),
            "tokens": _packed(chunk.token_ids),
            "pieces": _packed(chunk.pieces),
        }
        if chunk.logprobs:
            fields["logprobs"] = _packed(chunk.logprobs)
        pipe.xadd(key(response_id), fields, id=f"{attempt}-{chunk.end}")  # type: ignore[arg-type]
    for response_id, attempt in ended:
        _end(pipe, response_id, attempt)
    for response_id in untailed:
        pipe.publish(ENDED, response_id)
    results = pipe.execute(raise_on_error=False)
    refused = [isinstance(result, ResponseError) and _is_stale(result) for result in results]
    for result, stale in zip(results, refused, strict=True):
        if isinstance(result, Exception) and not stale:
            raise result
    return [response_id for response_id, stale in zip(response_ids, refused, strict=False) if stale]


def end(redis: Redis, response_id: str, attempt: int) -> None:
    """Mark the answer as ended and tell it to whoever waits. SQL holds what the end was."""
    append(redis, (), [(response_id, attempt)])  # refused where it was told already


def tail(redis: Redis, response_id: str) -> LiveTail:
    """Return what the stream holds of the answer.

    An entry may repeat what stands before it (its writer did not learn that Redis had taken it). One that does
    not connect to the entries before it (the key was lost in between) starts the tail anew.
    """
    first: int = 0
    token_ids: list[int] = []
    pieces: list[str] = []
    logprobs: list[Entry] = []
    ended = False
    entries = cast(list[tuple[str, dict[str, str]]], redis.xrange(key(response_id)))
    for _entry_id, fields in entries:
        if "end" in fields:
            ended = True
        elif "first" in fields:
            start = int(fields["first"])
            if first <= start <= first + len(token_ids):
                del token_ids[start - first :], pieces[start - first :], logprobs[start - first :]
            else:
                first, token_ids, pieces, logprobs = start, [], [], []
            token_ids += json.loads(fields["tokens"])
            pieces += json.loads(fields["pieces"])
            logprobs += json.loads(fields.get("logprobs", "[]"))
    return LiveTail(Chunk(first, token_ids, pieces, logprobs=logprobs), ended)


def join(stored: Chunk, live: Chunk) -> Chunk:
    """Return the stored chunk from position 0, made longer by what the live one has behind it.

    Tokens that a reader may have seen are never taken back, so a new attempt goes on behind the longer of the
    two. A live tail that leaves a gap behind the stored part adds nothing.
    """
    if not live.first_index <= stored.end < live.end:
        return stored
    return stored.then(live.since(stored.end))


def forget(redis: Redis, response_ids: Sequence[str]) -> None:
    """Delete the streams of these responses."""
    if response_ids:
        redis.delete(*(key(response_id) for response_id in response_ids))


def _add(redis: Redis, response_id: str, entry_id: str, fields: dict[str, str]) -> None:
    try:
        pipe = redis.pipeline(transaction=False)
        pipe.xadd(key(response_id), fields, id=entry_id)  # type: ignore[arg-type]
        pipe.expire(key(response_id), LIFETIME_SECONDS)
        pipe.execute()
    except ResponseError as refused:
        if _is_stale(refused):
            raise StaleAttempt(f"{entry_id} of {response_id}") from None
        raise


def _end(pipe: Pipeline, response_id: str, attempt: int) -> None:
    pipe.xadd(key(response_id), {"end": "1"}, id=f"{attempt}-{END_POSITION}")
    pipe.expire(key(response_id), FINISHED_LIFETIME_SECONDS)
    pipe.publish(ENDED, response_id)


def _packed(values: Sequence[object]) -> str:
    return json.dumps(list(values), separators=(",", ":"))


def _is_stale(error: ResponseError) -> bool:
    return "equal or smaller" in str(error)
