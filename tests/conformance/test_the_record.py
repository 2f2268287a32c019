"""After all others of this folder: was every method called, and is every listed difference still one?"""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.house import House
from tests.conformance import contract, ledger
from tests.conformance.judge import Judge


@pytest.mark.whole
def test_every_method_of_the_sdk_was_called_or_is_listed_as_not_offered(record: Judge) -> None:
    known = {endpoint.name for endpoint in contract.endpoints()}
    assert ledger.NOT_OFFERED.keys() <= known
    assert known - record.called == ledger.NOT_OFFERED.keys()


def test_what_is_not_offered_says_so(sqlite_house: House) -> None:
    headers = {"authorization": f"Bearer {sqlite_house.api_key}"}
    with httpx.Client(base_url=sqlite_house.base_url, headers=headers, trust_env=False) as http:
        for endpoint in contract.endpoints():
            if endpoint.name in ledger.NOT_OFFERED:
                answer = http.request(endpoint.verb, endpoint.path.replace("{", "").replace("}", ""))
                assert answer.status_code in (404, 405), endpoint.name
                assert answer.json()["error"]["code"] in ("not_found", "method_not_allowed")


@pytest.mark.whole
def test_every_listed_difference_was_seen(record: Judge) -> None:
    listed = {
        (kind, key)
        for book in (ledger.EXTRA, ledger.LEFT_OUT, ledger.MISTYPED)
        for kind in book
        for key in book[kind]
    }
    assert listed == record.needed
