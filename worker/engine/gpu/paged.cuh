// What decode attention over pages has in common, whatever the cache keeps: loads, rotation, and how the parts that the
// warps of a block, and the blocks of a cluster, have found are added up.

#pragma once

#include "cluster.cuh"  // of `worker.model.gpu`

enum { D = 128, PAGE = 16 };  // of a head; tokens

__device__ __forceinline__ uint4 stream(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}

// Hides where a pointer comes from, so that the compiler keeps one address for several loads, not one for each.
template <class T>
__device__ __forceinline__ const T* plain(const T* at) {
  asm volatile("" : "+l"(at));
  return at;
}

// `N` numbers of a head from `d0` on, turned by the angles of a row: cos, sin fp32 [D], with the sign of the rotation in sin.
template <int N>
__device__ __forceinline__ void rotated(const half_bits* head, const float* cos, const float* sin, int d0, float* to) {
  const float4 *turn = (const float4*)plain(cos + d0), *cross = (const float4*)plain(sin + d0);
#pragma unroll
  for (int i = 0; i < N; i += 8) {
    float a[8], b[8];
    floats(*(const uint4*)(head + d0 + i), a);
    floats(*(const uint4*)(head + (d0 ^ (D / 2)) + i), b);
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const float4 c = turn[i / 4 + j], s = cross[i / 4 + j];
      to[i + 4 * j] = a[4 * j] * c.x + b[4 * j] * s.x;
      to[i + 4 * j + 1] = a[4 * j + 1] * c.y + b[4 * j + 1] * s.y;
      to[i + 4 * j + 2] = a[4 * j + 2] * c.z + b[4 * j + 2] * s.z;
      to[i + 4 * j + 3] = a[4 * j + 3] * c.w + b[4 * j + 3] * s.w;
    }
  }
}

// Take a token with this score and value, of which a thread has N numbers, into what was found before.
template <int N>
__device__ __forceinline__ void take(float score, const float* value, float& top, float& total, float* mix) {
  const float higher = fmaxf(top, score), shrink = exp2_of(top - higher), p = exp2_of(score - higher);
  top = higher;
  total = total * shrink + p;
#pragma unroll
  for (int j = 0; j < N; j++) mix[j] = mix[j] * shrink + p * value[j];
}

// What PARTS groups of threads have found, each with a maximum, a sum and a mix of its own.
template <int PARTS>
struct Found {
  alignas(16) float mixes[PARTS][D];
  float tops[PARTS], totals[PARTS];
  float ours[D + 2];  // of the block: its mix, its top, its total

  // Of part `place` a thread has N numbers of the mix from `d0` on.
  template <int N>
  __device__ __forceinline__ void keep(int place, int d0, float top, float total, const float* mix) {
#pragma unroll
    for (int j = 0; j < N; j += 4)
      *(float4*)&mixes[place][d0 + j] = make_float4(mix[j], mix[j + 1], mix[j + 2], mix[j + 3]);
    if (d0 == 0) {
      tops[place] = top;
      totals[place] = total;
    }
  }
};

// The end of a block of THREADS: `found` is complete in all blocks of the cluster; the answer is fp16 [D].
template <int PARTS, int THREADS, int CLUSTER>
__device__ __forceinline__ void add_up(Found<PARTS>& found, int rank, half_bits* answer) {
  __syncthreads();
  auto store = [&](int d, float x) {
    half_bits h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    answer[d] = h;
  };
  for (int d = threadIdx.x; d < D; d += THREADS) {
    float highest = found.tops[0], sum = 0, mixed = 0;
#pragma unroll 4
    for (int i = 1; i < PARTS; i++) highest = fmaxf(highest, found.tops[i]);
#pragma unroll 4
    for (int i = 0; i < PARTS; i++) {
      const float share = exp2_of(found.tops[i] - highest);
      sum += found.totals[i] * share;
      mixed += found.mixes[i][d] * share;
    }
    if (CLUSTER == 1) {
      store(d, mixed / sum);
    } else {
      found.ours[d] = mixed;
      if (d == 0) {
        found.ours[D] = highest;
        found.ours[D + 1] = sum;
      }
    }
  }
  if (CLUSTER > 1) {
    cluster_barrier();
    const int share = D / CLUSTER, d = rank * share + threadIdx.x;
    if (threadIdx.x < share) {
      float highest = -1e30f, sum = 0, mixed = 0, there[CLUSTER];
#pragma unroll
      for (int i = 0; i < CLUSTER; i++) highest = fmaxf(highest, there[i] = of_neighbour(found.ours + D, i));
#pragma unroll
      for (int i = 0; i < CLUSTER; i++) {
        const float weight = exp2_of(there[i] - highest);
        sum += of_neighbour(found.ours + D + 1, i) * weight;
        mixed += of_neighbour(found.ours + d, i) * weight;
      }
      store(d, mixed / sum);
    }
    cluster_barrier();  // nobody's shared memory goes while it is read
  }
}
