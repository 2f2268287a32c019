"""docs/reliability.md names only tests and faults that exist, and no fault of the fault run is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.faults.plan import ALSO, MUST

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
TABLES = PAGE.partition("## The fault run")[0]
ROWS = [line for line in TABLES.splitlines() if line.startswith("| ") and "| --- |" not in line]


@cache
def functions(path: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 60
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []


def test_every_row_has_a_proof_and_every_fault_of_the_run_a_row() -> None:
    faults = {fault.__name__ for lane in (*MUST.values(), *ALSO.values()) for fault in lane}
    proofs = [row.rsplit("|", 2)[1] for row in ROWS if not row.rstrip(" |").endswith("proof")]
    assert len(proofs) >= 28
    named = [set(re.findall(r"`([^`]+)`", proof)) for proof in proofs]
    assert all(any("::" in name or name in faults for name in names) for names in named)
    assert faults <= set().union(*named)
