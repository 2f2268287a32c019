"""schemathesis against the service's own document: no 5xx, no undocumented status, no door without its key.

Here the same few hundred requests each time; `make schemathesis` draws others for ten minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.settings import ApiSettings
from tests.api.fake_worker import FakeWorker, until
from tests.api.serving import Served, serving

SECONDS = os.environ.get("QWENQ_SCHEMATHESIS_SECONDS", "")
SOME = 20  # conversations, files and so on, so that deletions leave some
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture
def served(settings: ApiSettings) -> Iterator[Served]:
    """A server that counts prompts as `qwenq api` does, but without a tokenizer."""
    with serving(settings, lambda said, _request: len(said)) as running:
        yield running


def furnish(http: httpx.Client) -> dict[str, list[str]]:
    """Make some of everything; return the ids by the name of their path parameter."""
    known: dict[str, list[str]] = {"name": ["default"], "conversation_id": [], "item_id": []}

    def post(path: str, **request: Any) -> Any:
        return http.post(f"/v1/{path}", **request).raise_for_status().json()

    hook = {"name": "a", "url": "http://127.0.0.1:9/", "event_types": ["response.completed"]}
    known["endpoint_id"] = [post("webhook_endpoints", json=hook)["id"] for _ in range(SOME)]
    for number in range(SOME):
        items = [{"role": "user", "content": f"item {number}"}]
        conversation = post("conversations", json={"items": items})["id"]
        page = http.get(f"/v1/conversations/{conversation}/items").json()
        known["conversation_id"].append(conversation)
        known["item_id"].append(page["first_id"])
    jobs = [post("responses", json={"input": "a", "background": True})["id"] for _ in range(4 * SOME)]
    known["response_id"] = jobs
    until(lambda: http.get(f"/v1/responses/{jobs[-1]}").json()["status"] == "completed", 30)
    known["delivery_id"] = [one["id"] for one in http.get("/v1/webhook_deliveries?limit=100").json()["data"]]
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"{}")}}
    known["file_id"] = [post("files", **form)["id"] for _ in range(SOME)]
    window = {"endpoint": "/v1/responses", "completion_window": "24h"}
    known["batch_id"] = [
        post("batches", json={"input_file_id": file, **window})["id"] for file in known["file_id"][:5]
    ]
    return known


@pytest.mark.timeout(2 * int(SECONDS or 0) + 300)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # the stricter of the two
def test_the_service_keeps_to_its_document(
    served: Served, http: httpx.Client, api_key: str, worker: FakeWorker, tmp_path: Path
) -> None:
    with worker.at_work("An answer."):  # for calls that wait for one
        known = furnish(http)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {api_key}", "--checks", ",".join(CHECKS)),
                *("--request-timeout", "30", "--continue-on-failure", "--suppress-health-check", "all"),
                *("--exclude-path-regex", "/test$"),  # waits for a webhook worker, and there is none
                *("--phases", "examples,coverage,fuzzing,stateful" if SECONDS else "coverage,fuzzing"),
                *(("--max-time", SECONDS) if SECONDS else ("--max-examples", "3", "--seed", "1")),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "NO_PROXY": "127.0.0.1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "SCHEMATHESIS_HOOKS": "tests.api.real_ids",
                "QWENQ_REAL_IDS": json.dumps(known),
            },
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_every_operation_tells_its_errors_and_wants_a_key() -> None:
    document = create_app().openapi()
    for path, operations in document["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method, operation in operations.items():
            about = f"{method} {path}"
            assert operation["security"] == [{"HTTPBearer": []}], about
            told = operation["responses"].keys()
            assert {"200", "400", "401", "404", "503"} <= told, about
            assert ({"413", "415"} <= told) == ("requestBody" in operation), about
            assert "422" not in told, about
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["components"]["schemas"]["Error"]["required"] == ["error"]


def test_the_document_is_served_without_a_key(served: Served) -> None:
    assert httpx.get(f"{served.url}/openapi.json").json()["info"]["title"] == "qwenq"
