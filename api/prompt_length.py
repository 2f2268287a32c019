"""What the API asks of whoever can count the tokens of a prompt: it knows nothing of models itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.history import Said
from storage.models import Json


class Uncountable(Exception):
    """This request has no prompt: it is too long for the model. The message says why."""


class NoTokenizer(Exception):
    """The checkpoint cannot be read; the message says why, for the log."""


class PromptLength(Protocol):
    """Counts the tokens of a prompt. May be called from any thread."""

    def __call__(self, items: Sequence[Said], request: Json) -> int:
        """Return how long the prompt of these items (oldest first) is.

        Raises:
            Uncountable: it does not fit the model.
            NoTokenizer: there is no checkpoint to be read.
        """
