"""The input file of a batch, read and judged a stretch at a time."""

from __future__ import annotations

from typing import BinaryIO

from api import batch_lines
from api.errors import ApiError, BadRequest
from api.settings import ApiSettings
from storage.batch_models import Batch
from storage.batch_work import NewLine
from storage.models import Json

MAX_LINES = 50_000
# So many bad lines are told of; then no more are read.
MAX_ERRORS = 1000
# A fraction of a second, and a transaction that others can wait for.
READ_LINES = 200


class Stretch:
    """The next lines of a batch's input file.

    Attributes:
        lines: the good ones.
        problems: entries of the batch's `errors`, of the others.
        read_to: the place in the file behind them, in bytes.
        number: of the last line that was read, from 1; blank lines count and are no requests.
        at_end: whether nothing more is to be read: the file is over, or enough is wrong with it.
    """

    def __init__(self, settings: ApiSettings, batch: Batch, opened: BinaryIO) -> None:
        self._settings = settings
        self._endpoint = batch.endpoint
        self._numbers: dict[str, int] = {}
        self.lines: list[NewLine] = []
        self.problems: list[Json] = []
        self.read_to = batch.read_to
        self.number = batch.lines_read
        self.at_end = False
        opened.seek(batch.read_to)
        for _ in range(READ_LINES):
            offset = self.read_to
            line = self._next(opened)
            if line is None or len(batch.errors) + len(self.problems) >= MAX_ERRORS:
                self.at_end = True
                return
            if not line.strip():
                continue
            if batch.total + len(self.lines) == MAX_LINES:
                self._wrong(
                    BadRequest(f"A batch has at most {MAX_LINES} requests.", code="too_many_requests")
                )
                self.at_end = True
                return
            self._judge(line, offset)

    def without(self, repeated: set[str]) -> list[Json]:
        """Take lines with these ids out, and return all problems by line."""
        for custom_id in repeated:
            self.problems.append(batch_lines.error(self._numbers[custom_id], _repeated(custom_id)))
        self.lines = [line for line in self.lines if line.custom_id not in repeated]
        return sorted(self.problems, key=lambda problem: int(problem["line"]))

    def _next(self, opened: BinaryIO) -> bytes | None:
        most = batch_lines.longest(self._settings) + 2
        line = opened.readline(most)
        if not line:
            return None
        self.read_to += len(line)
        self.number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):  # far too long: the rest of it is passed over
            rest = opened.readline(most)
            self.read_to += len(rest)
        return line

    def _judge(self, line: bytes, offset: int) -> None:
        text = line.rstrip(b"\r\n")
        try:
            custom_id, _ = batch_lines.read(text, self._endpoint, self._settings)
            if custom_id in self._numbers:
                raise _repeated(custom_id)
        except ApiError as problem:
            self._wrong(problem)
            return
        self._numbers[custom_id] = self.number
        self.lines.append(NewLine(custom_id, offset, len(text)))

    def _wrong(self, problem: ApiError) -> None:
        self.problems.append(batch_lines.error(self.number, problem))


def _repeated(custom_id: str) -> BadRequest:
    return BadRequest(
        f"Invalid 'custom_id': an earlier line has '{custom_id[:100]}' too.",
        param="custom_id",
        code="duplicate_custom_id",
    )
