"""Beat's clock: every so many seconds, whatever becomes of the time of day.

Celery's own scheduler asks the wall clock, and expires a message by the wall clock of the worker that gets it. A clock
that is set back would then stop the sweep until the old time is reached again, and two machines whose clocks differ by
more than the expiry would never sweep. Here a task is due by the monotonic clock, and messages do not expire: none is
sent while earlier ones still wait.
"""

from __future__ import annotations

import time
from typing import Any

from celery.beat import Scheduler
from redis.exceptions import RedisError

from storage import stream

# Messages that may wait unheard in the queue; while nobody sweeps, sweeps do not pile up.
MOST_WAITING = 5


class Ticker(Scheduler):
    """Sends each entry of `beat_schedule` once in its interval, beginning at once."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's
        self._sent: dict[str, float] = {}
        super().__init__(*args, **options)
        self._redis = stream.connect(self.app.conf.broker_url)

    def tick(self, *_: Any, **__: Any) -> float:  # noqa: ANN401 - Celery's private arguments
        """Send what is due; return the seconds until something is due again."""
        waits = [float(self.max_interval)]
        for name, entry in self.schedule.items():
            now, every = time.monotonic(), entry.schedule.run_every.total_seconds()
            if now >= self._sent.get(name, now - every) + every:
                self._sent[name] = now
                if self._waiting(entry.options["queue"]) < MOST_WAITING:
                    self.apply_entry(entry, producer=self.producer)
            waits.append(self._sent[name] + every - now)
        return max(0.0, min(waits))

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
        super().close()

    def _waiting(self, queue: str) -> int:
        try:
            return int(self._redis.llen(queue))
        except RedisError:
            return 0  # sending will say what is wrong
