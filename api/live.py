"""Follows the running answers that requests of this process wait for or stream: one reader for all of them.

A single Redis connection reads the streams of all responses that are followed (`storage.stream`), which brings tokens
within milliseconds; another hears which responses have ended (`api.ends`), a hint to ask SQL. SQL is asked for many
responses in one go: for a new reader, after a hint, where the stream has a gap, every second while Redis is away, and
now and then while it is not, because Redis may forget at any moment. What was learned of an answer is kept once
(`api.tails`), however many read it and however slow they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api import known
from api.ends import Ends, connect
from api.known import News, Question
from api.watch import SOON_SECONDS, Watch
from storage import stream
from storage.database import Database
from storage.models import Json

log = structlog.get_logger(__name__)

# How long one read of the streams may stand; a response that is watched meanwhile joins the next one.
BLOCK_MS = 50
# Tokens of all answers come in flushes; reads that begin no sooner after one another carry what several brought.
PACE_SECONDS = 0.005
READ_ENTRIES = 256
# SQL is asked this often while Redis is away,
POLL_SECONDS = 1.0
# every so many times this while Redis answers,
CALM_POLLS = 5
SQL_BATCH = 200
# and then for all whose turn comes within this time.
TOGETHER_SECONDS = 0.5

# What a read brings: for each stream that has something, its key and its entries (id, fields).
Entries = list[tuple[str, dict[str, str]]]


class Stopping(Exception):
    """The process is going away; nobody waits here any longer."""


class Live:
    """The watch over all responses that somebody waits for. `start` it in a running event loop."""

    def __init__(self, redis_url: str, database: Database) -> None:
        self._redis_url = redis_url
        self._ends = Ends(redis_url)
        self._database = database
        self._watches: dict[str, Watch] = {}
        self._read_more = asyncio.Event()  # there may be a stream to read
        self._ask_more = asyncio.Event()  # there may be a question to ask
        self._redis_answers = True
        self._database_answers = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = False

    def start(self) -> None:
        """Begin to watch."""
        self._loop = asyncio.get_running_loop()
        loops = (self._follow_redis, self._hear_ends, self._ask_sql)
        self._tasks = [asyncio.create_task(_for_ever(each)) for each in loops]

    def close_soon(self) -> None:
        """End all waiting, now and from now on. May be called from a signal handler or another thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_waiting)

    async def stop(self) -> None:
        """End all waiting and the watch."""
        self._stop_waiting()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait(self, response_id: str) -> None:
        """Return when the response has reached its end.

        Raises:
            Stopping: the process is asked to stop.
        """
        with self._held(response_id) as watch:
            await self._ended(watch)

    async def result(self, response_id: str) -> Json | None:
        """Return the Response object when it has reached its end; None when it was deleted.

        Of a job that was accepted a moment ago: SQL is not asked at once whether it has ended.

        Raises:
            Stopping: the process is asked to stop.
        """
        with self._held(response_id) as watch:
            if watch.holders == 1 and not watch.hinted:
                watch.due = self._now() + POLL_SECONDS
            watch.readers += 1
            try:
                await self._ended(watch)
            finally:
                watch.readers -= 1
            return None if watch.tail.gone else watch.tail.shown

    async def _ended(self, watch: Watch) -> None:
        while not watch.tail.ended:
            if self.stopping:
                raise Stopping
            await watch.changed.wait()

    @contextlib.contextmanager
    def follow(self, response_id: str) -> Iterator[Watch]:
        """Hold a watch whose tail grows while the answer does."""
        with self._held(response_id) as watch:
            watch.followers += 1
            if watch.followers == 1:  # nobody kept up with the tokens until now
                watch.read_again()
                watch.due = 0.0
                self._wake()
            try:
                yield watch
            finally:
                watch.followers -= 1

    @contextlib.contextmanager
    def _held(self, response_id: str) -> Iterator[Watch]:
        watch = self._watches.get(response_id)
        if watch is None:
            watch = self._watches[response_id] = Watch(response_id, hinted=self._ends.lately(response_id))
        watch.holders += 1
        self._wake()
        try:
            yield watch
        finally:
            watch.holders -= 1
            if watch.holders == 0 and self._watches.get(response_id) is watch:
                del self._watches[response_id]

    def _open(self) -> list[Watch]:
        return [watch for watch in self._watches.values() if not watch.tail.ended]

    def _wake(self) -> None:
        self._read_more.set()
        self._ask_more.set()

    def _stop_waiting(self) -> None:
        self.stopping = True
        for watch in self._watches.values():
            watch.tell()

    async def _follow_redis(self) -> None:
        redis = connect(self._redis_url)
        async with redis:
            while True:
                readable = {
                    stream.key(watch.response_id): watch
                    for watch in self._open()
                    if watch.followers and not watch.gap
                }
                if not readable:
                    self._read_more.clear()
                    await self._read_more.wait()
                    continue
                try:
                    await self._read(redis, readable)
                except (RedisError, OSError) as trouble:
                    self._redis_is_back(False, str(trouble))
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    self._redis_is_back(True)

    async def _read(self, redis: Redis, readable: dict[str, Watch]) -> None:
        begun, places = self._now(), {key: watch.place for key, watch in readable.items()}
        found = cast(
            list[tuple[str, Entries]],
            await redis.xread(places, count=READ_ENTRIES, block=BLOCK_MS),  # type: ignore[arg-type]
        )
        for key, entries in found:
            watch = readable[key]
            if watch.place == places[key]:  # else somebody wants it from the beginning meanwhile
                self._take(watch, entries)
                watch.tell()
        if found:
            await asyncio.sleep(begun + PACE_SECONDS - self._now())

    def _take(self, watch: Watch, entries: Entries) -> None:
        for entry_id, fields in entries:
            if "end" in fields:
                watch.hinted, watch.due = True, 0.0
            else:
                watch.tail.started = True
            if "first" in fields:
                watch.gap = not watch.tail.take(
                    int(fields["first"]),
                    json.loads(fields["pieces"]),
                    json.loads(fields.get("logprobs", "[]")),
                )
            if watch.gap:
                break
            watch.place = entry_id
        if watch.gap:
            watch.ask_soon(self._now())
        self._ask_more.set()

    async def _hear_ends(self) -> None:
        while True:
            try:
                await self._ends.listen(self._listening, self._heard)
            except (RedisError, OSError) as trouble:
                self._redis_is_back(False, str(trouble))
                await asyncio.sleep(POLL_SECONDS)

    def _listening(self) -> None:
        self._redis_is_back(True)
        for watch in self._open():  # its end may have been told meanwhile
            watch.ask_soon(self._now())
        self._ask_more.set()

    def _heard(self, response_id: str) -> None:
        watch = self._watches.get(response_id)
        if watch is not None:
            watch.hinted, watch.due = True, 0.0
            self._ask_more.set()

    async def _ask_sql(self) -> None:
        while True:
            watches = self._open()
            now = self._now()
            if any(watch.due <= now for watch in watches):
                # Whatever would be asked soon is asked along: one question costs little more than another.
                due = [watch for watch in watches if watch.due <= now or self._comes_along(watch, now)]
                for start in range(0, len(due), SQL_BATCH):
                    await self._ask(due[start : start + SQL_BATCH])
                continue
            self._ask_more.clear()
            pause = min((watch.due for watch in watches), default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if pause is None else pause - self._now()):
                    await self._ask_more.wait()

    @staticmethod
    def _comes_along(watch: Watch, now: float) -> bool:
        return watch.due <= now + TOGETHER_SECONDS and watch.asked + SOON_SECONDS <= now

    async def _ask(self, watches: list[Watch]) -> None:
        asked = {watch: watch.question() for watch in watches}
        for watch in watches:
            watch.asked, watch.due = self._now(), math.inf  # what comes up meanwhile makes it due again
        try:
            news = await run_in_threadpool(known.ask, self._database, list(asked.values()))
        except SQLAlchemyError as trouble:
            self._database_is_back(False, type(trouble).__name__)
            for watch in watches:
                watch.due = min(watch.due, self._now() + POLL_SECONDS)
            return
        self._database_is_back(True)
        for watch, question in asked.items():
            self._learn(watch, question, news)

    def _learn(self, watch: Watch, question: Question, news: News) -> None:
        tail = watch.tail
        standing = news.standing(watch.response_id)
        tail.started = tail.started or standing.started
        for chunk in news.chunks.get(watch.response_id, []):
            tail.take_stored(chunk.first_index, chunk.pieces, chunk.tail, chunk.logprobs or ())
        if watch.gap:
            watch.read_again()
            self._read_more.set()
        shown = news.shown.get(watch.response_id)
        if standing.ended:
            if not question.result:
                tail.ended = not (watch.followers or watch.readers)
                watch.due = 0.0  # else somebody has come meanwhile who wants more than its end
            elif question.stored is None and watch.followers:
                watch.due = 0.0  # began to follow meanwhile, and needs the tokens first
            elif shown is None:
                tail.vanish()
            else:
                tail.close(*shown)
        elif shown is not None:
            tail.open(*shown)
        if tail.ended and question.stored is None:
            self._watches.pop(
                watch.response_id, None
            )  # whoever comes now may want the tokens, which it lacks
        watch.due = min(watch.due, self._now() + self._pause(watch))
        watch.tell()

    def _pause(self, watch: Watch) -> float:
        if watch.hinted:
            return SOON_SECONDS
        return POLL_SECONDS * (CALM_POLLS if self._redis_answers else 1)

    def _redis_is_back(self, answers: bool, cause: str = "") -> None:
        if answers != self._redis_answers:
            self._redis_answers = answers
            if answers:
                log.info("redis reachable again")
            else:
                log.warning("redis unreachable, SQL is asked instead", cause=cause)
                for watch in self._open():
                    watch.ask_soon(self._now())
                self._ask_more.set()

    def _database_is_back(self, answers: bool, cause: str = "") -> None:
        if answers != self._database_answers:
            self._database_answers = answers
            if answers:
                log.info("database reachable again")
            else:
                log.warning("database unreachable, waiting goes on", cause=cause)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """Run one of the loops. A defect in it must not leave every stream of the process standing."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("defect")
            await asyncio.sleep(POLL_SECONDS)
