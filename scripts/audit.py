"""`make audit`: ask the public vulnerability database about every pinned dependency.

    python scripts/audit.py constraints.txt

Exits 1 when a pin has a known vulnerability. A database that cannot be reached fails no build: that is said in so
many words, and the exit is 0. pip-audit alone would call it "no known vulnerabilities" when a proxy knows nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Known to every database that knows anything: what is said about it tells whether there is one.
PROBE = "certifi"
SECONDS = 600


class Unreachable(Exception):
    """Nobody answers who knows of vulnerabilities; the message says what was heard instead."""


def ask(pins: list[str]) -> list[dict[str, Any]]:
    """Return pip-audit's findings, one a pin: `name`, `version`, `vulns`, or `name`, `skip_reason`.

    Raises:
        Unreachable: it came to no findings.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip"]
        try:
            done = subprocess.run(
                [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "10"],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"no answer within {SECONDS} s") from None
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()
        raise Unreachable(said[-1] if said else f"pip-audit exited with {done.returncode}") from None


def audit(pins: list[str]) -> tuple[int, str]:
    """Return the exit status and what is to be said."""
    probe = next((pin for pin in pins if pin.startswith(f"{PROBE}==")), pins[0])
    try:
        (first,) = ask([probe])
        if "skip_reason" in first:
            raise Unreachable(first["skip_reason"])
        found = ask(pins)
    except Unreachable as reason:
        return (
            0,
            f"audit: NOTHING WAS AUDITED, the vulnerability database cannot be reached ({reason}). Going on.",
        )
    return judge(found)


def judge(found: list[dict[str, Any]]) -> tuple[int, str]:
    """Return the exit status and the words for pip-audit's findings."""
    lines = []
    for one in found:
        for vulnerability in one.get("vulns", ()):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            lines.append(f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in {fixed}")
    unknown = sorted(one["name"] for one in found if "skip_reason" in one)
    known = f"{len(found) - len(unknown)} of {len(found)} pins were audited"
    beside = f"; unknown to the database: {', '.join(unknown)}" if unknown else ""
    lines.append(f"audit: {known}, {len(lines)} vulnerabilities{beside}")
    return (1 if len(lines) > 1 else 0), "\n".join(lines)


def main() -> int:
    """Audit the pins of the file that the command line names."""
    text = Path(sys.argv[1]).read_text()
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith("#")]
    status, words = audit(pins)
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
