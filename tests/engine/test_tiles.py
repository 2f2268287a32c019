"""How the rows of a step are cut up for attention."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.gpu.tiles import LEAST, SPARE, items, most_items


class Stretch(NamedTuple):
    """As `items` takes it."""

    first: int
    rows: int
    start: int
    table: int


class Item(NamedTuple):
    """As `items` gives it."""

    first: int
    rows: int
    start: int
    table: int
    part: int
    parts: int
    place: int
    none: int


def cut(stretches: list[Stretch], tile: int, spare: int = SPARE) -> list[Item]:
    return [Item(*item) for item in items(np.array(stretches), tile, spare).tolist()]


@st.composite
def stretches(draw: st.DrawFn) -> list[Stretch]:
    found, first = list[Stretch](), 0
    for table in range(draw(st.integers(1, 20))):
        rows = draw(st.one_of(st.just(1), st.integers(1, 200)))
        found.append(Stretch(first, rows, draw(st.integers(0, 8000)), table))
        first += rows
    return found


@given(stretches(), st.sampled_from([16, 32, 64]), st.sampled_from([0, SPARE]))
def test_every_row_is_in_one_tile_and_every_part_of_a_tile_is_there_once(
    some: list[Stretch], tile: int, spare: int
) -> None:
    found = cut(some, tile, spare)
    rows = sum(one.rows for one in some)
    assert len(found) <= most_items(rows, len(some), tile, spare)
    right = {one.first + at: (one.table, one.start + at) for one in some for at in range(one.rows)}
    parts: dict[int, list[int]] = {row: [] for row in right}
    for item in found:
        assert 0 < item.rows <= tile
        assert item.parts == 1 or LEAST * item.parts <= item.start + item.rows
        for at in range(item.rows):
            assert right[item.first + at] == (item.table, item.start + at)
            parts[item.first + at].append(item.part)
            assert item.part < item.parts
    assert all(mine == list(range(len(mine))) and mine for mine in parts.values())
    # Parts of different tiles leave what they found in different places.
    places = [item.place + item.part for item in found if item.parts > 1]
    assert len(set(places)) == len(places)
    assert not places or max(places) < spare


def test_a_long_past_alone_is_shared_by_many_programs() -> None:
    alone = cut([Stretch(0, 32, 4000, 0)], 32)
    assert [(item.part, item.parts) for item in alone] == [(part, 16) for part in range(16)]
    # Among answers that fill the device it is cut no more than its share.
    beside = cut([*(Stretch(row, 1, 500, row) for row in range(64)), Stretch(64, 32, 4000, 64)], 32)
    assert beside[0] == (64, 32, 4000, 64, 0, 1, 0, 0)
    assert all(item.parts == 1 for item in beside)
