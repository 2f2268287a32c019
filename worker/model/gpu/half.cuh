// fp16 as bits, since no headers are at hand, and the exponential of the hardware.
#pragma once

typedef unsigned short half_bits;

__device__ __forceinline__ void halves(unsigned v, float& l, float& h) {
  asm volatile("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}" : "=f"(l), "=f"(h) : "r"(v));
}
__device__ __forceinline__ unsigned packed(float l, float h) {
  unsigned v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(h), "f"(l));
  return v;
}
__device__ __forceinline__ void floats(const uint4& v, float* f) {
  halves(v.x, f[0], f[1]);
  halves(v.y, f[2], f[3]);
  halves(v.z, f[4], f[5]);
  halves(v.w, f[6], f[7]);
}
__device__ __forceinline__ float to_float(half_bits v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
