"""Sampled answers of the real small model, each held to a schema: the short version of `bench/structured.py`."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "bench" / "structured.py"


def test_every_sampled_answer_parses_and_validates(demo_model: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--model", str(demo_model), "--answers", "10"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert "10 of 10 answers parse, validate and end by themselves" in result.stdout, (
        result.stdout + result.stderr
    )
    assert result.returncode == 0
