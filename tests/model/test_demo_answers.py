"""The demo model answers sense through loader, kernels, tokenizer and prompt: the conversion as a whole is right.

Conversations that a model of this size masters greedily. An answer may differ in words between kernels and
machines, so only the fact is asked for; the control shows that it can come from nowhere but the history.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.model.reader import Reader
from worker.model.chat import Message, render
from worker.model.checkpoint import load_model
from worker.model.tokenizer import Tokenizer

Answer = Callable[[list[Message], int], str]


@pytest.fixture(scope="module", params=["int4", "dequantized"])
def answer(request: pytest.FixtureRequest, demo_model: Path) -> Answer:
    """(messages, most tokens) -> the greedy answer."""
    model = load_model(demo_model, device="cpu", weights=request.param)
    tokenizer = Tokenizer.load(demo_model)

    @torch.inference_mode()
    def generate(messages: list[Message], tokens: int) -> str:
        prompt = render(messages, tokenizer=tokenizer, context_length=8192, window=6144, answer_tokens=tokens)
        reader, ids = Reader(model), list[int]()
        logits = reader.read(torch.tensor(prompt.ids))[-1]
        while (best := int(logits[: tokenizer.n_vocab].argmax())) < tokenizer.endoftext:
            ids.append(best)
            if len(ids) == tokens:
                break
            logits = reader.read(torch.tensor([best]))[-1]
        return tokenizer.decode(ids).strip()

    return generate


def test_a_fact(answer: Answer) -> None:
    assert "Paris" in answer([Message("user", "What is the capital of France?")], 24)


@pytest.mark.parametrize(
    ("system", "told", "asked", "fact"),
    [
        (
            "You are Robo, a friendly robot.",
            "My dog's name is Max.",
            "What is my dog's name?",
            "Your dog's name is Max",
        ),
        (
            "You are a helpful assistant with a good memory.",
            "My sister's name is Lucy.",
            "What is my sister's name?",
            "Your sister's name is Lucy",
        ),
    ],
)
def test_what_was_said_before(answer: Answer, system: str, told: str, asked: str, fact: str) -> None:
    opening = [Message("system", system), Message("user", told)]
    # How long this answer may get is part of the recipe: another history gives another second answer.
    history = [*opening, Message("assistant", answer(opening, 40))]
    assert fact in answer([*history, Message("user", asked)], 32)
    assert fact not in answer([opening[0], Message("user", asked)], 32), "known without having been told"
