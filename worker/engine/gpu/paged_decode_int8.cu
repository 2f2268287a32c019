// Decode attention over pages of 16 tokens, 8 bits, heads of 128: rotation, cache write and attention of one row a block.
// Compiled by `worker.model.gpu.cuda`, for sm_90. `paged_decode.cu` is the same in 16 bits.
//
// A page of one head is 2 KB of codes of keys, 2 KB of values', and 16 scales of each. A warp takes it whole: a lane has
// 16 dimensions of every fourth token. At the rate of the memory bus a multiprocessor has 20 codes a cycle to do something
// with, so numbers are made of few instructions each. Scores are sums of whole numbers: the query is rounded to 15 bits and
// a sign of its greatest, in two bytes, and four codes at a time are multiplied by each. A code c of a value becomes
// 32896 + c by putting its byte, its sign turned, into the middle of a float of 2^15; what that adds to a page's mix is known
// before, and taken off in the multiplication that shrinks the mix.

#include "paged.cuh"

__device__ __forceinline__ int dot(unsigned codes, unsigned by, int sum) {
  asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(codes), "r"(by));
  return sum;
}
// Byte AT of a word as a float, 32768 more than it is.
template <int AT>
__device__ __forceinline__ float lifted(unsigned word) {
  unsigned f;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(f) : "r"(word), "r"(0x47000000), "n"(0x7404 | AT << 4));
  return __uint_as_float(f);
}
__device__ __forceinline__ float more(float x, float y) {  // NaN where one of them is
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
__device__ __forceinline__ float greatest(float x) {  // of the eight lanes that have a head
#pragma unroll
  for (int apart = 4; apart; apart /= 2) x = more(x, __shfl_xor_sync(~0u, x, apart));
  return x;
}
__device__ __forceinline__ unsigned bytes(const int* x) {
  return (x[0] & 255u) | (x[1] & 255u) << 8 | (x[2] & 255u) << 16 | (unsigned)x[3] << 24;
}
// One head to 8 bits with a scale of its own, as `worker.engine.kv_cache` says: 16 numbers of each of eight lanes.
__device__ __forceinline__ uint4 rounded(const float* x, float& scale) {
  float most = 0;
  int code[16];
#pragma unroll
  for (int j = 0; j < 16; j++) most = more(most, fabsf(x[j]));
  scale = greatest(most) / 127.0f;
#pragma unroll
  for (int j = 0; j < 16; j++) code[j] = (int)floorf(x[j] / fmaxf(scale, 1e-30f) + 0.5f);
  return make_uint4(bytes(code), bytes(code + 4), bytes(code + 8), bytes(code + 12));
}

// Grid (heads * CLUSTER, rows). `keys` and `values`: int8 [blocks, heads, PAGE, D], their scales fp32 [blocks, heads, PAGE].
// All else as in `paged_decode.cu`.
template <int WARPS, int CLUSTER>
__global__ void __launch_bounds__(WARPS * 32, 16 / WARPS)
paged_decode_int8(const half_bits* qkv, signed char* keys, signed char* values, float* key_scales, float* value_scales,
                  const int* __restrict__ tables, const long long* __restrict__ positions, const float* cos, const float* sin,
                  half_bits* out, int table_stride, int heads, float softmax_scale, int pdl) {
  __shared__ Found<4 * WARPS> found;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 3, d0 = (lane & 7) * 16;
  const int head = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER, row = blockIdx.y;
  const int past = (int)positions[row], pages = (past + PAGE - 1) / PAGE;
  const int* table = tables + (size_t)row * table_stride;

  uint4 k[4], v[4];
  float scale;  // of the page's token lane % 16: of keys in the first lanes, of values in the others
  const uint4 none = make_uint4(0, 0, 0, 0);
  // What lies behind the end of the past may be anything, even NaN: it is not read.
  auto fetch = [&](const signed char* from, uint4* to, int page, int block) {
    const int left = past - page * PAGE;
    const signed char* at = plain(from + ((size_t)block * heads + head) * (PAGE * D) + lane * 16);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = 4 * i + group < left ? stream((const uint4*)(at + i * 4 * D)) : none;
  };
  auto scale_of = [&](int page, int block) {
    const float* from = lane < PAGE ? key_scales : value_scales;
    return (lane & 15) < past - page * PAGE ? from[((size_t)block * heads + head) * PAGE + (lane & 15)] : 0.0f;
  };
  int page = rank * WARPS + warp;
  int block = page < pages ? table[page] : 0;
  fetch(keys, k, page, block);
  scale = scale_of(page, block);
  fetch(values, v, page, block);
  int next = page + WARPS * CLUSTER, next_block = next < pages ? table[next] : 0;
  if (pdl) asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");

  const half_bits* mine = qkv + ((size_t)row * 3 * heads + head) * D;
  const float *turn = cos + row * D, *cross = sin + row * D;
  unsigned high[4], low[4];  // bytes of the query
  float step;                // what one of the last of them is worth in a score
  {
    float q[16], most = 0;
    rotated<16>(mine, turn, cross, d0, q);
#pragma unroll
    for (int j = 0; j < 16; j++) most = fmaxf(most, fabsf(q[j]));
    most = fmaxf(greatest(most), 1e-30f);
    step = most / 32512.0f;
    int upper[16], lower[16];
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const int whole = __float2int_rn(q[j] / step);
      upper[j] = (whole + 128) >> 8, lower[j] = whole - upper[j] * 256;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) high[j] = bytes(upper + 4 * j), low[j] = bytes(lower + 4 * j);
    step *= softmax_scale * 1.4426950408889634f;  // so that exp2 serves
  }

  float top = -1e30f, total = 0, mix[16];
#pragma unroll
  for (int j = 0; j < 16; j++) mix[j] = 0;
#pragma unroll 1
  for (; page < pages; page = next, next += WARPS * CLUSTER) {
    float score[4], weight[4], higher = top;
    int sum[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned codes[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
      int upper = 0, lower = 0;
#pragma unroll
      for (int j = 0; j < 4; j++) upper = dot(codes[j], high[j], upper), lower = dot(codes[j], low[j], lower);
      sum[i] = upper * 256 + lower;
    }
    fetch(keys, k, next, next_block);
    const float scales = scale;
    scale = scale_of(next, next_block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int apart = 4; apart; apart /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], apart);
      score[i] = (float)sum[i] * (step * __shfl_sync(~0u, scales, 4 * i + group));
      weight[i] = __shfl_sync(~0u, scales, PAGE + 4 * i + group);
      if (4 * i + group >= past - page * PAGE) score[i] = -1e30f;
      higher = fmaxf(higher, score[i]);
    }
    const float shrink = exp2_of(top - higher);
    top = higher;
    total *= shrink;
    float all = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float p = 4 * i + group < past - page * PAGE ? exp2_of(score[i] - higher) : 0;  // NaN stays NaN
      total += p;
      weight[i] *= p;
      all += weight[i];
    }
    all *= -32896.0f;
#pragma unroll
    for (int j = 0; j < 16; j++) mix[j] = mix[j] * shrink + all;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned codes[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const unsigned turned = codes[j] ^ 0x80808080;
        mix[4 * j] += weight[i] * lifted<0>(turned);
        mix[4 * j + 1] += weight[i] * lifted<1>(turned);
        mix[4 * j + 2] += weight[i] * lifted<2>(turned);
        mix[4 * j + 3] += weight[i] * lifted<3>(turned);
      }
    }
    fetch(values, v, next, next_block);
    next_block = next + WARPS * CLUSTER < pages ? table[next + WARPS * CLUSTER] : 0;
  }

  if (rank == CLUSTER - 1 && warp == WARPS - 1) {  // the new token: turn it, keep it, attend to it as it is
    float q[16], new_k[16], new_v[16], score = 0;
    rotated<16>(mine, turn, cross, d0, q);
    rotated<16>(mine + heads * D, turn, cross, d0, new_k);
    floats(*(const uint4*)(mine + 2 * heads * D + d0), new_v);
    floats(*(const uint4*)(mine + 2 * heads * D + d0 + 8), new_v + 8);
#pragma unroll
    for (int j = 0; j < 16; j++) score += new_k[j] * q[j];
#pragma unroll
    for (int apart = 4; apart; apart /= 2) score += __shfl_xor_sync(~0u, score, apart);
    score *= softmax_scale * 1.4426950408889634f;
    float k_scale, v_scale;
    const uint4 kept_k = rounded(new_k, k_scale), kept_v = rounded(new_v, v_scale);
    const size_t at = ((size_t)table[past / PAGE] * heads + head) * PAGE + past % PAGE;
    if (group == 0) {
      *(uint4*)(keys + at * D + d0) = kept_k;
      *(uint4*)(values + at * D + d0) = kept_v;
      if (lane == 0) key_scales[at] = k_scale, value_scales[at] = v_scale;
      take<16>(score, new_v, top, total, mix);
    }
  }

  found.template keep<16>(4 * warp + group, d0, top, total, mix);
  add_up<4 * WARPS, WARPS * 32, CLUSTER>(found, rank, out + ((size_t)row * heads + head) * D);
}
