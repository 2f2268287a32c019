// What the kernels on int4 weights share: fp16 and int4 as bits, and the ways of a launch. No headers are at hand.
//
// The packing is that of `linear.py`: word j of an output has inputs 8j to 8j + 7, pair p of them in nibbles p and p + 4.
#pragma once

#include "cluster.cuh"

__device__ __forceinline__ half_bits to_half(float f) {
  half_bits v;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v) : "f"(f));
  return v;
}
__device__ __forceinline__ unsigned product(unsigned a, unsigned b) {
  unsigned r;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <unsigned MASK>
__device__ __forceinline__ unsigned codes(unsigned w) {  // 1024 + code, or 1024 + 16 * code, in both halves
  unsigned r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(w), "n"(MASK), "n"(0x64006400));
  return r;
}
__device__ __forceinline__ unsigned scaled(unsigned a, unsigned b, unsigned c) {
  unsigned r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// The four pairs of a word, code - 8, exactly.
__device__ __forceinline__ void unpack(unsigned w, unsigned* pairs) {
  const unsigned one = 0x3C003C00, sixteenth = 0x2C002C00;   // 1, 1/16
  const unsigned first = 0xE408E408, second = 0xD480D480;    // -1032, -72
  const unsigned later = w >> 8;
  pairs[0] = scaled(codes<0x000F000F>(w), one, first);
  pairs[1] = scaled(codes<0x00F000F0>(w), sixteenth, second);
  pairs[2] = scaled(codes<0x000F000F>(later), one, first);
  pairs[3] = scaled(codes<0x00F000F0>(later), sixteenth, second);
}
__device__ __forceinline__ void multiply(float* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                         unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ unsigned word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

enum { PLAIN = 0, SILU = 1, ADD = 2 };  // what a product ends with
