"""Those who watch answers being written: one reader of all Redis Streams, and HTTP streams that are cut and resumed."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from storage import stream
from tests.faults.history import History
from tests.faults.load import RETRY_SECONDS, lines

ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


class LiveReader:
    """Reads every entry of the streams it was told of, whatever becomes of the server; knows how far they are."""

    def __init__(self, url: str, history: History) -> None:
        self._url, self._history = url, history
        self._positions: dict[str, str] = {}
        self.seen: dict[str, int] = {}  # response id: tokens

    def watch(self, response_id: str) -> None:
        self._positions[stream.key(response_id)] = "0-0"

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                async with Redis.from_url(
                    self._url, socket_timeout=5, socket_connect_timeout=2, protocol=2, decode_responses=True
                ) as redis:
                    while True:
                        await self._read(redis)
            except (RedisError, OSError):
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, redis: Redis) -> None:
        if not self._positions:
            await asyncio.sleep(0.1)
            return
        found = await redis.xread(dict(self._positions), count=100, block=50)  # type: ignore[arg-type]
        for key, entries in found:
            response_id = key.rsplit(":", 1)[-1]
            for entry_id, fields in entries:
                self._positions[key] = entry_id
                if "end" in fields:
                    del self._positions[key]
                    break
                if "first" not in fields:
                    continue
                first, tokens = int(fields["first"]), json.loads(fields["tokens"])
                self.seen[response_id] = first + len(tokens)
                attempt = int(entry_id.split("-")[0])
                self._history.add("entry", id=response_id, attempt=attempt, first=first, tokens=tokens)
        await asyncio.sleep(0.1)  # ten looks a second are enough to see what a caller could have seen


async def follow(
    client: httpx.AsyncClient, history: History, response_id: str, reader: str, draw: random.Random | None
) -> None:
    """Read a response's HTTP stream to its end; with `draw`, hang up at random and go on behind the last event."""
    last = -1
    while True:
        patience = draw.randint(1, 60) if draw is not None and draw.random() < 0.7 else None
        asked = {"stream": "true", **({"starting_after": str(last)} if last >= 0 else {})}
        try:
            async with client.stream("GET", f"/v1/responses/{response_id}", params=asked) as answer:
                if answer.is_success:
                    block = ""
                    async for line in answer.aiter_lines():
                        if line:
                            block += line + "\n"
                            continue
                        for event, data in lines(block):
                            if event == "[DONE]":
                                return
                            last = data["sequence_number"]
                            history.add(
                                "event",
                                id=response_id,
                                reader=reader,
                                n=last,
                                type=event,
                                delta=data.get("delta"),
                            )
                            if event in ENDS:
                                return
                            patience = None if patience is None else patience - 1
                        block = ""
                        if patience == 0:
                            break
                elif answer.status_code < 500 and answer.status_code != 429:
                    history.add(
                        "event", id=response_id, reader=reader, n=None, type=f"HTTP {answer.status_code}"
                    )
                    return
        except httpx.TransportError:
            pass
        await asyncio.sleep(RETRY_SECONDS)
