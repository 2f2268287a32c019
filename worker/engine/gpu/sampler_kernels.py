"""The sampler of `worker.engine.sampler` in four launches, one token a row, without the host.

    survey   each block of a row: its greatest score, where it is, whether something is not finite
    weigh    each block: the mass of all its tokens, and how many of them may be kept
    collect  each block: those that may be kept, in order of their ids; or the winner of the draw where nothing is cut
    choose   each row: the edges of top-k and top-p among what was collected, and the draw

`floats` fp32 `[4, capacity]`: temperature, top-p, repetition penalty, reach; `ints` int32 `[2, capacity]`: top-k (0:
off), slot in `seen` (-1: no penalty); `keys` int64 `[capacity]`: of the noise. `seen` int32 `[slots, words]`: a bit an
id.

A token may be kept if it is within `reach` of the greatest (in units of the temperature). All tokens beyond
ln(vocabulary / (1 - top_p)) together weigh less than what top-p cuts off, so the edge is never among them.
"""

import triton
import triton.language as tl

from worker.model.gpu.kernels import start_after_previous


@triton.jit
def _scores(logits, seen, row, ids, inside, vocab, words, penalty, slot):
    """fp32, the repetition penalty applied; -inf outside."""
    s = tl.load(logits + row.to(tl.int64) * vocab + ids, mask=inside, other=float("-inf")).to(tl.float32)
    if slot >= 0:
        bits = tl.load(seen + slot.to(tl.int64) * words + ids // 32, mask=inside, other=0)
        punished = tl.where(s < 0, s * penalty, s / penalty)
        s = tl.where(((bits >> (ids % 32)) & 1) == 1, punished, s)
    return s


@triton.jit
def _mixed(x):
    """SplitMix64's output function on uint64."""
    x = (x ^ (x >> 30)) * tl.full([], 0xBF58476D1CE4E5B9, tl.uint64)
    x = (x ^ (x >> 27)) * tl.full([], 0x94D049BB133111EB, tl.uint64)
    return x ^ (x >> 31)


@triton.jit
def _gumbel(key, ids):
    """As `worker.engine.noise.gumbel`; `key` is its key plus its gamma."""
    gamma = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    hashed = _mixed(ids.to(tl.uint64) * gamma + key.to(tl.uint64, bitcast=True))
    uniform = ((hashed >> 12).to(tl.int64).to(tl.float64) + 0.5) * 2.220446049250313e-16
    return -tl.log(-tl.log(uniform))


@triton.jit
def _first_best(value, ids):
    """The greatest value and the least of the ids that have it."""
    best = tl.max(value, 0)
    return best, tl.min(tl.where(value == best, ids, 0x7FFFFFFF), 0)


@triton.jit
def survey(
    logits,
    seen,
    floats,
    ints,
    tops,
    top_ids,
    bad,
    vocab,
    n_vocab,
    words,
    capacity,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    start_after_previous(PDL)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < n_vocab
    s = _scores(
        logits,
        seen,
        row,
        ids,
        inside,
        vocab,
        words,
        tl.load(floats + 2 * capacity + row),
        tl.load(ints + capacity + row),
    )
    broken = inside & ((s != s) | (tl.abs(s) == float("inf")))
    top, where = _first_best(tl.where(inside & (s == s), s, float("-inf")), ids)
    at = row * BLOCKS + block
    tl.store(tops + at, top)
    tl.store(top_ids + at, where)
    tl.store(bad + at, tl.max(broken.to(tl.int32), 0))


@triton.jit
def _row_top(tops, row, blocks, BLOCKS: tl.constexpr, PADDED: tl.constexpr):
    b = tl.arange(0, PADDED)
    return tl.max(tl.load(tops + row * BLOCKS + b, mask=b < BLOCKS, other=float("-inf")), 0)


@triton.jit
def weigh(
    logits,
    seen,
    floats,
    ints,
    tops,
    counts,
    masses,
    vocab,
    n_vocab,
    words,
    capacity,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    start_after_previous(PDL)
    temperature = tl.load(floats + row)
    if temperature > 0:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        inside = ids < n_vocab
        s = _scores(
            logits,
            seen,
            row,
            ids,
            inside,
            vocab,
            words,
            tl.load(floats + 2 * capacity + row),
            tl.load(ints + capacity + row),
        )
        below = (s - _row_top(tops, row, BLOCKS, BLOCKS, PADDED)) / temperature
        kept = inside & (below >= -tl.load(floats + 3 * capacity + row))
        at = row * BLOCKS + block
        tl.store(masses + at, tl.sum(tl.where(inside, tl.exp(below), 0.0), 0))
        tl.store(counts + at, tl.sum(kept.to(tl.int32), 0))


@triton.jit
def collect(
    logits,
    seen,
    floats,
    ints,
    keys,
    tops,
    counts,
    found,
    found_ids,
    winners,
    winner_ids,
    vocab,
    n_vocab,
    words,
    capacity,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    row, block = tl.program_id(0), tl.program_id(1)
    start_after_previous(PDL)
    temperature = tl.load(floats + row)
    if temperature > 0:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        inside = ids < n_vocab
        s = _scores(
            logits,
            seen,
            row,
            ids,
            inside,
            vocab,
            words,
            tl.load(floats + 2 * capacity + row),
            tl.load(ints + capacity + row),
        )
        top = _row_top(tops, row, BLOCKS, BLOCKS, PADDED)
        uncut = (tl.load(floats + capacity + row) >= 1) & (tl.load(ints + row) == 0)
        if uncut:
            value = (s - top).to(tl.float64) / temperature + _gumbel(tl.load(keys + row), ids)
            best, where = _first_best(tl.where(inside, value, float("-inf")), ids)
            tl.store(winners + row * BLOCKS + block, best)
            tl.store(winner_ids + row * BLOCKS + block, where)
        else:
            kept = inside & ((s - top) / temperature >= -tl.load(floats + 3 * capacity + row))
            b = tl.arange(0, PADDED)
            before = tl.sum(tl.load(counts + row * BLOCKS + b, mask=b < block, other=0), 0)
            place = row.to(tl.int64) * n_vocab + before + tl.cumsum(kept.to(tl.int32), 0) - 1
            tl.store(found + place, s, mask=kept)
            tl.store(found_ids + place, ids, mask=kept)


@triton.jit
def _ordered(s):
    """fp32 -> int64 in the same order."""
    bits = s.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _edge(found, count, top, temperature, needed, least, BY_COUNT: tl.constexpr, CHUNK: tl.constexpr):
    """The greatest ordered score at and above which there are `needed` tokens, or so much mass. 16 looks, 2 bits each.

    Scores below `least` do not count.
    """
    c = tl.arange(0, CHUNK)
    low = tl.full([], -2147483648, tl.int64)
    step = tl.full([], 4294967296, tl.int64)
    for _ in range(16):
        step = step // 4
        a1 = tl.zeros([CHUNK], tl.float32)
        a2 = tl.zeros([CHUNK], tl.float32)
        a3 = tl.zeros([CHUNK], tl.float32)
        for begin in range(0, count, CHUNK):
            s = tl.load(found + begin + c, mask=begin + c < count, other=float("-inf"))
            key = _ordered(s)
            counted = (begin + c < count) & (key >= least)
            if BY_COUNT:
                weight = tl.where(counted, 1.0, 0.0)
            else:
                weight = tl.where(counted, tl.exp((s - top) / temperature), 0.0)
            a1 += tl.where(key >= low + step, weight, 0.0)
            a2 += tl.where(key >= low + 2 * step, weight, 0.0)
            a3 += tl.where(key >= low + 3 * step, weight, 0.0)
        reached = (tl.sum(a1, 0) >= needed).to(tl.int64) + (tl.sum(a2, 0) >= needed).to(tl.int64)
        reached += (tl.sum(a3, 0) >= needed).to(tl.int64)
        low += step * reached
    return low


@triton.jit
def choose(
    floats,
    ints,
    keys,
    tops,
    top_ids,
    bad,
    counts,
    masses,
    winners,
    winner_ids,
    found,
    found_ids,
    tokens,
    n_vocab,
    capacity,
    BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """tokens int64 `[rows]`; -1 where the logits are not finite."""
    row = tl.program_id(0)
    start_after_previous(PDL)
    b = tl.arange(0, PADDED)
    at = row * BLOCKS + b
    known = b < BLOCKS
    block_tops = tl.load(tops + at, mask=known, other=float("-inf"))
    top, token = _first_best(block_tops, tl.load(top_ids + at, mask=known, other=0x7FFFFFFF))
    temperature = tl.load(floats + row)
    top_p = tl.load(floats + capacity + row)
    top_k = tl.load(ints + row)
    if temperature > 0:
        if (top_p >= 1) & (top_k == 0):
            best, drawn = _first_best(
                tl.load(winners + at, mask=known, other=float("-inf")),
                tl.load(winner_ids + at, mask=known, other=0x7FFFFFFF),
            )
            token = drawn
        else:
            count = tl.sum(tl.load(counts + at, mask=known, other=0), 0)
            total = tl.sum(tl.load(masses + at, mask=known, other=0.0), 0)
            mine = found + row.to(tl.int64) * n_vocab
            mine_ids = found_ids + row.to(tl.int64) * n_vocab
            c = tl.arange(0, CHUNK)
            least = tl.full([], -2147483648, tl.int64)
            if top_k > 0:
                least = _edge(
                    mine, count, top, temperature, tl.minimum(top_k, count).to(tl.float32), least, True, CHUNK
                )
                masses_k = tl.zeros([CHUNK], tl.float32)
                for begin in range(0, count, CHUNK):
                    s = tl.load(mine + begin + c, mask=begin + c < count, other=float("-inf"))
                    counted = (begin + c < count) & (_ordered(s) >= least)
                    masses_k += tl.where(counted, tl.exp((s - top) / temperature), 0.0)
                total = tl.sum(masses_k, 0)
            edge = least
            ties = tl.full([], 1e30, tl.float32)
            if top_p < 1:
                edge = _edge(mine, count, top, temperature, top_p * total, least, False, CHUNK)
                # Of several with the edge's score the first are kept, until there is enough.
                above = tl.zeros([CHUNK], tl.float32)
                level = tl.full([CHUNK], float("-inf"), tl.float32)
                for begin in range(0, count, CHUNK):
                    s = tl.load(mine + begin + c, mask=begin + c < count, other=float("-inf"))
                    key = _ordered(s)
                    e = tl.exp((s - top) / temperature)
                    above += tl.where((begin + c < count) & (key > edge), e, 0.0)
                    level = tl.maximum(level, tl.where((begin + c < count) & (key == edge), e, float("-inf")))
                ties = tl.maximum(tl.ceil((top_p * total - tl.sum(above, 0)) / tl.max(level, 0)), 1.0)
            key0 = tl.load(keys + row)
            best = tl.full([], float("-inf"), tl.float64)
            passed = tl.full([], 0, tl.int32)
            for begin in range(0, count, CHUNK):
                s = tl.load(mine + begin + c, mask=begin + c < count, other=float("-inf"))
                ids = tl.load(mine_ids + begin + c, mask=begin + c < count, other=0)
                key = _ordered(s)
                tied = (begin + c < count) & (key == edge)
                rank = passed + tl.cumsum(tied.to(tl.int32), 0)
                passed += tl.sum(tied.to(tl.int32), 0)
                kept = (begin + c < count) & ((key > edge) | (tied & (rank.to(tl.float32) <= ties)))
                value = (s - top).to(tl.float64) / temperature + _gumbel(key0, ids)
                value2, id2 = _first_best(tl.where(kept, value, float("-inf")), ids)
                token = tl.where(value2 > best, id2, token)
                best = tl.maximum(best, value2)
    broken = tl.max(tl.load(bad + at, mask=known, other=0), 0)
    tl.store(tokens + row, tl.where(broken == 1, -1, token).to(tl.int64))


@triton.jit
def _mark(seen, slot, token, words):
    if (slot >= 0) & (token >= 0):
        at = seen + slot.to(tl.int64) * words + token // 32
        tl.store(at, tl.load(at) | (1 << (token % 32).to(tl.int32)))


@triton.jit
def observe(ids, ints, seen, words, capacity, PDL: tl.constexpr):
    """Mark the id that a row reads as seen, in the row's slot."""
    row = tl.program_id(0)
    start_after_previous(PDL)
    _mark(seen, tl.load(ints + capacity + row), tl.load(ids + row), words)


@triton.jit
def begin(
    tokens,
    given,
    sources,
    positions,
    places,
    ints,
    seen,
    cos_table,
    sin_table,
    ids,
    cos,
    sin,
    words,
    capacity,
    D: tl.constexpr,
    PLACED: tl.constexpr,
):
    """What a row reads: its id, from where `sources` says, seen from now on; its rotation `[D]`.

    With PLACED it is marked as seen where `places` has the place of the token that is chosen after the row.
    """
    row = tl.program_id(0)
    d = tl.arange(0, D)
    source = tl.load(sources + row)
    token = tl.load(given + row).to(tl.int64)
    if source >= 0:
        token = tl.load(tokens + source)
    token = tl.maximum(token, 0)  # a row whose logits were not finite goes on as anything; it is dropped
    tl.store(ids + row, token)
    place = row
    if PLACED:
        place = tl.load(places + row)
    _mark(seen, tl.load(ints + capacity + place, mask=place >= 0, other=-1), token, words)
    position = tl.load(positions + row)
    tl.store(cos + row * D + d, tl.load(cos_table + position * D + d))
    tl.store(sin + row * D + d, tl.load(sin_table + position * D + d))
