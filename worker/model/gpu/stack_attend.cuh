// The attention of `int4_stack.cu`: a head's pages are divided among the blocks of the head, each of which takes every
// so manieth, and within a block its warps take half a page at a time from the ring.
#pragma once

__device__ __forceinline__ float sum_of_16(float v) {  // of the lanes of half a warp
#pragma unroll
  for (int apart = 8; apart; apart /= 2) v += __shfl_xor_sync(~0u, v, apart);
  return v;
}

// A lane has 8 dimensions of every second token. mixes [WARPS][128], tops and totals [WARPS] are shared memory.
template <int HIDDEN, int INNER, int STAGES>
__device__ __forceinline__ void attend(Ring<HIDDEN, INNER, STAGES>& ring, const Layer& layer, const int* table, int past,
                                       const float* cos, const float* sin, bits64* packets, unsigned turn, float* mixes,
                                       float* tops, float* totals, float softmax_scale) {
  using S = Sizes<HIDDEN, INNER>;
  constexpr int WARPS = S::WARPS, SPLITS = S::SPLITS;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, parity = lane >> 4, d0 = (lane & 15) * 8;
  const int head = blockIdx.x / SPLITS, split = blockIdx.x % SPLITS, pages = (past + 15) / 16;

  // The lane's 8 numbers of query (0), key (1) or value (2).
  auto received = [&](int which) {
    const bits64* from = packets + S::QKV + (which * HIDDEN + head * 128 + d0) / 2;
    uint4 a, b;
    bool there;
    do {
      a = asked(from);
      b = asked(from + 2);
      there = a.y == turn && a.w == turn && b.y == turn && b.w == turn;
    } while (!__all_sync(~0u, there));
    return make_uint4(a.x, a.z, b.x, b.z);
  };
  float along[8], across[8];  // of the rotation
#pragma unroll
  for (int j = 0; j < 8; j += 4) {
    *(float4*)(along + j) = *(const float4*)(cos + d0 + j);
    *(float4*)(across + j) = *(const float4*)(sin + d0 + j);
  }
  auto rotated = [&](const uint4& v, float* to) {
    uint4 w;
    w.x = __shfl_xor_sync(~0u, v.x, 8);
    w.y = __shfl_xor_sync(~0u, v.y, 8);
    w.z = __shfl_xor_sync(~0u, v.z, 8);
    w.w = __shfl_xor_sync(~0u, v.w, 8);
    float a[8], b[8];
    floats(v, a);
    floats(w, b);
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] = a[j] * along[j] + b[j] * across[j];
  };
  float q[8];
  rotated(received(0), q);
#pragma unroll
  for (int j = 0; j < 8; j++) q[j] *= softmax_scale * 1.4426950408889634f;  // so that exp2 serves

  float top = -1e30f, total = 0, mix[8] = {};
  for (int page = split, stage = 0; page < pages; page += S::PAGES * SPLITS, stage++) {
    const char* from = ring.filled(0);
    const int part = warp & 3, first = (page + (part >> 1) * SPLITS) * 16 + (part & 1) * 8 + parity;
    if (stage % (WARPS / 4) == warp / 4 && first - parity < past) {
      const char* at = from + (part >> 1) * 2 * S::PAGE + (part & 1) * (S::PAGE / 2) + parity * 256 + d0 * 2;
      float score[4], higher = top;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float k[8], sum = 0;
        floats(*(const uint4*)(at + i * 512), k);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += k[j] * q[j];
        score[i] = sum;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[i] = sum_of_16(score[i]);
        if (first + 2 * i >= past) score[i] = -1e30f;
        higher = fmaxf(higher, score[i]);
      }
      const float shrink = exp2f(top - higher);
      top = higher;
      total *= shrink;
#pragma unroll
      for (int j = 0; j < 8; j++) mix[j] *= shrink;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (first + 2 * i < past) {  // what lies behind may be anything, even NaN
          const float p = exp2f(score[i] - higher);
          float v[8];
          floats(*(const uint4*)(at + S::PAGE + i * 512), v);
          total += p;
#pragma unroll
          for (int j = 0; j < 8; j++) mix[j] += p * v[j];
        }
      }
    }
    ring.release(1, lane);
  }
  if (split == SPLITS - 1 && warp == WARPS - 1) {  // the new token: turn it, keep it, attend to it
    float k[8], v[8];
    rotated(received(1), k);
    const uint4 value = received(2), key = make_uint4(packed(k[0], k[1]), packed(k[2], k[3]), packed(k[4], k[5]),
                                                      packed(k[6], k[7]));
    floats(key, k);
    floats(value, v);
    float score = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) score += k[j] * q[j];
    score = sum_of_16(score);
    if (parity == 0) {
      const size_t at = (((size_t)table[past / 16] * S::HEADS + head) * 16 + past % 16) * 128 + d0;
      *(uint4*)(layer.keys + at) = key;
      *(uint4*)(layer.values + at) = value;
      const float higher = fmaxf(top, score), shrink = exp2f(top - higher), p = exp2f(score - higher);
      top = higher;
      total = total * shrink + p;
#pragma unroll
      for (int j = 0; j < 8; j++) mix[j] = mix[j] * shrink + p * v[j];
    }
  }
  {  // the two halves of the warp
    const float there = __shfl_xor_sync(~0u, top, 16), higher = fmaxf(top, there), shrink = exp2f(top - higher);
    top = higher;
    total *= shrink;
    total += __shfl_xor_sync(~0u, total, 16);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      mix[j] *= shrink;
      mix[j] += __shfl_xor_sync(~0u, mix[j], 16);
    }
  }
  if (parity == 0) {
    *(float4*)(mixes + warp * 128 + d0) = make_float4(mix[0], mix[1], mix[2], mix[3]);
    *(float4*)(mixes + warp * 128 + d0 + 4) = make_float4(mix[4], mix[5], mix[6], mix[7]);
  }
  if (lane == 0) tops[warp] = top, totals[warp] = total;
  together(WARPS * 32);
  // Of this block's pages: the mean of the values, and the logarithm of what it weighs; two packets for a dimension.
  bits64* parts = packets + S::MEANS + (size_t)head * SPLITS * 256;
  if (threadIdx.x < 128) {
    const int d = threadIdx.x;
    float highest = tops[0], sum = 0, mixed = 0;
#pragma unroll
    for (int i = 1; i < WARPS; i++) highest = fmaxf(highest, tops[i]);
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
      const float share = exp2f(tops[i] - highest);
      sum += totals[i] * share;
      mixed += mixes[i * 128 + d] * share;
    }
    bits64* to = parts + (split * 128 + d) * 2;
    put(to, __float_as_uint(sum > 0 ? mixed / sum : 0), turn);
    put(to + 1, __float_as_uint(sum > 0 ? highest + log2f(sum) : -1e30f), turn);
  } else if (warp == 4) {  // a share of the dimensions, of all blocks of the head
    constexpr int SHARE = 128 / SPLITS, MINE = SPLITS / 2;
    static_assert(SHARE == 16, "half a warp has the share of a block");
    const int d = split * SHARE + (lane & 15);
    uint4 got[MINE];
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < MINE; i++) got[i] = asked(parts + ((parity * MINE + i) * 128 + d) * 2);
#pragma unroll
      for (int i = 0; i < MINE; i++) there = there && got[i].y == turn && got[i].w == turn;
    } while (!__all_sync(~0u, there));
    float highest = -1e30f, sum = 0, mixed = 0;
#pragma unroll
    for (int i = 0; i < MINE; i++) highest = fmaxf(highest, __uint_as_float(got[i].z));
    highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 16));
#pragma unroll
    for (int i = 0; i < MINE; i++) {
      const float weight = exp2f(__uint_as_float(got[i].z) - highest);
      sum += weight;
      mixed += weight * __uint_as_float(got[i].x);
    }
    sum += __shfl_xor_sync(~0u, sum, 16);
    mixed += __shfl_xor_sync(~0u, mixed, 16);
    const unsigned h = to_half(mixed / sum), other = __shfl_down_sync(~0u, h, 2);
    if (lane < 16 && (lane & 2) == 0) put(packets + S::MIXED + place(head * 128 + d), h | other << 16, turn);
  }
}
