"""docker-compose.yml as the tests see it: read, interpolated and merged as Compose does, without Docker.

Compose's rules that the file relies on: `${NAME}`, `${NAME:-default}` and `${NAME:?message}`; an environment key
without a value takes it from the caller's environment or is not set at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"
EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<operator>[-?])(?P<rest>[^}]*))?\}")
_DURATION = re.compile(r"(\d+)(s|m)")


class Unset(Exception):
    """A variable that the file insists on has no value."""


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file's content for a caller with `variables` in `.env`.

    Raises:
        Unset: a `${NAME:?message}` has no value.
    """
    content: dict[str, Any] = _filled(yaml.safe_load(FILE.read_text()), variables)
    for service in content["services"].values():
        environment = service.get("environment", {})
        passed_on = {key: variables.get(key) for key, value in environment.items() if value is None}
        service["environment"] = {
            key: str(value) for key, value in {**environment, **passed_on}.items() if value is not None
        }
    return content


def keys(service: str) -> set[str]:
    """The names of all variables that can reach `service`, with or without a value of their own."""
    return set(yaml.safe_load(FILE.read_text())["services"][service].get("environment", {}))


def variables_in(text: str) -> dict[str, bool]:
    """The names in `${...}`, and whether a value is insisted on."""
    found: dict[str, bool] = {}
    for match in _VARIABLE.finditer(text):
        found[match["name"]] = found.get(match["name"], False) or match["operator"] == "?"
    return found


def seconds(duration: str) -> int:
    """A duration such as `60s` or `10m`, in seconds."""
    match = _DURATION.fullmatch(duration)
    assert match, f"{duration!r} is not a duration that these tests know"
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


def stages() -> dict[str, str]:
    """The stages of the Dockerfile by name, each as its own lines."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def _filled(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, variables) for value in node]
    if not isinstance(node, str):
        return node

    def value(match: re.Match[str]) -> str:
        given = variables.get(match["name"], "")
        if given or match["operator"] is None:
            return given
        if match["operator"] == "?":
            raise Unset(f"{match['name']}: {match['rest']}")
        return match["rest"]

    return _VARIABLE.sub(value, node)
