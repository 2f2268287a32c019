"""A batch while its worker is killed twice and the API that feeds it once. `bench/batch.py` is the long version."""

from __future__ import annotations

from tests.acceptance import batch_run
from tests.acceptance.house import House


def test_each_line_is_answered_once_although_processes_die(sqlite_house: House) -> None:
    outcome = batch_run.run(sqlite_house, 100, ("worker", "api", "worker"))
    assert outcome.second_attempts > 0  # else nothing was hit
