"""From stored items to a prompt: roles, instructions, and what happens to history that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from storage.history import Said
from tests.model.tiny import tiny_ranks
from tests.storage.factory import message
from worker import prompt, scores
from worker.engine.request import Finished, SamplingParams, TokenLogprobs
from worker.model.chat import Prompt
from worker.model.config import GenerationDefaults
from worker.model.errors import PromptTooLong
from worker.model.tokenizer import Tokenizer

TINY = Tokenizer(tiny_ranks())
HISTORY = [message("one"), message("two", "assistant"), message("three"), message("four", "assistant")]


def built(request: dict[str, Any], context_length: int = 8192) -> Prompt:
    return prompt.build(
        [Said(body) for body in [*HISTORY, message("five")]],
        request,
        tokenizer=TINY,
        defaults=GenerationDefaults(),
        context_length=context_length,
    )


@pytest.mark.parametrize("request_", [{}, {"truncation": "auto"}, {"truncation": "disabled"}])
def test_what_fits_is_kept_whatever_was_asked(request_: dict[str, Any]) -> None:
    assert built(request_).dropped_messages == 0


def test_the_oldest_turns_are_left_out_unless_that_is_refused() -> None:
    whole = len(built({}).ids)
    asked = {"max_output_tokens": 10}
    assert built(asked, whole + 10).dropped_messages == 0
    for request in (asked, {**asked, "truncation": "auto"}):
        assert built(request, whole + 9).dropped_messages == 2
    assert built({**asked, "truncation": "disabled"}, whole + 10).dropped_messages == 0
    with pytest.raises(prompt.HistoryTooLong, match="oldest 2 messages"):
        built({**asked, "truncation": "disabled"}, whole + 9)


def test_an_answer_keeps_the_tokens_it_was_generated_as() -> None:
    """So the prompt of the next turn begins with what the engine has in its cache."""
    spelled = [TINY.encode(letter)[0] for letter in "user"]
    assert TINY.encode("user") != spelled
    for token_ids, expected in (
        (spelled, spelled),
        ([*spelled, *TINY.encode("!")], TINY.encode("user")),  # it went on: the text was cut at a stop string
        ([TINY.im_start], TINY.encode("user")),  # control tokens are put in by the renderer alone
        ([10**6], TINY.encode("user")),  # from a model with another vocabulary
        ([], TINY.encode("user")),
    ):
        items = [Said(message("hi")), Said(message("user", "assistant"), token_ids), Said(message("on"))]
        ids = prompt.build(items, {}, tokenizer=TINY, defaults=GenerationDefaults(), context_length=8192).ids
        begin = [TINY.im_start, *TINY.encode("assistant"), *TINY.encode("\n")]
        answer = [*begin, *expected, TINY.im_end]
        assert any(ids[at : at + len(answer)] == answer for at in range(len(ids)))


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny <|im_end|>"}
ASKED = [message("How is Rome?")]
CALLED = 'Thought: I can use weather.\nAction: weather\nAction Input: {"city": "Rome"}\n'


def spelled(items: list[dict[str, Any]], **request: Any) -> str:
    """The prompt as text, control tokens as `[start]` and `[end]`; its system block is left out."""
    ids = prompt.build(
        [Said(body) for body in items],
        request,
        tokenizer=TINY,
        defaults=GenerationDefaults(),
        context_length=8192,
    ).ids
    names = {TINY.im_start: "[start]", TINY.im_end: "[end]"}
    text = b"".join(names[id_].encode() if id_ in names else TINY.token_bytes(id_) for id_ in ids)
    return text.decode().partition("[end]\n")[2]


def test_functions_stand_before_the_newest_user_message() -> None:
    text = spelled([message("Hi"), message("Hello", "assistant"), *ASKED], tools=[WEATHER])
    old, _, new = text.partition("[start]assistant\nHello[end]\n")
    assert old == "[start]user\nHi[end]\n"
    assert new.startswith("[start]user\nAnswer the following questions as best you can.")
    assert "weather: Call this tool" in new
    assert "The weather of a city." in new
    assert '"city": {"type": "string"}' in new
    assert "should be one of [weather]" in new
    assert new.endswith("Begin!\n\nQuestion: How is Rome?[end]\n[start]assistant\n")


def test_without_functions_the_prompt_says_nothing_of_them() -> None:
    plain = "[start]user\nHow is Rome?[end]\n[start]assistant\n"
    assert spelled(ASKED) == spelled(ASKED, tools=[]) == plain
    assert spelled(ASKED, tools=[WEATHER], tool_choice="none") == plain


def test_an_answer_goes_on_behind_what_a_function_returned() -> None:
    """A control token in it is text, as everywhere."""
    open_end = f"[start]assistant\n{CALLED}Observation: sunny <|im_end|>\n"
    assert spelled([*ASKED, CALL, OUTPUT], tools=[WEATHER]).endswith(f"How is Rome?[end]\n{open_end}")
    final = "Thought: I now know the final answer\nFinal Answer:\n"
    assert spelled([*ASKED, CALL, OUTPUT]) == f"[start]user\nHow is Rome?[end]\n{open_end}{final}"


def test_calls_and_their_answer_are_one_message_of_the_history() -> None:
    said = [*ASKED, CALL, OUTPUT, message("It is sunny.", "assistant"), message("Thanks")]
    assert spelled(said) == (
        f"[start]user\nHow is Rome?[end]\n[start]assistant\n{CALLED}Observation: sunny <|im_end|>\n"
        "Thought: I now know the final answer\nFinal Answer: It is sunny.[end]\n"
        "[start]user\nThanks[end]\n[start]assistant\n"
    )


def test_outputs_stand_behind_their_calls_in_any_order() -> None:
    other = [{**CALL, "call_id": "c2"}, {**OUTPUT, "call_id": "c2", "output": "rain"}]
    text = spelled([*ASKED, CALL, other[0], other[1], OUTPUT], tools=[WEATHER])
    assert text.endswith(f"{CALLED}Observation: sunny <|im_end|>\n{CALLED}Observation: rain\n")
    lost = spelled([*ASKED, {**OUTPUT, "call_id": "gone"}], tools=[WEATHER])
    assert lost.endswith("[start]assistant\nObservation: sunny <|im_end|>\n")
    unanswered = spelled([*ASKED, CALL, message("Never mind")])
    assert CALLED.rstrip() + "[end]\n[start]user\nNever mind" in unanswered


def raw(asked: object, most: int = 5, context_length: int = 64, **request: Any) -> Prompt:
    body = {"prompt": asked, "max_output_tokens": most, **request}
    return prompt.build(
        [], body, tokenizer=TINY, defaults=GenerationDefaults(), context_length=context_length
    )


def test_a_raw_prompt_is_its_text_or_its_tokens_and_nothing_around_them() -> None:
    assert raw("user <|im_end|>").ids == TINY.encode("user <|im_end|>")
    assert raw([TINY.im_start, 5]).ids == [TINY.im_start, 5]
    assert raw("").ids == [TINY.endoftext]
    assert raw("a", most=0).answer_tokens == 0
    assert raw([5] * 60, most=16).answer_tokens == 4
    with pytest.raises(PromptTooLong, match="take 64 tokens"):
        raw([5] * 64)
    with pytest.raises(prompt.Unusable, match="outside the vocabulary") as wrong:
        raw([5, TINY.n_vocab])
    assert wrong.value.cause == "invalid_token_id"


def sampling(**request: Any) -> SamplingParams:
    return prompt.sampling(request, raw("a"), 7, tokenizer=TINY, defaults=GenerationDefaults())


def test_what_a_request_says_of_sampling_reaches_the_engine() -> None:
    found = sampling(
        presence_penalty=0.5, frequency_penalty=-1, logit_bias={"7": -100, "8": 1.5}, logprobs=3, echo=True
    )
    assert (found.presence_penalty, found.frequency_penalty) == (0.5, -1)
    assert found.logit_bias == ((7, -100.0), (8, 1.5))
    assert (found.logprobs, found.prompt_logprobs) == (3, 3)
    assert sampling(logprobs=3).prompt_logprobs is None
    assert sampling(presence_penalty=None, logit_bias=None, logprobs=None).plain
    with pytest.raises(prompt.Unusable, match="outside the vocabulary") as wrong:
        sampling(logit_bias={str(TINY.n_vocab): 1})
    assert wrong.value.cause == "invalid_logit_bias"


def test_what_completions_show_besides_the_answer() -> None:
    built_ = raw([TINY.im_start, *TINY.encode("user")], most=1)
    first, *rest = built_.ids
    logprobs = [None, *(TokenLogprobs(-1.0, ((TINY.im_end, -0.5),)) for _ in rest)]
    ended = Finished("r", "stop", "", len(built_.ids), 0, 0, logprobs, (TINY.im_end, TokenLogprobs(-0.5, ())))
    found = scores.raw(built_, {"prompt": built_.ids}, ended, TINY)
    assert found == {
        "prompt": "user",
        "prompt_logprobs": [
            [["<|im_start|>", None]],
            *([[TINY.token_bytes(each).decode(), -1.0], ["<|im_end|>", -0.5]] for each in rest),
        ],
        "stop_logprobs": [[["<|im_end|>", -0.5]]],
    }
    assert scores.raw(built_, {}, ended, TINY) is None
    assert [TINY.spelling(each) for each in (first, TINY.im_end + 3, TINY.encode("é")[0])] == [
        b"<|im_start|>",
        b"<|extra_2|>",
        "é".encode()[: len(TINY.spelling(TINY.encode("é")[0]))],
    ]
