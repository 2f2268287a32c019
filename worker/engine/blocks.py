"""The blocks of the KV cache: which are in use, which hold a prefix that may come again, which are free.

A block has room for `size` tokens of one sequence, or of several that begin alike. A full block can be published:
it is then found by what it holds and by the published block before it (or by the salt at the beginning), and the
lookup compares the token ids themselves, so no two different prefixes can be taken for one another. Published
blocks that nobody uses stay until their room is needed; the one that was used longest ago goes first.

Python alone: nothing here knows what a block is made of.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby

# What a published block follows: another by its name, or the salt at the beginning of a prompt.
Parent = str | int

# Among so many free blocks the widest gap is looked for. Only CPUs gain by neighbours, and have no more.
SEARCHED = 8192

_BYTES = 8  # of an id as it is packed


class BlockManager:
    """`total` blocks of `size` tokens, numbered from 0. Not thread-safe."""

    def __init__(self, total: int, size: int) -> None:
        self.total, self.size = total, size
        self.releases = 0  # grows whenever room may have become free
        self._users = [0] * total
        self._blank = set(range(total))  # free, holding nothing
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, published; longest unused first
        self._known: dict[tuple[Parent, bytes], int] = {}
        self._keys: list[tuple[Parent, bytes] | None] = [None] * total
        self._names = [0] * total  # of published blocks; never given twice
        self._last_name = 0

    @property
    def free(self) -> int:
        """Blocks that can be had."""
        return len(self._blank) + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-tokens // self.size)

    def match(self, salt: str, ids: Sequence[int]) -> list[int]:
        """The published blocks that hold the longest beginning of `ids`. They are not taken yet."""
        found: list[int] = []
        parent: Parent = salt
        whole, width = _packed(ids), self.size * _BYTES
        for end in range(width, len(whole) + 1, width):
            block = self._known.get((parent, whole[end - width : end]))
            if block is None:
                break
            found.append(block)
            parent = self._names[block]
        return found

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these count as free."""
        return sum(block in self._idle for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """Use published blocks that `match` found."""
        for block in blocks:
            self._idle.pop(block, None)
            self._users[block] += 1

    def allocate(self, after: int | None) -> int | None:
        """A block to write to, or None when every block is in use.

        It is the one behind `after` where that is blank: neighbours can be read without copying. A new sequence
        (`after` is None) begins in the middle of the widest gap, so that it and its neighbours can grow; anywhere
        where that would take milliseconds to find.
        """
        if after is not None and after + 1 in self._blank:
            block = after + 1
        elif len(self._blank) > SEARCHED:
            block = next(iter(self._blank))
        elif self._blank:
            block = self._widest_gap()
        elif self._idle:
            block = next(iter(self._idle))
            self._forget(block)
        else:
            return None
        self._blank.discard(block)
        self._users[block] = 1
        return block

    def publish(self, block: int, parent: Parent, ids: Sequence[int]) -> Parent:
        """Let the full `block` be found behind `parent`; the parent of the block that follows it.

        Where another block of the same content is known already, that one stays the one to be found.
        """
        key = (parent, _packed(ids))
        if (known := self._known.get(key)) is not None:
            return self._names[known]
        self._last_name += 1
        self._known[key], self._keys[block], self._names[block] = block, key, self._last_name
        return self._last_name

    def name(self, block: int) -> Parent:
        """The parent of what follows a published block."""
        return self._names[block]

    def release(self, blocks: Sequence[int], *, forget: bool = False) -> None:
        """One user less for each. `forget` takes those that nobody else uses out of the published ones."""
        self.releases += 1
        # The last first: a block is not found without those before it, so it should not outlive them.
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if self._keys[block] is None:
                    self._blank.add(block)
                else:
                    self._idle[block] = None
                    if forget:
                        self._forget(block)

    def check_integrity(self, in_use: Iterable[Sequence[int]]) -> None:
        """Raise `RuntimeError` unless the books agree with the block lists of all sequences that run."""
        users = [0] * self.total
        for blocks in in_use:
            for block in blocks:
                users[block] += 1
        free = {block for block in range(self.total) if users[block] == 0}
        published = {block for block, key in enumerate(self._keys) if key is not None}
        for holds, what in (
            (users == self._users, "users are miscounted"),
            (self._blank | set(self._idle) == free, "blocks are lost or in use and free at once"),
            (self._blank.isdisjoint(published), "a blank block can be found"),
            (published >= set(self._idle), "an idle block cannot be found"),
            (
                {self._keys[block] for block in published} == set(self._known),
                "the index is not of the blocks",
            ),
            (all(self._keys[block] == key for key, block in self._known.items()), "the index is wrong"),
        ):
            if not holds:
                raise RuntimeError(f"KV blocks: {what}")

    def _forget(self, block: int) -> None:
        """An idle block becomes a blank one."""
        key = self._keys[block]
        if key is not None:
            del self._known[key]
        self._keys[block] = None
        del self._idle[block]
        self._blank.add(block)

    def _widest_gap(self) -> int:
        runs = [
            [block for _, block in run]
            for _, run in groupby(enumerate(sorted(self._blank)), lambda pair: pair[1] - pair[0])
        ]
        widest = max(runs, key=len)
        return widest[0] if len(widest) == self.total else widest[len(widest) // 2]


def _packed(ids: Sequence[int]) -> bytes:
    """Compared and hashed four times as fast as a tuple: a long prompt has hundreds of blocks."""
    return (ids if isinstance(ids, array) else array("q", ids)).tobytes()
