"""docs/api.md beside the SDK's own signatures and the service's own routes: nothing is missing, nothing is made up."""

from __future__ import annotations

import inspect
import re

import pytest
from openai import OpenAI

from api.app import create_app
from api.schemas import CreateResponse
from tests.conformance import contract, ledger, tables

# Of every method of the SDK; they are no parameters of a request.
OF_EVERY_CALL = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def parameters(endpoint: contract.Endpoint) -> set[str]:
    """The parameters of the SDK's method, without those that are part of the path."""
    *path, method = endpoint.name.split(".")
    resource: object = OpenAI(api_key="none")
    for name in path:
        resource = getattr(resource, name)
    names = inspect.signature(getattr(type(resource), method)).parameters.keys()
    return set(names) - OF_EVERY_CALL - set(re.findall(r"\{(\w+)\}", endpoint.path))


@pytest.mark.parametrize("endpoint", contract.endpoints(), ids=lambda endpoint: endpoint.name)
def test_every_parameter_of_the_sdk_is_in_the_table_of_its_request(endpoint: contract.Endpoint) -> None:
    documented = tables.requests()
    request = f"{endpoint.verb} {endpoint.path}"
    if endpoint.name in ledger.NOT_OFFERED:
        assert request not in documented
        return
    rows = documented[request].values()
    assert {row.name for row in rows if not row.extension} == parameters(endpoint)


def test_every_route_is_in_the_page_and_nothing_else() -> None:
    def unnamed(request: str) -> str:
        return re.sub(r"\{[\w:]+\}", "{}", request)

    served = {
        unnamed(f"{verb.upper()} {path}")
        for path, verbs in create_app().openapi()["paths"].items()
        if path.startswith("/v1/")
        for verb in verbs
    }
    assert {unnamed(request) for request in tables.requests()} == served


def test_every_extension_of_a_response_is_in_its_table() -> None:
    rows = tables.requests()["POST /v1/responses"]
    honoured = {name for name, row in rows.items() if row.is_ != "refused"}
    assert honoured == CreateResponse.model_fields.keys()
