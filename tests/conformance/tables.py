"""The tables of docs/api.md: every request of the service and every parameter it takes, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
WORDS = ("honoured", "refused", "ignored")
# Beside parameters of the SDK, of which nothing is written: extensions and headers.
EXTENSION = "extension"


@dataclass(frozen=True)
class Row:
    """A parameter: what is done with it, in one of `WORDS`, and whether only this service has it."""

    name: str
    is_: str
    extension: bool
    note: str


def requests() -> dict[str, dict[str, Row]]:
    """Return ``{"POST /v1/responses": {"input": Row, ...}, ...}`` from the part "Every request, every parameter"."""
    found: dict[str, dict[str, Row]] = {}
    part = PAGE.read_text().partition("\n## Every request, every parameter\n")[2]
    assert part, "docs/api.md has no part 'Every request, every parameter'"
    here: list[str] = []
    for line in _lines_of_part(part):
        if line.startswith("### "):
            here = re.findall(r"`([A-Z]+ /[^`]*)`", line)
            assert here, line
            for request in here:
                assert request not in found, f"{request} twice"
                found[request] = {}
        elif line.startswith("| `"):
            names, is_, note = (cell.strip() for cell in line.strip("|").split("|", 2))
            word, _, mark = is_.partition(", ")
            assert word in WORDS, line
            assert mark in ("", EXTENSION), line
            for name in re.findall(r"`([^`]+)`", names):
                for request in here:
                    assert name not in found[request], f"{request}: {name} twice"
                    found[request][name] = Row(name, word, mark == EXTENSION, note)
    return found


def blocks(language: str) -> list[str]:
    """Return the page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def _lines_of_part(part: str) -> Iterator[str]:
    for line in part.splitlines():
        if line.startswith("## "):
            return
        yield line
