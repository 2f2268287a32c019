"""The length of prompts for the API, by the worker's own code. It needs a checkpoint's rank file and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from api.prompt_length import NoTokenizer, Uncountable
from storage.history import Said
from storage.models import Json
from worker import prompt
from worker.model.config import GenerationDefaults, load_generation_defaults
from worker.model.errors import CheckpointError, PromptTooLong
from worker.model.tokenizer import Tokenizer


class CheckpointCounter:
    """Counts with the files of one checkpoint folder, read at the first call.

    Args:
        model: the folder; it need not exist yet.
        context_length: tokens of prompt and answer together.
    """

    def __init__(self, model: Path, context_length: int) -> None:
        self._model = model
        self._context_length = context_length

    def __call__(self, items: Sequence[Said], request: Json) -> int:
        """Return the length in tokens; see `api.prompt_length.PromptLength`."""
        try:
            tokenizer, defaults = self._read
        except (CheckpointError, OSError) as trouble:
            raise NoTokenizer(str(trouble)) from None
        try:
            built = prompt.build(
                items,
                request,
                tokenizer=tokenizer,
                defaults=defaults,
                context_length=self._context_length,
            )
        except (PromptTooLong, prompt.HistoryTooLong) as too_long:
            raise Uncountable(str(too_long)) from None
        return len(built.ids)

    @cached_property
    def _read(self) -> tuple[Tokenizer, GenerationDefaults]:
        return Tokenizer.load(self._model), load_generation_defaults(self._model)
