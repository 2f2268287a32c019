"""What an answer is becomes clear at one token and stays so, however its text is cut into tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from storage import answer_format, react

TOOL = {"type": "function", "name": "weather", "parameters": None}
OTHER = {"type": "function", "name": "weather_now", "parameters": {"type": "object"}}
CALL = 'Thought: Rome.\nAction: weather_now\nAction Input: {"a": 1}'
TEXT = "Thought: Action: weather\nFinal Answer: It is\nsunny. Action: weather"


@settings(deadline=None)
@given(st.sampled_from([CALL, TEXT]), st.data())
def test_every_cut_tells_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    deltas = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    asked = {"tools": [TOOL, OTHER]}
    name, content = react.content(asked, deltas)
    assert (name, content) == react.content(asked, [text])
    found = [react.opened(deltas[:count]) for count in range(len(deltas) + 1)]
    clear = [each for each in found if each is not None]
    assert clear
    assert all(each == clear[0] for each in clear)


def test_what_is_seen() -> None:
    asked = {"tools": [TOOL, OTHER], "tool_choice": "auto"}
    assert react.content(asked, [CALL]) == ("weather_now", '{"a": 1}')
    assert react.content(asked, [TEXT]) == (None, "It is\nsunny. Action: weather")
    assert react.content(asked, ["Thought: cut"]) == (None, "")
    assert react.content({"tools": []}, [CALL]) == (None, CALL)
    assert react.content({**asked, "tool_choice": "none"}, [CALL]) == (None, CALL)


@pytest.mark.parametrize(
    ("choice", "call", "other", "text"),
    [
        ("auto", True, True, True),
        ("required", True, True, False),
        ({"type": "function", "name": "weather"}, True, False, False),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "weather"}]}, True, False, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"name": "weather"}]}, True, False, False),
    ],
)
def test_the_grammar_lets_be_called_what_was_chosen(
    choice: object, call: bool, other: bool, text: bool
) -> None:
    from tests.model.tiny import tiny_ranks
    from worker.engine.grammar import GrammarError, Grammars
    from worker.model.tokenizer import Tokenizer

    grammar = answer_format.grammar({"tools": [TOOL, OTHER], "tool_choice": choice})
    assert grammar is not None
    assert LLMatcher.validate_grammar(grammar) == ""
    grammars = Grammars(Tokenizer(tiny_ranks()))

    def fits(answer: str) -> bool:
        try:
            return bool(grammars.matcher(grammar, list(answer.encode())).mask().any())
        except GrammarError:
            return False

    head = "Thought: x\nAction: "
    assert fits(f"{head}weather\nAction Input: {{}}"[:-1]) == call
    assert fits(f"{head}weather_now\nAction Input: {{") == other
    assert fits("Thought: x\nFinal Answer: y") == text
    assert not fits(f'{head}weather\nAction Input: {{"a": 1')
    assert not fits("Hello")
