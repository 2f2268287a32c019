"""The same requests for the service and for the engine's own loop, which runs in a process of its own."""

import gc
import random
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from storage.history import Said
from worker import prompt
from worker.engine.config import EngineConfig
from worker.engine.request import Finished, GenerationRequest, Tokens
from worker.model.chat import Prompt
from worker.model.config import GenerationDefaults, load_generation_defaults
from worker.model.tokenizer import Tokenizer

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")
SAMPLED = {"temperature": 1.0, "top_p": 0.8}


@dataclass(frozen=True)
class Load:
    """So many jobs, and how many at a time.

    Answers are from half to one and a half times `answer_tokens` long. Were all of one length, an engine without a
    service would read all prompts in one step and end all answers in another, which no engine does whose callers come
    and go.
    """

    jobs: int
    callers: int
    prompt_words: int
    answer_tokens: int

    def texts(self, seed: int) -> list[str]:
        """What is asked: no two begin alike, so that nothing is found in the cache."""
        draw = random.Random(seed)
        return [
            " ".join([str(draw.randrange(10**9)), *draw.choices(WORDS, k=self.prompt_words)])
            for _ in range(self.jobs)
        ]

    def asked(self, seed: int) -> list[dict[str, Any]]:
        """The bodies of the requests."""
        draw = random.Random(seed)
        shortest, longest = -(-self.answer_tokens // 2), self.answer_tokens * 3 // 2
        return [
            body(text, draw.randint(shortest, longest), seed=number)  # so that both end where the model ends
            for number, text in enumerate(self.texts(seed))
        ]


def body(text: str, tokens: int, **more: object) -> dict[str, Any]:
    return {
        "model": "default",
        "input": text,
        "max_output_tokens": tokens,
        "instructions": "Go on.",
        **SAMPLED,
        **more,
    }


def rendered(
    asked: dict[str, Any], tokenizer: Tokenizer, defaults: GenerationDefaults, context_length: int
) -> Prompt:
    """The prompt that a worker makes of a request's body."""
    item = {"role": "user", "content": [{"text": asked["input"]}]}
    return prompt.build(
        [Said(item)], asked, tokenizer=tokenizer, defaults=defaults, context_length=context_length
    )


class Alone:
    """The engine's own loop in a process of its own: no pipe, no API, no SQL."""

    def __init__(self, config: EngineConfig) -> None:
        context = get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_run_alone, args=(far, config), daemon=True)
        self._process.start()

    def tokens_per_second(self, load: Load, seed: int) -> float:
        self._pipe.send((load, seed))
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _run_alone(pipe: Connection, config: EngineConfig) -> None:
    from worker.engine.loading import load as load_engine

    core, info = load_engine(config)
    tokenizer, defaults = Tokenizer.load(config.model_path), load_generation_defaults(config.model_path)
    gc.collect()
    gc.freeze()  # as the engine process does
    while (wanted := pipe.recv()) is not None:
        load, seed = wanted
        requests = []
        for number, asked in enumerate(load.asked(seed)):
            built = rendered(asked, tokenizer, defaults, info.context_length)
            sampling = prompt.sampling(asked, built, asked["seed"], tokenizer=tokenizer, defaults=defaults)
            requests.append(
                GenerationRequest(f"{seed}/{number}", tuple(built.ids), (), sampling, None, str(seed))
            )
        begin, produced, open_ = time.perf_counter(), 0, 0
        while requests or open_:
            while requests and open_ < load.callers:
                core.submit(requests.pop())
                open_ += 1
            for event in core.step():
                if isinstance(event, Tokens):
                    produced += len(event.token_ids)
                else:
                    open_ -= 1
                    assert isinstance(event, Finished), event
        pipe.send(produced / (time.perf_counter() - begin))
