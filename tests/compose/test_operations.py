"""docs/operations.md agrees with the code: its table of settings, and the commands that it tells people to type."""

from __future__ import annotations

import json
import re
import shlex
from ipaddress import IPv4Network

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from api.settings import ApiSettings
from qwenq.cli import app
from storage.settings import PREFIX, BrokerSettings, DatabaseSettings, StorageSettings
from tests.compose import stack
from tests.compose.test_file import SERVICES
from worker.settings import GenerateSettings, WorkerSettings

PAGE = (stack.ROOT / "docs" / "operations.md").read_text()
HEADER = "| variable | read by | default | what it may be |\n| --- | --- | --- | --- |\n"
# Each class with its own fields' readers; what a class inherits belongs to the class above it.
READERS: dict[type[BaseSettings], str] = {
    DatabaseSettings: "all, migrate, keys",
    BrokerSettings: "all",
    StorageSettings: "all",
    ApiSettings: "api",
    WorkerSettings: "worker, webhook-worker",
    GenerateSettings: "worker",
}


def default_of(field: FieldInfo) -> str:
    """A field's default as one would write it into the variable."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "":
        return "unset"
    if isinstance(value, list):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def own_fields(cls: type[BaseSettings]) -> dict[str, FieldInfo]:
    inherited = {
        name for base in cls.__bases__ if issubclass(base, BaseSettings) for name in base.model_fields
    }
    return {name: field for name, field in cls.model_fields.items() if name not in inherited}


def table() -> str:
    """The table of all settings, from the settings."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {readers} | {default_of(field)} | {field.description} |\n"
        for cls, readers in READERS.items()
        for name, field in own_fields(cls).items()
    ]
    return HEADER + "".join(rows)


def test_the_table_of_settings_is_the_settings() -> None:
    start = PAGE.index(HEADER)
    written = PAGE[start : PAGE.index("\n\n", start) + 1]
    assert written == table(), f"put this into docs/operations.md:\n{table()}"


def test_defaults_are_written_as_variables_are() -> None:
    class Example(BaseSettings):
        needed: int
        secret: SecretStr | None = None
        empty: str = ""
        seconds: float = 20.0
        networks: list[IPv4Network] = []

    written = {name: default_of(field) for name, field in Example.model_fields.items()}
    assert written == {
        "needed": "required",
        "secret": "unset",
        "empty": "unset",
        "seconds": "`20`",
        "networks": "`[]`",
    }


def commands() -> list[tuple[str, str]]:
    """Each `docker compose run --rm SERVICE ARGUMENTS` of the page."""
    found = re.findall(r"docker compose run --rm ([\w-]+)([^`\n]*)", PAGE)
    assert found
    return found


@pytest.mark.parametrize(("service", "arguments"), commands())
def test_the_commands_of_the_page_are_commands(service: str, arguments: str) -> None:
    entrypoint = SERVICES[service].get("entrypoint", ["qwenq"])
    words = [*entrypoint[1:], *(shlex.split(arguments, comments=True) or SERVICES[service]["command"])]
    # A name or an option that does not exist is refused before help is given.
    outcome = CliRunner().invoke(app, [*words, "--help"])
    assert outcome.exit_code == 0, outcome.output


def test_the_example_of_env_shows_the_defaults() -> None:
    example = dict(re.findall(rf"^#{PREFIX}(\w+)=(.*)$", stack.EXAMPLE.read_text(), flags=re.MULTILINE))
    fields = {**ApiSettings.model_fields, **GenerateSettings.model_fields}
    defaults = {name: default_of(fields[name.lower()]).strip("`") for name in example}
    assert example == {name: "" if value == "unset" else value for name, value in defaults.items()}
