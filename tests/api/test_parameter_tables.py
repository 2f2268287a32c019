"""What docs/api.md says of each parameter of `POST /v1/responses`, tried: is it taken, or refused by its name?"""

from __future__ import annotations

from typing import Any

import httpx

from tests.conformance import tables

ROWS = tables.requests()["POST /v1/responses"]
# A value of each that asks for something; of ids, one that is made before.
SAMPLES: dict[str, Any] = {
    "input": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "model": "default",
    "instructions": "Be brief.",
    "conversation": "A CONVERSATION",
    "previous_response_id": "A RESPONSE",
    "background": True,
    "background_options": {"completion_window": "2h"},
    "stream": True,
    "stream_options": {"include_obfuscation": True},
    "store": False,
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "max_output_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "truncation": "disabled",
    "service_tier": "fast",
    "text": {"format": {"type": "json_object"}},
    "tools": [
        {
            "type": "function",
            "name": "f",
            "description": "Do it.",
            "parameters": {"type": "object"},
            "strict": False,
        }
    ],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "max_tool_calls": 3,
    "safety_identifier": "s",
    "user": "u",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low"},
    "access_programs": {"cyber": "standard"},
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "omni-moderation-latest"},
    "image": {"context_compression": "auto"},
    "prompt": {"id": "pmpt_0"},
    "prompt_cache_options": {"mode": "explicit"},
    "webhook": {"url": "http://127.0.0.1:9/hook"},
    "expires_in": 60,
    "max_run_seconds": 60,
    "top_k": 5,
    "seed": 1,
    "stop": ["a"],
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "n": 2,
}
# What is shown again otherwise than it was sent.
SHOWN = {
    "input": None,
    "model": "Qwen-1_8B-Chat-Int4",
    "service_tier": "priority",
    "background_options": None,
    "stream": None,
    "stream_options": None,
    "include": None,
}


def test_every_row_has_a_sample() -> None:
    assert SAMPLES.keys() == ROWS.keys()


def test_each_parameter_does_what_its_row_says(http: httpx.Client) -> None:
    SAMPLES["conversation"] = http.post("/v1/conversations", json={}).json()["id"]
    made = http.post("/v1/responses", json={"input": "a", "background": True}).json()
    SAMPLES["previous_response_id"] = made["id"]
    wrong = {name: found for name in ROWS if (found := tried(http, name, SAMPLES[name]))}
    assert wrong == {}


def tried(http: httpx.Client, name: str, value: Any) -> Any:
    """Send the parameter and return what came that its row does not say; None when all is well."""
    row = ROWS[name]
    body = {"input": "Hello", "background": True, name: value}
    if name in ("store", "stream_options"):
        body |= {"stream": True, "background": name != "store"}
    with http.stream("POST", "/v1/responses", json=body) as answer:
        if body.get("stream") and answer.status_code == 200:
            return None  # its events wait for a worker
        answer.read()
    shown = answer.json()
    if row.is_ == "refused":
        error = shown.get("error") or {}
        found = (answer.status_code, error.get("param"), error.get("code"))
        return None if found == (400, name, "unsupported_parameter") else shown
    if answer.status_code != 200:
        return shown
    expected = {"id": value} if name == "conversation" else SHOWN.get(name, value)
    if row.extension or expected is None or shown[name] == expected:
        return None
    return shown[name]
