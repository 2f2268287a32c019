"""Paged decode attention in one launch: rotation, cache write, split keys and values, and their reduction.

After "Flash-Decoding" (Dao, Haziza, Massa, Sizov, 2023). A sequence's past is cut into parts, a program each; whoever
of them ends last adds them up, in the order of the parts. How it is cut depends on the sequence's length and the
launch's constants, and nothing else.
"""

import triton
import triton.language as tl

from worker.model.gpu.kernels import start_after_previous


@triton.jit
def _line(block, place, head, H: tl.constexpr, PAGE: tl.constexpr, BY_HEAD: tl.constexpr):
    """Where a head of a token is: in numbers of heads from the cache's beginning."""
    if BY_HEAD:
        return (block.to(tl.int64) * H + head) * PAGE + place
    return (block.to(tl.int64) * PAGE + place) * H + head


@triton.jit
def _store_8_bits(codes, scales, at, x, d, D: tl.constexpr):
    """Round one head to int8 with a scale of its own, as `worker.engine.kv_cache` says."""
    scale = tl.max(tl.abs(x), 0) / 127.0
    tl.store(scales + at, scale)
    tl.store(codes + at * D + d, tl.floor(x / tl.maximum(scale, 1e-30) + 0.5).to(tl.int8))


@triton.jit
def rotate_and_store(
    qkv,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    cos,
    sin,
    turned,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BY_HEAD: tl.constexpr,
    QUANTIZED: tl.constexpr,
    HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of a prompt a program: its turned queries and keys, and its values, `[3H, D]`; both in the cache too."""
    row = tl.program_id(0)
    h = tl.arange(0, HEADS)
    d = tl.arange(0, D)
    inside = (h < H)[:, None]
    start_after_previous(PDL)
    c = tl.load(cos + row * D + d)[None, :]
    s = tl.load(sin + row * D + d)[None, :]
    mine = qkv + row.to(tl.int64) * 3 * H * D + h[:, None] * D
    q = tl.load(mine + d[None, :], mask=inside, other=0.0).to(tl.float32) * c
    q += tl.load(mine + (d ^ (D // 2))[None, :], mask=inside, other=0.0).to(tl.float32) * s
    k = tl.load(mine + H * D + d[None, :], mask=inside, other=0.0).to(tl.float32) * c
    k += tl.load(mine + H * D + (d ^ (D // 2))[None, :], mask=inside, other=0.0).to(tl.float32) * s
    v = tl.load(mine + 2 * H * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
    to = turned + row.to(tl.int64) * 3 * H * D + h[:, None] * D + d[None, :]
    tl.store(to, q.to(turned.dtype.element_ty), mask=inside)
    tl.store(to + H * D, k.to(turned.dtype.element_ty), mask=inside)
    tl.store(to + 2 * H * D, v.to(turned.dtype.element_ty), mask=inside)
    slot = tl.load(slots + row)
    at = _line(slot // PAGE, slot % PAGE, h, H, PAGE, BY_HEAD)
    if QUANTIZED:
        k_scale = tl.max(tl.abs(k), 1) / 127.0
        v_scale = tl.max(tl.abs(v), 1) / 127.0
        tl.store(key_scales + at, k_scale, mask=h < H)
        tl.store(value_scales + at, v_scale, mask=h < H)
        k = tl.floor(k / tl.maximum(k_scale, 1e-30)[:, None] + 0.5)
        v = tl.floor(v / tl.maximum(v_scale, 1e-30)[:, None] + 0.5)
    tl.store(keys + at[:, None] * D + d[None, :], k.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + at[:, None] * D + d[None, :], v.to(values.dtype.element_ty), mask=inside)


# Its stride is that of whatever batch there is: another value is no reason to compile anew.
@triton.jit(do_not_specialize=["table_stride"])
def decode_attention(
    qkv,
    keys,
    values,
    key_scales,
    value_scales,
    tables,
    positions,
    cos,
    sin,
    out,
    partial,
    stats,
    counters,
    table_stride,
    softmax_scale,
    H: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BT: tl.constexpr,
    SPLIT: tl.constexpr,
    LEAST: tl.constexpr,
    BY_HEAD: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows * heads, SPLIT). Keys, values and their scales as `worker.engine.kv_cache` has them.

    A part has LEAST tokens at least, so a short past has fewer parts than SPLIT. Each of the BT places of a tile keeps
    a maximum, a sum and fp32 accumulators of its own: nothing is exchanged before the end. The first tile is loaded
    before the wait: it was written in an earlier step.
    """
    pair, part = tl.program_id(0), tl.program_id(1)
    row = pair // H
    head = pair % H
    past = tl.load(positions + row).to(tl.int32)  # tokens before this one
    width = tl.maximum(tl.cdiv(tl.cdiv(past, SPLIT), BT) * BT, LEAST)
    parts = tl.maximum(tl.cdiv(past, width), 1)
    if part < parts:
        begin = part * width
        end = tl.minimum(past, begin + width)
        d = tl.arange(0, D)
        t = tl.arange(0, BT)
        table = tables + row.to(tl.int64) * table_stride
        token = begin + t
        inside = token < end
        at = _line(tl.load(table + token // PAGE, mask=inside, other=0), token % PAGE, head, H, PAGE, BY_HEAD)
        k = tl.load(keys + at[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(values + at[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        if QUANTIZED:
            k_scale = tl.load(key_scales + at, mask=inside, other=0.0)
            v_scale = tl.load(value_scales + at, mask=inside, other=0.0)
        start_after_previous(PDL)
        c = tl.load(cos + row * D + d)
        s = tl.load(sin + row * D + d)
        mine = qkv + row.to(tl.int64) * 3 * H * D + head * D
        q = tl.load(mine + d).to(tl.float32) * c + tl.load(mine + (d ^ (D // 2))).to(tl.float32) * s
        q = q * (softmax_scale * 1.4426950408889634)  # so that exp2 serves
        greatest = tl.full([BT], -1e30, tl.float32)
        mass = tl.zeros([BT], tl.float32)
        mixed = tl.zeros([BT, D], tl.float32)
        for first in range(begin, end, BT):
            token2 = first + BT + t
            inside2 = token2 < end
            block2 = tl.load(table + token2 // PAGE, mask=inside2, other=0)
            at2 = _line(block2, token2 % PAGE, head, H, PAGE, BY_HEAD)
            k2 = tl.load(keys + at2[:, None] * D + d[None, :], mask=inside2[:, None], other=0.0)
            v2 = tl.load(values + at2[:, None] * D + d[None, :], mask=inside2[:, None], other=0.0)
            score = tl.sum(k.to(tl.float32) * q[None, :], 1)
            if QUANTIZED:
                score = score * k_scale
            score = tl.where(first + t < end, score, -1e30)
            higher = tl.maximum(greatest, score)
            shrink = tl.exp2(greatest - higher)
            p = tl.where(first + t < end, tl.exp2(score - higher), 0.0)
            mass = mass * shrink + p
            greatest = higher
            if QUANTIZED:
                p = p * v_scale
                k_scale = tl.load(key_scales + at2, mask=inside2, other=0.0)
                v_scale = tl.load(value_scales + at2, mask=inside2, other=0.0)
            mixed = mixed * shrink[:, None] + p[:, None] * v.to(tl.float32)
            k = k2
            v = v2
        top = tl.max(greatest, 0)
        weight = tl.exp2(greatest - top)
        total = tl.sum(mass * weight, 0)
        answer = tl.sum(mixed * weight[:, None], 0)
        if part == parts - 1:  # the new token: turn it, keep it, attend to it
            new_k = tl.load(mine + H * D + d).to(tl.float32) * c
            new_k += tl.load(mine + H * D + (d ^ (D // 2))).to(tl.float32) * s
            new_v = tl.load(mine + 2 * H * D + d).to(tl.float32)
            now = _line(tl.load(table + past // PAGE), past % PAGE, head, H, PAGE, BY_HEAD)
            if QUANTIZED:
                _store_8_bits(keys, key_scales, now, new_k, d, D)
                _store_8_bits(values, value_scales, now, new_v, d, D)
            else:
                new_k = new_k.to(keys.dtype.element_ty)
                tl.store(keys + now * D + d, new_k)
                tl.store(values + now * D + d, new_v.to(values.dtype.element_ty))
                new_k = new_k.to(tl.float32)
            score1 = tl.sum(new_k * q, 0)
            top2 = tl.maximum(top, score1)
            old, new = tl.exp2(top - top2), tl.exp2(score1 - top2)
            answer = answer * old + new_v * new
            total = total * old + new
            top = top2
        to = out + (row.to(tl.int64) * H + head) * D + d
        if parts == 1:
            tl.store(to, (answer / total).to(out.dtype.element_ty))
        else:
            tl.store(partial + (pair * SPLIT + part) * D + d, answer)
            tl.store(stats + (pair * SPLIT + part) * 2, top)
            tl.store(stats + (pair * SPLIT + part) * 2 + 1, total)
            tl.debug_barrier()
            if tl.atomic_add(counters + pair, 1, sem="acq_rel") == parts - 1:
                i = tl.arange(0, SPLIT)
                known = i < parts
                tops = tl.load(stats + (pair * SPLIT + i) * 2, mask=known, other=-1e30, cache_modifier=".cg")
                totals = tl.load(
                    stats + (pair * SPLIT + i) * 2 + 1, mask=known, other=0.0, cache_modifier=".cg"
                )
                share = tl.exp2(tops - tl.max(tops, 0))
                answers = tl.load(
                    partial + (pair * SPLIT + i)[:, None] * D + d[None, :],
                    mask=known[:, None],
                    other=0.0,
                    cache_modifier=".cg",
                )
                answer2 = tl.sum(answers * share[:, None], 0) / tl.sum(totals * share, 0)
                tl.store(to, answer2.to(out.dtype.element_ty))
                tl.store(counters + pair, 0)
