"""What is printed of a run: figures, and each breach with what came before it and how to see it again."""

from __future__ import annotations

import time
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from tests.faults.breach import Breach
from tests.faults.history import fault_before, of_kind
from tests.faults.run import Outcome

SHOWN = 5  # breaches of one invariant


def show(console: Console, outcome: Outcome, again: str) -> None:
    """Print figures, faults and breaches; `again` is the command that repeats the run."""
    figures = Table("", "", title="what happened", show_header=False)
    for name, figure in outcome.figures.items():
        figures.add_row(name, str(figure))
    console.print(figures)
    faults: dict[str, int] = defaultdict(int)
    for fault in of_kind(outcome.history.records, "fault"):
        faults[fault["name"]] += fault["phase"] == "end" and "missed" not in fault["hit"]
    console.print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    if not outcome.breaches:
        console.print("every invariant holds")
        return
    by_name: dict[str, list[Breach]] = defaultdict(list)
    for breach in outcome.breaches:
        by_name[breach.invariant].append(breach)
    for name, breaches in by_name.items():
        console.print(f"\n[bold red]BREACH[/] {name}: {len(breaches)}", highlight=False)
        for breach in breaches[:SHOWN]:
            console.print(
                f"  {breach.about}: {breach.words}{_after(outcome, breach)}", markup=False, highlight=False
            )
        if len(breaches) > SHOWN:
            console.print(f"  and {len(breaches) - SHOWN} more")
    console.print(f"\nhistory and logs: {outcome.history.path.parent}", soft_wrap=True)
    console.print(f"again: {again}", soft_wrap=True)


def _after(outcome: Outcome, breach: Breach) -> str:
    if breach.at is None:
        return ""
    fault = fault_before(outcome.history.records, breach.at)
    clock = time.strftime("%H:%M:%S", time.localtime(breach.at))
    if fault is None:
        return f" (at {clock})"
    return f" (at {clock}, {breach.at - fault['t']:.1f} s after the fault {fault['name']} began)"
