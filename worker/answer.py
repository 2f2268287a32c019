"""The tokens of a running answer, from its first on.

The engine's thread adds what it hears, so that no thread of a job has to wake for it; the job's own thread stores them
at its checkpoints and at the end.
"""

from __future__ import annotations

import threading

from storage.leases import Chunk
from storage.scores import Entry


class RunningAnswer:
    """Grows at its end. Each call sees a whole number of tokens, whatever another thread adds meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._logprobs: list[Entry] = []

    def __len__(self) -> int:
        """Return how many tokens there are."""
        with self._lock:
            return len(self._token_ids)

    def take(self, chunk: Chunk) -> None:
        """Append tokens, with one entry each where log-probabilities are asked for.

        Raises:
            RuntimeError: they do not begin where the answer ends.
        """
        with self._lock:
            if chunk.first_index != len(self._token_ids):
                raise RuntimeError(f"token {chunk.first_index} came after {len(self._token_ids)} tokens")
            self._token_ids += chunk.token_ids
            self._pieces += chunk.pieces
            self._logprobs += chunk.logprobs

    def since(self, position: int, tail: str = "") -> Chunk:
        """Return the tokens from a position on; `tail` is the text that the end has released."""
        with self._lock:
            return Chunk(
                position,
                self._token_ids[position:],
                self._pieces[position:],
                tail,
                self._logprobs[position:],
            )
