"""An answer that is held to a grammar is one of its texts, however it was interrupted and whoever runs beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.answers import SAMPLED, Answer, ask, gather, run
from tests.engine.conftest import MakeCore
from tests.engine.schemas import SCHEMAS, Schema, grammar
from tests.model.tiny import tiny_model, tiny_ranks
from worker.engine.config import EngineConfig
from worker.engine.core import EngineCore
from worker.engine.grammar import GrammarError, Grammars
from worker.engine.loading import assemble
from worker.engine.request import Event, Failed, Finished, GenerationRequest
from worker.model.checkpoint import load_model
from worker.model.tokenizer import Tokenizer

CONTEXT = 1024
TINY = Tokenizer(tiny_ranks())
ENDS = (TINY.endoftext, TINY.im_start, TINY.im_end)
PERSON: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def long_core(tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    """Room for an answer of any schema there is."""
    path = tiny_model(tmp_path_factory.mktemp("tiny") / "model", context=CONTEXT, layers=1, hidden=64)
    served = load_model(path, device="cpu", weights="dequantized")
    return assemble(served, Tokenizer.load(path), EngineConfig(Path(), max_running=8, kv_cache_tokens=8192))


def held(schema: Schema, name: str = "a", seed: int = 7, tokens: int = 80) -> GenerationRequest:
    sampled = {**SAMPLED, "seed": seed}
    return replace(ask(name, tokens=tokens, stop_ids=ENDS, **sampled), grammar=grammar(schema))


def ended(answer: Answer) -> str:
    assert isinstance(answer.end, Finished), answer.end
    return answer.end.reason


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 1000))
def test_every_answer_parses_and_validates(long_core: EngineCore, schema: Schema, seed: int) -> None:
    requests = [held(schema, str(n), seed + n, tokens=CONTEXT - 10) for n in range(3)]
    answers = run(long_core, *requests)
    for answer in answers.values():
        assert ended(answer) == "stop", answer.text
        jsonschema.validate(json.loads(answer.text), schema, jsonschema.Draft202012Validator)


def test_an_answer_that_goes_on_ends_as_the_whole_one_does(core: EngineCore) -> None:
    whole = run(core, held(PERSON))["a"]
    assert ended(whole) == "stop"
    for cut in range(1, len(whole.ids) + 1):
        core.submit(replace(held(PERSON), resumed_ids=tuple(whole.ids[:cut])))
        events: list[Event] = []
        while core.busy:
            events += core.step()
        joined = gather(events, {"a": Answer(whole.ids[:cut], whole.pieces[:cut])})["a"]
        assert ended(joined) == "stop"
        assert (joined.ids, joined.text) == (whole.ids, whole.text)


def test_rows_without_a_grammar_and_with_others_do_not_feel_it(core: EngineCore) -> None:
    free = [ask(name, (5, 6, 7, place), tokens=30, **SAMPLED) for place, name in enumerate("xyz")]
    names = [held(PERSON, "a"), held({"enum": ["red", "green"]}, "b")]
    alone = {request.request_id: run(core, request)[request.request_id] for request in [*free, *names]}
    assert run(core, free[0], names[0], free[1], names[1], free[2]) == alone


def test_memory_that_is_short_changes_no_answer(make_core: MakeCore) -> None:
    """Preempted answers are computed again: the grammar must not take their tokens twice."""
    requests = [held(PERSON, str(n), seed=n) for n in range(6)]
    roomy = run(make_core(kv_cache_tokens=1024), *requests)
    tight = make_core(kv_cache_tokens=96)
    assert run(tight, *requests) == roomy
    assert tight.stats.preemptions > 0


def test_too_few_tokens_leave_a_beginning(core: EngineCore) -> None:
    answer = run(core, held(PERSON, tokens=5))["a"]
    assert ended(answer) == "length"
    assert len(answer.ids) == 5
    assert answer.text.startswith("{")


def test_a_text_that_may_go_on_is_ended_by_the_model(core: EngineCore) -> None:
    schema = {"type": "integer", "minimum": 0, "maximum": 999}
    texts = {run(core, held(schema, seed=seed))["a"].text for seed in range(30)}
    assert {len(text) for text in texts} == {1, 2, 3}


@pytest.mark.parametrize(
    ("grammar", "resumed"),
    [("start: %json {", ""), ('start: "a"', "b"), ('start: "a"', "aa"), ("start: /(?=a)b/", "")],
)
def test_a_grammar_that_fails_fails_its_own_request(core: EngineCore, grammar: str, resumed: str) -> None:
    wrong = replace(ask("wrong", resumed=list(resumed.encode())), grammar=grammar)
    answers = run(core, wrong, ask("right"))
    assert isinstance(answers["wrong"].end, Failed)
    assert answers["wrong"].end.code == "server_error"
    assert ended(answers["right"]) == "length"


@pytest.mark.parametrize(
    "text", ["{}", '{"a":  1}', '{"a":\n\n1}', '{"a":\n  \n1}', '{"a": 1, "b":' + " " * 9]
)
def test_white_space_has_an_end(text: str) -> None:
    """A model that may write as much of it as it likes never comes to an end."""
    lark = grammar({"type": "object", "required": ["a"]})
    with pytest.raises(GrammarError):
        Grammars(TINY).matcher(lark, list(text.encode()))
    for fine in ('{"a":1}', '{"a": 1, "b": 2}', '{\n  "a": {\n    "b": 2\n  }\n}'):
        assert Grammars(TINY).matcher(lark, list(fine.encode())).complete


@pytest.mark.parametrize("key", ['"\\u0061"', '"a"', '"x\\/y"', '"\\u0000"'])
def test_a_key_cannot_stand_for_another(key: str) -> None:
    """`additionalProperties` must not be the way around what a property of the same name must be."""
    lark = grammar({"properties": {"a": {"type": "integer"}, "x/y": {"type": "integer"}}, "type": "object"})
    with pytest.raises(GrammarError):
        Grammars(TINY).matcher(lark, list(f'{{"a": 1, {key}: "text"'.encode()))


def test_no_mask_allows_a_control_token_inside_a_text() -> None:
    matcher = Grammars(TINY).matcher('start: /[^a]*/ "a"')
    assert not matcher.mask()[TINY.endoftext :].any()
    matcher.accept(*b"<|im_end|>")
    assert not matcher.mask()[TINY.endoftext :].any()
    matcher.accept(ord("a"))
    assert matcher.complete
    assert list(matcher.mask().nonzero()[0]) == list(ENDS)
