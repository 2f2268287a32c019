"""What the engine process tells the worker, with few messages.

A GPU makes hundreds of steps a second, each with a token for every running request. With a message a step the worker
would wake for each of them, while nobody reads faster than the live tail is written. So tokens wait for a moment and
travel together; the first of an answer and its end, which somebody waits for, never do. Tokens that nobody follows
(`GenerationRequest.followed`) wait for a longer moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain

from worker.engine.request import Event, GenerationRequest, Tokens

# Shorter than the pause between two writes of the live tail (`worker.tail`), so that each finds new tokens.
WINDOW_SECONDS = 0.015
# Shorter than the pause between two checkpoints (`worker.generation`), which store what has come.
QUIET_WINDOW_SECONDS = 0.25


class Window:
    """Tokens that wait, of requests of one kind."""

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds, self._sent = seconds, now
        self.waiting: dict[str, list[Tokens]] = {}

    def due(self, now: float) -> list[Event]:
        """Return what has waited long enough."""
        if now - self._sent < self._seconds:
            return []
        found: list[Event] = [joined(tokens) for tokens in self.waiting.values()]
        self.waiting.clear()
        self._sent = now
        return found


class Outgoing:
    """Joins the events of several steps. `send` gets them in lists, those of one request in their order."""

    def __init__(
        self, send: Callable[[list[Event]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        now = clock()
        self._followed, self._quiet = Window(WINDOW_SECONDS, now), Window(QUIET_WINDOW_SECONDS, now)
        self._unfollowed: set[str] = set()

    def expect(self, request: GenerationRequest) -> None:
        """Learn of a request before its first event."""
        if not request.followed:
            self._unfollowed.add(request.request_id)

    def put(self, events: Iterable[Event]) -> None:
        """Take the events of a step and send what is due. Nothing of a request waits once it has ended."""
        due: list[Event] = []
        for event in events:
            name = event.request_id
            window = self._quiet if name in self._unfollowed else self._followed
            if not isinstance(event, Tokens):
                if name in window.waiting:
                    due.append(joined(window.waiting.pop(name)))
                due.append(event)
                self._unfollowed.discard(name)
            elif event.index == 0:
                due.append(event)
            else:
                window.waiting.setdefault(name, []).append(event)
        now = self._clock()
        due += self._followed.due(now)
        due += self._quiet.due(now)
        if due:
            self._send(due)


def joined(tokens: list[Tokens]) -> Tokens:
    """Return consecutive tokens of one request, at least one event, as one event."""
    first = tokens[0]
    if len(tokens) == 1:
        return first
    logprobs = None if first.logprobs is None else [*chain(*(each.logprobs or () for each in tokens))]
    return Tokens(
        first.request_id,
        first.index,
        [*chain(*(each.token_ids for each in tokens))],
        [*chain(*(each.pieces for each in tokens))],
        logprobs,
    )
