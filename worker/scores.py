"""The engine's log-probabilities as they are stored: ids become spellings, which need no tokenizer to be read."""

from __future__ import annotations

from collections.abc import Sequence

from storage import scores
from storage.models import Json
from storage.scores import Entry
from worker.engine.request import Finished, TokenLogprobs
from worker.model.chat import Prompt
from worker.model.tokenizer import Tokenizer


def raw(built: Prompt, request: Json, ended: Finished, tokenizer: Tokenizer) -> Json | None:
    """Return what Completions show besides the answer (`storage.terminal.Answer`); None for anything else."""
    prompt = request.get("prompt")
    if prompt is None:
        return None
    found: Json = {
        "prompt": prompt if isinstance(prompt, str) else tokenizer.decode(built.ids),
        "prompt_logprobs": None,
        "stop_logprobs": None,
    }
    if ended.prompt_logprobs is not None:
        first, rest = built.ids[0], built.ids[1:]
        known = [each for each in ended.prompt_logprobs if each is not None]
        unknown = scores.entry([(tokenizer.spelling(first), None)])
        found["prompt_logprobs"] = [unknown, *entries(rest, known, tokenizer)]
    if ended.stopped_by is not None:
        token_id, logprobs = ended.stopped_by
        found["stop_logprobs"] = entries([token_id], [logprobs], tokenizer)
    return found


def entries(token_ids: Sequence[int], found: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> list[Entry]:
    """Return one entry (`storage.scores`) for each of the tokens."""
    return [
        scores.entry(
            (tokenizer.spelling(each), logprob) for each, logprob in ((token_id, of.chosen), *of.top)
        )
        for token_id, of in zip(token_ids, found, strict=True)
    ]
