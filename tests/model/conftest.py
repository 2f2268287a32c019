"""Qwen's real vocabulary, taken from an installed package, and the golden vectors made with it."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from worker.model.tokenizer import Tokenizer, read_ranks

GOLDEN = Path(__file__).parent.parent / "data" / "qwen-golden-tokens.json"


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Vectors of Qwen's own tokenizer and prompt code."""
    vectors: dict[str, Any] = json.loads(GOLDEN.read_text())
    return vectors


@pytest.fixture(scope="session")
def qwen_rank_file(golden: dict[str, Any]) -> Path:
    """Qwen's rank file inside the installed `dashscope`, which is looked up and not imported."""
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == golden["meta"]["sha256"]
    return file


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_rank_file: Path) -> Tokenizer:
    """The tokenizer of every Qwen-1 model."""
    return Tokenizer(read_ranks(qwen_rank_file))
