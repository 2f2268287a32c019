// The kernels, written once over the vector types that the including file defines: F and I are 16 lanes of fp32 and int32.
//
// An output's sum has one order, whatever the instruction set and however many rows are in the call: over the blocks of
// a group, then over the groups. So a row's result does not depend on the other rows, nor on the machine.
#pragma once
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "types.h"

namespace {

inline F load_any(const void *x, Dtype dtype, int64_t i) {
    if (dtype == F32) return load((const float *)x + i);
    return dtype == BF16 ? load_bf16((const uint16_t *)x + i) : load_f16((const uint16_t *)x + i);
}

inline float total(F x) {
    Halves h = halves(x);
    __m256 eight = _mm256_add_ps(h.low, h.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float highest(F x) {
    float lanes[16];
    store(lanes, x);
    float top = lanes[0];
    for (float lane : lanes) top = lane > top ? lane : top;
    return top;
}

void quantize(const void *x, Dtype dtype, int features, const Rows &rows, int row, int from, int to) {
    for (int block = from; block < to; block++) {
        F low, high;
        int have = features - block * BLOCK;
        if (have >= BLOCK) {
            low = load_any(x, dtype, block * BLOCK);
            high = load_any(x, dtype, block * BLOCK + 16);
        } else {
            size_t size = dtype == F32 ? 4 : 2;
            alignas(64) char padded[BLOCK * 4] = {};
            memcpy(padded, (const char *)x + block * BLOCK * size, have * size);
            low = load_any(padded, dtype, 0);
            high = load_any(padded, dtype, 16);
        }
        int64_t at = int64_t(row) * rows.blocks + block;
        float top = highest(max(magnitude(low), magnitude(high)));
        // Below the least normal number the inverse would overflow; such a block is zero for every purpose.
        float inverse = top > 1e-36f ? 127.0f / top : 0.0f;
        I a = rounded(mul(low, splat(inverse))), b = rounded(mul(high, splat(inverse)));
        store_bytes(rows.codes + at * BLOCK, a);
        store_bytes(rows.codes + at * BLOCK + 16, b);
        rows.scales[at] = top / 127.0f;
        rows.minus_sums[at] = -int(total(add(floats(a), floats(b))));
        // A row that is not finite has no finite product; its codes alone would hide that.
        if (!(top <= 3.4028235e38f) || std::isnan(total(add(low, high)))) rows.scales[at] = NAN;
    }
}

inline void put(const Target &y, int64_t row, int column, int count, F value, const float *bias) {
    if (count <= 0) return;  // the panel ends behind the matrix
    float lanes[16];
    const bool whole = count >= 16;
    int64_t at = row * y.stride + column;
    if (bias && whole) value = add(value, load(bias + column));
    if (whole && y.dtype == BF16) return store_bf16((uint16_t *)y.data + at, value);
    if (whole) {
        float *to = (float *)y.data + at;
        return store(to, y.add ? add(value, load(to)) : value);
    }
    store(lanes, value);
    for (int i = 0; i < count; i++) {
        if (bias) lanes[i] += bias[column + i];
        if (y.dtype == F32) {
            float *to = (float *)y.data + at + i;
            *to = y.add ? lanes[i] + *to : lanes[i];
        }
    }
    if (y.dtype == BF16) {
        uint16_t narrow[16];
        store_bf16(narrow, load(lanes));
        memcpy((uint16_t *)y.data + at, narrow, count * sizeof(uint16_t));
    }
}

inline int quad(const int8_t *p) {
    int x;
    memcpy(&x, p, 4);
    return x;
}

template <int BITS, int ROWS>
inline void panel_rows(const Packed &w, const Rows &x, int panel, int row, const Target &y) {
    const int blocks = w.blocks(), groups = w.groups(), in_group = w.group / BLOCK;
    const uint8_t *codes = w.codes + panel * w.panel_bytes();
    const uint16_t *scales = w.scales + int64_t(panel) * groups * PANEL;
    const uint8_t *zeros = w.zeros ? w.zeros + int64_t(panel) * groups * PANEL : nullptr;
    const int64_t first = int64_t(row) * blocks;
    F sum[ROWS][2];
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = zero();
    for (int group = 0, block = 0; group < groups; group++) {
        const I z[2] = {zeros ? load_zeros(zeros + group * PANEL) : splat_zero(1 << (BITS - 1)),
                        zeros ? load_zeros(zeros + group * PANEL + 16) : splat_zero(1 << (BITS - 1))};
        const int end = block + in_group < blocks ? block + in_group : blocks;
        F in_this[ROWS][2];
        for (int r = 0; r < ROWS; r++) in_this[r][0] = in_this[r][1] = zero();
        for (; block < end; block++) {
            Dot<BITS> dot[ROWS][2];
            for (int r = 0; r < ROWS; r++)
                for (int t = 0; t < 2; t++) dot[r][t].begin(z[t], x.minus_sums[first + int64_t(r) * blocks + block]);
            const int8_t *inputs = x.codes + (first + block) * BLOCK;
            constexpr int STEP = 32 / BITS;  // inputs of which 4 bytes hold the codes
#pragma GCC unroll 8
            for (int i = 0; i < BLOCK; i += STEP, codes += PANEL * 4) {
                _mm_prefetch((const char *)codes + 2048, _MM_HINT_T0);
                _mm_prefetch((const char *)codes + 2048 + 64, _MM_HINT_T0);
                for (int t = 0; t < 2; t++) {
                    const I both = load_codes(codes + t * 64);
                    for (int r = 0; r < ROWS; r++) {
                        const int8_t *mine = inputs + int64_t(r) * blocks * BLOCK + i;
                        if (BITS == 4) {
                            dot[r][t].step(low_half(both), quad(mine));
                            dot[r][t].step(high_half(both), quad(mine + 4));
                        } else {
                            dot[r][t].step(both, quad(mine));
                        }
                    }
                }
            }
            for (int r = 0; r < ROWS; r++) {
                const int64_t at = first + int64_t(r) * blocks + block;
                for (int t = 0; t < 2; t++)
                    in_this[r][t] = fma(dot[r][t].end(z[t], x.minus_sums[at]), splat(x.scales[at]), in_this[r][t]);
            }
        }
        for (int t = 0; t < 2; t++) {
            const F scale = load_f16(scales + group * PANEL + t * 16);
            for (int r = 0; r < ROWS; r++) sum[r][t] = fma(in_this[r][t], scale, sum[r][t]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < 2; t++) {
            int column = panel * PANEL + t * 16;
            put(y, row + r, column, w.out - column, sum[r][t], w.bias);
        }
}

template <int BITS> void panels(const Packed &w, const Rows &x, int from, int to, const Target &y) {
    for (int panel = from; panel < to; panel++) {
        int row = 0;
        for (; MOST_ROWS >= 8 && row + 8 <= x.rows; row += 8) panel_rows<BITS, MOST_ROWS>(w, x, panel, row, y);
        for (; MOST_ROWS >= 4 && row + 4 <= x.rows; row += 4) panel_rows<BITS, MOST_ROWS / 2>(w, x, panel, row, y);
        for (; row + 2 <= x.rows; row += 2) panel_rows<BITS, 2>(w, x, panel, row, y);
        if (row < x.rows) panel_rows<BITS, 1>(w, x, panel, row, y);
    }
}

void product(const Packed &w, const Rows &x, int from, int to, const Target &y) {
    w.bits == 4 ? panels<4>(w, x, from, to, y) : panels<8>(w, x, from, to, y);
}

// Some rows by some outputs: a weight is widened once for all rows of a tile, and no sum leaves its register.
template <int ROWS, int OUTS, Dtype DTYPE>
inline void dense_tile(const Dense &w, const float *x, int out, float *y) {
    const int whole = w.in / 16 * 16;
    const uint16_t *weight = w.weight + int64_t(out) * w.in;
    F sum[ROWS][OUTS];
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) sum[r][o] = zero();
    for (int i = 0; i < whole; i += 16) {
        F weights[OUTS];
        for (int o = 0; o < OUTS; o++) weights[o] = load_any(weight + int64_t(o) * w.in, DTYPE, i);
        for (int r = 0; r < ROWS; r++) {
            const F input = load(x + int64_t(r) * w.in + i);
            for (int o = 0; o < OUTS; o++) sum[r][o] = fma(weights[o], input, sum[r][o]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) {
            float result = total(sum[r][o]);
            if (whole < w.in) {
                uint16_t weights[16] = {};
                float inputs[16] = {};
                memcpy(weights, weight + int64_t(o) * w.in + whole, (w.in - whole) * sizeof(uint16_t));
                memcpy(inputs, x + int64_t(r) * w.in + whole, (w.in - whole) * sizeof(float));
                result += total(mul(load_any(weights, DTYPE, 0), load(inputs)));
            }
            y[int64_t(r) * w.out + out + o] = result;
        }
}

template <int OUTS, Dtype DTYPE>
inline void dense_rows(const Dense &w, const float *x, int rows, int out, float *y) {
    int row = 0;
    for (; row + DENSE_ROWS <= rows; row += DENSE_ROWS)
        dense_tile<DENSE_ROWS, OUTS, DTYPE>(w, x + int64_t(row) * w.in, out, y + int64_t(row) * w.out);
    for (; row < rows; row++) dense_tile<1, OUTS, DTYPE>(w, x + int64_t(row) * w.in, out, y + int64_t(row) * w.out);
}

template <Dtype DTYPE> void dense_outs(const Dense &w, const float *x, int rows, int from, int to, float *y) {
    int out = from;
    for (; out + 4 <= to; out += 4) dense_rows<4, DTYPE>(w, x, rows, out, y);
    for (; out < to; out++) dense_rows<1, DTYPE>(w, x, rows, out, y);
}

void dense(const Dense &w, const float *x, int rows, int from, int to, float *y) {
    w.dtype == F16 ? dense_outs<F16>(w, x, rows, from, to, y) : dense_outs<BF16>(w, x, rows, from, to, y);
}

void rms_norm(const float *x, const float *weight, float eps, int features, float *y) {
    F squares = zero();
    const int whole = features / 16 * 16;
    for (int i = 0; i < whole; i += 16) squares = fma(load(x + i), load(x + i), squares);
    float sum = total(squares);
    for (int i = whole; i < features; i++) sum += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(sum / features + eps);
    for (int i = 0; i < whole; i += 16) store(y + i, mul(mul(load(x + i), splat(scale)), load(weight + i)));
    for (int i = whole; i < features; i++) y[i] = x[i] * scale * weight[i];
}

// e**x for -87 <= x <= 87, else clamped; off by at most 2 units in the last place. Cephes' polynomial.
inline F exponential(F x) {
    x = max(splat(-87.0f), min(splat(87.0f), x));  // of two the second where one is not a number: it stays one
    const I n = rounded(mul(x, splat(1.44269504f)));
    F r = fma(floats(n), splat(-0.693359375f), x);
    r = fma(floats(n), splat(2.12194440e-4f), r);
    F p = splat(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = fma(p, r, splat(c));
    p = fma(p, mul(r, r), add(r, splat(1.0f)));
    return mul(p, power_of_two(n));
}

inline F gated(F up, F gate) {
    return mul(up, div(gate, add(splat(1.0f), exponential(sub(zero(), gate)))));
}

void gate(const float *up, const float *gate, int features, float *y) {
    const int whole = features / 16 * 16;
    for (int i = 0; i < whole; i += 16) store(y + i, gated(load(up + i), load(gate + i)));
    if (whole < features) {
        float lanes[2][16] = {};
        memcpy(lanes[0], up + whole, (features - whole) * sizeof(float));
        memcpy(lanes[1], gate + whole, (features - whole) * sizeof(float));
        store(lanes[0], gated(load(lanes[0]), load(lanes[1])));
        memcpy(y + whole, lanes[0], (features - whole) * sizeof(float));
    }
}

}  // namespace

#include "attend.h"
#include "sampling.h"

#define TABLE(name) {name, quantize, product, dense, rms_norm, gate, attend, keep, candidates}
