"""All invariants over one run. Those that need more than (history, snapshot) get it here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import invariants_jobs, invariants_logs
from tests.faults.audit import Snapshot
from tests.faults.breach import Breach
from tests.faults.history import Record
from tests.faults.invariants_webhooks import every_end_is_told

INVARIANTS = (
    invariants_jobs.none_lost_none_twice,
    invariants_jobs.every_job_ends,
    invariants_jobs.an_end_is_the_end,
    invariants_jobs.serial_conversations,
    invariants_jobs.no_stale_write,
    invariants_jobs.nothing_leaks,
    invariants_logs.text_is_tokens,
    invariants_logs.usage_is_tokens,
    invariants_logs.live_tail_is_true,
    invariants_logs.progress_is_kept,
    invariants_logs.one_event_log,
)


def check(history: Sequence[Record], after: Snapshot, secrets: Mapping[str, str]) -> list[Breach]:
    """Return every breach. `secrets` is the signing secret of each receiver."""
    breaches = [breach for invariant in INVARIANTS for breach in invariant(history, after)]
    return breaches + every_end_is_told(history, after, secrets)


# What no fault from outside raises: a mistake in the program, or in what a fault has put into it.
DEFECT = re.compile(r"(?:TypeError|AttributeError|NameError|KeyError|IndexError|AssertionError): [^\"\\]*")


def clean_logs(logs: Sequence[Path], secrets: Mapping[str, str]) -> list[Breach]:
    """No secret, no prompt and no defect stands in a log. `secrets` names each of them."""
    breaches = []
    for log in logs:
        text = log.read_text(errors="replace") if log.exists() else ""
        breaches += [
            Breach("no secret and no prompt in logs", log.name, f"{what} stands in it")
            for what, secret in secrets.items()
            if secret in text
        ]
        breaches += [
            Breach("no defect in logs", log.name, f"{times} times {what}")
            for what, times in Counter(DEFECT.findall(text)).items()
        ]
    return breaches
