"""How the rows of a step are cut up for attention: what each program of `prompt_attention` has to do. Python alone.

A tile is a few rows of one sequence that follow each other; it goes over the keys of all positions up to its last row.
Where there are few tiles and one has many keys, the keys are cut into parts, a program each.
"""

from collections.abc import Iterable
from typing import NamedTuple

LEAST = 256  # keys of a part
SPARE = (
    16  # the most parts that tiles which are cut have together; so many more items than tiles there can be
)


class Stretch(NamedTuple):
    """`rows` of a step from `first` on: one sequence's positions from `start` on, its blocks in row `table`."""

    first: int
    rows: int
    start: int
    table: int


class Item(NamedTuple):
    """A tile, as in `Stretch`, and which part of its keys: `part` of `parts`.

    place  where the tile's first part leaves what it found, if there are several; the others' places follow.
    """

    first: int
    rows: int
    start: int
    table: int
    part: int
    parts: int
    place: int


def most_items(rows: int, sequences: int, tile: int, spare: int = SPARE) -> int:
    """So many items at most for so many rows of so many sequences."""
    return min(rows, sequences + rows // tile) + spare


def items(stretches: Iterable[Stretch], tile: int, spare: int = SPARE) -> list[Item]:
    """Tiles of up to `tile` rows, those with most keys first: short ones fill the gaps at the end, and whatever is cut is
    among the first `spare` items.

    A tile's share of the `spare` parts is that of its keys in all keys.
    """
    tiles = [
        Stretch(first + at, min(tile, rows - at), start + at, table)
        for first, rows, start, table in stretches
        for at in range(0, rows, tile)
    ]
    tiles.sort(key=_keys, reverse=True)
    total, place, found = sum(map(_keys, tiles)), 0, list[Item]()
    for one in tiles:
        keys = _keys(one)
        parts = max(1, min(keys // LEAST, spare * keys // total))
        found += [Item(*one, part, parts, place) for part in range(parts)]
        place += parts if parts > 1 else 0
    return found


def _keys(tile: Stretch) -> int:
    return tile.start + tile.rows
