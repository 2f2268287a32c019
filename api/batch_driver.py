"""Brings open batches forward, a step at a time: validate lines, make jobs of them, write the answers down.

Each step claims a batch and ends with one transaction (`storage.batch_work`). Any API process may do the next one, and
one that dies between two steps has lost nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from redis import Redis
from sqlalchemy.orm import Session

from api import batch_files, batch_lines, errors, submission
from api.batch_input import MAX_ERRORS, Stretch
from api.errors import ApiError, BadRequest, Refused, TooMany
from api.pressure import Pressure
from api.settings import ApiSettings
from storage import batch_work, cancels, files, ids, responses
from storage.batch_models import Batch, BatchLine
from storage.batch_work import BatchLost
from storage.blobs import Blobs, Draft
from storage.database import Database
from storage.errors import Conflict, NotFound
from storage.models import Json
from storage.responses import NewResponse

log = structlog.get_logger(__name__)

# Lines of one step: a fraction of a second, and a transaction that others can wait for.
MAKE_LINES = 64
WRITE_LINES = 200
# Between two looks at a batch whose jobs run.
POLL_SECONDS = 0.5
# After trouble with the file store.
RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class BatchDriver:
    """The work of one process. For one thread."""

    settings: ApiSettings
    database: Database
    blobs: Blobs
    redis: Redis
    pressure: Pressure

    def run_due(self, stopping: threading.Event) -> None:
        """Do what is due now.

        Raises:
            SQLAlchemyError: the database is away.
        """
        while not stopping.is_set():
            with self.database.read() as session:
                if not batch_work.any_due(session):
                    return
            with self.database.begin() as session:
                batch = batch_work.claim(session)
            if batch is None:
                return
            with structlog.contextvars.bound_contextvars(batch_id=batch.id):
                self._step(batch)

    def _step(self, batch: Batch) -> None:
        try:
            if batch.ending is not None:
                self._wind_up(batch)
            elif batch.status == "validating":
                self._validate(batch)
            else:
                self._advance(batch)
        except BatchLost:
            log.info("batch lost, another process has it or it was cancelled")
        except OSError as trouble:
            log.error("the file store failed, the batch waits", cause=str(trouble))
            with self.database.begin() as session:
                batch_work.hold(session, batch, pause=RETRY_SECONDS)

    def _validate(self, batch: Batch) -> None:
        with self.database.read() as session:
            late = batch_work.is_late(session, batch)
        if late:
            with self.database.begin() as session:
                batch_work.end_soon(session, batch, "expired")
            return
        with self.blobs.open(batch.input_file_id) as opened:
            stretch = Stretch(self.settings, batch, opened)
        if not stretch.at_end:
            self._store(batch, stretch)
        elif batch.errors or stretch.problems or batch.total + len(stretch.lines) == 0:
            self._fail(batch, stretch)
        else:
            self._store(batch, stretch, begin=True)

    def _store(self, batch: Batch, stretch: Stretch, *, begin: bool = False) -> None:
        with self.database.begin() as session:
            problems = self._without_repeats(session, batch, stretch)
            batch_work.add_lines(
                session,
                batch,
                stretch.lines,
                problems,
                read_to=stretch.read_to,
                lines_read=stretch.number,
            )
            if begin and not problems:
                batch_work.begin(session, batch, self.settings.model_name)

    def _fail(self, batch: Batch, stretch: Stretch) -> None:
        with self.database.begin() as session:
            problems = [*batch.errors, *self._without_repeats(session, batch, stretch)]
            if not problems:
                empty = BadRequest("The input file holds no requests.", code="empty_file")
                problems = [{**batch_lines.error(0, empty), "line": None}]
            batch_work.fail(session, batch, problems[:MAX_ERRORS])
        log.info("batch failed", errors=len(problems))

    def _without_repeats(self, session: Session, batch: Batch, stretch: Stretch) -> list[Json]:
        """Take lines whose id an earlier stretch had out of this one, and return all that is wrong with it."""
        repeated = batch_work.taken(session, batch, [line.custom_id for line in stretch.lines])
        return stretch.without(repeated)

    def _advance(self, batch: Batch) -> None:
        with self.database.read() as session:
            room = self.settings.batch_window - batch_work.open_lines(session, batch.project_id)
            lines = batch_work.waiting(session, batch, min(room, MAKE_LINES))
            late = batch_work.is_late(session, batch)
        jobs = [] if late else self._read_jobs(batch, lines)
        with self.database.begin() as session:
            batch_work.hold(session, batch)
            batch_work.settle(session, batch)
            if late:
                batch_work.end_soon(session, batch, "expired")
                return
            if batch.completed + batch.failed == batch.total:
                batch_work.end_soon(session, batch, "completed")
                return
            made = self._make(session, batch, jobs)
            more = made == MAKE_LINES or 0 < made < len(lines)
            pause = 0.0 if more else POLL_SECONDS
            batch_work.hold(session, batch, pause=pause, **batch_work.counts(batch))

    def _read_jobs(
        self, batch: Batch, lines: Sequence[BatchLine]
    ) -> list[tuple[BatchLine, NewResponse | ApiError]]:
        """Read lines up to the first that continues something: it goes alone, for the locks that it takes."""
        jobs: list[tuple[BatchLine, NewResponse | ApiError]] = []
        if not lines:
            return jobs
        with self.blobs.open(batch.input_file_id) as opened:
            for line in lines:
                opened.seek(line.offset)
                try:
                    _, job = batch_lines.read(opened.read(line.length), batch.endpoint, self.settings)
                except ApiError as problem:  # the settings are others than when it was validated
                    jobs.append((line, problem))
                    continue
                if job.conversation_id is not None or job.previous_response_id is not None:
                    return jobs or [(line, job)]
                jobs.append((line, job))
        return jobs

    def _make(
        self, session: Session, batch: Batch, jobs: Sequence[tuple[BatchLine, NewResponse | ApiError]]
    ) -> int:
        """Make jobs of lines, as many as the queue takes; return how many lines were dealt with."""
        for done, (line, job) in enumerate(jobs):
            problem = job if isinstance(job, ApiError) else None
            if isinstance(job, NewResponse):
                try:
                    self.pressure.admit(session)
                    with session.begin_nested():  # nothing is left of a job that is refused half-way
                        row = responses.accept(session, batch.project_id, job)
                        batch_work.made(session, line, row.id)
                except TooMany:
                    return done
                except NotFound as missing:
                    problem = submission.missing(missing)
                except Conflict as conflict:
                    problem = Refused(str(conflict))
            if problem is not None:
                batch_work.refused(session, line, problem.status, errors.shape(problem))
                batch.failed += 1
            batch.fed += 1
        return len(jobs)

    def _wind_up(self, batch: Batch) -> None:
        """Cancel what has not ended, and once all has, write the files."""
        with self.database.begin() as session:
            batch_work.hold(session, batch)
            batch_work.settle(session, batch)
            jobs = batch_work.open_jobs(session, batch)
            pause = POLL_SECONDS if jobs else batch_work.LEASE_SECONDS
            batch_work.hold(session, batch, pause=pause, **batch_work.counts(batch))
        for response_id, asked in jobs:
            if not asked:
                with self.database.begin() as session:
                    row = batch_work.cancel_job(session, batch, response_id)
                cancels.tell(self.redis, row)
        if not jobs:
            self._write(batch)
        elif not all(asked for _, asked in jobs):
            with self.database.begin() as session:
                batch_work.hold(session, batch, pause=POLL_SECONDS)

    def _write(self, batch: Batch) -> None:
        drafts: dict[bool, Draft] = {}
        try:
            self._fill(batch, drafts)
            for draft in drafts.values():
                draft.finish()
        except BaseException:
            for draft in drafts.values():
                draft.discard()
            raise
        # From here on nothing is taken back: whether a transaction that breaks was committed is not known.
        with self.database.begin() as session:
            for good, draft in drafts.items():
                files.add(
                    session,
                    batch.project_id,
                    file_id=draft.key,
                    purpose="batch_output",
                    filename=f"{batch.id}_{'output' if good else 'error'}.jsonl",
                    size=draft.size,
                    sha256=draft.sha256,
                    expires_in=batch.output_expires_in,
                )
            keys = {good: draft.key for good, draft in drafts.items()}
            batch_work.finish(session, batch, keys.get(True), keys.get(False))
        log.info("batch ended", status=batch.ending, lines=batch.total, completed=batch.completed)

    def _fill(self, batch: Batch, drafts: dict[bool, Draft]) -> None:
        if batch.in_progress_at is None:  # it never was a batch
            return
        for first in range(0, batch.total, WRITE_LINES):
            with self.database.begin() as session:
                batch_work.hold(session, batch)
            with self.database.read() as session:
                answered = batch_work.answers(session, batch, first, WRITE_LINES)
            for good, line in batch_files.lines(batch, answered):
                if good not in drafts:
                    drafts[good] = self.blobs.draft(ids.new("file"))
                drafts[good].write(line)
