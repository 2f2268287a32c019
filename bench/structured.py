"""How many of the sampled answers that a schema holds parse, validate and end by themselves.

    python bench/structured.py [--model DIR] [--answers 100] [--temperature 1]

The engine's own loop, without its process: each answer has a prompt, a schema and a seed of its own, several run at
once.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from worker.engine.child import THREAD_SETTINGS

os.environ |= THREAD_SETTINGS | os.environ  # before torch starts its threads, as in the engine process

import jsonschema
import typer

from qwenq.model_choice import chosen
from storage import answer_format
from storage.history import Said
from worker import prompt
from worker.engine.config import EngineConfig
from worker.engine.core import EngineCore
from worker.engine.loading import load
from worker.engine.request import Failed, Finished, GenerationRequest, Tokens
from worker.model.config import load_generation_defaults
from worker.model.tokenizer import Tokenizer

Schema = dict[str, Any]
NAME: Schema = {"type": "string", "maxLength": 60}


def record(**properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


CASES: list[tuple[str, Schema]] = [
    (
        "Invent a person. Answer in JSON with name, age and email.",
        record(name=NAME, age={"type": "integer", "minimum": 0, "maximum": 120}, email=NAME),
    ),
    (
        "Is the review 'I loved every minute of it' good? Answer in JSON with sentiment and confidence.",
        record(
            sentiment={"enum": ["positive", "negative", "neutral"]},
            confidence={"type": "number", "minimum": 0, "maximum": 1},
        ),
    ),
    (
        "Write a shopping list in JSON: items with name, count and unit.",
        record(
            items={
                "type": "array",
                "items": record(name=NAME, count={"type": "integer", "minimum": 1, "maximum": 99}, unit=NAME),
                "minItems": 1,
                "maxItems": 4,
            }
        ),
    ),
    (
        "Describe a small company in JSON: its name, its revenue, and its departments with name and head.",
        record(
            name=NAME,
            revenue={"type": "number"},
            departments={
                "type": "array",
                "items": {"$ref": "#/$defs/department"},
                "minItems": 1,
                "maxItems": 3,
            },
        )
        | {"$defs": {"department": record(name=NAME, head=NAME)}},
    ),
    (
        "When does the train leave? Answer in JSON with date, platform (a number or null) and delayed.",
        record(
            date={"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"},
            platform={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 20}, {"type": "null"}]},
            delayed={"type": "boolean"},
        ),
    ),
]


def main(
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint folder; the demo model without it.")
    ] = None,
    answers: Annotated[int, typer.Option(min=1, help="How many to sample.")] = 100,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
) -> None:
    path = model or chosen(None)
    tokenizer = Tokenizer.load(path)
    core, info = load(EngineConfig(path))
    defaults = load_generation_defaults(path)
    asked: dict[str, Schema] = {}
    requests: list[GenerationRequest] = []
    for number in range(answers):
        question, schema = CASES[number % len(CASES)]
        wanted = {
            "temperature": temperature,
            "text": {"format": {"type": "json_schema", "schema": schema}},
        }
        item = {"role": "user", "content": [{"type": "input_text", "text": question}]}
        built = prompt.build(
            [Said(item)],
            wanted,
            tokenizer=tokenizer,
            defaults=defaults,
            context_length=info.context_length,
        )
        rules = prompt.sampling(wanted, built, number, tokenizer=tokenizer, defaults=defaults)
        asked[str(number)] = schema
        requests.append(
            GenerationRequest(
                str(number), tuple(built.ids), (), rules, None, grammar=answer_format.grammar(wanted)
            )
        )
    texts, ends = run(core, requests)
    wrong = dict(judged(texts, ends, asked))
    for name, why in wrong.items():
        print(f"answer {name}: {why}: {texts[name][:200]!r}")
    print(f"{answers - len(wrong)} of {answers} answers parse, validate and end by themselves")
    raise typer.Exit(bool(wrong))


def run(core: EngineCore, requests: list[GenerationRequest]) -> tuple[dict[str, str], dict[str, str]]:
    """Return each answer's text and how it ended."""
    for request in requests:
        core.submit(request)
    texts, ends = dict.fromkeys((request.request_id for request in requests), ""), dict[str, str]()
    while core.busy:
        for event in core.step():
            match event:
                case Tokens():
                    texts[event.request_id] += "".join(event.pieces)
                case Finished():
                    texts[event.request_id] += event.tail
                    ends[event.request_id] = event.reason
                case Failed():
                    ends[event.request_id] = event.message
    return texts, ends


def judged(
    texts: dict[str, str], ends: dict[str, str], asked: dict[str, Schema]
) -> Iterator[tuple[str, str]]:
    """Yield those that are wrong, with the reason."""
    for name, schema in asked.items():
        if ends[name] != "stop":
            yield name, ends[name]
            continue
        try:
            jsonschema.validate(json.loads(texts[name]), schema, jsonschema.Draft202012Validator)
        except (ValueError, jsonschema.ValidationError) as problem:
            yield name, str(problem).splitlines()[0]


if __name__ == "__main__":
    typer.run(main)
