"""The Celery app of every worker role: `celery -A worker.celery:app worker -Q generate`, `-Q webhooks`, `beat`.

Importing it opens nothing and needs no torch. The process's parts are built when the worker starts
(`worker.runtime`), before it takes its first message.
"""

from __future__ import annotations

import gc
import signal

import structlog
from celery import signals

from storage import broker
from storage.logging import configure
from storage.settings import BrokerSettings, SettingsError, StorageSettings, load
from worker import claims, runtime
from worker.engine.errors import EngineError
from worker.model.errors import CheckpointError
from worker.watchdog import Watchdog

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
PURGE_SECONDS = 60.0

app = broker.make_app(load(BrokerSettings).redis_url)
app.conf.update(
    imports=["worker.tasks"],
    # Threads: jobs wait for the engine or the network, not for the interpreter; and nothing may fork after CUDA.
    worker_pool="worker.pool:Pool",
    beat_schedule={
        "sweep": {
            "task": broker.SWEEP_TASK,
            "schedule": SWEEP_SECONDS,
            "options": {"queue": broker.MAINTENANCE_QUEUE},
        },
        "purge": {
            "task": broker.PURGE_TASK,
            "schedule": PURGE_SECONDS,
            "options": {"queue": broker.MAINTENANCE_QUEUE},
        },
    },
    # Where it left off is not worth a file, and the time of day does not count.
    beat_scheduler="worker.ticker:Ticker",
    beat_max_loop_interval=SWEEP_SECONDS,
)


@signals.setup_logging.connect
def _configure_logging(**_: object) -> None:
    configure("worker", load(StorageSettings))


@signals.celeryd_after_setup.connect
def _start(instance: object, **_: object) -> None:
    # The queues are known here and nothing has been consumed yet: an engine that cannot start stops the worker
    # before it takes a message.
    try:
        here = runtime.start(app, frozenset(app.amqp.queues.consume_from))
    except (SettingsError, EngineError, CheckpointError, TimeoutError) as reason:
        log.error("this worker cannot start", reason=str(reason))
        # Celery logs what a signal handler raises and goes on; only this ends the process.
        raise SystemExit(1) from None
    gc.collect()
    gc.freeze()  # as `worker.engine.process` does, for the same reason
    if here.generator is not None:
        here.watchdog = Watchdog(here, claims.run_all)
        here.watchdog.start()


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    # Runs in the handler of the first signal. Celery's own answer to a second Ctrl-C waits, in the handler, for the
    # running answers to end; ours has them given back, and the shutdown that has begun goes on.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda *_: runtime.drain())
    runtime.drain()


@signals.worker_shutdown.connect
def _stop(**_: object) -> None:
    runtime.stop()
