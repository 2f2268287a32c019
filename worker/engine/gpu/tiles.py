"""How the rows of a step are cut up for attention: what each program of `prompt_attention` has to do.

A tile is a few rows of one sequence that follow each other; it goes over the keys of all positions up to its last row.
Where there are few tiles and one has many keys, the keys are cut into parts, a program each.
"""

import numpy as np

LEAST = 128  # keys of a part
PER_TILE = 64  # and so many more for each tile there is: many tiles fill the device anyway
SPARE = (
    16  # the most parts that tiles which are cut have together; so many more items than tiles there can be
)
FIELDS = 8  # int32 of an item


def most_items(rows: int, sequences: int, tile: int, spare: int = SPARE) -> int:
    """So many items at most for so many rows of so many sequences."""
    return min(rows, sequences + rows // tile) + spare


def items(stretches: np.ndarray, tile: int, spare: int = SPARE) -> np.ndarray:
    """int32 `[items, FIELDS]` of tiles of up to `tile` rows; those with most keys first, whatever is cut among them.

    stretches  integers `[n, 4]`: a first row and how many follow with it, which are a sequence's positions from a
               third number on; in the fourth row of the tables are its blocks.

    An item has the same four of its tile, then its part, how many parts there are, and the place where the tile's first
    part leaves what it found: the others' places follow. The last number is none. A tile's share of the `spare` parts
    is that of its keys in all keys.
    """
    cut = stretches if (stretches[:, 1] <= tile).all() else _tiles(stretches, tile)
    keys = cut[:, 1] + cut[:, 2]
    order = np.argsort(-keys, kind="stable")
    keys = keys[order]
    least = max(LEAST, PER_TILE * len(keys))
    parts = np.maximum(1, np.minimum(keys // least, spare * keys // keys.sum()))
    begin = np.cumsum(parts) - parts
    of = np.repeat(np.arange(len(parts)), parts)
    found = np.zeros((len(of), FIELDS), np.int32)
    found[:, :4] = cut[order[of]]
    found[:, 6] = begin[of]  # those that are cut are the first
    found[:, 4] = np.arange(len(of)) - found[:, 6]
    found[:, 5] = parts[of]
    return found


def _tiles(stretches: np.ndarray, tile: int) -> np.ndarray:
    """The same of up to `tile` rows each."""
    first, rows, start, table = stretches.T
    tiles = -(-rows // tile)
    of = np.repeat(np.arange(len(tiles)), tiles)
    at = tile * (np.arange(len(of)) - np.repeat(np.cumsum(tiles) - tiles, tiles))
    return np.stack([first[of] + at, np.minimum(tile, rows[of] - at), start[of] + at, table[of]], 1)
