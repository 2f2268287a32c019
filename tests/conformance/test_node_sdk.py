"""The official Node client against the running stack. Its TypeScript types are the contract, the compiler the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.house import House
from tests.conformance.node_sdk import FOLDER, compiled, installed, node
from tests.conformance.witness import Witness


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return installed(FOLDER, required=request.config.getoption("markexpr") == "")


def test_the_node_sdk_and_its_types(folder: Path, sqlite_house: House, witness: Witness) -> None:
    printed = node(
        folder,
        "--test",
        "tour.test.mjs",
        QWENQ_URL=witness.url,
        QWENQ_KEY=sqlite_house.api_key,
        QWENQ_RECORD=str(folder),
    )
    assert "values recorded" in printed
    assert compiled(folder) == []


@pytest.mark.whole
def test_the_compiler_sees_a_wrong_key_and_a_missing_one(folder: Path) -> None:
    recorded = folder / "recorded.ts"
    sound = recorded.read_text()
    try:
        for wrong in (
            sound.replace('"parallel_tool_calls"', '"parallel_tool_call"', 1),
            sound.replace('"sequence_number": 0\n', "\n", 1),
            sound.replace('"role": "assistant"', '"role": "robot"', 1),
            sound.replace('"store": true,', '"store": true, "stored": true,', 1),
        ):
            assert wrong != sound
            recorded.write_text(wrong)
            assert len(compiled(folder)) >= 1
    finally:
        recorded.write_text(sound)
