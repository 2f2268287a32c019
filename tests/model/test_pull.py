"""Pulling from a hub on 127.0.0.1 with the real client, each pull a process of its own, as users run it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model import fake_hub
from tests.model.fake_hub import Break, Hub
from tests.model.tiny import tiny_model
from worker.model import pull as module
from worker.model.errors import CheckpointError
from worker.model.pull import licence_notice, pull
from worker.model.verify import verify

WEIGHTS = "model.safetensors"

# The client writes what it received every 10 MB; smaller steps let a small file be broken off half-way.
PULL = """
import sys, logging
from pathlib import Path
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096
from worker.model.errors import CheckpointError
from worker.model.pull import REPOSITORY, pull
try:
    print(pull(REPOSITORY, Path(sys.argv[1])))
except CheckpointError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """What the repository holds: a checkpoint, its licence, and things that must stay there."""
    folder = tiny_model(tmp_path / "origin")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    return content | {
        "LICENSE": b"terms",
        "modeling_qwen.py": b"raise SystemExit('remote code was run')",
        "tokenization_qwen.py": b"raise SystemExit('remote code was run')",
        "pytorch_model.bin": b"a pickle",
        "README.md": b"words",
    }


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with fake_hub.serve(files) as hub:
        yield hub


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "qwen"


def start_pull(url: str, target: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(target.parent / "hub-cache"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PULL, str(target)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    with process:
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_the_needed_files_and_no_code(hub: Hub, target: Path) -> None:
    status, out, err = finish(start_pull(hub.url, target))
    assert status == 0, err
    assert out.strip() == str(target)
    arrived = {path.name for path in target.iterdir() if path.is_file()}
    expected = {"config.json", "generation_config.json", "qwen.tiktoken", WEIGHTS, "LICENSE"}
    assert arrived == expected
    assert hub.downloaded() == expected
    assert verify(target) == []


def test_a_second_pull_downloads_nothing(hub: Hub, target: Path) -> None:
    assert finish(start_pull(hub.url, target))[0] == 0
    hub.downloads.clear()
    assert finish(start_pull(hub.url, target))[0] == 0
    assert hub.downloads == []


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, files: dict[str, bytes], target: Path) -> None:
    hub.next_break = Break(WEIGHTS, after=100_000, how="close")
    status, _, err = finish(start_pull(hub.url, target))
    assert status == 0, err
    first, second = hub.starts_of(WEIGHTS)
    assert first == 0
    assert 0 < second <= 100_000
    assert (target / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_killed_pull_goes_on_where_it_was(hub: Hub, files: dict[str, bytes], target: Path) -> None:
    hub.next_break = Break(WEIGHTS, after=100_000, how="silence")
    with start_pull(hub.url, target) as process:
        assert hub.silent.wait(120)
        partial = _partial_of(target, at_least=50_000, process=process)
        process.kill()
        process.communicate()
    kept = partial.stat().st_size
    assert not (target / WEIGHTS).exists()

    status, _, err = finish(start_pull(hub.url, target))
    assert status == 0, err
    assert hub.starts_of(WEIGHTS) == [0, kept]
    assert (target / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert not partial.exists()


def _partial_of(target: Path, *, at_least: int, process: subprocess.Popen[str]) -> Path:
    """The partial file of the running pull, once it holds so many bytes."""
    while process.poll() is None:
        for partial in target.rglob("*.partial"):
            if partial.stat().st_size >= at_least:
                return partial
    raise AssertionError("the pull ended early")


def test_a_spoilt_partial_file_is_noticed(hub: Hub, files: dict[str, bytes], target: Path) -> None:
    """The hub's SHA-256 decides: what was kept from earlier is never trusted blindly."""
    hub.next_break = Break(WEIGHTS, after=100_000, how="silence")
    with start_pull(hub.url, target) as process:
        assert hub.silent.wait(120)
        partial = _partial_of(target, at_least=50_000, process=process)
        process.kill()
        process.communicate()
    content = bytearray(partial.read_bytes())
    content[1000] ^= 0xFF
    partial.write_bytes(content)

    status, _, err = finish(start_pull(hub.url, target))
    assert status == 0, err
    assert (target / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_an_incomplete_repository_is_reported(hub: Hub, target: Path) -> None:
    del hub.files["qwen.tiktoken"]
    status, _, err = finish(start_pull(hub.url, target))
    assert status == 1
    assert re.search(r"was downloaded to .*, but:\n.*needs one rank file", err)


def test_a_repository_that_is_not_there(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_hub, "REPOSITORY", "someone/else")
    status, _, err = finish(start_pull(hub.url, target))
    assert status == 1
    assert f"could not download {module.REPOSITORY} from huggingface: RepositoryNotFoundError" in err
    assert "run the same command again" in err


def test_no_hub(target: Path) -> None:
    """Nothing listens: told in words, with no traceback, and no folder that looks like a model."""
    with fake_hub.serve({}) as gone:
        url = gone.url
    status, _, err = finish(start_pull(url, target))
    assert status == 1
    assert f"could not download {module.REPOSITORY} from huggingface" in err
    assert "Traceback" not in err
    assert not (target / "config.json").exists()


def test_modelscope_is_an_extra(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(CheckpointError, match=r"pip install 'qwenq\[modelscope\]'"):
        pull(module.REPOSITORY, target, source="modelscope")


def test_the_licence_is_told() -> None:
    notice = licence_notice()
    assert "Tongyi Qianwen RESEARCH" in notice
    assert "commercial use needs a separate licence" in notice
