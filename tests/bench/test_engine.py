"""The measuring program runs on what it is given and says what went wrong with what it cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.model.tiny import tiny_model

PROGRAM = Path(__file__).parents[2] / "bench" / "engine.py"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--device", "cpu", *arguments]
    wide = os.environ | {"COLUMNS": "300"}  # so that no path is broken into lines
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=wide)


SMALL = {
    "--prompts": "20,40",
    "--batches": "1,3",
    "--context": "10",
    "--steps": "4",
    "--requests": "5",
    "--longest": "12",
    "--history": "200",
    "--repeats": "2",
}


def test_figures_are_printed_and_written(tmp_path: Path) -> None:
    model, written = tiny_model(tmp_path / "tiny"), tmp_path / "figures.json"
    sizes = [word for option in SMALL.items() for word in option]
    done = bench("--model", str(model), "--json", str(written), *sizes)
    assert done.returncode == 0, done.stderr
    assert "tiny, cpu" in done.stdout
    report = json.loads(written.read_text())
    assert report["engine"]["backends"]["attention"]
    assert report["stats"]["host_seconds"] > 0
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert [name.split(",")[0] for name in figures] == [
        "prefill of 20",
        "prefill of 40",
        *["decode"] * 4,  # of each batch greedy and sampled
        "5 requests at once",
        "turn 10",
        "  first token",
        "  first token",
        "peak memory",
    ]
    assert all(figure["reached"] > 0 for figure in figures.values())
    decodes = [figure for name, figure in figures.items() if name.startswith("decode")]
    assert all(len(figure["repeats"]) == 2 and 0 < figure["fraction"] < 1 for figure in decodes)


def test_random_weights_of_the_real_shapes(tmp_path: Path) -> None:
    """One layer instead of 24; made once, then found."""
    folder = tmp_path / "random"
    short = (
        "--random",
        str(folder),
        "--layers",
        "1",
        "--parts",
        "prefill",
        "--prompts",
        "8",
        "--repeats",
        "1",
    )
    assert "prefill of 8" in bench(*short).stdout
    made = (folder / "model.safetensors").stat()
    assert "prefill of 8" in bench(*short).stdout
    assert (folder / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    assert made.st_size > 2 * 151936 * 2048 * 2


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = bench("--model", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
