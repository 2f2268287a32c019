"""Readers of one stream whose API processes are killed under them, and what each of them has to have in the end."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from openai import OpenAI

from tests.acceptance.house import House, free_port, until

TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


class Apis:
    """Several API processes of one house. One of them at least is always there."""

    def __init__(self, house: House, count: int) -> None:
        self._house = house
        self._ports = {f"api-{number}": free_port() for number in range(2, count + 2)}
        self.kills = 0
        for name in self._ports:
            self._start(name)
        for name in self._ports:
            self._wait(name)

    def urls(self) -> list[str]:
        return [self._url(name) for name in self._ports]

    def kill_one(self, chance: random.Random) -> str:
        """SIGKILL one of them, start it again, and return once it serves; meanwhile the others do."""
        name = chance.choice(sorted(self._ports))
        self._house.kill(name)
        self.kills += 1
        self._start(name)
        self._wait(name)
        return name

    def close(self) -> None:
        for name in self._ports:
            self._house.stop(name)

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def _start(self, name: str) -> None:
        self._house.start(name, QWENQ_PORT=str(self._ports[name]))

    def _wait(self, name: str) -> None:
        def ready() -> bool:
            try:
                return httpx.get(f"{self._url(name)}/readyz", trust_env=False).status_code == 200
            except httpx.TransportError:
                assert self._house.running[name].poll() is None, self._house.log(name)[-3000:]
                return False

        until(name, ready)


@dataclass
class Reader:
    """One client that reads a response to its end, through whatever process answers.

    Attributes:
        events: what it has, over all its connections.
        cuts: the number of its last event at each break of a connection; -1 before the first event. A client that
            keeps what it has read may be behind what had come: how far is chosen at random at each break.
    """

    house: House
    urls: list[str]
    response_id: str
    chance: random.Random
    events: list[Any] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    @property
    def number(self) -> int:
        return self.events[-1].sequence_number if self.events else -1

    @property
    def text(self) -> str:
        return "".join(each.delta for each in self.events if each.type == "response.output_text.delta")

    def wait_for(self, number: int) -> None:
        """Wait until it has read event `number`, or all there is."""
        until("more events", lambda: self.number >= number or not self.thread.is_alive(), 120)

    def _run(self) -> None:
        try:
            while not self.events or self.events[-1].type not in TERMINAL:
                self._read()
        except BaseException as failure:
            self.failure = failure

    def _read(self) -> None:
        url = self.chance.choice(self.urls)
        with OpenAI(base_url=f"{url}/v1", api_key=self.house.api_key, max_retries=0, timeout=60) as client:
            had = len(self.events)
            after = self.number if self.events else openai.omit
            try:
                stream = client.responses.retrieve(self.response_id, stream=True, starting_after=after)
            except (openai.APIConnectionError, openai.InternalServerError):
                time.sleep(0.05)  # this process is gone or going: take another
                return
            try:
                for event in stream:
                    self.events.append(event)
            except openai.APIConnectionError:
                del self.events[self.chance.randint(had, len(self.events)) :]
                self.cuts.append(self.number)


def seed() -> int:
    """The run's seed: QWENQ_CUTS_SEED, or a new one. It is printed."""
    chosen = int(os.environ.get("QWENQ_CUTS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nQWENQ_CUTS_SEED={chosen}")
    return chosen
