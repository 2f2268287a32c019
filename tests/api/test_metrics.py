"""`GET /metrics` of the API."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from api.settings import ApiSettings
from storage import metrics
from tests.api.serving import Served, serving

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
OF_WORKERS = re.compile(r"qwenq_(worker|engine|leases|first)")


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_queue_and_requests(client: OpenAI, served: Served) -> None:
    for _ in range(3):
        client.responses.create(model="default", input="Hello", background=True)
    answer = httpx.get(f"{served.url}/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    rows = PAGE.read_text().split("| metric | labels |")[1].split("\n\n")[0]
    documented = {name.removesuffix("_total") for name in re.findall(r"`(qwenq_\w+)`", rows)}
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    assert {name for name in names if name.startswith("qwenq_") and not OF_WORKERS.match(name)} == {
        name for name in documented if not OF_WORKERS.match(name)
    }
    found = samples(answer.text)
    assert found["qwenq_queue_jobs", ("default",)] == 3
    assert found["qwenq_queue_jobs", ("flex",)] == 0
    assert 0 <= found["qwenq_queue_oldest_seconds", ()] < 60
    assert found["qwenq_database_up", ()] == 1
    assert found["qwenq_jobs_accepted_total", ("default",)] >= 3
    assert found["qwenq_http_request_seconds_count", ("POST", "/v1/responses", "200")] >= 3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_labels_do_not_grow_with_what_callers_send(served: Served) -> None:
    for number in range(3):
        httpx.get(f"{served.url}/nothing/{number}")
        httpx.request(f"ODD{number}", f"{served.url}/v1/responses")
    labels = {key[1] for key in samples(httpx.get(f"{served.url}/metrics").text)}
    assert ("GET", "unknown", "404") in labels
    assert not [some for some in labels if any("nothing" in label or "ODD" in label for label in some)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"])
def test_what_a_proxy_passes_on_is_refused(served: Served, header: str) -> None:
    answer = httpx.get(f"{served.url}/metrics", headers={header: "127.0.0.1"})
    assert answer.status_code == 403
    assert "qwenq_" not in answer.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_a_database_the_page_says_so(settings: ApiSettings, tmp_path: object) -> None:
    empty = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/empty.db"})
    with serving(empty) as served:
        answer = httpx.get(f"{served.url}/metrics")
    assert answer.status_code == 200
    found = samples(answer.text)
    assert found["qwenq_database_up", ()] == 0
    assert ("qwenq_queue_running", ()) not in found
