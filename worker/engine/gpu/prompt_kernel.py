"""Attention of a step's rows over the pages, which hold their own keys and values already.

After "FlashAttention-2" (Dao, 2023): a program has up to BM queries of one sequence and head and goes once over the
keys that they see, or over a part of them. What several parts have found a second launch adds up.
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
def _ask_for(
    keys,
    values,
    table,
    head,
    begin,
    end,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BY_HEAD: tl.constexpr,
):
    """Have keys and values of positions `begin` to `end` brought into the chip's cache, 128 bytes at a time."""
    n = tl.arange(0, 64)
    some = tl.arange(0, 2) * (D // 2)
    for first in range(begin, end, 64):
        token = tl.minimum(first + n, end - 1)
        line = _line(tl.load(table + token // PAGE), token % PAGE, head, H, PAGE, BY_HEAD)
        at = line[:, None] * D + some[None, :]
        for of in tl.static_range(2):
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                "=r,l",
                [(keys if of == 0 else values) + at],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


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
        line = ((place + part) * H + head) * ROOM + m
        tl.store(partial + line[:, None] * D + d[None, :], mixed)
        tl.store(stats + line * 2, top)
        tl.store(stats + line * 2 + 1, mass)


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
    take a shorter way. `partial` and `stats` have ROOM rows for each place and head.
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
        if PDL:
            # What was there before this step need not be waited for: it is on its way meanwhile.
            past = tl.minimum(start, (part + 1) * tl.cdiv(start + count, parts))
            _ask_for(
                keys, values, table, head, part * tl.cdiv(start + count, parts), past, H, D, PAGE, BY_HEAD
            )
        start_after_previous(PDL)
        if BM == FEW:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, BM, BN, STAGES, ROOM,
            )  # fmt: skip
        elif count <= FEW:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, FEW, BN, STAGES, ROOM,
            )  # fmt: skip
        else:
            _tile(
                queries, keys, values, key_scales, value_scales, table, out, partial, stats,
                row, count, start, part, parts, place, head, softmax_scale, query_stride,
                H, D, PAGE, BY_HEAD, QUANTIZED, BM, BN, STAGES, ROOM,
            )  # fmt: skip


@triton.jit
def add_parts(
    items,
    out,
    partial,
    stats,
    H: tl.constexpr,
    D: tl.constexpr,
    ROOM: tl.constexpr,
    SPARE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (SPARE, heads, adders): the items that are parts are among the first. Each adds up some rows of its tile."""
    head = tl.program_id(1)
    item = items + tl.program_id(0) * 8
    count = tl.load(item + 1)
    part = tl.load(item + 4)
    parts = tl.load(item + 5)
    start_after_previous(PDL)
    if parts > 1:
        row = tl.load(item)
        place = tl.load(item + 6)
        i = tl.arange(0, SPARE)
        d = tl.arange(0, D)
        known = i < parts
        for m in range(part + parts * tl.program_id(2), count, parts * tl.num_programs(2)):
            line = ((place + i) * H + head) * ROOM + m
            # A part of whose keys a row sees none has left -1e30 as its top, and so counts for nothing.
            tops = tl.load(stats + line * 2, mask=known, other=-1e30)
            masses = tl.load(stats + line * 2 + 1, mask=known, other=0.0)
            found = tl.load(partial + line[:, None] * D + d[None, :], mask=known[:, None], other=0.0)
            share = tl.exp2(tops - tl.max(tops, 0))
            answer = tl.sum(found * share[:, None], 0) / tl.sum(masses * share, 0)
            tl.store(out + ((row + m).to(tl.int64) * H + head) * D + d, answer.to(out.dtype.element_ty))
