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
# Of which each request has its own: all at once a quarter of a second of 64 answers takes longer than a step of a GPU.
QUIET_LOOKS = 8


class Window:
    """Tokens that wait, of requests of one kind, for `seconds` at most; they are looked through `looks` times in it."""

    def __init__(self, seconds: float, looks: int, now: float) -> None:
        self._pause, self._long_enough = seconds / looks, seconds - seconds / looks
        self._looked = now
        self._waiting: dict[str, tuple[float, list[Tokens]]] = {}  # since when

    def add(self, tokens: Tokens, now: float) -> None:
        self._waiting.setdefault(tokens.request_id, (now, []))[1].append(tokens)

    def take(self, request_id: str) -> list[Event]:
        """Return what waits of one request."""
        _, waiting = self._waiting.pop(request_id, (0, []))
        return [joined(waiting)] if waiting else []

    def due(self, now: float) -> list[Event]:
        """Return what has waited long enough."""
        if now - self._looked < self._pause:
            return []
        self._looked = now
        names = [name for name, (since, _) in self._waiting.items() if now - since >= self._long_enough]
        return [event for name in names for event in self.take(name)]


class Outgoing:
    """Joins the events of several steps. `send` gets them in lists, those of one request in their order."""

    def __init__(
        self, send: Callable[[list[Event]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        now = clock()
        self._followed = Window(WINDOW_SECONDS, 1, now)
        self._quiet = Window(QUIET_WINDOW_SECONDS, QUIET_LOOKS, now)
        self._unfollowed: set[str] = set()

    def expect(self, request: GenerationRequest) -> None:
        """Learn of a request before its first event."""
        if not request.followed:
            self._unfollowed.add(request.request_id)

    def put(self, events: Iterable[Event]) -> None:
        """Take the events of a step and send what is due. Nothing of a request waits once it has ended."""
        due: list[Event] = []
        now = self._clock()
        for event in events:
            name = event.request_id
            window = self._quiet if name in self._unfollowed else self._followed
            if not isinstance(event, Tokens):
                due += window.take(name)
                due.append(event)
                self._unfollowed.discard(name)
            elif event.index == 0:
                due.append(event)
            else:
                window.add(event, now)
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
