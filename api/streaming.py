"""One caller's stream of one or more answers: what he has not been sent yet, as it comes, and what ends it early.

A stream is complete when `[DONE]` stands at its end. Without it there is more to read: the process went away, or the
last event says why nothing more comes here. What is sent is for a `Script` to say: `ResponseEvents` sends the event log
of a response, `api.chat_chunks` and `api.completion_chunks` the chunks of their endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol

import structlog

from api import events, sse
from api.events import Answer
from api.live import Live

log = structlog.get_logger(__name__)

# Shorter than proxies and clients let a silent connection live.
HEARTBEAT_SECONDS = 15.0
RESTARTING = "restarting, resume with starting_after"
# Events of one write to the connection; between two writes it is seen whether the client takes them.
BATCH = 64


class Script(Protocol):
    """What one caller is sent. It remembers what he has been sent already."""

    @property
    def complete(self) -> bool:
        """Was everything sent?"""

    def lines(self, answers: Sequence[Answer | None]) -> Iterator[bytes]:
        """Return what is new. The answers come in the order in which they were asked for, None while unknown."""

    def deleted(self) -> bytes:
        """Return what is sent when there is nothing to read any more."""

    def restarting(self) -> bytes:
        """Return what is sent when the service restarts."""

    def broken(self) -> bytes:
        """Return what is sent after a defect."""


async def send(live: Live, response_ids: Sequence[str], script: Script) -> AsyncGenerator[bytes, None]:
    """Return the script of these responses as server-sent events.

    Nothing is queued for the caller: what he has not read yet is taken from the shared tails when he is ready for it.
    """
    try:
        with contextlib.ExitStack() as held:
            watches = [held.enter_context(live.follow(response_id)) for response_id in response_ids]
            while True:
                news = [watch.changed for watch in watches]
                gone = any(watch.tail.gone for watch in watches)
                if not gone:
                    for piece in _batches(script.lines([watch.tail.answer() for watch in watches])):
                        yield piece
                        if live.stopping:
                            break
                if script.complete or gone:
                    break
                if live.stopping:
                    yield script.restarting()
                    return
                if not await _any(news):
                    yield sse.comment("ping")
        yield sse.DONE if script.complete else script.deleted()
    except Exception:
        log.exception("defect", response_id=response_ids[0])
        yield script.broken()


def read(live: Live, response_id: str, number: int) -> AsyncGenerator[bytes, None]:
    """Return a response's events behind number `number` (-1 for all) as server-sent events."""
    return send(live, [response_id], ResponseEvents(number))


class ResponseEvents:
    """The event log of one response. The caller goes on with ``starting_after`` and the last number it has."""

    def __init__(self, number: int) -> None:
        self.complete = False
        self._number = number

    def lines(self, answers: Sequence[Answer | None]) -> Iterator[bytes]:
        """Return the events behind the last one that was sent."""
        (answer,) = answers
        if answer is None:
            return
        for event in events.after(answer, self._number):
            self._number = event["sequence_number"]
            yield sse.event(event)
        self.complete = answer.ended

    def deleted(self) -> bytes:
        return self._error("response_deleted", "The response was deleted.")

    def restarting(self) -> bytes:
        return sse.comment(RESTARTING)

    def broken(self) -> bytes:
        return self._error("internal_error", "The server had an error. Resume with starting_after.")

    def _error(self, code: str, message: str) -> bytes:
        return sse.event(events.error(code, message, max(self._number, 0)))


def _batches(lines: Iterator[bytes]) -> Iterator[bytes]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH:
            yield b"".join(batch)
            batch = []
    if batch:
        yield b"".join(batch)


async def _any(news: Sequence[asyncio.Event]) -> bool:
    """Wait until one of them is set; False when none is for the time of a heartbeat."""
    waiting = [asyncio.create_task(event.wait()) for event in news]
    try:
        done, _ = await asyncio.wait(waiting, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in waiting:
            task.cancel()
