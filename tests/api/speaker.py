"""A claimed job that is answered token by token, the way `worker.generation` does it."""

from __future__ import annotations

from redis import Redis

from storage import leases, scores, stream, terminal
from storage.database import Database
from storage.leases import Chunk
from storage.models import Json, Response
from storage.scores import Entry


def entry(place: int, piece: str) -> Entry:
    """Return what is told of the token at `place` of an answer; a token without text is the byte e2."""
    spelling = piece.encode() or b"\xe2"
    return scores.entry([(spelling, -place / 8), (b"<|im_end|>", -1.5), (spelling, -place / 8)])


class Speaker:
    """One attempt: what it has said, and how much of it SQL has."""

    def __init__(self, database: Database, redis: Redis, *, live: bool = True, scored: bool = False) -> None:
        """Claim the oldest job and go on behind what earlier attempts have left of it.

        Args:
            live: is Redis there for this worker?
            scored: does each token come with its log-probability, as `entry` has it?
        """
        self._scored = scored
        self._database, self._redis, self.live = database, redis, live
        with database.begin() as session:
            claimed = leases.claim(session, "speaker", lease_seconds=30, max_attempts=3)
        assert claimed is not None, "nothing to claim"
        self.response: Response = claimed
        tail = Chunk(0, [], [])
        if live:
            stream.fence(redis, claimed.id, claimed.attempt)
            tail = stream.tail(redis, claimed.id).chunk
        with database.read() as session:
            stored = leases.output(session, claimed.id)
        self.stored = len(stored.pieces)
        self.pieces = list(stream.join(stored, tail).pieces)

    @property
    def id(self) -> str:
        return self.response.id

    def say(self, *pieces: str, live: bool | None = None) -> None:
        """Produce tokens with these texts, as one flush."""
        first = len(self.pieces)
        self.pieces += pieces
        chunk = self._since(first)
        if self.live if live is None else live:
            assert stream.append(self._redis, [(self.id, self.response.attempt, chunk)]) == []

    def checkpoint(self) -> None:
        with self._database.begin() as session:
            leases.renew(session, self.id, self.response.attempt, 30, self._rest(""))
        self.stored = len(self.pieces)

    def vanish(self, *, checkpoint: bool = False) -> None:
        """Leave the job to another attempt, by default with what was not stored left to the live tail."""
        with self._database.begin() as session:
            leases.give_back(session, self.id, self.response.attempt, self._rest("") if checkpoint else None)

    def finish(
        self, tail: str = "", *, incomplete: bool = False, tell: bool = True, raw: Json | None = None
    ) -> None:
        """End the answer; with `tell=False` in SQL alone. `raw` is what Completions show besides."""
        text = "".join(self.pieces) + tail
        with self._database.begin() as session:
            entries = scores.told(self._since(0).logprobs, self.pieces, tail)
            answer = terminal.Answer(
                text, self._usage(), "max_output_tokens" if incomplete else None, scores.shown(entries), raw
            )
            terminal.close_answered(session, self.id, self.response.attempt, answer)
            self._store_rest(session, tail)
        self._ended(tell)

    def fail(self, tail: str = "") -> None:
        failure = terminal.Failure("server_error", "worker_lost", "It was lost.")
        with self._database.begin() as session:
            terminal.close_failed(session, self.id, self.response.attempt, failure)
            self._store_rest(session, tail)
        self._ended(True)

    def cancel(self) -> None:
        with self._database.begin() as session:
            terminal.close_cancelled(session, self.id, self.response.attempt)
            self._store_rest(session, "")
        self._ended(True)

    def _store_rest(self, session: object, tail: str) -> None:
        rest = self._rest(tail)
        if rest is not None:
            leases.add_chunk(session, self.id, self.response.attempt, rest)  # type: ignore[arg-type]

    def _ended(self, tell: bool) -> None:
        if tell and self.live:
            stream.end(self._redis, self.id, self.response.attempt)

    def _rest(self, tail: str) -> Chunk | None:
        if self.stored == len(self.pieces) and not tail:
            return None
        return self._since(self.stored, tail)

    def _since(self, first: int, tail: str = "") -> Chunk:
        places = range(first, len(self.pieces))
        entries = [entry(place, self.pieces[place]) for place in places] if self._scored else []
        return Chunk(first, list(places), self.pieces[first:], tail, entries)

    def _usage(self) -> Json:
        tokens = len(self.pieces)
        return {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 7 + tokens,
        }
