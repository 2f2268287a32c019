"""Is what the service sent exactly what the SDK's types say? JSON in strict mode, every key accounted for.

The SDK itself is lenient: it makes an object of whatever comes. Here a wrong type is a fault, and so is a key that the
type does not know or that was left out, unless `ledger` names it with a reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.conformance import contract, ledger
from tests.conformance.witness import Exchange

KINDS = {
    get_args(each.model_fields["type"].annotation)[0]: each
    for each in get_args(get_args(ResponseStreamEvent)[0])
}


class Judge:
    """Collects the faults of many exchanges, and which entries of the ledger they needed."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.needed: set[tuple[str, str]] = set()
        self.called: set[str] = set()

    def all(self, exchanges: Iterable[Exchange]) -> None:
        for exchange in exchanges:
            self.exchange(exchange)

    def exchange(self, exchange: Exchange) -> None:
        """Judge an answer by the type that the SDK's method of this path casts it to."""
        here = f"{exchange.verb} {exchange.path} -> {exchange.status}"
        if exchange.status >= 400:
            error = exchange.json
            if error.keys() != {"error"}:
                self.faults[f"{here}: keys beside 'error': {sorted(error)}"] += 1
            self.value(ErrorObject, error.get("error"), here)
            return
        endpoint = contract.endpoint_of(exchange.verb, exchange.path)
        if endpoint is None:
            if not any(exchange.path.startswith(path) for path in ledger.PATHS_OF_OURS):
                self.faults[f"{here}: neither the SDK's nor a documented extension"] += 1
            return
        here = endpoint.name
        self.called |= {
            each.name for each in contract.endpoints() if each.takes(exchange.verb, exchange.path)
        }
        if exchange.kind == "text/event-stream":
            if not exchange.body.endswith(b"data: [DONE]\n\n"):
                self.faults[f"{here}: a stream without [DONE]"] += 1
            for event in exchange.events:
                self.event(endpoint, event)
        elif exchange.kind != "application/json":
            if endpoint.answer not in (str, bytes) and "Binary" not in str(endpoint.answer):
                self.faults[f"{here}: a body of type {exchange.kind}"] += 1
        elif endpoint.answer is not type(None) and "Binary" not in str(endpoint.answer):
            self.value(endpoint.answer, exchange.json, here)

    def event(self, endpoint: contract.Endpoint, event: Any) -> None:
        """Judge one event of a stream."""
        if endpoint.event is not ResponseStreamEvent:
            self.value(endpoint.event, event, f"{endpoint.name} (stream)")
        elif event["type"] in ledger.EVENTS_OF_OURS:
            self.value(Response, event["response"], f"{event['type']}.response")
        elif event["type"] in KINDS:
            self.value(KINDS[event["type"]], event, event["type"])
        else:
            self.faults[f"{endpoint.name}: an event of type {event['type']}"] += 1

    def value(self, kind: Any, shown: Any, here: str) -> None:
        """Judge a value by a type of the SDK."""
        try:
            value = TypeAdapter(kind).validate_json(json.dumps(shown), strict=True)
        except ValidationError as wrong:
            for finding in wrong.errors():
                place = ".".join(map(str, finding["loc"]))
                kept = ".".join(part for part in finding["loc"] if isinstance(part, str))
                if kept in ledger.MISTYPED.get(here, {}):
                    self.needed.add((here, kept))
                    continue
                self.faults[f"{here}: {place}: {finding['msg']}, got {finding['input']!r:.80}"] += 1
            return
        self._walk(value, here)

    def verdict(self) -> None:
        """Raise AssertionError with every fault, and how often it was seen."""
        assert not self.faults, "not what the SDK's types say:\n" + "\n".join(
            f"  {count} x {fault}" for fault, count in sorted(self.faults.items())
        )

    def _walk(self, value: Any, here: str) -> None:
        if isinstance(value, list):
            for each in value:
                self._walk(each, here)
        elif isinstance(value, dict):
            for each in value.values():
                self._walk(each, here)
        elif isinstance(value, BaseModel):
            self._fields(value, here)

    def _fields(self, value: BaseModel, here: str) -> None:
        name = type_name(type(value))
        fields = type(value).model_fields
        by_alias = {field.alias or key: key for key, field in fields.items()}
        for book, keys, what in (
            (ledger.EXTRA, set(value.model_extra or ()) - by_alias.keys(), "unknown to the SDK"),
            (ledger.LEFT_OUT, fields.keys() - value.model_fields_set, "left out"),
        ):
            for key in keys:
                if key in book.get(name, {}):
                    self.needed.add((name, key))
                else:
                    self.faults[f"{name}.{key}: {what}"] += 1
        for key in value.model_fields_set & fields.keys():
            self._walk(getattr(value, key), here)


def type_name(kind: type[BaseModel]) -> str:
    """Return ``response.Response`` for ``openai.types.responses.response.Response``."""
    generic = kind.__pydantic_generic_metadata__["origin"] or kind
    return f"{generic.__module__.rpartition('.')[2]}.{generic.__qualname__}"
