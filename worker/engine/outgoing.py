"""What the engine process tells the worker, with few messages.

A GPU makes hundreds of steps a second, each with a token for every running request. With a message a step the worker
would wake a thread for each of them, while nobody reads faster than the live tail is written. So tokens wait for a
moment and travel together; the first of an answer and its end, which somebody waits for, never do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from worker.engine.request import Event, Tokens

# Shorter than the pause between two writes of the live tail (`worker.tail`), so that each finds new tokens.
WINDOW_SECONDS = 0.015


class Outgoing:
    """Joins the events of several steps. `send` gets them in lists, those of one request in their order."""

    def __init__(
        self, send: Callable[[list[Event]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._waiting: dict[str, Tokens] = {}
        self._sent = clock()

    def put(self, events: Iterable[Event]) -> None:
        """Take the events of a step and send what is due. Nothing of a request waits once it has ended."""
        due: list[Event] = []
        for event in events:
            before = self._waiting.pop(event.request_id, None)
            if isinstance(event, Tokens):
                joined = event if before is None else _join(before, event)
                if joined.index == 0:
                    due.append(joined)
                else:
                    self._waiting[event.request_id] = joined
            else:
                due += [event] if before is None else [before, event]
        now = self._clock()
        if now - self._sent >= WINDOW_SECONDS:
            due += self._waiting.values()
            self._waiting.clear()
            self._sent = now
        if due:
            self._send(due)


def _join(first: Tokens, second: Tokens) -> Tokens:
    logprobs = None
    if first.logprobs is not None and second.logprobs is not None:
        logprobs = first.logprobs + second.logprobs
    return replace(
        first,
        token_ids=first.token_ids + second.token_ids,
        pieces=first.pieces + second.pieces,
        logprobs=logprobs,
    )
