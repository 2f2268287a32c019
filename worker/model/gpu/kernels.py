"""The kernels around the products of few rows. Shapes and layouts are described in `worker.model.gpu.linear`.

With `PDL` a kernel is launched while the one before it still runs: it loads weights first, which nobody writes, then
waits with `gdc_wait` until all that was written before it is there. Every kernel of a chain waits, so what is behind
its wait may rely on everything earlier in the stream.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def start_after_previous(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _eighths(w):
    """int32 of 8 codes -> four half2 (as int32) of (code - 8) / 8, exact in fp16: nibbles p and p + 4 make the p-th.

    0x6400 | c is 1024 + c in fp16, and 16 times the code stands in the upper nibble of a byte. An eighth, so that
    four products of activations up to 16,000 can be summed in fp16.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 h, e, m, f, n;
        mov.b32 e, 0x30003000; mov.b32 m, 0xD808D808; mov.b32 f, 0x20002000; mov.b32 n, 0xC880C880;
        shr.u32 h, $4, 8;
        lop3.b32 $0, $4, 0x000F000F, 0x64006400, 0xEA; lop3.b32 $1, $4, 0x00F000F0, 0x64006400, 0xEA;
        lop3.b32 $2, h, 0x000F000F, 0x64006400, 0xEA; lop3.b32 $3, h, 0x00F000F0, 0x64006400, 0xEA;
        fma.rn.f16x2 $0, $0, e, m; fma.rn.f16x2 $1, $1, f, n;
        fma.rn.f16x2 $2, $2, e, m; fma.rn.f16x2 $3, $3, f, n;
        }""",
        "=&r,=&r,=&r,=&r,r",
        [w],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _sum_of_8(a0, a1, a2, a3, x0, x1, x2, x3):
    """Four half2 times four half2; products and sums of four in fp16, the last sum in fp32."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 s; .reg .b16 l, h; .reg .f32 f, g;
        mul.f16x2 s, $1, $5; fma.rn.f16x2 s, $2, $6, s; fma.rn.f16x2 s, $3, $7, s; fma.rn.f16x2 s, $4, $8, s;
        mov.b32 {l, h}, s; cvt.f32.f16 f, l; cvt.f32.f16 g, h; add.f32 $0, f, g;
        }""",
        "=f,r,r,r,r,r,r,r,r",
        [a0, a1, a2, a3, x0, x1, x2, x3],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _low(x):
    """The lower fp16 of a half2, as fp32."""
    return (x & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _plain_sum_of_8(w, x0, x1, x2, x3):
    """The same in fp32 and without assembly."""
    y = (((w & 15) - 8).to(tl.float32) * _low(x0)) + (((w >> 16) & 15) - 8).to(tl.float32) * _low(x0 >> 16)
    y += (((w >> 4) & 15) - 8).to(tl.float32) * _low(x1) + (((w >> 20) & 15) - 8).to(tl.float32) * _low(
        x1 >> 16
    )
    y += (((w >> 8) & 15) - 8).to(tl.float32) * _low(x2) + (((w >> 24) & 15) - 8).to(tl.float32) * _low(
        x2 >> 16
    )
    y += (((w >> 12) & 15) - 8).to(tl.float32) * _low(x3) + (((w >> 28) & 15) - 8).to(tl.float32) * _low(
        x3 >> 16
    )
    return y / 8


@triton.jit
def _half2s(x, ROWS: tl.constexpr, BW: tl.constexpr):
    """fp16 `[ROWS, BW, 8]` -> four int32 `[ROWS, 1, BW]`: numbers 2p and 2p + 1 of each eight make the p-th."""
    bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(bits, [ROWS, BW, 4, 2]))
    even, odd = tl.split(tl.reshape(low | (high << 16), [ROWS, BW, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return (
        tl.expand_dims(x0, 1),
        tl.expand_dims(x1, 1),
        tl.expand_dims(x2, 1),
        tl.expand_dims(x3, 1),
    )


@triton.jit
def few_rows(
    x,
    gamma,
    eps,
    words,
    scales,
    bias,
    out,
    rows,
    outputs,
    word_stride,
    scale_stride,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
    NORM: tl.constexpr,
    SILU: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Up to ROWS rows of x times the weights of BN outputs a program, whose words it loads before it waits.

    NORM  x is fp32 and is RMS-normed with `gamma` first; else it is fp16.
    SILU  outputs alternate between gate and up; silu(gate) * up is written, half as many.
    ADD   `out` is fp32 and the product is added to it; else `out` is fp16.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    j = tl.arange(0, BW)
    m = tl.arange(0, ROWS)
    W: tl.constexpr = INPUTS // 8
    at = n[None, :, None]
    col = j[None, None, :]
    w = tl.load(words + at * word_stride + col, mask=(at < outputs) & (col < W), other=0)
    s = tl.load(scales + at * scale_stride + col // (GROUP // 8), mask=(at < outputs) & (col < W), other=0.0)
    start_after_previous(PDL)
    k = j[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    row = m[:, None, None]
    inverse = tl.full([ROWS], 1.0, tl.float32)
    if NORM:
        squares = tl.zeros([ROWS], tl.float32)
        for begin in tl.static_range(0, W, BW):
            h = tl.load(
                x + row * INPUTS + begin * 8 + k, mask=(row < rows) & (begin * 8 + k < INPUTS), other=0.0
            )
            squares += tl.sum(tl.sum(h * h, 2), 1)
        inverse = tl.rsqrt(squares / INPUTS + eps)
    total = tl.zeros([ROWS, BN, BW], tl.float32)
    for begin in tl.static_range(0, W, BW):
        if begin > 0:
            inside = (at < outputs) & (begin + col < W)
            w = tl.load(words + at * word_stride + begin + col, mask=inside, other=0)
            s = tl.load(scales + at * scale_stride + (begin + col) // (GROUP // 8), mask=inside, other=0.0)
        kk = begin * 8 + k
        v = tl.load(x + row * INPUTS + kk, mask=(row < rows) & (kk < INPUTS), other=0.0)
        if NORM:
            g = tl.load(gamma + kk, mask=kk < INPUTS, other=0.0)
            v = (v * inverse[:, None, None] * g).to(tl.float16)
        x0, x1, x2, x3 = _half2s(v, ROWS, BW)
        if ASM:
            a0, a1, a2, a3 = _eighths(w)
            total += _sum_of_8(a0, a1, a2, a3, x0, x1, x2, x3) * s.to(tl.float32)
        else:
            total += _plain_sum_of_8(w, x0, x1, x2, x3) * s.to(tl.float32)
    y = tl.sum(total, 2) * 8.0
    if BIAS:
        y += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if SILU:
        gate, up = tl.split(tl.reshape(y, [ROWS, BN // 2, 2]))
        half = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
        to = out + m[:, None] * (outputs // 2) + half[None, :]
        inside2 = (m[:, None] < rows) & (half[None, :] < outputs // 2)
        tl.store(to, (gate / (1.0 + tl.exp(-gate)) * up).to(tl.float16), mask=inside2)
    else:
        to = out + m[:, None] * outputs + n[None, :]
        inside2 = (m[:, None] < rows) & (n[None, :] < outputs)
        if ADD:
            tl.store(to, tl.load(to, mask=inside2, other=0.0) + y, mask=inside2)
        else:
            tl.store(to, y.to(tl.float16), mask=inside2)


@triton.jit
def dequantize(
    words, scales, out, word_stride, scale_stride, INPUTS: tl.constexpr, GROUP: tl.constexpr, BW: tl.constexpr
):
    """fp16 `[out, in]` of one output a program and BW words a turn."""
    n = tl.program_id(0).to(tl.int64)
    W: tl.constexpr = INPUTS // 8
    i = tl.arange(0, 8)
    shift = 4 * (i // 2) + 16 * (i % 2)
    for begin in tl.static_range(0, W, BW):
        j = begin + tl.arange(0, BW)
        w = tl.load(words + n * word_stride + j, mask=j < W, other=0)
        s = tl.load(scales + n * scale_stride + j // (GROUP // 8), mask=j < W, other=0.0).to(tl.float32)
        value = ((w[:, None] >> shift[None, :]) & 15) - 8
        to = out + n * INPUTS + j[:, None] * 8 + i[None, :]
        tl.store(to, (value.to(tl.float32) * s[:, None]).to(tl.float16), mask=(j < W)[:, None])


@triton.jit
def embed(
    ids,
    table,
    hidden,
    gamma,
    scaled,
    squares,
    width,
    WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
    PLACED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A row of the embedding in fp32 for each id.

    With SCALED what the kernels on tensor cores read of it behind a norm; PLACED: in the order of `int4_wgmma.cu`.
    """
    row = tl.program_id(0)
    d = tl.arange(0, WIDTH)
    start_after_previous(PDL)
    x = tl.load(table + tl.load(ids + row) * width + d, mask=d < width, other=0.0).to(tl.float32)
    tl.store(hidden + row * width + d, x, mask=d < width)
    if SCALED:
        g = tl.load(gamma + d, mask=d < width, other=0.0)
        to = (d & -128) | ((d >> 1) & 15) << 3 | ((d >> 5) & 3) << 1 | (d & 1) if PLACED else d
        tl.store(scaled + row * width + to, (x * g / 16).to(tl.float16), mask=d < width)
        sums = tl.sum(tl.reshape(x * x, [WIDTH // 16, 16]), 1)
        i = tl.arange(0, WIDTH // 16)
        tl.store(squares + row * (width // 16) + i, sums, mask=i < width // 16)


@triton.jit
def add_norm(
    hidden, added, gamma, out, eps, width, WIDTH: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr
):
    """hidden (fp32) += added (fp16); out (fp16) = RMS norm of it. One row a program."""
    row = tl.program_id(0)
    d = tl.arange(0, WIDTH)
    inside = d < width
    g = tl.load(gamma + d, mask=inside, other=0.0)
    start_after_previous(PDL)
    h = tl.load(hidden + row * width + d, mask=inside, other=0.0)
    if ADD:
        h += tl.load(added + row * width + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + row * width + d, h, mask=inside)
    inverse = tl.rsqrt(tl.sum(h * h, 0) / width + eps)
    tl.store(out + row * width + d, (h * inverse * g).to(tl.float16), mask=inside)


@triton.jit
def silu_times_up(x, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """x `[rows, 2 * width]` alternates between gate and up -> fp16 `[rows, width]`."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start_after_previous(PDL)
    both = row * 2 * width + d[:, None] * 2 + tl.arange(0, 2)[None, :]
    gate, up = tl.split(tl.load(x + both, mask=(d < width)[:, None], other=0.0).to(tl.float32))
    tl.store(out + row * width + d, (gate / (1.0 + tl.exp(-gate)) * up).to(tl.float16), mask=d < width)


@triton.jit
def int8_rows(
    x,
    weight,
    scales,
    out,
    rows,
    outputs,
    INPUTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PDL: tl.constexpr,
):
    """fp16 rows times int8 `[outputs, INPUTS]` with a scale an output. BM rows and BN outputs a program."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    start_after_previous(PDL)
    total = tl.zeros([BM, BN], tl.float32)
    at = weight + n[None, :].to(tl.int64) * INPUTS
    for begin in tl.range(0, INPUTS, BK, num_stages=4):
        kk = begin + k
        v = tl.load(
            x + m[:, None] * INPUTS + kk[None, :],
            mask=(m < rows)[:, None] & (kk < INPUTS)[None, :],
            other=0.0,
        )
        w = tl.load(at + kk[:, None], mask=(n < outputs)[None, :] & (kk < INPUTS)[:, None], other=0)
        total = tl.dot(v, w.to(tl.float16), total)
    total *= tl.load(scales + n, mask=n < outputs, other=0.0)[None, :]
    to = out + m[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(to, total.to(tl.float16), mask=(m < rows)[:, None] & (n < outputs)[None, :])


@triton.jit
def one_row(
    x,
    weight,
    scales,
    out,
    outputs,
    INPUTS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One fp16 row times a plain matrix `[outputs, INPUTS]`, fp16, or int8 with a scale an output."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    inside = n < outputs
    at = weight + n[:, None].to(tl.int64) * INPUTS
    w = tl.load(at + k[None, :], mask=inside[:, None] & (k < INPUTS)[None, :], other=0)
    start_after_previous(PDL)
    total = tl.zeros([BN], tl.float32)
    for begin in tl.static_range(0, INPUTS, BK):
        kk = begin + k
        if begin > 0:
            w = tl.load(at + kk[None, :], mask=inside[:, None] & (kk < INPUTS)[None, :], other=0)
        v = tl.load(x + kk, mask=kk < INPUTS, other=0.0).to(tl.float32)
        total += tl.sum(w.to(tl.float32) * v[None, :], 1)
    if BITS == 8:
        total *= tl.load(scales + n, mask=inside, other=0.0)
    tl.store(out + n, total.to(tl.float16), mask=inside)
