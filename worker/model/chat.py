"""Messages to prompt ids: ChatML built piece by piece, with as much history as fits. No torch.

    <|im_start|>system⏎TEXT<|im_end|>                   always, and first
    ⏎<|im_start|>user⏎TEXT<|im_end|>                    a message of any role
    ⏎<|im_start|>assistant⏎                             at the end: here the answer begins

Every piece is tokenised on its own, as Qwen's make_context does (tokenising the rendered string would merge
newlines), and control ids are put in by this code only: what a message says cannot change its role. An answer that this
model generated is put in as the tokens it was generated as, so that a prompt begins with what the engine has computed.

The messages at the start that are system messages form the system block. A turn is user (or later system) messages and
the assistant messages that answer them; what follows the last assistant message is the query. System block and
query are never cut. Whole turns are added, newest first, up to the first that does not fit: older ones are not
tried, so the history never has a hole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from worker.model.errors import PromptTooLong
from worker.model.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]

DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `ids` where its text stands for these tokens and no others."""

    role: Role
    text: str
    ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids to start from, how many tokens the answer may have, and how many messages did not fit."""

    ids: list[int]
    answer_tokens: int
    dropped_messages: int


def render(
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    context_length: int,
    window: int,
    answer_tokens: int,
    default_system: str = DEFAULT_SYSTEM,
    begun: str = "",
) -> Prompt:
    """The prompt for the next assistant message, of which `begun` is there already.

    System block and history together stay **below** `window` tokens (Qwen's rule), and with the query and
    `answer_tokens` within `context_length`. Where system block and query alone leave less than that, the answer's
    share shrinks; where they leave nothing, PromptTooLong.
    """
    system_texts = [message.text for message in takewhile(lambda message: message.role == "system", messages)]
    turns, query = _split(messages[len(system_texts) :])

    head = _block("system", "\n\n".join(system_texts) if system_texts else default_system, tokenizer)
    tail = [*_blocks(query, tokenizer), *_line_break(tokenizer), *_opening("assistant", tokenizer)]
    tail += tokenizer.encode(begun)
    room = context_length - len(head) - len(tail)
    if room < 1:
        raise PromptTooLong(len(head) + len(tail), context_length)

    kept: list[list[int]] = []
    history_tokens = 0
    for turn in reversed(turns):
        block = _blocks(turn, tokenizer)
        history_tokens += len(block)
        if len(head) + history_tokens >= window or history_tokens + answer_tokens > room:
            break
        kept.append(block)

    history = [token for block in reversed(kept) for token in block]
    return Prompt(
        ids=[*head, *history, *tail],
        answer_tokens=min(answer_tokens, room),
        dropped_messages=sum(len(turn) for turn in turns[: len(turns) - len(kept)]),
    )


def _split(messages: Sequence[Message]) -> tuple[list[list[Message]], list[Message]]:
    """(turns, query). A message that is not the assistant's begins a new turn when it follows one that is."""
    turns: list[list[Message]] = []
    current: list[Message] = []
    for message in messages:
        if message.role != "assistant" and current and current[-1].role == "assistant":
            turns.append(current)
            current = []
        current.append(message)
    if current and current[-1].role == "assistant":
        turns.append(current)
        current = []
    return turns, current


def _blocks(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    def pieces() -> Iterator[list[int]]:
        for message in messages:
            yield _line_break(tokenizer)
            yield _block(message.role, message.text, tokenizer, message.ids)

    return [token for piece in pieces() for token in piece]


def _block(role: Role, text: str, tokenizer: Tokenizer, ids: Sequence[int] | None = None) -> list[int]:
    return [*_opening(role, tokenizer), *(tokenizer.encode(text) if ids is None else ids), tokenizer.im_end]


def _opening(role: Role, tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.im_start, *tokenizer.encode(role), *_line_break(tokenizer)]


def _line_break(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("\n")
