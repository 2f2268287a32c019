"""The supervisor over real processes: what is started again, what is ended, in which order, and what is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.qwenq.running import PATIENCE, Running, have_ended, running

ROOT = Path(__file__).parents[2]
STEADY = "say('pid', os.getpid()); live()"
# Ends in good order, and says so.
POLITE = "on_term(lambda *_: (say('bye'), sys.exit(0))); say('pid', os.getpid()); live()"
STUBBORN = "on_term(lambda *_: say('no')); say('pid', os.getpid()); live()"
# Starts a process of its own, as a worker starts its engine.
PARENT = """
child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN); signal.pause()'])
say('child', child.pid); say('pid', os.getpid()); live()
"""


@contextmanager
def supervised(*programs: dict[str, Any], **spec: object) -> Iterator[Running]:
    command = [sys.executable, "-m", "tests.qwenq.supervised", json.dumps({"programs": programs, **spec})]
    with running(command, cwd=ROOT) as stack:
        yield stack


def one(name: str, code: str, **more: object) -> dict[str, Any]:
    return {"name": name, "code": code, **more}


def test_every_line_stands_behind_the_name_of_its_program() -> None:
    talker = "say('out'); print('err', file=sys.stderr, flush=True); say('pid', os.getpid()); live()"
    with supervised(one("a", talker), one("longer", STEADY)) as stack:
        stack.wait_for(r"^a      \| out$")
        stack.wait_for(r"^a      \| err$")
        stack.wait_for(r"^longer \| pid \d+$")


def test_odd_output_is_passed_on() -> None:
    odd = r"""
sys.stdout.buffer.write(b"\xff broken\r\n" + b"x" * 200_000 + b"\n[red]no markup[/red]\nno newline at the end")
"""
    with supervised(one("a", odd)) as stack:
        stack.wait_for(r"^a   \| \ufffd broken$")
        stack.wait_for(r"^a   \| \[red\]no markup\[/red\]$")
        stack.wait_for(r"^a   \| no newline at the end$")
        stack.wait_for("a ended with status 0")
        assert sum(line.count("x") for line in stack.lines if line.startswith("a   | x")) == 200_000


def test_a_killed_program_is_started_again() -> None:
    with supervised(one("a", STEADY), one("b", STEADY)) as stack:
        first, other = stack.pid_of("a"), stack.pid_of("b")
        stack.wait_for("ready")
        seen = len(stack.lines)
        os.kill(first, signal.SIGKILL)
        stack.wait_for(r"^sup \| a was ended by SIGKILL; starting it again in 0\.05 s$", after=seen)
        assert stack.pid_of("a", after=seen) != first
        assert not any(line.startswith("b ") for line in stack.lines[seen:])
        os.kill(other, 0)  # the other one was left alone


def test_the_delay_grows_and_a_healthy_life_forgets_it(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
lives = Path({str(tmp_path / "lives")!r})
number = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (number + 1))
if number == 2: time.sleep(3)  # longer than a healthy life
if number < 4: sys.exit(number)
live()
"""
    with supervised(one("a", code), healthy_seconds=2.5) as stack:
        stack.wait_for("a ended with status 3; ")
        deaths = [line for line in stack.lines if "a ended" in line]
        assert deaths == [
            "sup | a ended with status 0; starting it again in 0.05 s",
            "sup | a ended with status 1; starting it again in 0.1 s",
            "sup | a ended with status 2; starting it again",
            "sup | a ended with status 3; starting it again in 0.05 s",
        ]


def test_ctrl_c_ends_everything_and_the_last_one_last() -> None:
    with supervised(one("broker", POLITE, last=True), one("a", POLITE), one("b", POLITE)) as stack:
        pids = [stack.pid_of(name) for name in ("broker", "a", "b")]
        stack.wait_for("ready")
        stack.signal(signal.SIGINT)
        assert stack.end() == 0
        goodbyes = [line.split()[0] for line in stack.lines if line.endswith("| bye")]
        assert goodbyes[-1] == "broker"
        assert sorted(goodbyes) == ["a", "b", "broker"]
        assert stack.lines[-1] == "sup    | stopped"
        assert have_ended(*pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_are_clean_too(number: signal.Signals) -> None:
    with supervised(one("a", POLITE)) as stack:
        pid = stack.pid_of("a")
        stack.signal(number)
        assert stack.end() == 0
        assert have_ended(pid)


def test_a_stubborn_program_is_killed_after_the_grace_time() -> None:
    with supervised(one("a", STUBBORN), grace=0.5) as stack:
        pid = stack.pid_of("a")
        stack.signal(signal.SIGTERM)
        stack.wait_for(r"^a   \| no$")
        stack.wait_for(rf"a \(pid {pid}\) has not ended; killing it")
        assert stack.end() == 0
        assert have_ended(pid)


def test_a_second_ctrl_c_does_not_wait() -> None:
    with supervised(one("a", STUBBORN), one("b", STUBBORN, last=True), grace=1000) as stack:
        pids = stack.pid_of("a"), stack.pid_of("b")
        stack.signal(signal.SIGINT)
        stack.wait_for(r"^a   \| no$")
        stack.signal(signal.SIGINT)
        assert stack.end() == 0
        assert have_ended(*pids)


def test_what_a_program_started_ends_with_it() -> None:
    with supervised(one("a", PARENT)) as stack:
        grandchild = int(stack.wait_for(r"^a   \| child (\d+)$")[1])
        os.kill(stack.pid_of("a"), signal.SIGKILL)
        assert have_ended(grandchild)


def test_killing_the_supervisor_leaves_no_child() -> None:
    with supervised(one("a", STUBBORN), one("b", STEADY)) as stack:
        pids = stack.pid_of("a"), stack.pid_of("b")
        stack.signal(signal.SIGKILL)
        stack.end()
        assert have_ended(*pids)


def test_a_program_that_cannot_work_ends_the_start() -> None:
    with supervised(
        {"name": "a", "command": ["/no/such/program"]}, one("b", STEADY), ready=False, first_delay=0.01
    ) as stack:
        pid = stack.pid_of("b")
        assert stack.end() == 1
        stack.wait_for(r"^a   \| cannot run /no/such/program: No such file or directory$")
        assert stack.lines[-1].startswith("sup | failure: a ended with status 127, 5 times in a row")
        assert have_ended(pid)


def test_a_problem_at_the_start_stops_what_runs() -> None:
    with supervised(one("a", POLITE), problem="the broker is silent") as stack:
        assert stack.end() == 1
        assert stack.lines[-1] == "sup | failure: the broker is silent"


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    fifo = tmp_path / "pids"
    os.mkfifo(fifo)
    code = f"open({str(fifo)!r}, 'w').write(str(os.getpid())); {STEADY}"
    command = [sys.executable, "-m", "tests.qwenq.supervised", json.dumps({"programs": [one("a", code)]})]
    with (
        open(os.open(fifo, os.O_RDWR), "rb", buffering=0) as pids,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process,
    ):

        def next_pid() -> int:
            assert select.select([pids], [], [], PATIENCE)[0], "no program was started"
            return int(pids.read(100))

        first = next_pid()
        assert process.stdout is not None
        process.stdout.close()
        os.kill(first, signal.SIGKILL)  # which the supervisor now tells nobody
        second = next_pid()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert have_ended(first, second)
