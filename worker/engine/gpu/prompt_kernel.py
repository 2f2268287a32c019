"""Attention of a step's rows over the pages, which hold their own keys and values already.

After "FlashAttention-2" (Dao, 2023): a program has up to BM queries of one sequence and head and goes once over the
keys that they see, or over a part of them. Of several parts the one that ends last adds up what all have found, in the
order of the parts.
"""

import triton
import triton.language as tl

from worker.engine.gpu.attention_kernel import _line
from worker.model.gpu.kernels import start_after_previous


@triton.jit
def _add_keys(
    mixed,
    mass,
    top,
    q,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    head,
    at,
    begin,
    end,
    length,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BY_HEAD: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BN: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What the queries find at positions `begin` to `end`; `at` are their own positions."""
    d = tl.arange(0, D)
    n = tl.arange(0, BN)
    for first in tl.range(begin, end, BN, num_stages=STAGES):
        token = first + n
        known = token < length
        if MASKED:
            block = tl.load(table + token // PAGE, mask=known, other=0)
        else:
            block = tl.load(table + token // PAGE)
        line = _line(block, token % PAGE, head, H, PAGE, BY_HEAD)
        where = line[:, None] * D + d[None, :]
        if MASKED:
            k = tl.load(keys + where, mask=known[:, None], other=0.0)
        else:
            k = tl.load(keys + where)
        score = tl.dot(q, tl.trans(k.to(q.dtype)))
        if QUANTIZED:
            score *= tl.load(key_scales + line, mask=known, other=0.0)[None, :]
        if MASKED:
            score = tl.where(at[:, None] >= token[None, :], score, -1e30)
        higher = tl.maximum(top, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        mass = mass * shrink + tl.sum(p, 1)
        mixed = mixed * shrink[:, None]
        if MASKED:
            v = tl.load(values + where, mask=known[:, None], other=0.0)
        else:
            v = tl.load(values + where)
        if QUANTIZED:
            p *= tl.load(value_scales + line, mask=known, other=0.0)[None, :]
        mixed = tl.dot(p.to(q.dtype), v.to(q.dtype), mixed)
        top = higher
    return mixed, mass, top


@triton.jit
def _tile(
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    out,
    partial,
    stats,
    counters,
    row,
    count,
    start,
    part,
    parts,
    place,
    head,
    softmax_scale,
    query_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BY_HEAD: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    ROOM: tl.constexpr,
):
    """One item with up to BM rows."""
    m = tl.arange(0, BM)
    d = tl.arange(0, D)
    mine = (m < count)[:, None]
    q = tl.load(
        queries + (row + m)[:, None].to(tl.int64) * query_stride + head * D + d[None, :], mask=mine, other=0.0
    )
    # Scaled in fp32 and rounded once; exp2 serves.
    q = (q.to(tl.float32) * (softmax_scale * 1.4426950408889634)).to(q.dtype)
    mixed = tl.zeros([BM, D], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    top = tl.full([BM], -1e30, tl.float32)
    length = start + count
    width = tl.cdiv(tl.cdiv(length, parts), BN) * BN
    begin = tl.minimum(part * width, length)
    end = tl.minimum(begin + width, length)
    seen_by_all = tl.maximum(tl.minimum((start + 1) // BN * BN, end), begin)
    at = start + m
    mixed, mass, top = _add_keys(
        mixed, mass, top, q, keys, values, key_scales, value_scales, table, head, at, begin, seen_by_all, length,
        H, D, PAGE, BY_HEAD, QUANTIZED, BN, False, STAGES,
    )  # fmt: skip
    mixed, mass, top = _add_keys(
        mixed, mass, top, q, keys, values, key_scales, value_scales, table, head, at, seen_by_all, end, length,
        H, D, PAGE, BY_HEAD, QUANTIZED, BN, True, STAGES,
    )  # fmt: skip
    to = out + ((row + m)[:, None].to(tl.int64) * H + head) * D + d[None, :]
    if parts == 1:
        tl.store(to, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=mine)
    else:
        # A part of whose keys a row sees none leaves -1e30 as that row's top, and so counts for nothing.
        line = ((place + part) * H + head) * ROOM + m
        tl.store(partial + line[:, None] * D + d[None, :], mixed)
        tl.store(stats + line * 2, top)
        tl.store(stats + line * 2 + 1, mass)
        tl.debug_barrier()
        if (
            tl.atomic_add(counters + place * H + head, 1, sem="acq_rel") == parts - 1
        ):  # the last to end adds up
            first = (place * H + head) * ROOM + m
            highest = tl.full([BM], -1e30, tl.float32)
            for i in range(parts):
                line2 = first + i * H * ROOM
                highest = tl.maximum(highest, tl.load(stats + line2 * 2, cache_modifier=".cg"))
            answer = tl.zeros([BM, D], tl.float32)
            total = tl.zeros([BM], tl.float32)
            for i in range(parts):
                line3 = first + i * H * ROOM
                share = tl.exp2(tl.load(stats + line3 * 2, cache_modifier=".cg") - highest)
                total += share * tl.load(stats + line3 * 2 + 1, cache_modifier=".cg")
                found = tl.load(partial + line3[:, None] * D + d[None, :], cache_modifier=".cg")
                answer += share[:, None] * found
            tl.store(to, (answer / total[:, None]).to(out.dtype.element_ty), mask=mine)
            tl.store(counters + place * H + head, 0)


@triton.jit(do_not_specialize=["table_stride"])
def prompt_attention(
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    tables,
    items,
    out,
    partial,
    stats,
    counters,
    table_stride,
    softmax_scale,
    query_stride,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BY_HEAD: tl.constexpr,
    QUANTIZED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    FEW: tl.constexpr,
    ROOM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (items, heads): an item each, as `worker.engine.gpu.tiles` has them; one with no rows is nothing to do.

    queries `[rows, heads, D]`, a row every `query_stride` numbers; `tables` int32, a row a sequence's blocks; `items`
    int32 `[items, 8]`; out `[rows, heads, D]`. Tiles have up to BM rows; those of up to FEW, an answer's among them,
    take a shorter way. `partial` and `stats` have ROOM rows a place and head; `counters` are 0 between launches.
    """
    head = tl.program_id(1)
    item = items + tl.program_id(0) * 8
    # Written before the first launch of the step: there is no need to wait. Nor for one that has nothing to do, as
    # there is always one that has.
    row = tl.load(item)
    count = tl.load(item + 1)
    if count > 0:
        start = tl.load(item + 2)
        table = tables + tl.load(item + 3).to(tl.int64) * table_stride
        part = tl.load(item + 4)
        parts = tl.load(item + 5)
        place = tl.load(item + 6)
        start_after_previous(PDL)
        if BM == FEW:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats, counters,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, BM, BN, STAGES, ROOM,
            )  # fmt: skip
        elif count <= FEW:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats, counters,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, FEW, BN, STAGES, ROOM,
            )  # fmt: skip
        else:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats, counters,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, BM, BN, STAGES, ROOM,
            )  # fmt: skip
