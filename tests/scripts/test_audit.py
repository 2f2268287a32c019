"""The dependency audit: fails on a vulnerability, never on a missing network, and never keeps quiet about that."""

from __future__ import annotations

import socket

import pytest

from scripts import audit

SOUND = {"name": "certifi", "version": "1", "vulns": []}
BROKEN = {"name": "a", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "b", "skip_reason": "not found"}


def test_a_vulnerability_fails_it() -> None:
    status, words = audit.judge([SOUND, BROKEN, UNKNOWN])
    assert status == 1
    assert "a 2: PYSEC-1, fixed in 2.1" in words
    assert "2 of 3 pins were audited, 1 vulnerabilities; unknown to the database: b" in words


def test_no_vulnerability_passes() -> None:
    assert audit.judge([SOUND, SOUND]) == (0, "audit: 2 of 2 pins were audited, 0 vulnerabilities")


def test_without_a_network_it_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused.getsockname()[1]}")
        status, words = audit.audit(["certifi==2026.1.1"])
    assert status == 0
    assert "NOTHING WAS AUDITED" in words


def test_a_database_that_knows_nothing_is_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def ask(pins: list[str]) -> list[dict[str, object]]:
        asked.append(pins)
        return [UNKNOWN]

    monkeypatch.setattr(audit, "ask", ask)
    status, words = audit.audit(["a==1", "certifi==2", "b==3"])
    assert (status, asked) == (0, [["certifi==2"]])
    assert "NOTHING WAS AUDITED" in words
