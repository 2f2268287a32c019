// Few rows times int4 weights on tensor cores: norm, bias, SiLU and residual included. Compiled by `cuda.py`, for sm_90.
//
// A tile is 16 outputs, the M side of mma.m16n8k16; 8 rows of x are its N side. A warp multiplies whole groups of 128
// inputs: lane (g, c), g = lane / 4, c = lane % 4, reads 32 inputs from 32c on, of outputs g and g + 8 and of row g of x,
// 16 bytes at a time. Which input stands at which k of the mma is free as long as both sides agree, so nothing is
// rearranged. The warps of a block, and the blocks of a cluster, divide the groups; their sums are added at the end, in
// one order.

#include "int4.cuh"

// Weights are read once: they need no place in L1.
__device__ __forceinline__ uint4 stream(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}

// What the launch before this one writes has no __restrict__: it would be read through the cache for constants, which
// keeps what it has while a kernel runs, and this one begins before the other ends.
//
// RB      blocks of 8 rows
// TILES   tiles of 16 outputs a block
// WARPS   of a block
// TURNS   most groups a warp, AHEAD of them in registers at once
// CLUSTER blocks that divide the inputs of the same outputs
// ROUNDED weights are rounded to fp16 before they are multiplied: half the accumulators; else a group's sum is scaled
// NORM    x is a sixteenth of the residual stream times a norm's weights: what is missing to the norm is one factor a
//         row, which comes from `squares` fp32 [rows, inputs / 16], sums of the squares of 16 numbers of the stream
// END     PLAIN: out fp16; SILU: outputs alternate between gate and up, silu(gate) * up is written, fp16;
//         ADD: out fp32, the stream, gets the product added; with `gamma` fp32, the weights of the norm that comes
//         next, `next` fp16 becomes what NORM reads as x, and `squares` [rows, outputs / 16] that of the new stream
template <int RB, int TILES, int WARPS, int TURNS, int AHEAD, int CLUSTER, bool ROUNDED, bool NORM, int END>
__global__ void __launch_bounds__(WARPS * 32)
int4_rows(const half_bits* x, float* squares, float eps, const unsigned* __restrict__ words,
          const half_bits* __restrict__ scales, const half_bits* __restrict__ bias, void* out,
          const float* __restrict__ gamma, half_bits* next, int rows, int inputs, int outputs, int pdl) {
  extern __shared__ float shared[];
  float* sums = shared;                                            // [WARPS][TILES * RB][4][32]
  float* factors = shared + WARPS * TILES * RB * 128;              // [RB * 8], of the norm
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
  const int groups = inputs / 128, width = inputs / 8, rank = CLUSTER > 1 ? blockIdx.x % CLUSTER : 0;
  const int tile0 = (blockIdx.x / CLUSTER) * TILES, tiles = outputs / 16;
  const int begin = (rank * WARPS + warp) * TURNS;

  uint4 w[AHEAD][TILES][2];
  half_bits s[AHEAD][TILES][2];
  auto fetch = [&](int slot, int group) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int n = (tile0 + t) * 16 + 8 * h + g;
        if (group < groups && tile0 + t < tiles) {
          w[slot][t][h] = stream((const uint4*)(words + (size_t)n * width + group * 16 + c * 4));
          s[slot][t][h] = scales[(size_t)n * groups + group];
        } else {
          w[slot][t][h] = make_uint4(0, 0, 0, 0);
          s[slot][t][h] = 0;
        }
      }
    }
  };
#pragma unroll
  for (int i = 0; i < AHEAD; i++) fetch(i, begin + i);
  // What the end of this needs besides the sums is asked for early: the weights before the wait, the stream behind it.
  constexpr int THREADS = WARPS * 32, across = TILES * 16;
  constexpr int MINE = (across * RB * 8 / CLUSTER + THREADS - 1) / THREADS;  // most outputs of a thread
  const int first = tile0 * 16, share = (across * rows + CLUSTER - 1) / CLUSTER;
  const int from = rank * share + threadIdx.x, stop = min(across * rows, (rank + 1) * share);
  float more[MINE], before[MINE];  // bias, or the weights of the norm that comes next; the stream
  if (END != SILU)
#pragma unroll
    for (int j = 0; j < MINE; j++) {
      const int o = from + j * THREADS, n = first + o % across;
      more[j] = 0;
      if (o < stop && n < outputs) {
        if (END == ADD && gamma) more[j] = __ldg(gamma + n);
        if (END == PLAIN && bias) more[j] = to_float(bias[n]);
      }
    }
  if (pdl) asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");

  if (END == ADD)
#pragma unroll
    for (int j = 0; j < MINE; j++) {
      const int o = from + j * THREADS, n = first + o % across;
      if (o < stop && n < outputs) before[j] = ((const float*)out)[(size_t)(o / across) * outputs + n];
    }
  constexpr int OWN = (RB * 8 + WARPS - 1) / WARPS;  // rows whose squares a warp adds up
  float square[OWN];
  if (NORM)
#pragma unroll
    for (int r = 0; r < OWN; r++) {
      square[r] = 0;
      if (warp + r * WARPS < rows)
        for (int i = lane; i < inputs / 16; i += 32) square[r] += squares[(size_t)(warp + r * WARPS) * (inputs / 16) + i];
    }
  float total[TILES][RB][4];
#pragma unroll
  for (int b = 0; b < RB; b++)
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int e = 0; e < 4; e++) total[t][b][e] = 0;
#pragma unroll
  for (int turn = 0; turn < TURNS; turn++) {
    const int slot = turn % AHEAD, group = begin + turn;
    float group_sums[TILES][RB][4];
    auto& part = ROUNDED ? total : group_sums;
    if (!ROUNDED)
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int b = 0; b < RB; b++)
#pragma unroll
          for (int e = 0; e < 4; e++) part[t][b][e] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int k = group * 128 + 32 * c + 8 * i;
      uint4 v[RB];
#pragma unroll
      for (int b = 0; b < RB; b++) {
        v[b] = make_uint4(0, 0, 0, 0);
        if (8 * b + g < rows && group < groups) v[b] = *(const uint4*)(x + (size_t)(8 * b + g) * inputs + k);
      }
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        unsigned upper[4], lower[4];
        unpack(word(w[slot][t][0], i), upper);
        unpack(word(w[slot][t][1], i), lower);
        if (ROUNDED) {
          const unsigned s0 = s[slot][t][0] * 0x10001u, s1 = s[slot][t][1] * 0x10001u;
#pragma unroll
          for (int p = 0; p < 4; p++) {
            upper[p] = product(upper[p], s0);
            lower[p] = product(lower[p], s1);
          }
        }
#pragma unroll
        for (int b = 0; b < RB; b++) {
          multiply(part[t][b], upper[0], lower[0], upper[1], lower[1], v[b].x, v[b].y);
          multiply(part[t][b], upper[2], lower[2], upper[3], lower[3], v[b].z, v[b].w);
        }
      }
    }
    if (!ROUNDED)
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const float s0 = to_float(s[slot][t][0]), s1 = to_float(s[slot][t][1]);
#pragma unroll
      for (int b = 0; b < RB; b++) {
        total[t][b][0] += s0 * part[t][b][0];
        total[t][b][1] += s0 * part[t][b][1];
        total[t][b][2] += s1 * part[t][b][2];
        total[t][b][3] += s1 * part[t][b][3];
      }
    }
    if (turn + AHEAD < TURNS) fetch(slot, group + AHEAD);
  }

#pragma unroll
  for (int b = 0; b < RB; b++) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[((warp * TILES + t) * RB + b) * 128 + e * 32 + lane] = total[t][b][e];
  }
  if (NORM)
#pragma unroll
    for (int r = 0; r < OWN; r++) {
#pragma unroll
      for (int apart = 16; apart; apart /= 2) square[r] += __shfl_xor_sync(~0u, square[r], apart);
      if (lane == 0 && warp + r * WARPS < RB * 8) factors[warp + r * WARPS] = 16.0f * rsqrtf(square[r] / inputs + eps);
    }
  __syncthreads();
  // The product of row m and output n of this block, of all its warps.
  auto reduced = [&](int n, int m) {
    const int r = n & 15, at = ((n >> 4) * RB + (m >> 3)) * 128 + ((r >> 3) * 2 + (m & 1)) * 32 + (r & 7) * 4 + ((m & 7) >> 1);
    float v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += sums[i * TILES * RB * 128 + at];
    return v;
  };
  if (CLUSTER > 1) {
    float own[(TILES * RB * 128 + WARPS * 32 - 1) / (WARPS * 32)];
#pragma unroll
    for (int i = 0, o = threadIdx.x; i < sizeof(own) / 4; i++, o += WARPS * 32)
      own[i] = o < across * rows ? reduced(o % across, o / across) : 0;
    __syncthreads();
#pragma unroll
    for (int i = 0, o = threadIdx.x; i < sizeof(own) / 4; i++, o += WARPS * 32)
      if (o < across * rows) sums[o] = own[i];
    cluster_barrier();
  }
  if (END == SILU) {
    const int half = across / 2;
    for (int o = threadIdx.x; o < half * rows; o += WARPS * 32) {
      const int n = 2 * (o % half), m = o / half;
      if (first + n < outputs) {
        const float scale = NORM ? factors[m] : 1.0f;
        float gate = reduced(n, m) * scale, up = reduced(n + 1, m) * scale;
        if (bias) { gate += to_float(bias[first + n]); up += to_float(bias[first + n + 1]); }
        ((half_bits*)out)[(size_t)m * (outputs / 2) + (first + n) / 2] = to_half(gate / (1.0f + __expf(-gate)) * up);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < MINE; j++) {
      const int o = from + j * THREADS, n = o % across, m = o / across;
      if (o < stop && first + n < outputs) {
        float v = 0;
        if (CLUSTER > 1)
#pragma unroll
          for (int i = 0; i < CLUSTER; i++) v += of_neighbour(sums + o, i);
        else
          v = reduced(n, m);
        if (NORM) v *= factors[m];
        const size_t at = (size_t)m * outputs + first + n;
        if (END == ADD) {
          if (bias) v += to_float(bias[first + n]);
          v += before[j];
          ((float*)out)[at] = v;
          if (gamma) {
            next[at] = to_half(v * more[j] * 0.0625f);
            v *= v;  // 16 lanes have the outputs of one tile and row: they are here together or not at all
            const unsigned together = 0xFFFFu << (lane & 16);
#pragma unroll
            for (int apart = 8; apart; apart /= 2) v += __shfl_xor_sync(together, v, apart);
            if ((n & 15) == 0) squares[(size_t)m * (outputs / 16) + (first + n) / 16] = v;
          }
        } else {
          ((half_bits*)out)[at] = to_half(v + more[j]);
        }
      }
    }
  }
  if (CLUSTER > 1) cluster_barrier();  // nobody's shared memory goes while it is read
}
