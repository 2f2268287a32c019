"""Requests refuse values that mean nothing, and are made without torch."""

import subprocess
import sys

import pytest

from tests.engine.answers import ask


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
    ],
)
def test_sampling_without_meaning_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .+, not {value}$"):
        ask(**{name: value})


def test_an_answer_has_a_length_and_a_stop_string_has_characters() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be 0 or more, not -1"):
        ask(tokens=-1)
    with pytest.raises(ValueError, match="stop_strings must be non-empty"):
        ask(stops=["a", ""])


def test_the_side_of_the_worker_needs_no_torch() -> None:
    """The Celery process imports these; torch would cost it seconds and half a gigabyte."""
    program = "import sys, worker.engine.client, worker.engine.detokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
