// AVX2 with FMA and F16C: two registers stand for one of AVX-512, so that every sum has the same order in both.
#include <immintrin.h>

#include <cstdint>

namespace {

struct F {
    __m256 low, high;
};
struct I {
    __m256i low, high;
};

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
inline F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F magnitude(F a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline I rounded(F a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
inline F floats(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline __m256 power_of_two(__m256i a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(a, _mm256_set1_epi32(127)), 23));
}
inline F power_of_two(I a) { return {power_of_two(a.low), power_of_two(a.high)}; }
inline void store_bytes(int8_t *p, I a) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline F load_f16(const uint16_t *p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}
inline __m256 widened(const __m128i *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
inline F load_bf16(const uint16_t *p) { return {widened((const __m128i *)p), widened((const __m128i *)p + 1)}; }
inline __m256i narrowed(__m256 x) {  // to nearest, ties to even
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    return _mm256_srli_epi32(bits, 16);
}
inline void store_bf16(uint16_t *p, F x) {
    __m256i words = _mm256_packus_epi32(narrowed(x.low), narrowed(x.high));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xd8));
}
inline void store_f16(uint16_t *p, F x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}
inline uint32_t at_least(F a, F b) {  // a bit for each lane
    return _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ)) |
           _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ)) << 8;
}
using Halves = F;
inline Halves halves(F x) { return x; }

inline I load_codes(const uint8_t *p) {
    return {_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
inline __m256i low_half(__m256i c) { return _mm256_and_si256(c, _mm256_set1_epi8(15)); }
inline __m256i high_half(__m256i c) { return low_half(_mm256_srli_epi16(c, 4)); }
inline I low_half(I c) { return {low_half(c.low), low_half(c.high)}; }
inline I high_half(I c) { return {high_half(c.low), high_half(c.high)}; }
inline I load_zeros(const uint8_t *p) {
    __m128i z = _mm_loadu_si128((const __m128i *)p);
    __m256i one = _mm256_set1_epi32(1);
    return {_mm256_add_epi32(_mm256_cvtepu8_epi32(z), one), _mm256_add_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(z, 8)), one)};
}
inline I splat_zero(int z) { return {_mm256_set1_epi32(z), _mm256_set1_epi32(z)}; }

inline __m256i pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Half-byte codes: 16 products of at most 15 * 127 meet in an int16 during one block, which holds them.
struct HalfByteSums {
    __m256i low, high;
    inline void begin() { low = high = _mm256_setzero_si256(); }
    inline void step(I codes, __m256i x) {
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(codes.low, x));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(codes.high, x));
    }
};
inline F difference(__m256i low, __m256i high, I zeros, int minus_sum) {
    __m256i sum = _mm256_set1_epi32(minus_sum);
    return {_mm256_cvtepi32_ps(_mm256_add_epi32(low, _mm256_madd_epi16(zeros.low, sum))),
            _mm256_cvtepi32_ps(_mm256_add_epi32(high, _mm256_madd_epi16(zeros.high, sum)))};
}

template <int BITS> struct Dot;
template <> struct Dot<4> {
    HalfByteSums sums;
    inline void begin(I, int) { sums.begin(); }
    inline void step(I codes, int x) { sums.step(codes, _mm256_set1_epi32(x)); }
    inline F end(I zeros, int minus_sum) const {
        return difference(pairs(sums.low), pairs(sums.high), zeros, minus_sum);
    }
};
// A byte is two half bytes: maddubs on whole ones would saturate.
template <> struct Dot<8> {
    HalfByteSums ones, sixteens;
    inline void begin(I, int) { ones.begin(), sixteens.begin(); }
    inline void step(I codes, int x) {
        ones.step(low_half(codes), _mm256_set1_epi32(x));
        sixteens.step(high_half(codes), _mm256_set1_epi32(x));
    }
    inline F end(I zeros, int minus_sum) const {
        __m256i low = _mm256_add_epi32(pairs(ones.low), _mm256_slli_epi32(pairs(sixteens.low), 4));
        __m256i high = _mm256_add_epi32(pairs(ones.high), _mm256_slli_epi32(pairs(sixteens.high), 4));
        return difference(low, high, zeros, minus_sum);
    }
};

constexpr int MOST_ROWS = 2, DENSE_ROWS = 1;

}  // namespace

#include "kernels.h"

const Kernels avx2_kernels = TABLE("avx2");
