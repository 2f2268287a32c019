// Attention of one row over its pages, for some of its heads at a time. Positions are the outer loop: the heads of a
// position lie side by side, so memory is read in the order in which it lies.
#pragma once

namespace {

constexpr int AT_ONCE = 4;  // positions

// The sums of four registers, one behind the other.
inline __m128 totals(const F (&x)[AT_ONCE]) {
    __m256 eight[AT_ONCE];
    for (int i = 0; i < AT_ONCE; i++) {
        Halves h = halves(x[i]);
        eight[i] = _mm256_add_ps(h.low, h.high);
    }
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(eight[0], eight[1]), _mm256_hadd_ps(eight[2], eight[3]));
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

// Where the rows of positions `at` and the three behind it begin; behind the last position it is the last.
struct Four {
    int64_t at[AT_ONCE];
    Four(const Pages &pages, int position, int length) {
        for (int i = 0; i < AT_ONCE; i++) {
            const int mine = position + i < length ? position + i : length - 1;
            at[i] = pages.slot(mine) * pages.heads * pages.dim;
        }
    }
};

// Scores to weights: e**(score - greatest), and 0 behind the last. Returns 1 / their sum.
inline float soften(float *weights, int length) {
    for (int at = length; at % 16; at++) weights[at] = -INFINITY;
    F top = splat(-INFINITY);
    for (int at = 0; at < length; at += 16) top = max(top, load(weights + at));
    const F greatest = splat(highest(top));
    F sum = zero();
    for (int at = 0; at < length; at += 16) {
        const F e = exponential(sub(load(weights + at), greatest));
        store(weights + at, e);
        for (int i = length; i < at + 16; i++) weights[i] = 0;
        sum = add(sum, load(weights + at));
    }
    return 1.0f / total(sum);
}

template <Dtype DTYPE>
inline void attend_as(const Pages &pages, const Heads &heads, int length, float *weights, int stride, float *y) {
    const int dim = pages.dim;
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int at = 0; at < length; at += AT_ONCE) {
        const Four rows(pages, at, length);
        for (int h = 0; h < heads.count; h++) {
            const float *query = heads.queries + h * dim;
            const int64_t place = (heads.first + h) * dim;
            F dots[AT_ONCE] = {zero(), zero(), zero(), zero()};
            for (int i = 0; i < dim; i += 16) {
                const F q = load(query + i);
                for (int j = 0; j < AT_ONCE; j++)
                    dots[j] = fma(q, load_any(pages.keys, DTYPE, rows.at[j] + place + i), dots[j]);
            }
            _mm_storeu_ps(weights + int64_t(h) * stride + at, _mm_mul_ps(totals(dots), _mm_set1_ps(scale)));
        }
    }
    for (int h = 0; h < heads.count; h++) {
        float *mine = weights + int64_t(h) * stride;
        const F inverse = splat(soften(mine, length));
        for (int at = 0; at < length; at += 16) store(mine + at, mul(load(mine + at), inverse));
        for (int i = 0; i < dim; i += 16) store(y + h * dim + i, zero());
    }
    for (int at = 0; at < length; at += AT_ONCE) {
        const Four rows(pages, at, length);
        for (int h = 0; h < heads.count; h++) {
            const int64_t place = (heads.first + h) * dim;
            F weight[AT_ONCE];
            for (int j = 0; j < AT_ONCE; j++) weight[j] = splat(weights[int64_t(h) * stride + at + j]);
            for (int i = 0; i < dim; i += 16) {
                F mixed = load(y + h * dim + i);
                for (int j = 0; j < AT_ONCE; j++)
                    mixed = fma(weight[j], load_any(pages.values, DTYPE, rows.at[j] + place + i), mixed);
                store(y + h * dim + i, mixed);
            }
        }
    }
}

// Queries of some heads [count][dim] against keys and values of `pages` -> [count][dim]; positions 0 to length,
// exclusive. weights [count][stride], with room for `length` in whole registers.
void attend(const Pages &pages, const Heads &heads, int length, float *weights, int stride, float *y) {
    pages.dtype == F16 ? attend_as<F16>(pages, heads, length, weights, stride, y)
                       : attend_as<F32>(pages, heads, length, weights, stride, y);
}

// What fp16 cannot hold is no number, and so is all that is computed with it: as an infinity of the wrong sign it would
// only take a position's weight away.
inline F within_f16(F x) {
    constexpr float TOO_GREAT = 65520;  // rounds to infinity
    if (!at_least(magnitude(x), splat(TOO_GREAT))) return x;
    float lanes[16];
    store(lanes, x);
    for (float &lane : lanes) lane = std::fabs(lane) < TOO_GREAT ? lane : NAN;
    return load(lanes);
}

// x [count] to where keys and values are kept, at element `at`. `count` is a multiple of 16.
void keep(const float *x, int count, Dtype dtype, void *y, int64_t at) {
    for (int i = 0; i < count; i += 16) {
        if (dtype == F16) store_f16((uint16_t *)y + at + i, within_f16(load(x + i)));
        else store((float *)y + at + i, load(x + i));
    }
}

}  // namespace
