"""The callers: conversations of several turns, each accepted whatever happens to the service meanwhile.

A caller does what a careful backend does: it names every POST with an Idempotency-Key and repeats it until it has an
answer. What it sent, and each answer, goes into the history.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.history import History

OPEN = ("queued", "in_progress")
PROMPT_MARK = "zebrafish"  # in every prompt, and in no log
POLL_SECONDS = 1.0
RETRY_SECONDS = 0.3
# Tokens of an answer, and how often out of ten: enough long ones that there is always one to be hit.
LENGTHS = ((15, 40, 2), (80, 140, 5), (220, 300, 3))


@dataclass
class Turn:
    """What will be asked, drawn before the run begins."""

    number: int
    length: int
    ahead: bool  # sent without waiting for the turn before it
    cancel_after: float | None
    readers: int


@dataclass
class Talk:
    """One conversation."""

    number: int
    turns: list[Turn] = field(default_factory=list)


def talks(seed: int, conversations: int, jobs: int) -> list[Talk]:
    """Draw what all callers will ask: `jobs` turns, spread evenly."""
    draw = random.Random(f"{seed}/load")
    found = [Talk(number) for number in range(conversations)]
    for job in range(jobs):
        talk = found[job % conversations]
        low, high, _ = draw.choices(LENGTHS, [weight for _, _, weight in LENGTHS])[0]
        talk.turns.append(
            Turn(
                number=len(talk.turns),
                length=draw.randint(low, high),
                ahead=draw.random() < 0.4,
                cancel_after=draw.uniform(0, 3) if draw.random() < 0.04 else None,
                readers=draw.choices((0, 1, 2), (6, 3, 1))[0],
            )
        )
    return found


class Gate:
    """Lets one job through each `interval` seconds, so that the load lasts as long as the faults do."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._next = 0.0

    async def __call__(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(self._next + self.interval, now)
        await asyncio.sleep(self._next - now)


class Callers:
    """All callers of a run."""

    def __init__(
        self, client: httpx.AsyncClient, history: History, *, webhook: dict[str, Any], run_id: str
    ) -> None:
        self.client = client
        self.history = history
        self.webhook = webhook
        self.run_id = run_id
        self.accepted: list[str] = []
        self.ended: set[str] = set()
        self.waits: set[asyncio.Task[None]] = set()
        self.on_accepted: Callable[[str, int], None] = lambda _id, _readers: None

    async def run(self, talk: Talk, gate: Gate) -> None:
        """Have one conversation; return when its last turn was accepted and those waited for have ended."""
        conversation = (await self.post("/v1/conversations", {}, f"{self.run_id}-{talk.number}"))["id"]
        last: asyncio.Task[None] | None = None
        for turn in talk.turns:
            if last is not None and not turn.ahead:
                await asyncio.shield(last)
            await gate()
            last = await self.ask(conversation, talk.number, turn)

    async def ask(self, conversation: str | None, talk: int, turn: Turn) -> asyncio.Task[None]:
        """Get one turn accepted; return the task that waits for its end."""
        key = f"{self.run_id}-{talk}-{turn.number}"
        body: dict[str, Any] = {
            "model": "default",
            "instructions": f"You are a {PROMPT_MARK}.",
            "input": f"{PROMPT_MARK} says {talk}.{turn.number}",
            "background": True,
            "temperature": 0.9,
            "max_output_tokens": turn.length,
            "metadata": {"talk": str(talk), "turn": str(turn.number), "key": key},
            "webhook": self.webhook,
        }
        if conversation is not None:
            body["conversation"] = conversation
        shown = await self.post("/v1/responses", body, key)
        response_id = str(shown["id"])
        self.accepted.append(response_id)
        self.on_accepted(response_id, turn.readers)
        task = asyncio.create_task(self._await_end(response_id, turn.cancel_after))
        self.waits.add(task)
        return task

    async def post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """POST until it is answered with success; every answer and every failure is history."""
        while True:
            try:
                answer = await self.client.post(path, json=body, headers={"idempotency-key": key})
            except httpx.TransportError as trouble:
                self.history.add("call", op=path, key=key, error=type(trouble).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.is_success:
                shown: dict[str, Any] = answer.json()
                self.history.add("call", op=path, key=key, status=answer.status_code, id=shown["id"])
                return shown
            self.history.add("call", op=path, key=key, status=answer.status_code, said=answer.text[:300])
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                raise RuntimeError(f"POST {path} was refused: {answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(float(answer.headers.get("retry-after", RETRY_SECONDS)))

    async def _await_end(self, response_id: str, cancel_after: float | None) -> None:
        loop = asyncio.get_running_loop()
        cancel_at = None if cancel_after is None else loop.time() + cancel_after
        seen = None
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                if cancel_at is not None and loop.time() >= cancel_at:
                    answer = await self.client.post(f"/v1/responses/{response_id}/cancel")
                    self.history.add("call", op="cancel", id=response_id, status=answer.status_code)
                    cancel_at = None if answer.is_success else cancel_at
                else:
                    answer = await self.client.get(f"/v1/responses/{response_id}")
            except httpx.TransportError:
                continue
            if not answer.is_success:
                if answer.status_code < 500 and answer.status_code != 429:
                    self.history.add("status", id=response_id, status=f"HTTP {answer.status_code}")
                continue
            status = answer.json()["status"]
            if status != seen:
                self.history.add("status", id=response_id, status=status)
                seen = status
            if status not in OPEN:
                self.ended.add(response_id)
                return


def lines(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Parse one block of a server-sent event stream into (event, data); `[DONE]` is an event of that name."""
    event, data = "", ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "event":
            event = value.strip()
        elif name == "data":
            data += value.strip()
    if not data:
        return []
    return [("[DONE]", {})] if data == "[DONE]" else [(event, json.loads(data))]


def extra(talk: int, numbers: Sequence[int], length: int) -> Talk:
    """A conversation that keeps the load going."""
    return Talk(talk, [Turn(number, length, number % 2 == 1, None, 0) for number in numbers])
