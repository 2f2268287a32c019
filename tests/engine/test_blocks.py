"""The block manager against a plain account of what was written where."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.blocks import BlockManager, Parent

SIZE, TOTAL = 2, 12
# Few tokens and two salts, so that beginnings are often the same, and often nearly.
IDS = st.lists(st.integers(0, 1), min_size=1, max_size=4 * SIZE).map(tuple)


class Running:
    """A sequence: what it will hold, the blocks it has, and how many of them are published."""

    def __init__(self, salt: str, ids: tuple[int, ...], blocks: list[int], parent: Parent) -> None:
        self.salt, self.ids, self.blocks, self.parent = salt, ids, blocks, parent
        self.published = len(blocks)


class Blocks(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(TOTAL, SIZE)
        self.running: list[Running] = []
        self.holds: dict[int, tuple[str, tuple[int, ...]]] = {}  # block: all ids up to its end, under a salt

    @rule(salt=st.sampled_from(["", "p"]), ids=IDS)
    def begin(self, salt: str, ids: tuple[int, ...]) -> None:
        found = self.manager.match(salt, ids)
        for number, block in enumerate(found, 1):
            assert self.holds[block] == (salt, ids[: number * SIZE])
        free, idle = self.manager.free, self.manager.idle_among(found)
        self.manager.take(found)
        assert self.manager.free == free - idle
        parent = self.manager.name(found[-1]) if found else salt
        self.running.append(Running(salt, ids, found, parent))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        if len(one.blocks) == self.manager.needed(len(one.ids)):
            return
        free = self.manager.free
        block = self.manager.allocate(one.blocks[-1] if one.blocks else None)
        assert (block is None) == (free == 0)
        if block is not None:
            assert not any(block in other.blocks for other in self.running)
            one.blocks.append(block)
            self.holds.pop(block, None)  # it is written over

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        end = (one.published + 1) * SIZE
        if end > min(len(one.ids), len(one.blocks) * SIZE):
            return
        block = one.blocks[one.published]
        self.holds[block] = (one.salt, one.ids[:end])
        one.parent = self.manager.publish(block, one.parent, one.ids[end - SIZE : end])
        one.published += 1
        found = self.manager.match(one.salt, one.ids[:end])
        assert all(self.holds[each] == (one.salt, one.ids[: n * SIZE]) for n, each in enumerate(found, 1))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), forget=st.booleans())
    def end(self, data: st.DataObject, forget: bool) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.manager.release(one.blocks, forget=forget)
        mine = {block for block in one.blocks if not any(block in other.blocks for other in self.running)}
        if forget:
            assert mine.isdisjoint(self.manager.match(one.salt, one.ids))

    @invariant()
    def the_books_agree(self) -> None:
        self.manager.check_integrity(one.blocks for one in self.running)
        used = {block for one in self.running for block in one.blocks}
        assert self.manager.free == TOTAL - len(used)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def hold(manager: BlockManager, ids: tuple[int, ...], salt: str = "") -> list[int]:
    """Blocks of a sequence that was computed and published."""
    blocks, parent = [], salt
    for end in range(manager.size, len(ids) + 1, manager.size):
        block = manager.allocate(blocks[-1] if blocks else None)
        assert block is not None
        blocks.append(block)
        parent = manager.publish(block, parent, ids[end - manager.size : end])
    return blocks


def test_the_longest_unused_goes_first_and_of_a_prefix_its_end() -> None:
    manager = BlockManager(4, 2)
    old, new = (1, 2, 3, 4), (5, 6, 7, 8)
    for ids in (old, new):
        manager.release(hold(manager, ids))
    manager.allocate(None)
    assert [len(manager.match("", ids)) for ids in (old, new)] == [1, 2]
    manager.allocate(None)
    assert [len(manager.match("", ids)) for ids in (old, new)] == [0, 2]


def test_a_prefix_that_is_used_again_is_young_again() -> None:
    manager = BlockManager(4, 2)
    old, new = (1, 2, 3, 4), (5, 6, 7, 8)
    for ids in (old, new):
        manager.release(hold(manager, ids))
    again = manager.match("", old)
    manager.take(again)
    manager.release(again)
    manager.allocate(None)
    assert [len(manager.match("", ids)) for ids in (old, new)] == [2, 1]


def test_the_same_ids_behind_another_beginning_are_not_the_same() -> None:
    manager = BlockManager(8, 2)
    hold(manager, (1, 2, 3, 4))
    assert len(manager.match("", (1, 2, 3, 4, 5))) == 2
    for ids in ((9, 2, 3, 4), (3, 4), (1, 3, 3, 4), (1,)):
        assert manager.match("", ids) == []
    assert manager.match("other", (1, 2, 3, 4)) == []


def test_sequences_that_grow_side_by_side_keep_their_blocks_together() -> None:
    manager = BlockManager(64, 16)
    rows = [[manager.allocate(None)] for _ in range(4)]
    for _ in range(7):
        for row in rows:
            row.append(manager.allocate(row[-1]))
    for row in rows:
        assert row == list(range(row[0], row[0] + 8))


@pytest.mark.parametrize("damage", ["users", "lost", "twice"])
def test_books_that_do_not_agree_are_noticed(damage: str) -> None:
    manager = BlockManager(4, 2)
    blocks = hold(manager, (1, 2, 3, 4))
    manager.check_integrity([blocks])
    claimed = {"users": [blocks, blocks[:1]], "lost": [blocks[:1]], "twice": [[*blocks, blocks[0]]]}[damage]
    with pytest.raises(RuntimeError, match="KV blocks"):
        manager.check_integrity(claimed)
