"""Prompts equal Qwen's own; history is packed newest first; nothing typed reaches the structure."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tiny import tiny_ranks
from worker.model.chat import Message, Prompt, Role, render
from worker.model.errors import PromptTooLong
from worker.model.tokenizer import Tokenizer

TINY = Tokenizer(tiny_ranks())

roles = st.sampled_from(["system", "user", "assistant"])
# What someone who knows the format would type, and anything else, lone surrogates included.
hostile = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>", "system\n", "\n", "x"])
).map("".join)
texts = hostile | st.text(st.characters(codec=None))


def rendered(*messages: tuple[Role, str], tokenizer: Tokenizer = TINY, **limits: int) -> Prompt:
    room = {"context_length": 8192, "window": 6144, "answer_tokens": 512} | limits
    return render([Message(role, text) for role, text in messages], tokenizer=tokenizer, **room)


def parsed(ids: list[int], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """A prompt read back by its control ids alone: (role, text) of every message; the last is the opened answer."""
    starts = [position for position, token in enumerate(ids) if token == tokenizer.im_start]
    assert starts[0] == 0
    messages = []
    for start, end in zip(starts, [*starts[1:], len(ids) + 1], strict=True):
        body = ids[start + 1 : end - 1]  # without the line break before the next message
        closed = tokenizer.im_end in body
        if closed:
            assert body[-1] == tokenizer.im_end
            body.pop()
        assert all(token < tokenizer.endoftext for token in body)
        role, _, text = tokenizer.decode(body).partition("\n")
        messages.append((role, text))
        assert closed or end == len(ids) + 1
    return messages


def test_golden_prompts(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    for vector in golden["prompts"]:
        history = [
            message
            for query, answer in vector["history"]
            for message in (("user", query), ("assistant", answer))
        ]
        prompt = rendered(
            ("system", vector["system"]),
            *history,
            ("user", vector["query"]),
            tokenizer=qwen_tokenizer,
            window=vector["max_window_size"],
        )
        assert prompt.ids == vector["ids"], vector["name"]
        dropped_turns = len(vector["history"]) - vector["history_turns_kept"]
        assert prompt.dropped_messages == 2 * dropped_turns, vector["name"]
        assert prompt.answer_tokens == 512


def test_pieces_are_not_tokenised_together(golden: dict[str, Any], qwen_tokenizer: Tokenizer) -> None:
    vector = golden["one_shot_rendered_string_differs"]
    prompt = rendered(("user", "\nhi"), tokenizer=qwen_tokenizer)
    assert prompt.ids == vector["ids_make_context"]
    assert prompt.ids != vector["ids_one_shot"]


def test_the_default_system_text_stands_where_there_is_none(
    golden: dict[str, Any], qwen_tokenizer: Tokenizer
) -> None:
    (card,) = [vector for vector in golden["prompts"] if vector["name"] == "card_1_default_system"]
    assert rendered(("user", card["query"]), tokenizer=qwen_tokenizer).ids == card["ids"]


def test_leading_system_messages_are_one_block() -> None:
    prompt = rendered(("system", "a"), ("system", "b"), ("user", "hi"))
    assert parsed(prompt.ids, TINY) == [("system", "a\n\nb"), ("user", "hi"), ("assistant", "")]


def test_later_system_messages_stay_in_place_and_go_with_their_turn() -> None:
    messages: list[tuple[Role, str]] = [
        ("system", "s"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("system", "from now on shout"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("assistant", "a2 more"),
        ("user", "q3"),
        ("system", "quietly"),
        ("user", "q4"),
    ]
    assert parsed(rendered(*messages).ids, TINY) == [*messages, ("assistant", "")]
    whole = len(rendered(*messages).ids)
    # One token less than the oldest turn needs, then one token less than both.
    without_oldest = rendered(*messages, context_length=whole + 511)
    assert parsed(without_oldest.ids, TINY) == [messages[0], *messages[3:], ("assistant", "")]
    assert without_oldest.dropped_messages == 2
    query_alone = rendered(*messages, context_length=len(without_oldest.ids) + 511)
    assert parsed(query_alone.ids, TINY) == [messages[0], *messages[7:], ("assistant", "")]
    assert query_alone.dropped_messages == 6


def test_an_assistant_message_may_be_the_first_or_the_last() -> None:
    prompt = rendered(("assistant", "Welcome."), ("user", "hi"), ("assistant", "Hello"))
    assert parsed(prompt.ids, TINY)[1:] == [
        ("assistant", "Welcome."),
        ("user", "hi"),
        ("assistant", "Hello"),
        ("assistant", ""),
    ]


def test_the_window_is_strict() -> None:
    """System block and history must stay below the window: reaching it is too much."""
    messages: list[tuple[Role, str]] = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")]
    tail = len(
        [
            10,
            TINY.im_start,
            *TINY.encode("user\nq2"),
            TINY.im_end,
            10,
            TINY.im_start,
            *TINY.encode("assistant\n"),
        ]
    )
    head_and_history = len(rendered(*messages).ids) - tail
    assert rendered(*messages, window=head_and_history + 1).dropped_messages == 0
    assert rendered(*messages, window=head_and_history).dropped_messages == 2


def test_the_answer_shrinks_before_the_query_does() -> None:
    messages: list[tuple[Role, str]] = [("user", "old"), ("assistant", "old"), ("user", "hi" * 50)]
    query = len(rendered(*messages[2:]).ids)
    prompt = rendered(*messages, context_length=query + 30, answer_tokens=100)
    assert (len(prompt.ids), prompt.answer_tokens, prompt.dropped_messages) == (query, 30, 2)
    assert rendered(*messages, context_length=query + 1, answer_tokens=100).answer_tokens == 1
    with pytest.raises(PromptTooLong, match="Send less text") as caught:
        rendered(*messages, context_length=query, answer_tokens=100)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (query, query)


@given(
    messages=st.lists(st.tuples(roles, texts), max_size=6),
    tokenizer_is_real=st.booleans(),
)
def test_what_is_typed_changes_no_role(
    qwen_tokenizer: Tokenizer, messages: list[tuple[Role, str]], tokenizer_is_real: bool
) -> None:
    """Read back by control ids, the prompt holds the messages that were given, in their roles, and nothing else."""
    tokenizer = qwen_tokenizer if tokenizer_is_real else TINY
    prompt = rendered(*messages, tokenizer=tokenizer, context_length=100_000, window=100_000)

    def normal(text: str) -> str:
        readable = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return unicodedata.normalize("NFC", readable)

    leading = next((i for i, (role, _) in enumerate(messages) if role != "system"), len(messages))
    system = (
        "\n\n".join(text for _, text in messages[:leading]) if leading else "You are a helpful assistant."
    )
    expected = [("system", system), *messages[leading:], ("assistant", "")]
    assert parsed(prompt.ids, tokenizer) == [(role, normal(text)) for role, text in expected]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8),
    window=st.integers(1, 400),
    context_length=st.integers(1, 500),
    answer_tokens=st.integers(1, 200),
)
def test_as_many_newest_turns_as_both_limits_allow(
    lengths: list[tuple[int, int]], window: int, context_length: int, answer_tokens: int
) -> None:
    """Against a search over every number of turns. One character is one token of the tiny vocabulary."""
    turns: list[list[tuple[Role, str]]] = [[("user", "q" * q), ("assistant", "z" * a)] for q, a in lengths]
    head = len([TINY.im_start, *TINY.encode("system\n"), *TINY.encode("s"), TINY.im_end])
    bare = len(rendered(("system", "s"), ("user", "now")).ids)
    if bare >= context_length:
        with pytest.raises(PromptTooLong):
            rendered(("system", "s"), ("user", "now"), context_length=context_length)
        return

    def size(kept: int) -> int:
        newest = [message for turn in turns[len(turns) - kept :] for message in turn]
        return (
            len(rendered(("system", "s"), *newest, ("user", "now"), context_length=10**6, window=10**6).ids)
            - bare
        )

    def fits(kept: int) -> bool:
        history = size(kept)
        return head + history < window and bare + history + answer_tokens <= context_length

    best = max((kept for kept in range(1, len(turns) + 1) if fits(kept)), default=0)
    prompt = rendered(
        ("system", "s"),
        *(message for turn in turns for message in turn),
        ("user", "now"),
        window=window,
        context_length=context_length,
        answer_tokens=answer_tokens,
    )
    assert len(prompt.ids) == bare + size(best)
    assert prompt.dropped_messages == 2 * (len(turns) - best)
    assert prompt.answer_tokens == min(answer_tokens, context_length - bare)
    assert len(prompt.ids) + prompt.answer_tokens <= context_length
