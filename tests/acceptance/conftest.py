"""What acceptance tests need besides the houses, which `tests.acceptance.houses` has for other folders too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found
