"""The running stack, whoever watches it, and what all of it was found to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.house import House
from tests.conformance.judge import Judge
from tests.conformance.witness import Witness, witnessing
from tests.receiver import Receiver, receiving


@pytest.fixture(scope="session")
def record() -> Judge:
    """What the tests of the whole run have found together."""
    return Judge()


@pytest.fixture
def witness(sqlite_house: House, record: Judge) -> Iterator[Witness]:
    """A proxy in front of the stack on SQLite. At the end of the test all that went through it is judged."""
    yield from watched(sqlite_house, record)


@pytest.fixture
def postgres_witness(postgres_house: House, record: Judge) -> Iterator[Witness]:
    """The same on PostgreSQL."""
    yield from watched(postgres_house, record)


def watched(house: House, record: Judge) -> Iterator[Witness]:
    with witnessing(house.base_url) as witness:
        yield witness
    judge = Judge()
    judge.all(witness.exchanges)
    record.needed |= judge.needed
    record.called |= judge.called
    record.faults += judge.faults
    judge.verdict()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found
