"""Attention of a piece of a prompt over the pages, which hold its own keys and values already.

After "FlashAttention-2" (Dao, 2023): a program has BM queries of one head and goes once over all keys that they see.
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


@triton.jit(do_not_specialize=["start", "count"])
def prompt_attention(
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    out,
    start,
    count,
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
    PDL: tl.constexpr,
):
    """Grid (tiles of BM of the `count` queries, heads). The queries' positions begin at `start`.

    queries `[count, heads, D]`, a row every `query_stride` numbers; `table` int64, the sequence's blocks; out `[count,
    heads, D]`.
    """
    # Those that see most come first, so that the short ones fill the gaps at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    m = tile * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    start_after_previous(PDL)
    q = tl.load(
        queries + m[:, None].to(tl.int64) * query_stride + head * D + d[None, :],
        mask=(m < count)[:, None],
        other=0.0,
    )
    # Scaled in fp32 and rounded once; exp2 serves.
    q = (q.to(tl.float32) * (softmax_scale * 1.4426950408889634)).to(q.dtype)
    mixed = tl.zeros([BM, D], tl.float32)
    mass = tl.zeros([BM], tl.float32)
    top = tl.full([BM], -1e30, tl.float32)
    length = start + count
    seen_by_all = (start + tile * BM + 1) // BN * BN
    end = tl.minimum(start + (tile + 1) * BM, length)
    at = start + m
    mixed, mass, top = _add_keys(
        mixed, mass, top, q, keys, values, key_scales, value_scales, table, head, at, 0, seen_by_all, length,
        H, D, PAGE, BY_HEAD, QUANTIZED, BN, False, STAGES,
    )  # fmt: skip
    mixed, mass, top = _add_keys(
        mixed, mass, top, q, keys, values, key_scales, value_scales, table, head, at, seen_by_all, end, length,
        H, D, PAGE, BY_HEAD, QUANTIZED, BN, True, STAGES,
    )  # fmt: skip
    to = out + (m[:, None].to(tl.int64) * H + head) * D + d[None, :]
    tl.store(to, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=(m < count)[:, None])
