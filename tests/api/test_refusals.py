"""What is wrong with a request is said in OpenAI's shape, with the parameter named, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.settings import ApiSettings
from api.unsupported import CREATE, LOGPROBS

UNSUPPORTED = "unsupported_parameter"
UNKNOWN = "unknown_parameter"
TYPE = "invalid_type"
VALUE = "invalid_value"
MISSING = "missing_required_parameter"
LONG = "string_above_max_length"
BELOW = "integer_below_min_value"
SCHEMA = "text.format.schema"
WINDOW = "background_options.completion_window"

IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}
FILE = {"type": "input_file", "file_id": "f"}
AUDIO = {"type": "input_audio", "input_audio": {}}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CALL_OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "o"}


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, **fields}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": [tool(name) for name in names]}


def schema(value: Any, **fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "n", "schema": value, **fields}}}


# What is sent besides a valid input, the parameter that the error names, and its code.
BAD: list[tuple[dict[str, Any], str, str]] = [
    # Not honoured: refused by name.
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", UNSUPPORTED),
    ({"tools": [tool("f"), {"type": "mcp"}]}, "tools[1].type", UNSUPPORTED),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", UNSUPPORTED),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", UNSUPPORTED),
    ({"text": {"verbosity": "low"}}, "text.verbosity", UNSUPPORTED),
    ({"text": {"colour": "red"}}, "text.colour", UNKNOWN),
    ({"text": "plain"}, "text", TYPE),
    ({"reasoning": {"effort": "low"}}, "reasoning", UNSUPPORTED),
    ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, "include[1]", UNSUPPORTED),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", UNSUPPORTED),
    ({"n": 2}, "n", UNSUPPORTED),
    ({"moderation": {"model": "m"}}, "moderation", UNSUPPORTED),
    ({"context_management": [{"type": "compaction"}]}, "context_management", UNSUPPORTED),
    ({"background_options": {"continuation_id": "a"}}, "background_options.continuation_id", UNSUPPORTED),
    ({"prompt_cache_options": {"ttl": "12h"}}, "prompt_cache_options", UNSUPPORTED),
    ({"image": {"context_compression": "enabled"}}, "image", UNSUPPORTED),
    ({"access_programs": {"cyber": "standard"}}, "access_programs", UNSUPPORTED),
    ({"input": user([IMAGE])}, "input[0].content[0].type", UNSUPPORTED),
    ({"input": user([{"type": "input_text", "text": "a"}, FILE])}, "input[0].content[1].type", UNSUPPORTED),
    ({"input": user([AUDIO])}, "input[0].content[0].type", UNSUPPORTED),
    ({"input": [*user("a"), {"type": "reasoning", "id": "i"}]}, "input[1].type", UNSUPPORTED),
    # Functions.
    ({"tools": {}}, "tools", TYPE),
    ({"tools": [tool("f")] * 129}, "tools", "array_above_max_length"),
    ({"tools": [tool("f"), tool("f")]}, "tools[1].name", VALUE),
    ({"tools": [tool("a b")]}, "tools[0].name", VALUE),
    ({"tools": [{"type": "function"}]}, "tools[0].name", MISSING),
    ({"tools": [tool("f", strict=1)]}, "tools[0].strict", TYPE),
    ({"tools": [tool("f", function={})]}, "tools[0].function", UNKNOWN),
    ({"tools": [tool("f", parameters={"type": "string"})]}, "tools[0].parameters", "invalid_json_schema"),
    ({"tools": [tool("f", parameters={"not": {}})]}, "tools[0].parameters", "invalid_json_schema"),
    ({"tool_choice": "required"}, "tool_choice", VALUE),
    ({"tool_choice": "any"}, "tool_choice", VALUE),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", VALUE),
    ({"tools": [tool("f")], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", VALUE),
    ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.name", MISSING),
    ({"tools": [tool("f")], "tool_choice": allowed("g")}, "tool_choice", VALUE),
    ({"tools": [tool("f")], "tool_choice": allowed("f", mode="all")}, "tool_choice.mode", VALUE),
    ({"tools": [tool("f")], "stop": "x"}, "stop", "mutually_exclusive_parameters"),
    ({"tools": [tool("f")], "include": [LOGPROBS]}, "include", "mutually_exclusive_parameters"),
    ({"input": [*user("a"), CALL_OUTPUT]}, "input[1].call_id", VALUE),
    ({"input": [*user("a"), {**CALL_OUTPUT, "output": 7}]}, "input[1].output", TYPE),
    ({"input": [*user("a"), {**CALL_OUTPUT, "output": [IMAGE]}]}, "input[1].output[0].type", UNSUPPORTED),
    ({"input": [*user("a"), {**CALL, "arguments": {}}]}, "input[1].arguments", TYPE),
    ({"input": [*user("a"), {"type": "function_call", "name": "f"}]}, "input[1].call_id", MISSING),
    ({"input": [*user("a"), {**CALL, "name": "f\nObservation: "}]}, "input[1].name", VALUE),
    ({"input": [{"role": "user", "content": "a", "phase": "final_answer"}]}, "input[0].phase", UNSUPPORTED),
    # Schemas that cannot be kept.
    (schema({"type": "array", "uniqueItems": True}), SCHEMA, "invalid_json_schema"),
    (schema({"not": {"type": "string"}}), SCHEMA, "invalid_json_schema"),
    (schema({"type": "word"}), SCHEMA, "invalid_json_schema"),
    (schema({"type": "string", "pattern": "(?=a)b"}), SCHEMA, "invalid_json_schema"),
    (schema({"type": "string", "minLength": 3, "maxLength": 2}), SCHEMA, "invalid_json_schema"),
    (schema({"$ref": "#/$defs/nobody"}), SCHEMA, "invalid_json_schema"),
    (schema({"$ref": "http://127.0.0.1/schema.json"}), SCHEMA, "invalid_json_schema"),
    (schema({"const": "\x01"}), SCHEMA, VALUE),
    (schema({"enum": ["x" * 70_000]}), SCHEMA, LONG),
    (schema(True), SCHEMA, TYPE),
    (schema({}, name="a b"), "text.format.name", VALUE),
    (schema({}, name=None), "text.format.name", MISSING),
    (schema({}, strict="yes"), "text.format.strict", TYPE),
    (schema({}, description=7), "text.format.description", TYPE),
    (schema({}, schemas=7), "text.format.schemas", UNKNOWN),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, SCHEMA, MISSING),
    ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema", UNKNOWN),
    ({"text": {"format": "json_object"}}, "text.format", TYPE),
    ({"text": {"format": {"type": "json_object"}}, "stop": "}"}, "stop", "mutually_exclusive_parameters"),
    # Unknown.
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage", UNKNOWN),
    ({"max_token": 3}, "max_token", UNKNOWN),
    ({"max_tokens": 3}, "max_tokens", UNKNOWN),
    ({"messages": []}, "messages", UNKNOWN),
    ({"": 1}, "", UNKNOWN),
    ({"input": [{"role": "user", "content": "a", "name": "x"}]}, "input[0].name", UNKNOWN),
    ({"webhook": {"url": "http://127.0.0.1/", "retries": 3}}, "webhook.retries", UNKNOWN),
    # Of the wrong type: nothing is converted.
    ({"input": 7}, "input", TYPE),
    ({"input": None}, "input", TYPE),
    ({"input": {"role": "user", "content": "a"}}, "input", TYPE),
    ({"input": ["a"]}, "input[0]", TYPE),
    ({"input": user(7)}, "input[0].content", TYPE),
    ({"input": user(["a"])}, "input[0].content[0]", TYPE),
    ({"input": user([{"type": "input_text", "text": 7}])}, "input[0].content[0].text", TYPE),
    ({"model": 7}, "model", TYPE),
    ({"instructions": ["a"]}, "instructions", TYPE),
    ({"background": "yes"}, "background", TYPE),
    ({"background": 1}, "background", TYPE),
    ({"stream": "true"}, "stream", TYPE),
    ({"stream": True, "stream_options": True}, "stream_options", TYPE),
    ({"temperature": "0.5"}, "temperature", TYPE),
    ({"temperature": True}, "temperature", TYPE),
    ({"temperature": 10**400}, "temperature", TYPE),
    ({"top_p": [1]}, "top_p", TYPE),
    ({"max_output_tokens": 1.5}, "max_output_tokens", TYPE),
    ({"max_output_tokens": "9"}, "max_output_tokens", TYPE),
    ({"metadata": []}, "metadata", TYPE),
    ({"metadata": {"a": 1}}, "metadata.a", TYPE),
    ({"stop": 7}, "stop", TYPE),
    ({"stop": [7]}, "stop[0]", TYPE),
    ({"conversation": 7}, "conversation", TYPE),
    ({"conversation": {"name": "c"}}, "conversation", TYPE),
    ({"previous_response_id": {}}, "previous_response_id", TYPE),
    ({"webhook": "http://127.0.0.1/"}, "webhook", TYPE),
    ({"user": 7}, "user", TYPE),
    ({"include": LOGPROBS}, "include", TYPE),
    ({"include": [7]}, "include[0]", VALUE),
    ({"top_logprobs": 1.5}, "top_logprobs", TYPE),
    ({"presence_penalty": "1"}, "presence_penalty", TYPE),
    ({"service_tier": 7}, "service_tier", VALUE),
    ({"background_options": "2h"}, "background_options", TYPE),
    ({"expires_in": "60"}, "expires_in", TYPE),
    ({"max_run_seconds": [60]}, "max_run_seconds", TYPE),
    ({"truncation": True}, "truncation", VALUE),
    # Out of range.
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"top_p": 0}, "top_p", "decimal_below_min_value"),
    ({"top_p": 1.01}, "top_p", "decimal_above_max_value"),
    ({"top_k": -1}, "top_k", "integer_below_min_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    ({"repetition_penalty": 2.5}, "repetition_penalty", "decimal_above_max_value"),
    ({"presence_penalty": 2.1}, "presence_penalty", "decimal_above_max_value"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "decimal_below_min_value"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"top_logprobs": -1}, "top_logprobs", "integer_below_min_value"),
    ({"seed": -1}, "seed", "integer_below_min_value"),
    ({"seed": 2**53}, "seed", "integer_above_max_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"max_output_tokens": 8193}, "max_output_tokens", "integer_above_max_value"),
    ({"max_output_tokens": 10**300}, "max_output_tokens", "integer_above_max_value"),
    ({"stop": []}, "stop", "array_below_min_length"),
    ({"expires_in": 0}, "expires_in", "decimal_below_min_value"),
    ({"expires_in": 10**10}, "expires_in", "decimal_above_max_value"),
    ({"max_run_seconds": 0}, "max_run_seconds", "decimal_below_min_value"),
    ({"max_run_seconds": 600.5}, "max_run_seconds", "decimal_above_max_value"),
    ({"service_tier": "scale"}, "service_tier", VALUE),
    ({"service_tier": "ultrafast"}, "service_tier", VALUE),
    ({"truncation": "middle"}, "truncation", VALUE),
    ({"background_options": {"completion_window": "1w"}}, WINDOW, VALUE),
    ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ({"stop": ""}, "stop[0]", "string_below_min_length"),
    ({"stop": "a" * 257}, "stop[0]", LONG),
    ({"metadata": {"k" * 65: "v"}}, "metadata", LONG),
    ({"k" * 500: 1}, "k" * 100, UNKNOWN),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", LONG),
    ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "array_above_max_length"),
    ({"user": "u" * 513}, "user", LONG),
    ({"prompt_cache_retention": "1h"}, "prompt_cache_retention", VALUE),
    ({"input": ""}, "input", "string_below_min_length"),
    ({"input": []}, "input", "array_below_min_length"),
    ({"input": user([])}, "input[0].content", "array_below_min_length"),
    ({"input": user("a") * 1001}, "input", "array_above_max_length"),
    ({"input": "x" * 200_001}, "input", LONG),
    ({"input": user("x" * 150_000) * 2}, "input", LONG),
    ({"instructions": "x" * 200_001}, "instructions", LONG),
    # Incomplete or contradictory.
    ({"background_options": {"completion_window": "2h"}, "background": False}, WINDOW, VALUE),
    ({"background_options": {"completion_window": "2h"}, "stream": True}, WINDOW, VALUE),
    ({"background_options": {"completion_window": "8h"}, "service_tier": "priority"}, WINDOW, VALUE),
    ({"background_options": {"window": "8h"}}, "background_options.window", UNKNOWN),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options", VALUE),
    ({"stream": False, "stream_options": {}}, "stream_options", VALUE),
    ({"input": [{"role": "system", "content": "a"}]}, "input", VALUE),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role", VALUE),
    ({"input": [{"content": "a"}]}, "input[0].role", MISSING),
    ({"input": [{"role": "user"}]}, "input[0].content", MISSING),
    ({"input": user([{"text": "a"}])}, "input[0].content[0].type", MISSING),
    ({"input": user([{"type": "input_text"}])}, "input[0].content[0].text", MISSING),
    ({"webhook": {}}, "webhook", VALUE),
    ({"webhook": {"url": "http://127.0.0.1/", "endpoint_id": "wh_1"}}, "webhook", VALUE),
    ({"webhook": {"endpoint_id": "wh_1", "secret": "whsec_" + "A" * 32}}, "webhook.secret", VALUE),
    ({"webhook": {"endpoint_id": "wh_1", "events": ["response.failed"]}}, "webhook.events", VALUE),
    ({"webhook": {"url": "http://127.0.0.1/", "secret": "hunter2"}}, "webhook.secret", VALUE),
    ({"webhook": {"url": "http://127.0.0.1/", "events": ["batch.failed"]}}, "webhook.events[0]", VALUE),
    ({"webhook": {"url": "http://127.0.0.1/", "events": []}}, "webhook.events", "array_below_min_length"),
    ({"webhook": {"url": "http://10.0.0.1/"}}, "webhook.url", "invalid_webhook_url"),
    ({"webhook": {"url": "http://169.254.169.254/latest"}}, "webhook.url", "invalid_webhook_url"),
    ({"webhook": {"url": "file:///etc/passwd"}}, "webhook.url", "invalid_webhook_url"),
    # What SQL cannot keep, or no text is.
    ({"input": "a\0b"}, "input", VALUE),
    ({"input": user([{"type": "input_text", "text": "\0"}])}, "input[0].content[0].text", VALUE),
    ({"input": "\ud800"}, "input", VALUE),
    ({"metadata": {"k": "\udfff"}}, "metadata.k", VALUE),
    ({"metadata": {"\0": "v"}}, "metadata", VALUE),
    ({"conversation": "conv_\0"}, "conversation", VALUE),
    ({"user": "\0"}, "user", VALUE),
]

# Values that ask for nothing beyond what is done anyway.
HARMLESS: list[dict[str, Any]] = [
    dict.fromkeys((*CREATE, "text")),
    {"model": None, "instructions": None, "metadata": None, "stop": None, "webhook": None, "seed": None},
    {"stream": False, "stream_options": None},
    {"tools": [], "tool_choice": "auto", "truncation": "disabled", "store": True, "n": 1},
    {"text": {"format": {"type": "text"}}, "reasoning": {"effort": None}, "include": [], "top_logprobs": 0},
    {"service_tier": "auto", "presence_penalty": 0, "frequency_penalty": 0.0, "tool_choice": "none"},
    {"service_tier": "default", "background_options": {"completion_window": "soonest"}, "expires_in": 60},
    {"prompt_cache_retention": "24h", "parallel_tool_calls": True, "background": False},
    {"temperature": 0, "top_p": 1, "top_k": 0, "max_output_tokens": 8192, "seed": 2**53 - 1},
    {"input": [{"role": "system", "content": ""}, *user("a")]},
    {"text": {"format": {"type": "json_object"}, "verbosity": None}},
    {"tools": [tool("f", parameters=None, strict=None, description=None)], "tool_choice": allowed("f")},
    {"tools": [tool("f")], "tool_choice": "none", "stop": "x"},
    {"input": [*user("a"), {**CALL, "caller": None, "namespace": None}, {**CALL_OUTPUT, "name": None}]},
    {"tools": [tool("f", defer_loading=None)]},
    {"input": [CALL, {**CALL_OUTPUT, "output": [{"type": "input_text", "text": "a"}]}]},
    schema({"type": "object", "x-guidance": {"whitespace_flexible": True}}, strict=None, description=None),
]


def test_bad_requests_name_their_parameter_and_store_nothing(
    http: httpx.Client, rows: Callable[[], dict[str, int]]
) -> None:
    before = rows()
    wrong = []
    for change, param, code in BAD:
        # The standard library's JSON keeps lone surrogates as escapes, as a careless client would.
        answer = http.post("/v1/responses", **as_json({"input": "Hello", "background": True, **change}))
        error = answer.json().get("error") or {}
        expected = (400, "invalid_request_error", param, code)
        if (answer.status_code, error.get("type"), error.get("param"), error.get("code")) != expected:
            wrong.append((str(change)[:100], answer.status_code, error))
        elif error.keys() != {"message", "type", "param", "code"} or len(error["message"]) > 400:
            wrong.append((str(change)[:100], error))
    assert not wrong
    assert rows() == before


def as_json(value: object) -> dict[str, Any]:
    import json

    return {"content": json.dumps(value), "headers": {"content-type": "application/json"}}


def test_values_that_ask_for_nothing_are_taken(http: httpx.Client) -> None:
    for change in HARMLESS:
        body = {"input": "Hello", **change, "background": True}
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code == 200, (change, answer.text)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_output_item_may_be_sent_back_as_it_came(http: httpx.Client) -> None:
    message = {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "phase": None,
        "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
    }
    created = http.post("/v1/responses", json={"input": [*user("a"), message], "background": True}).json()
    items = http.get(f"/v1/responses/{created['id']}/input_items").json()["data"]
    assert items[0] == {
        key: value for key, value in {**message, "id": items[0]["id"]}.items() if key != "phase"
    }
    assert items[0]["id"] != "msg_1"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_wrong_name_gets_a_hint(http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={"input": "a", "max_output_token": 5})
    assert "Did you mean 'max_output_tokens'?" in answer.json()["error"]["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_unknown_models_are_not_found(http: httpx.Client, settings: ApiSettings) -> None:
    answer = http.post("/v1/responses", json={"input": "a", "model": "gpt-6"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert settings.model_name in answer.json()["error"]["message"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_queries_are_judged_too(http: httpx.Client) -> None:
    created = http.post("/v1/responses", json={"input": "a", "background": True}).json()["id"]
    for path, param, code in (
        (f"/v1/responses/{created}?stream=maybe", "stream", TYPE),
        (f"/v1/responses/{created}?stream=true&starting_after=-1", "starting_after", BELOW),
        (f"/v1/responses/{created}?stream=true&starting_after=all", "starting_after", TYPE),
        (f"/v1/responses/{created}?stream=true&starting_after=1.5", "starting_after", TYPE),
        (f"/v1/responses/{created}?starting_after=3", "starting_after", VALUE),
        (f"/v1/responses/{created}?stream=false&starting_after=3", "starting_after", VALUE),
        (f"/v1/responses/{created}?include[]=x", "include", UNSUPPORTED),
        (f"/v1/responses/{created}?verbose=1", "verbose", UNKNOWN),
        ("/v1/responses?limit=0", "limit", BELOW),
        ("/v1/responses?limit=101", "limit", "integer_above_max_value"),
        ("/v1/responses?limit=ten", "limit", TYPE),
        ("/v1/responses?order=up", "order", VALUE),
        ("/v1/responses?after=%00", "after", VALUE),
        ("/v1/responses?before=x", "before", UNKNOWN),
    ):
        answer = http.get(path)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, param, code), path
    assert http.get(f"/v1/responses/{created}?stream=false").status_code == 200


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_a_signing_secret_of_its_own_the_service_asks_for_one(
    settings: ApiSettings, api_key: str
) -> None:
    from tests.api.serving import serving

    with (
        serving(settings.model_copy(update={"webhook_secret": None})) as served,
        httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {api_key}"}) as http,
    ):
        body = {"input": "a", "background": True, "webhook": {"url": "http://127.0.0.1:1/"}}
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "webhook.secret"
        body["webhook"] = {"url": "http://127.0.0.1:1/", "secret": "whsec_" + "A" * 32}
        assert http.post("/v1/responses", json=body).status_code == 200
