"""The complete examples of docs/api.md, run as a reader would run them: Python, Node and curl."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.house import House
from tests.conformance import tables
from tests.conformance.node_sdk import FOLDER, installed

PYTHON = [block for block in tables.blocks("python") if block.startswith("from openai import OpenAI\n")]
RUNNERS = {
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
    "bash": ["bash", "-euo", "pipefail", "-c"],
}
EXAMPLES = [
    *(("python", block) for block in PYTHON),
    *((language, block) for language in ("js", "bash") for block in tables.blocks(language)),
]


@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=[language for language, _ in EXAMPLES])
def test_an_example_runs(
    language: str, example: str, sqlite_house: House, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path
    if language == "js":
        folder = installed(FOLDER, required=request.config.getoption("markexpr") == "")
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine: its example was NOT tried")
    done = subprocess.run(
        [*RUNNERS[language], example],
        cwd=folder,
        env={
            **os.environ,
            "OPENAI_BASE_URL": f"{sqlite_house.base_url}/v1",
            "OPENAI_API_KEY": sqlite_house.api_key,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Max" in done.stdout


def test_there_is_one_in_each_language() -> None:
    assert {language for language, _ in EXAMPLES} == RUNNERS.keys()
