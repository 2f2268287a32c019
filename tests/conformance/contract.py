"""What the official Python SDK asks for and what it takes in answer, read from its own source.

Each method of a resource ends in one call, such as ``self._post("/responses", ..., cast_to=Response,
stream_cls=Stream[ResponseStreamEvent])``. So a new version of the SDK brings its own contract: an endpoint that it adds
makes a test fail until it is served or listed in `ledger.NOT_OFFERED`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

# The resources of a text model, as modules under `openai.resources`.
FAMILIES = (
    "responses.responses",
    "responses.input_items",
    "responses.input_tokens",
    "conversations.conversations",
    "conversations.items",
    "chat.completions.completions",
    "chat.completions.messages",
    "completions",
    "models",
    "files",
    "batches",
    "webhooks.webhooks",
    "webhooks.event_types",
)
VERBS = {"_get": "GET", "_get_api_list": "GET", "_post": "POST", "_delete": "DELETE"}


@dataclass(frozen=True)
class Endpoint:
    """One method of the SDK.

    Attributes:
        name: how a caller writes it, e.g. ``responses.input_items.list``.
        path: with its placeholders, e.g. ``/v1/responses/{response_id}``.
        answer: the type of its answer.
        event: the type of the events of its stream, None when it has none.
    """

    name: str
    verb: str
    path: str
    answer: Any
    event: Any

    def takes(self, verb: str, path: str) -> bool:
        return verb == self.verb and re.fullmatch(re.sub(r"\{\w+\}", r"[^/]+", self.path), path) is not None


@cache
def endpoints() -> tuple[Endpoint, ...]:
    """Return what the SDK calls, the paths without placeholders first."""
    found = [endpoint for family in FAMILIES for endpoint in _of_module(family)]
    return tuple(sorted(found, key=lambda endpoint: endpoint.path.count("{")))


def endpoint_of(verb: str, path: str) -> Endpoint | None:
    """Return the endpoint that a request is for, None for one that the SDK does not know."""
    return next((endpoint for endpoint in endpoints() if endpoint.takes(verb, path)), None)


def _of_module(family: str) -> list[Endpoint]:
    module = importlib.import_module(f"openai.resources.{family}")
    parts = family.split(".")
    # A module of its package's own name holds the resource itself: responses.responses is `responses`.
    path = parts[:-1] if len(parts) > 1 and parts[-1] == parts[-2] else parts
    resource = next(
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name.lower() == path[-1].replace("_", "")
    )
    return [
        _endpoint(call, ".".join([*path, method.name]), vars(module))
        for method in resource.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
        for call in ast.walk(method)
        if _is_request(call)
    ]


def _is_request(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
        and node.func.attr in VERBS
    )


def _endpoint(call: Any, name: str, names: dict[str, Any]) -> Endpoint:
    path = call.args[0]
    if isinstance(path, ast.Call):  # path_template("...", ...)
        path = path.args[0]
    given = {keyword.arg: keyword.value for keyword in call.keywords}

    def value(key: str) -> Any:
        return eval(compile(ast.Expression(given[key]), name, "eval"), names) if key in given else None

    stream = value("stream_cls")
    return Endpoint(
        name=name,
        verb=VERBS[call.func.attr],
        path=f"/v1{path.value}",
        answer=value("page") if "page" in given else value("cast_to"),
        event=get_args(stream)[0] if stream else None,
    )
