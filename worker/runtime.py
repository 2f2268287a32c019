"""The parts of one worker process: built once before the first task, shared by all its threads.

A worker of the queue `generate` owns an engine process and the tokenizer; the webhook worker has neither.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from celery import Celery
from redis import Redis

from storage import homes, metrics, stream
from storage.crypto import SecretBox
from storage.database import Database
from storage.egress import EgressPolicy
from storage.publisher import Publisher
from storage.settings import load
from worker.aside import Aside
from worker.cancels import Cancels
from worker.engine.client import Engine
from worker.engine.config import EngineConfig, EngineInfo
from worker.health import HealthServer
from worker.metrics import Work
from worker.model.config import GenerationDefaults, load_generation_defaults
from worker.model.tokenizer import Tokenizer
from worker.settings import GenerateSettings, WorkerSettings
from worker.tail import TailWriter
from worker.watchdog import Watchdog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Generator:
    """What it takes to generate answers."""

    settings: GenerateSettings
    engine: Engine
    info: EngineInfo
    tokenizer: Tokenizer
    defaults: GenerationDefaults
    tail: TailWriter
    cancels: Cancels


@dataclass(slots=True)
class Runtime:
    """The process's parts. `drain_deadline` is set (time.monotonic) once the worker is told to go."""

    settings: WorkerSettings
    name: str
    app: Celery
    database: Database
    redis: Redis
    publisher: Publisher
    secrets: SecretBox
    egress: EgressPolicy
    generator: Generator | None
    health: HealthServer | None
    aside: Aside
    watchdog: Watchdog | None = None
    drain_deadline: float | None = None
    # When a message last arrived or a thread became free to hear one (time.monotonic), how many threads are in the
    # task of a message, and how many jobs run here: what the watchdog looks at.
    last_heard: float = field(default_factory=time.monotonic)
    in_tasks: int = 0
    busy: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)
    # Held while a job is claimed, so that `busy` and the claim's own look at this worker's jobs agree.
    claiming: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Surround what a message makes a thread of the pool do: until its end that thread hears no other."""
        with self.counting:
            self.in_tasks += 1
            self.last_heard = time.monotonic()
        try:
            yield
        finally:
            with self.counting:
                self.in_tasks -= 1
                self.last_heard = time.monotonic()

    @property
    def draining(self) -> bool:
        """Whether no new job may be claimed."""
        return self.drain_deadline is not None

    @property
    def drained_out(self) -> bool:
        """Whether running answers must be given back now."""
        return self.drain_deadline is not None and time.monotonic() >= self.drain_deadline

    def drain_now(self) -> None:
        """Claim nothing more, and give running answers back at once."""
        self.drain_deadline = time.monotonic()


_current: Runtime | None = None


def current() -> Runtime:
    """Return this process's runtime.

    Raises:
        RuntimeError: no worker was started in this process.
    """
    if _current is None:
        raise RuntimeError("this process runs no worker: start one with `qwenq worker`")
    return _current


def start(app: Celery, queues: frozenset[str]) -> Runtime:
    """Build the parts for a worker that consumes `queues`, and wait until its engine is ready.

    Raises:
        storage.settings.SettingsError: a setting is missing or wrong.
        worker.engine.errors.EngineStartError: the engine could not load its model.
    """
    global _current
    generates = "generate" in queues
    settings = load(GenerateSettings) if generates else load(WorkerSettings)
    database = Database(settings.database_url, pool_size=min(settings.concurrency, 32) + 2)
    redis = stream.connect(settings.redis_url)
    name = f"{socket.gethostname()}:{os.getpid()}"
    _current = Runtime(
        settings=settings,
        name=name,
        app=app,
        database=database,
        redis=redis,
        publisher=Publisher(database, app),
        secrets=SecretBox(settings.secret_key.get_secret_value()),
        egress=EgressPolicy(tuple(settings.webhook_allowed_networks)),
        generator=_start_generator(settings, redis, name) if isinstance(settings, GenerateSettings) else None,
        health=None,
        aside=Aside(),
    )
    _current.publisher.start()
    if settings.health_port:
        work = Work(_current)
        _current.health = HealthServer(
            settings.health_port,
            check=lambda: _health(current()),
            page=lambda: metrics.page([work]),
            may_read=lambda host: metrics.may_read(host, settings.metrics_networks),
            host=settings.health_host,
        )
    return _current


def drain() -> None:
    """Claim nothing more. Running answers have `drain_seconds` to end, then they are given back; asked again, now.

    May be called in a signal handler.
    """
    if _current is None:
        return
    if _current.draining:
        _current.aside.info("draining at once")
        _current.drain_now()
        return
    generator = _current.generator
    seconds = generator.settings.drain_seconds if generator else 0.0
    _current.drain_deadline = time.monotonic() + seconds
    _current.aside.info("draining", seconds=seconds)


def stop() -> None:
    """End the engine and close what is open; all tasks have returned."""
    global _current
    if _current is None:
        return
    if _current.watchdog is not None:
        _current.watchdog.stop()
    if _current.generator is not None:
        _current.generator.cancels.stop()
        _current.generator.engine.stop(timeout=10)
        _current.generator.tail.stop()
    if _current.health is not None:
        _current.health.stop()
    _current.publisher.stop()
    _current.redis.close()
    _current.database.close()
    _current.aside.stop()
    _current = None


def _called() -> None:
    if _current is not None and _current.watchdog is not None:
        _current.watchdog.call()


def _start_generator(settings: GenerateSettings, redis: Redis, name: str) -> Generator:
    started = time.monotonic()
    engine = Engine(
        EngineConfig(
            model_path=settings.model,
            device=settings.device,
            weights=settings.weights,
            threads=settings.threads,
            max_running=settings.concurrency,
            kv_cache_tokens=settings.kv_cache_tokens,
            kv_cache=settings.kv_cache,
            head_bits=8 if settings.head_bits == "8" else 16,
            layer_copies=settings.layer_copies,
            attention=settings.attention,
            deterministic=settings.deterministic,
        )
    )
    engine.start()
    info = engine.wait_ready(settings.engine_start_seconds)
    log.info(
        "engine ready",
        model=info.model,
        device=info.device,
        backends=info.backends,
        context_length=info.context_length,
        seconds=round(time.monotonic() - started, 1),
    )
    tail = TailWriter(redis)
    tail.start()
    cancels = Cancels(redis, {homes.channel(name): _called})
    cancels.start()
    return Generator(
        settings=settings,
        engine=engine,
        info=info,
        tokenizer=Tokenizer.load(settings.model),
        defaults=load_generation_defaults(settings.model),
        tail=tail,
        cancels=cancels,
    )


def _health(runtime: Runtime) -> str | None:
    """Return what is wrong with this worker, or None. A broker that is away is no reason to restart a worker."""
    if runtime.generator is not None:
        silent = runtime.generator.engine.seconds_since_heartbeat
        if silent > runtime.generator.settings.lease_seconds:
            return f"the engine has been silent for {silent:.0f} s"
    return None
