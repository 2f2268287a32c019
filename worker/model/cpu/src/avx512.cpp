// AVX-512 with VNNI: one register holds 16 outputs, and one instruction multiplies four inputs of each.
#include <immintrin.h>

#include <cstdint>

namespace {

struct F {
    __m512 v;
};
struct I {
    __m512i v;
};
struct Sum {
    __m512i v;
};

inline F zero() { return {_mm512_setzero_ps()}; }
inline F splat(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, F x) { _mm512_storeu_ps(p, x.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F magnitude(F a) { return {_mm512_abs_ps(a.v)}; }
inline I rounded(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F floats(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F power_of_two(I a) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a.v, _mm512_set1_epi32(127)), 23))};
}
inline void store_bytes(int8_t *p, I a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(a.v)); }
inline F load_f16(const uint16_t *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
inline F load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store_bf16(uint16_t *p, F x) {  // to nearest, ties to even
    __m512i bits = _mm512_castps_si512(x.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
inline void store_f16(uint16_t *p, F x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline uint32_t at_least(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }  // a bit for each lane
struct Halves {
    __m256 low, high;
};
inline Halves halves(F x) { return {_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1)}; }

// Codes of 16 outputs and 4 inputs (8 bits), or 8 inputs (4 bits: the low halves, then the high ones).
inline I load_codes(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
inline I low_half(I c) { return {_mm512_and_si512(c.v, _mm512_set1_epi8(15))}; }
inline I high_half(I c) { return {_mm512_and_si512(_mm512_srli_epi16(c.v, 4), _mm512_set1_epi8(15))}; }
inline I load_zeros(const uint8_t *p) {
    return {_mm512_add_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)), _mm512_set1_epi32(1))};
}
inline I splat_zero(int z) { return {_mm512_set1_epi32(z)}; }

// sum(code * x) - zero * sum(x) over one block, exact in int32. A zero fits 16 bits and so does a sum.
template <int BITS> struct Dot {
    __m512i v;
    inline void begin(I zeros, int minus_sum) { v = _mm512_madd_epi16(zeros.v, _mm512_set1_epi32(minus_sum)); }
    inline void step(I codes, int x) { v = _mm512_dpbusd_epi32(v, codes.v, _mm512_set1_epi32(x)); }
    inline F end(I, int) const { return {_mm512_cvtepi32_ps(v)}; }
};

constexpr int MOST_ROWS = 8, DENSE_ROWS = 4;

}  // namespace

#include "kernels.h"

const Kernels avx512_kernels = TABLE("avx512-vnni");
