"""The pool of threads wakes the consumer's loop when one of them is free."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from kombu.asynchronous import Hub, get_event_loop, set_event_loop

from worker.pool import Pool


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A loop with a connection on which nothing comes, and that waits for 20 s where Celery's waits for one."""
    before = get_event_loop()
    made, (ours, theirs) = Hub(), socket.socketpair()
    set_event_loop(made)
    with ours, theirs:
        made.add_reader(ours.fileno(), lambda: None)
        poll = made.poller.poll
        made.poller.poll = lambda _seconds: poll(20)
        yield made
        made.close()
    set_event_loop(before)


def test_the_loop_goes_round_once_a_task_counts_no_more(hub: Hub) -> None:
    """Celery takes a task from its count in the callback, the last thing that the thread does for it."""
    pool, go, counted_out = Pool(limit=1), threading.Event(), threading.Event()
    pool.on_start()
    loop = hub.create_loop()
    pool.on_apply(lambda: go.wait(10), (), {}, callback=lambda _result: counted_out.set())
    threading.Timer(0.1, go.set).start()
    begun = time.monotonic()
    next(loop)
    assert counted_out.is_set()
    assert time.monotonic() - begun < 15
    pool.on_stop()
