"""The pages about the code name what is in the code: files, functions, classes, and Celery's settings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from storage.settings import PREFIX
from tests.compose import stack
from worker.celery_command import ROLES, command

DOCS = stack.ROOT / "docs"
PACKAGES = ("api", "migrations", "qwenq", "storage", "worker")
PAGES = (
    DOCS / "architecture.md",
    DOCS / "operations.md",
    DOCS / "decisions" / "0002-synchronous-storage.md",
    DOCS / "decisions" / "0003-auto-gptq-optimum-flash-attn.md",
    DOCS / "decisions" / "0004-celery-on-redis.md",
)
CODE = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[A-Za-z_]+(?:\.[A-Za-z_]+)+")
CLASS = re.compile(r"(?:[A-Z][a-z]+)+")


def code_of(page: Path) -> set[str]:
    """What stands between backticks on one line, calls without their parentheses."""
    return {name.removesuffix("()") for name in CODE.findall(page.read_text())}


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement of a module or a class defines."""
    match node:
        case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
            return [name]
        case ast.AnnAssign(ast.Name(name)):
            return [name]
        case ast.Assign(targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case _:
            return []


def defined() -> set[str]:
    """Classes by name; functions, classes and constants behind their module's name, methods behind their class's."""
    names: set[str] = set()
    for package in PACKAGES:
        for path in (stack.ROOT / package).rglob("*.py"):
            dotted = ".".join(path.relative_to(stack.ROOT).with_suffix("").parts)
            owners = (path.stem, dotted)
            for node in ast.parse(path.read_text()).body:
                names |= {f"{owner}.{name}" for owner in owners for name in names_of(node)}
                if isinstance(node, ast.ClassDef):
                    names.add(node.name)
                    names |= {f"{node.name}.{name}" for member in node.body for name in names_of(member)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_exist(page: Path) -> None:
    named = {
        name
        for name in code_of(page)
        if name.partition("/")[0] in (*PACKAGES, "tests", "docs") and "/" in name
    }
    assert [name for name in sorted(named) if not (stack.ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_journey_goes_through_functions_that_exist() -> None:
    names = {
        name for name in code_of(DOCS / "architecture.md") if DOTTED.fullmatch(name) or CLASS.fullmatch(name)
    }
    names = {name for name in names if not name.endswith(".py")}
    assert len(names) > 30
    assert sorted(names - defined()) == []


def broker_settings() -> set[str]:
    """The names that storage/broker.py sets, those of the transport's options too."""
    tree = ast.parse((stack.ROOT / "storage" / "broker.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (update,) = [call for call in calls if ast.unparse(call.func) == "app.conf.update"]
    values = {str(keyword.arg): keyword.value for keyword in update.keywords}
    options = values.pop("broker_transport_options")
    assert isinstance(options, ast.Dict)
    return {*values, *(key.value for key in options.keys if isinstance(key, ast.Constant))}


def test_celerys_page_explains_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "decisions" / "0004-celery-on-redis.md").read_text()
    assert {"task_acks_late", "socket_timeout"} <= broker_settings()
    assert sorted(name for name in broker_settings() if name not in page) == []

    monkeypatch.setenv(f"{PREFIX}SECRET_KEY", "x" * 43 + "=")
    words = {word for role in ROLES for word in command(role)}
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert "--hostname" in flags
    assert sorted(flag for flag in flags if flag not in page) == []
