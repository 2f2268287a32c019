"""Two hundred streams cut by SIGKILL, of API processes and of workers: each client resumes and has the one log."""

from __future__ import annotations

import random
import threading

import pytest

from storage import leases
from storage.models import Response
from tests.acceptance.house import House
from tests.conformance import tour
from tests.conformance.cutting import Apis, Reader, seed

CUTS = 200
READERS = 8
TOKENS = 1200


@pytest.mark.whole
@pytest.mark.timeout(1500)
def test_streams_that_are_cut_two_hundred_times(postgres_house: House) -> None:
    """Background answers, eight clients each, two API processes of which one is killed again and again.

    A kill comes when a client chosen at random has read a random number of events more. Once in each answer the worker
    that writes it is killed too, and another goes on. Each client asks for what is behind a random one of the events
    that its last connection brought.
    """
    house = postgres_house
    chance = random.Random(seed())
    apis = Apis(house, 2)
    house.start_again("worker-2")
    cuts: list[int] = []
    worker_kills = 0
    try:
        while len(cuts) < CUTS:
            readers = one_answer(house, apis, chance)
            worker_kills += 1
            cuts += [number for reader in readers for number in reader.cuts]
    finally:
        apis.close()
        house.stop("worker-2")
    print(
        f"{len(cuts)} connections cut behind {len(set(cuts))} different events, "
        f"{apis.kills} API processes and {worker_kills} workers killed"
    )
    print("cut behind:", *sorted(cuts))


def one_answer(house: House, apis: Apis, chance: random.Random) -> list[Reader]:
    """Let one answer be read through all that happens, and compare what each client has with what is stored."""
    response_id = (
        house.client()
        .responses.create(
            model="default", input=tour.STORY, background=True, temperature=1, max_output_tokens=TOKENS
        )
        .id
    )
    readers = [
        Reader(house, apis.urls(), response_id, random.Random(chance.random())) for _ in range(READERS)
    ]
    worker = threading.Thread(target=kill_the_worker, args=(house, readers[0], chance.randrange(20, 300)))
    worker.start()
    while any(reader.thread.is_alive() for reader in readers):
        watched = chance.choice(readers)
        watched.wait_for(watched.number + chance.randrange(1, 40))
        if any(reader.thread.is_alive() for reader in readers):
            apis.kill_one(chance)
    worker.join()
    with house.database.read() as session:
        stored = leases.output(session, response_id)
    text = "".join(stored.pieces) + stored.tail
    ended = house.client().responses.retrieve(response_id)
    assert ended.status in ("completed", "incomplete")
    assert ended.output_text == text
    log = list(house.client().responses.retrieve(response_id, stream=True))
    for reader in readers:
        assert reader.failure is None, reader.failure
        assert [event.sequence_number for event in reader.events] == list(range(len(log)))
        assert reader.text == text
        assert reader.events == log
    return readers


def kill_the_worker(house: House, reader: Reader, number: int) -> None:
    """SIGKILL the worker that writes the reader's answer once event `number` was read; start it again."""
    reader.wait_for(number)
    with house.database.read() as session:
        holder = str(session.get_one(Response, reader.response_id).worker)
    name = next(name for name in ("worker", "worker-2") if holder.endswith(f":{house.running[name].pid}"))
    house.kill(name)
    house.start_again(name)
