// What the launches of `sampling.cu` have in common: a row's scores, the bins they are counted in, and the noise.

#pragma once

#include "half.cuh"  // of `worker.model.gpu`

typedef unsigned long long u64;

enum { THREADS = 256, WARPS = THREADS / 32, IDS = 16, BLOCK = THREADS * IDS };  // ids of a thread, and of a block
enum { BINS = 1024, BINS_A_THREAD = BINS / THREADS };
enum { LISTED = 4096 };  // as many scores at an edge have a place of their own

// A mass is a whole number of 2**-39 of the greatest, so that sums do not depend on their order. It comes in three parts
// of 13 bits, whose sums over a vocabulary of less than 2**19 have room in 32.
enum { PART_BITS = 13 };
struct Units {
  unsigned parts[3];
  __device__ __forceinline__ u64 whole() const {
    return parts[0] + ((u64)parts[1] << PART_BITS) + ((u64)parts[2] << 2 * PART_BITS);
  }
};
// Of a number from 0 to 1, by additions that leave no room for a fraction: conversions have a quarter of their rate.
__device__ __forceinline__ Units units(float e) {
  Units found;
#pragma unroll
  for (int part = 2; part >= 0; part--) {
    e *= 1 << PART_BITS;
    const float whole = __fadd_rd(e, 8388608.f);
    found.parts[part] = __float_as_uint(whole) & 0x3FFF;
    e -= __fsub_rn(whole, 8388608.f);
  }
  return found;
}

__device__ __forceinline__ void start_after_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");
#endif
}

// The bins in which the edges of top-k and top-p are: of those before `first` all are kept, of those behind `last`
// none. `mass` and `count` are of those before `first`; `all`: the mass that top-p is a part of, where top-k leaves all.
struct Edges {
  int first, last;
  u64 mass, count, all;
};

// What a launch leaves for the next ones about a row of which top-k or top-p cuts something off; `survey` makes the first
// CLEARED words zero.
struct Tally {
  u64 masses[BINS + 1];  // the last: of all that is out of reach
  unsigned counts[BINS];
  unsigned listed, weighed;  // keys that should be in the list; blocks that are done
  Edges edges;
  u64 list[LISTED];  // keys, see `key_of`
};
enum { CLEARED = sizeof(u64) * (BINS + 1) / 4 + BINS + 2 };
static_assert(sizeof(Tally) == CLEARED * 4 + sizeof(Edges) + sizeof(u64) * LISTED && sizeof(Edges) == 32, "as sampler.py has it");

// fp32 -> unsigned in the same order, and back.
__device__ __forceinline__ unsigned ordered(float s) {
  const unsigned bits = __float_as_uint(s);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float disordered(unsigned o) { return __uint_as_float(o >> 31 ? o ^ 0x80000000u : ~o); }

// The smaller, the better: by score, of equal scores the lower id.
__device__ __forceinline__ u64 key_of(float s, int id) {
  return (u64)~ordered(__fadd_rn(s, 0.f)) << 32 | (unsigned)id;  // no -0, which is equal to 0
}
__device__ __forceinline__ float score_of(u64 key) { return disordered(~(unsigned)(key >> 32)); }
enum : u64 { NO_KEY = ~0ull, BROKEN = 0 };  // worse than all, and better than all

// As `worker.engine.noise.gumbel`, in two steps; `key` is its key.
__device__ __forceinline__ u64 hashed(u64 key, int id) {
  u64 x = (u64)id * 0x9E3779B97F4A7C15ull + key;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return (x ^ x >> 31) >> 12;
}
__device__ __forceinline__ double gumbel(u64 bits) { return -log(-log(((double)bits + 0.5) * 2.220446049250313e-16)); }
// In single precision, off by less than half of MARGIN. Where the uniform number is near 1, its logarithm is taken of what
// is missing.
constexpr float MARGIN = 1e-3f;
__device__ __forceinline__ float near_gumbel(u64 bits) {
  const bool much = bits >> 51;
  const float v = ((float)(much ? (1ull << 52) - bits : bits) + (much ? -0.5f : 0.5f)) * 2.220446049250313e-16f;
  const float minus_log = !much ? -__logf(v) : v < 0.01f ? v + 0.5f * v * v : -__logf(1 - v);
  return -__logf(minus_log);
}

// How the token of a row is chosen, and what its scores are.
template <bool WIDE>
struct Row {
  const void* logits;          // fp32 where WIDE, else fp16, [columns]
  const unsigned char* seen;   // a bit an id; null: no repetition penalty
  int columns, n_vocab, top_k;  // top_k 0: off
  float temperature, inverse, top_p, penalty, reach, bins_a_unit;

  __device__ __forceinline__ Row(const void* all, const unsigned* slots, const float* numbers, const int* ints, int row,
                                 int columns, int n_vocab, int words, int capacity)
      : columns(columns), n_vocab(n_vocab), top_k(ints[row]), temperature(numbers[row]), top_p(numbers[capacity + row]),
        penalty(numbers[2 * capacity + row]), reach(numbers[3 * capacity + row]) {
    inverse = __frcp_rn(temperature), bins_a_unit = __fdiv_rn((float)BINS, reach);
    const int slot = ints[capacity + row];
    seen = slot < 0 ? nullptr : (const unsigned char*)(slots + (size_t)slot * words);
    logits = (const char*)all + (size_t)row * columns * (WIDE ? 4 : 2);
  }

  __device__ __forceinline__ bool drawn() const { return temperature > 0; }
  __device__ __forceinline__ bool cut() const { return top_p < 1 || top_k > 0; }

  __device__ __forceinline__ float penalized(float s, bool was_seen) const {
    return !was_seen ? s : s < 0 ? __fmul_rn(s, penalty) : __fdiv_rn(s, penalty);
  }
  __device__ __forceinline__ float one(int id) const {
    const float s = WIDE ? ((const float*)logits)[id] : to_float(((const half_bits*)logits)[id]);
    return penalized(s, seen != nullptr && seen[id / 8] >> id % 8 & 1);
  }
  // Of ids from `id` on, which is divisible by 8. What lies behind the vocabulary is anything.
  __device__ __forceinline__ void eight(int id, float* s) const {
    if (id + 8 <= n_vocab && columns % 8 == 0) {
      if (WIDE) {
        *(float4*)s = *(const float4*)((const float*)logits + id);
        *(float4*)(s + 4) = *(const float4*)((const float*)logits + id + 4);
      } else {
        floats(*(const uint4*)((const half_bits*)logits + id), s);
      }
      const unsigned marks = seen == nullptr ? 0 : seen[id / 8];
#pragma unroll
      for (int i = 0; i < 8; i++) s[i] = penalized(s[i], marks >> i & 1);
    } else {
      for (int i = 0; i < 8; i++) s[i] = id + i < n_vocab ? one(id + i) : 0;
    }
  }
  // The id that a thread has at `place` of its IDS, and a call of `take` with each place, its id and score.
  __device__ __forceinline__ int id_at(int block, int place) const {
    return block * BLOCK + (place / 8 * THREADS + threadIdx.x) * 8 + place % 8;
  }
  template <class F>
  __device__ __forceinline__ void each(int block, F take) const {
#pragma unroll
    for (int part = 0; part < IDS; part += 8) {
      const int id = id_at(block, part);
      alignas(16) float s[8];
      eight(id, s);
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (id + i < n_vocab) take(part + i, id + i, s[i]);
    }
  }
  // How far below the best in units of the temperature. The same in every launch, so nothing may be contracted.
  __device__ __forceinline__ float below(float s, float top) const { return __fmul_rn(__fsub_rn(top, s), inverse); }
  // In which bin a score is, BINS where it is out of reach.
  __device__ __forceinline__ int bin(float s, float top) const {
    const float distance = below(s, top);
    const int place = __float_as_int(__fadd_rn(__fmul_rn(distance, bins_a_unit), 8388608.f)) - 0x4B000000;
    return distance < reach ? (place < BINS ? place : BINS - 1) : BINS;
  }
  // e**((s - top) / temperature).
  __device__ __forceinline__ float mass(float s, float top) const {
    return exp2_of(__fmul_rn(below(s, top), -1.4426950408889634f));
  }
  // What the draw compares, log-probability up to a constant plus noise; and the same within MARGIN, at once.
  __device__ __forceinline__ double value(float s, float top, int id, u64 key) const {
    return (double)(s - top) / temperature + gumbel(hashed(key, id));
  }
  __device__ __forceinline__ float nearly(float s, float top, int id, u64 key) const {
    return near_gumbel(hashed(key, id)) - below(s, top);
  }
};

// The token that is drawn: the greatest value, of equal ones the lower id.
struct Drawn {
  double value;
  int id;
  __device__ __forceinline__ void take(double v, int i) {
    if (v > value || (v == value && i < id)) value = v, id = i;
  }
  template <bool WIDE>
  __device__ __forceinline__ void consider(const Row<WIDE>& row, float s, float top, int i, u64 key) {
    if (row.nearly(s, top, i, key) + MARGIN > (float)value) take(row.value(s, top, i, key), i);
  }
};
__device__ __forceinline__ Drawn nobody() { return {-1e300, 0x7FFFFFFF}; }

// What all threads of the block have, joined; `join` is associative and commutative. `room` of WARPS.
template <class T, class F>
__device__ __forceinline__ T of_all(T mine, T* room, F join) {
  for (int apart = 16; apart; apart /= 2) mine = join(mine, __shfl_xor_sync(~0u, mine, apart));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = room[0];
  for (int w = 1; w < WARPS; w++) mine = join(mine, room[w]);
  __syncthreads();
  return mine;
}
__device__ __forceinline__ u64 least(u64 mine, u64* room) {
  return of_all(mine, room, [](u64 a, u64 b) { return a < b ? a : b; });
}
__device__ __forceinline__ u64 sum(u64 mine, u64* room) {
  return of_all(mine, room, [](u64 a, u64 b) { return a + b; });
}
__device__ __forceinline__ Drawn winner(Drawn mine, Drawn* room) {
  for (int apart = 16; apart; apart /= 2)
    mine.take(__shfl_xor_sync(~0u, mine.value, apart), __shfl_xor_sync(~0u, mine.id, apart));
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = room[0];
  for (int w = 1; w < WARPS; w++) mine.take(room[w].value, room[w].id);
  __syncthreads();
  return mine;
}
// The sum of what the threads before this one have.
__device__ __forceinline__ u64 before(u64 mine, u64* room) {
  u64 through = mine;
  for (int apart = 1; apart < 32; apart *= 2) {
    const u64 there = __shfl_up_sync(~0u, through, apart);
    if (threadIdx.x % 32 >= apart) through += there;
  }
  if (threadIdx.x % 32 == 31) room[threadIdx.x / 32] = through;
  __syncthreads();
  u64 sum = through - mine;
  for (int w = 0; w < threadIdx.x / 32; w++) sum += room[w];
  __syncthreads();
  return sum;
}

// Masses by bins, in shared memory.
struct Histogram {
  unsigned parts[3][BINS];

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < 3 * BINS; i += THREADS) parts[0][i] = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void add(int bin, const Units& mass) {
#pragma unroll
    for (int part = 0; part < 3; part++)
      if (mass.parts[part]) atomicAdd(&parts[part][bin], mass.parts[part]);
  }
  __device__ __forceinline__ u64 of(int bin) const {
    return Units{parts[0][bin], parts[1][bin], parts[2][bin]}.whole();
  }
};

// A bin, and the sum of those before it.
struct Place {
  int bin;
  u64 before;
};
// The first bin through which there is `needed`, the last one where there is none; a thread has `mine`, of
// BINS_A_THREAD bins, and `base` is what comes before all of them. All threads have the same answer.
struct Finder {
  u64 room[WARPS];
  int bin;
  u64 sum;

  __device__ __forceinline__ Place operator()(const u64* mine, u64 base, double needed) {
    u64 all = 0;
    for (int i = 0; i < BINS_A_THREAD; i++) all += mine[i];
    if (threadIdx.x == 0) bin = BINS - 1;
    u64 through = base + before(all, room);  // which synchronises
    const u64 first = through;
    for (int i = 0; i < BINS_A_THREAD; i++) {
      through += mine[i];
      if ((double)through >= needed) {
        atomicMin(&bin, (int)threadIdx.x * BINS_A_THREAD + i);
        break;
      }
    }
    __syncthreads();
    if (bin / BINS_A_THREAD == threadIdx.x) {
      sum = first;
      for (int i = 0; i < bin % BINS_A_THREAD; i++) sum += mine[i];
    }
    __syncthreads();
    const Place found = {bin, sum};
    __syncthreads();
    return found;
  }
};

// Where the edges of a row are, of which all is weighed: what other blocks have added is in the second level's cache.
template <bool WIDE>
__device__ __forceinline__ Edges edges(const Row<WIDE>& row, const Tally& tally, Finder& find) {
  u64 masses[BINS_A_THREAD], counts[BINS_A_THREAD], mine = 0;
  for (int i = 0; i < BINS_A_THREAD; i++) {
    masses[i] = __ldcg(&tally.masses[threadIdx.x * BINS_A_THREAD + i]);
    counts[i] = __ldcg(&tally.counts[threadIdx.x * BINS_A_THREAD + i]);
    mine += masses[i];
  }
  Edges found;
  found.all = sum(mine, find.room) + __ldcg(&tally.masses[BINS]);
  u64 surely = found.all;  // top-p is a part of at least this
  if (row.top_k > 0) {
    found.last = find(counts, 0, (double)row.top_k).bin;
    u64 some = 0;
    for (int i = 0; i < BINS_A_THREAD; i++)
      if ((int)threadIdx.x * BINS_A_THREAD + i < found.last) some += masses[i];
    surely = sum(some, find.room);
  }
  if (row.top_p < 1) {
    const Place place = find(masses, 0, row.top_p * (double)surely);
    found.first = place.bin, found.mass = place.before;
    if (row.top_k == 0) found.last = found.first;
  } else {
    found.first = found.last, found.mass = surely;
  }
  u64 some = 0;
  for (int i = 0; i < BINS_A_THREAD; i++)
    if ((int)threadIdx.x * BINS_A_THREAD + i < found.first) some += counts[i];
  found.count = sum(some, find.room);
  return found;
}
