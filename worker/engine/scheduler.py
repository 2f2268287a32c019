"""Who computes how many tokens in the next step. Python alone, without torch and without a clock.

One budget of tokens a step serves answers and prompts together: first every running answer gets its next token,
then prompts are read with what is left, the oldest first, in as many steps as they need. So a long prompt costs the
others at most the time of one budget a token.

A request is admitted when the KV cache has room for all that it brings and a little to grow. When the room runs out
the youngest request that runs gives up its blocks and waits, with all its tokens, to be computed again: what its
caller has seen stays, and the oldest request always goes on, so all of them end.
"""

from collections import deque
from dataclasses import dataclass, field

from worker.engine.blocks import BlockManager
from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """Compute `count` tokens of a sequence from position `start` on.

    `completes`: whether the sequence's next token is chosen after it.
    """

    sequence: Sequence
    start: int
    count: int
    completes: bool = field(init=False)

    def __post_init__(self) -> None:
        # Fixed here: the sequence grows once the work is launched.
        object.__setattr__(self, "completes", self.start + self.count == len(self.sequence.ids))


class Scheduler:
    """`step_tokens` is the budget; it is raised where it could not serve `max_running` answers and a prompt.

    `alone_tokens` is the budget while nothing runs: a long prompt is read in one step then, which makes no answer wait.
    """

    def __init__(
        self, blocks: BlockManager, *, max_running: int, step_tokens: int, alone_tokens: int | None = None
    ) -> None:
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival, all before those that wait
        self.preemptions = 0
        self.cached_tokens = 0  # positions found in the cache instead of computed
        self._max_running = max_running
        self._step_tokens = max(step_tokens, max_running + 1)
        self._alone_tokens = max(self._step_tokens, alone_tokens or 0)
        self._lost: set[int] = set()  # id() of those that gave up their blocks in this plan
        self._stuck_at = -1  # `blocks.releases` when the first that waits did not fit

    def add(self, sequence: Sequence) -> None:
        """Let it wait for its turn. It must fit into the whole cache alone."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take it out, running or waiting, and free its blocks; `forget` keeps nothing of it for others."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence, forget=forget)
        else:
            self.waiting.remove(sequence)
            self._stuck_at = -1

    def plan(self) -> list[Work]:
        """The next step: answers first, then prompts. Empty only when nothing waits or runs."""
        planned: dict[int, Work] = {}  # by id() of the sequence
        budget = self._step_tokens if self.running else self._alone_tokens
        self._lost.clear()
        for sequence in sorted(self.running, key=lambda one: one.missing > 1):
            # One that gave up its blocks to an earlier one in this loop computes nothing.
            count = min(sequence.missing, budget)
            if count and id(sequence) not in self._lost and self._make_room(sequence, count, planned):
                planned[id(sequence)] = Work(sequence, sequence.computed, count)
                budget -= count
            if self._lost:  # works of those are planned no more
                budget = self._step_tokens - sum(work.count for work in planned.values())
        while budget and (admitted := self._admit()):
            count = min(admitted.missing, budget)
            self._make_room(admitted, count, planned)
            planned[id(admitted)] = Work(admitted, admitted.computed, count)
            budget -= count
        return sorted(planned.values(), key=lambda work: work.count > 1)

    def launched(self, work: Work) -> None:
        """Work that is launched from now on finds the keys and values of this one in the cache."""
        work.sequence.computed = work.start + work.count
        if work.completes:
            work.sequence.expect()

    def done(self, work: Work) -> None:
        """This work went well: blocks that are full can be found by others.

        Its sequence may have lost its blocks since it was launched, and have begun anew.
        """
        sequence, size = work.sequence, self.blocks.size
        end = min(work.start + work.count, sequence.computed)
        for index in range(sequence.published, end // size):
            ids = sequence.ids[index * size : (index + 1) * size]
            sequence.parent = self.blocks.publish(sequence.blocks[index], sequence.parent, ids)
            sequence.published = index + 1

    def check_integrity(self) -> None:
        """Raise `RuntimeError` when blocks are lost, or shared by accident."""
        self.blocks.check_integrity(sequence.blocks for sequence in self.running)

    def _admit(self) -> Sequence | None:
        """Move the first that waits to those that run, if it may and fits."""
        if (
            not self.waiting
            or len(self.running) >= self._max_running
            or self._stuck_at == self.blocks.releases
        ):
            return None
        sequence, blocks = self.waiting[0], self.blocks
        if sequence.pending:
            return None  # it lost its blocks to others a moment ago; its last token comes with this step
        # The last token is computed in any case: the choice of the next needs its logits. So is every token of a
        # prompt whose log-probabilities are asked for.
        known = sequence.ids[:-1] if sequence.unscored is None else sequence.ids[:0]
        hit = blocks.match(sequence.request.cache_salt, known)
        # A block more for each that runs: else the next tokens would drive the newcomer out again.
        needed = blocks.needed(len(sequence.ids) + 1) - len(hit) + len(self.running)
        if self.running and needed > blocks.free - blocks.idle_among(hit):
            self._stuck_at = blocks.releases
            return None
        self.waiting.popleft()
        self.running.append(sequence)
        blocks.take(hit)
        sequence.hold(hit, blocks)
        self.cached_tokens += sequence.computed
        return sequence

    def _make_room(self, sequence: Sequence, count: int, planned: dict[int, Work]) -> bool:
        """Give the sequence blocks for `count` more tokens. False when it lost its own instead."""
        while len(sequence.blocks) < self.blocks.needed(sequence.computed + count):
            block = self.blocks.allocate(sequence.blocks[-1] if sequence.blocks else None)
            if block is not None:
                sequence.blocks.append(block)
                continue
            youngest = self.running.pop()
            planned.pop(id(youngest), None)
            self._lost.add(id(youngest))
            self._free(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        return True

    def _free(self, sequence: Sequence, *, forget: bool = False) -> None:
        self.blocks.release(sequence.blocks, forget=forget)
        sequence.let_go()
