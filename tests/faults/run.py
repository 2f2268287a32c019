"""One run: start everything, let callers and faults loose, heal, wait, look, and judge."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from migrations.run import upgrade
from storage.database import Database
from storage.models import Response, WebhookDelivery
from storage.responses import OPEN
from tests.faults import audit, check, load, plan
from tests.faults.breach import Breach
from tests.faults.history import History
from tests.faults.invariants_jobs import every_slot_is_free
from tests.faults.readers import LiveReader, follow
from tests.faults.receivers import Receivers
from tests.faults.scene import NothingToHit, Scene
from tests.faults.servers import Broker, Postgres
from tests.faults.stack import CONCURRENCY, Stack
from tests.model.tiny import Tiny, tiny_ranks

RECEIVERS = ("own", "registered")
EVENTS = ["response.completed", "response.incomplete", "response.failed", "response.cancelled"]
# After the last fault, jobs and deliveries have this long without anything moving; then they count as lost.
STALL_SECONDS = 45.0
# On a slow machine a fault may find nothing to hit; one that a run must have is tried again.
MUST_TRIES = 3
# An init system starts what died after a moment.
RESTART_SECONDS = 0.5


@dataclass(frozen=True)
class Size:
    """How much of everything a run has. `seconds` is how long the load lasts."""

    conversations: int
    jobs: int
    seconds: float
    workers: int
    pace: float  # seconds a token


FULL = Size(conversations=100, jobs=1000, seconds=420, workers=3, pace=0.02)
SHORT = Size(conversations=20, jobs=120, seconds=55, workers=3, pace=0.02)


@dataclass
class Outcome:
    """What a run leaves behind."""

    breaches: list[Breach]
    history: History
    figures: dict[str, int | float] = field(default_factory=dict)


Say = Callable[[str], None]


class Standstill:
    """Tells when nothing has moved for so long that nothing will, not counting the time in which programs start."""

    def __init__(self) -> None:
        self._seen: object = None
        self._moved = self._up = time.monotonic()

    def look(self, seen: object, up: bool) -> bool:
        """Take what is seen now, and whether all programs are at work; return whether to give up."""
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._moved = seen, now
        if not up:
            self._up = now
        return now - max(self._moved, self._up) > STALL_SECONDS or now - self._moved > 5 * STALL_SECONDS


def model(folder: Path) -> Path:
    """Write a random model in the real format whose answers seldom end before their limit."""
    tiny = Tiny(hidden=128, mlp=128, head_dim=64)
    tiny.stored["lm_head.weight"][len(tiny_ranks()) :] = 0
    return tiny.write(folder)


class Run:
    """The parts of one run, in the order in which they are needed."""

    def __init__(self, seed: int, size: Size, *, short: bool, without: str, kept: Path, say: Say) -> None:
        self.seed, self.size, self.short, self.say = seed, size, short, say
        # PostgreSQL runs as a user of its own, who must be able to reach this.
        self.directory = Path(tempfile.mkdtemp(prefix="qwenq-faults-"))
        self.logs = kept
        self.history = History(kept / "history.jsonl")
        self.postgres = Postgres(self.directory / "postgres")
        upgrade(self.postgres.url)
        self.database = Database(self.postgres.url)
        with self.database.begin() as session:
            audit.install(session)
        self.broker = Broker(self.directory / "valkey", kept / "valkey.log")
        self.broker.start()
        self.receivers = Receivers(self.history, RECEIVERS)
        self.stack = Stack(
            kept,
            database_url=self.postgres.url,
            redis_url=self.broker.url,
            model=model(self.directory / "model"),
            workers=size.workers,
            without=without,
            pace=size.pace,
        )
        self.client = httpx.AsyncClient(
            base_url=self.stack.base_url,
            headers={"authorization": f"Bearer {self.stack.api_key}"},
            timeout=15,
            trust_env=False,
            limits=httpx.Limits(max_connections=200),
        )
        self.live = LiveReader(self.broker.url, self.history)
        self.scene = Scene(
            stack=self.stack,
            database=self.database,
            postgres=self.postgres,
            broker=self.broker,
            receivers=self.receivers,
            live=self.live,
            history=self.history,
            short=short,
            broker_away=asyncio.Lock(),
        )
        self.callers = load.Callers(
            self.client,
            self.history,
            webhook={"url": self.receivers.url("own"), "secret": self.stack.webhook_secret},
            run_id=self.stack.run_id,
        )
        self.callers.on_accepted = self._accepted
        self.secrets: dict[str, str] = {"own": self.stack.webhook_secret}
        self.reading: set[asyncio.Task[None]] = set()
        self.steady: list[asyncio.Task[None]] = []
        self.streams = False
        self.slots_since: float | None = None

    async def __call__(self) -> Outcome:
        """Do all of it."""
        began = time.monotonic()
        try:
            await self._open()
            await self._live()
            await self._heal()
            if await self._settle():
                await self._fill_every_slot()
                await self._read_again()
        finally:
            for task in (*self.steady, *self.reading):
                task.cancel()
            left = await self._close()
        secrets = {**self.stack.secrets, "a prompt": load.PROMPT_MARK, **self._receivers_secrets()}
        breaches = check.check(self.history.records, self.after, self.secrets)
        if self.slots_since is not None:
            breaches += every_slot_is_free(self.after, self.size.workers, CONCURRENCY, self.slots_since)
        breaches += check.clean_logs(sorted(self.logs.glob("*.log")), secrets)
        breaches += left
        return Outcome(breaches, self.history, self._figures(time.monotonic() - began))

    def _receivers_secrets(self) -> dict[str, str]:
        return {f"the secret of {name}": secret for name, secret in self.secrets.items()}

    async def _open(self) -> None:
        self.say("starting the API, the workers and beat")
        for name in self.stack.programs:
            self.stack.start(name)

        async def up() -> bool:
            for program in self.stack.programs.values():
                if not program.alive:
                    end = program.log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{program.name} cannot start:\n{end}")
            return await self._all_up()

        await self.scene.until("API and workers", up, 180)
        made = await self.client.post(
            "/v1/webhook_endpoints",
            json={"name": "registered", "url": self.receivers.url("registered"), "event_types": EVENTS},
        )
        self.secrets["registered"] = made.raise_for_status().json()["signing_secret"]
        self.streams = await self._has_streams()
        self.steady = [asyncio.create_task(self.live.run()), asyncio.create_task(self._restart())]

    async def _all_up(self) -> bool:
        return all(worker.ready for worker in self.stack.workers) and await self._api_is_ready()

    async def _api_is_ready(self) -> bool:
        try:
            return (await self.client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def _has_streams(self) -> bool:
        answer = await self.client.get("/v1/responses/resp_none", params={"stream": "true"})
        if answer.status_code == 404:
            return True
        self.say("the API has no streams yet: the logs are read from Redis and SQL alone")
        return False

    async def _live(self) -> None:
        gate = load.Gate(self.size.seconds / self.size.jobs)
        everything = load.talks(self.seed, self.size.conversations, self.size.jobs)
        talking = [asyncio.create_task(self.callers.run(talk, gate)) for talk in everything]
        loaded = asyncio.gather(*talking)
        lanes: list[plan.Lane] = ["workers", "surroundings"]
        faults = [asyncio.create_task(self._faults(lane, loaded)) for lane in lanes]
        await self._until_done_or_stalled(loaded)
        number = 0
        while not all(task.done() for task in faults):  # the faults still need something to hit
            number += 1
            turn = load.Turn(number, 250, False, None, 0)
            await gate()
            if len(self.callers.accepted) - len(self.callers.ended) < self.size.workers * CONCURRENCY:
                await self.callers.ask(None, -1, turn)
        for task in faults:
            await task

    async def _until_done_or_stalled(self, loaded: asyncio.Future[list[None]]) -> None:
        still = Standstill()
        while not loaded.done():
            await asyncio.wait({loaded}, timeout=1)
            now = (len(self.callers.accepted), len(self.callers.ended))
            if still.look(now, await self._all_up()):
                self.say(f"nothing moves any more: of {now[0]} jobs callers saw {now[1]} end")
                loaded.cancel()
                break
        with suppress(asyncio.CancelledError):
            await loaded

    async def _faults(self, lane: plan.Lane, loaded: asyncio.Future[list[None]]) -> None:
        for step in plan.steps(self.seed, lane, short=self.short):
            if not step.must and (self.short or loaded.done()):
                return
            await asyncio.sleep(step.pause)
            for _ in range(MUST_TRIES if step.must else 1):
                if await self._fault(lane, step):
                    break

    async def _fault(self, lane: plan.Lane, step: plan.Step) -> bool:
        about = {"lane": lane, "number": step.number, "name": step.name}
        self.history.add("fault", phase="begin", **about)
        self.say(f"fault: {step.name}")
        try:
            hit = await step.fault(self.scene, step.draw)
        except NothingToHit as why:
            hit = {"missed": str(why)}
            self.say(f"fault: {step.name} missed: {why}")
        self.history.add("fault", phase="end", hit=hit, **about)
        return "missed" not in hit

    async def _restart(self) -> None:
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            for name in self.stack.start_what_died():
                self.history.add("restart", name=name)

    def _accepted(self, response_id: str, readers: int) -> None:
        self.live.watch(response_id)
        for number in range(readers if self.streams else 0):
            draw = random.Random(f"{self.seed}/{len(self.callers.accepted)}/{number}")
            self._follow(response_id, f"reader {number}", draw)

    def _follow(self, response_id: str, reader: str, draw: random.Random | None) -> None:
        task = asyncio.create_task(follow(self.client, self.history, response_id, reader, draw))
        self.reading.add(task)

    async def _heal(self) -> None:
        self.say("all is well again: waiting for the last jobs and webhooks")
        self.receivers.heal()
        for program in self.stack.workers:
            if program.stopped:
                self.stack.signal(program.name, signal.SIGCONT, group=True)

    async def _settle(self) -> bool:
        """Wait until nothing is open, or until nothing has moved for a long time; tell which."""
        still = Standstill()
        while (now := await asyncio.to_thread(self._open_things)) != (0, 0, 0):
            if still.look(now, await self._all_up()):
                self.say(f"nothing moves any more: {now} jobs, deliveries, tokens")
                break
            await asyncio.sleep(0.5)
        # What callers and readers have not been told within the same time, they never will be.
        rest = [*self.callers.waits, *self.reading]
        if rest:
            await asyncio.wait(rest, timeout=10)
        return now == (0, 0, 0)

    def _open_things(self) -> tuple[int, int, int] | None:
        from storage.models import OutputChunk

        try:
            with self.database.read() as session:
                jobs = session.scalar(select(func.count()).where(Response.status.in_(OPEN)))
                deliveries = session.scalar(select(func.count()).where(WebhookDelivery.status == "pending"))
                tokens = session.scalar(select(func.count(OutputChunk.first_index)))
        except SQLAlchemyError:
            return None
        if not jobs and not deliveries:
            return (0, 0, 0)
        return (jobs or 0, deliveries or 0, tokens or 0)

    async def _fill_every_slot(self) -> None:
        """As many long jobs as there are slots: each worker must take its part."""
        self.say("every slot gets a job")

        with suppress(NothingToHit):
            await self.scene.until("all workers", self._all_up, 60)
        self.slots_since = time.time()
        slots = self.size.workers * CONCURRENCY
        await asyncio.gather(
            *(self.callers.ask(None, -2, load.Turn(slot, 300, False, None, 0)) for slot in range(slots))
        )
        await self._settle()

    async def _read_again(self) -> None:
        if not self.streams:
            return
        self.say("reading every log once more, from its beginning")
        for start in range(0, len(self.callers.accepted), 20):
            some = self.callers.accepted[start : start + 20]
            readers = [follow(self.client, self.history, one, "again", None) for one in some]
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*readers), 60)

    async def _close(self) -> list[Breach]:
        """End everything; read the database before it goes, and look for what is left."""
        await self.client.aclose()
        left = [Breach("no process is left", "stop", words) for words in self.stack.close()]
        self.broker.stop(signal.SIGTERM)
        with self.database.read() as session:
            self.after = audit.snapshot(session)
        self.database.close()
        self.receivers.close()
        self.postgres.close()
        self.history.close()
        with suppress(NothingToHit):
            await self.scene.until("the end of all engines", self._all_gone, 10)
        for process in self.stack.left_over():
            words = " ".join(process.cmdline()[-3:])
            left.append(Breach("no process is left", str(process.pid), words))
            process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        return left

    async def _all_gone(self) -> bool:
        return not self.stack.left_over()

    def _figures(self, seconds: float) -> dict[str, int | float]:
        records = self.history.records
        kinds = ("call", "entry", "event", "webhook")
        done = [r for r in records if r["kind"] == "fault" and r["phase"] == "end"]
        return {
            "jobs": len(self.after.jobs),
            "conversations": len(self.after.conversations),
            "tokens": sum(len(job.tokens) for job in self.after.jobs.values()),
            "attempts": sum(job.attempt for job in self.after.jobs.values()),
            "faults": sum("missed" not in fault["hit"] for fault in done),
            "faults that found nothing to hit": sum("missed" in fault["hit"] for fault in done),
            "processes started": sum(len(program.pids) for program in self.stack.programs.values()),
            **{f"{kind} records": sum(r["kind"] == kind for r in records) for kind in kinds},
            "seconds": round(seconds),
        }


def keep(seed: int) -> Path:
    """Make a folder for the history and the logs of a run."""
    cache = Path(__file__).parents[2] / ".cache" / "faults"
    folder = cache / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-seed-{seed}"
    folder.mkdir(parents=True)
    return folder
