// Decode attention over pages of 16 tokens, fp16, heads of 128: rotation, cache write and attention of one row a block.
// Compiled by `worker.model.gpu.cuda`, for sm_90.
//
// A page of one head is 4 KB of keys and 4 KB of values in one piece. A warp takes it whole: a lane has 8 dimensions of
// every second token, 16 bytes at a time, so 8 KB a warp are under way at once, the next page's keys while this page's
// values are added up and the other way round. The warps of a block, and the blocks of a cluster, take pages in turns;
// what each has found is added up at the end, in one order.

#include "paged.cuh"

// Grid (heads * CLUSTER, rows). `keys` and `values`: [blocks, heads, PAGE, D]; `tables`: [rows, table_stride].
// What the launch before this one writes has no __restrict__: it would be read through the cache for constants, which keeps
// what it has while a kernel runs, and this one begins before the other ends.
// cos, sin fp32 [rows, D], with the sign of the rotation in sin; qkv and out fp16 [rows, 3 * heads or heads, D].
template <int WARPS, int CLUSTER>
__global__ void __launch_bounds__(WARPS * 32, 16 / WARPS)
paged_decode(const half_bits* qkv, half_bits* keys, half_bits* values, const int* __restrict__ tables,
             const long long* __restrict__ positions, const float* cos, const float* sin, half_bits* out, int table_stride, int heads, float softmax_scale, int pdl) {
  __shared__ Found<2 * WARPS> found;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, parity = lane >> 4, d0 = (lane & 15) * 8;
  const int head = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER, row = blockIdx.y;
  const int past = (int)positions[row], pages = (past + PAGE - 1) / PAGE;
  const int* table = tables + (size_t)row * table_stride;

  uint4 k[8], v[8];
  const uint4 none = make_uint4(0, 0, 0, 0);
  // What lies behind the end of the past may be anything, even NaN: it is not read.
  auto fetch = [&](const half_bits* from, uint4* to, int page, int block) {
    const int left = past - page * PAGE;
    const half_bits* at = plain(from + ((size_t)block * heads + head) * (PAGE * D) + parity * D + d0);
#pragma unroll
    for (int i = 0; i < 8; i++)
      to[i] = 2 * i + parity < left ? stream((const uint4*)(at + 2 * i * D)) : none;
  };
  int page = rank * WARPS + warp;
  int block = page < pages ? table[page] : 0;
  fetch(keys, k, page, block);
  fetch(values, v, page, block);
  int next = page + WARPS * CLUSTER, next_block = next < pages ? table[next] : 0;
  if (pdl) asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");

  const half_bits* mine = qkv + ((size_t)row * 3 * heads + head) * D;
  const float *turn = cos + row * D, *cross = sin + row * D;
  float q[8];
  rotated<8>(mine, turn, cross, d0, q);
#pragma unroll
  for (int j = 0; j < 8; j++) q[j] *= softmax_scale * 1.4426950408889634f;  // so that exp2 serves

  float top = -1e30f, total = 0, mix[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll 1
  for (; page < pages; page = next, next += WARPS * CLUSTER) {
    float score[8], higher = top;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float f[8], sum = 0;
      floats(k[i], f);
#pragma unroll
      for (int j = 0; j < 8; j++) sum += f[j] * q[j];
      score[i] = sum;
    }
    fetch(keys, k, next, next_block);
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
      for (int apart = 8; apart; apart /= 2) score[i] += __shfl_xor_sync(~0u, score[i], apart);
      if (2 * i + parity >= past - page * PAGE) score[i] = -1e30f;
      higher = fmaxf(higher, score[i]);
    }
    const float shrink = exp2_of(top - higher);
    top = higher;
    total *= shrink;
#pragma unroll
    for (int j = 0; j < 8; j++) mix[j] *= shrink;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float p = 2 * i + parity < past - page * PAGE ? exp2_of(score[i] - higher) : 0;  // NaN stays NaN
      float f[8];
      floats(v[i], f);
      total += p;
#pragma unroll
      for (int j = 0; j < 8; j++) mix[j] += p * f[j];
    }
    fetch(values, v, next, next_block);
    next_block = next + WARPS * CLUSTER < pages ? table[next + WARPS * CLUSTER] : 0;
  }

  if (rank == CLUSTER - 1 && warp == WARPS - 1) {  // the new token: turn it, keep it, attend to it
    float new_k[8], new_v[8];
    rotated<8>(mine + heads * D, turn, cross, d0, new_k);
    const uint4 kept_v = *(const uint4*)(mine + 2 * heads * D + d0);
    const uint4 kept_k = make_uint4(packed(new_k[0], new_k[1]), packed(new_k[2], new_k[3]), packed(new_k[4], new_k[5]),
                                    packed(new_k[6], new_k[7]));
    const size_t at = (((size_t)table[past / PAGE] * heads + head) * PAGE + past % PAGE) * D + d0;
    floats(kept_k, new_k);
    floats(kept_v, new_v);
    float score = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) score += new_k[j] * q[j];
#pragma unroll
    for (int apart = 8; apart; apart /= 2) score += __shfl_xor_sync(~0u, score, apart);
    if (parity == 0) {
      *(uint4*)(keys + at) = kept_k;
      *(uint4*)(values + at) = kept_v;
      take<8>(score, new_v, top, total, mix);
    }
  }

  found.template keep<8>(2 * warp + parity, d0, top, total, mix);
  add_up<2 * WARPS, WARPS * 32, CLUSTER>(found, rank, out + ((size_t)row * heads + head) * D);
}
