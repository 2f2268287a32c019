// The sampler of `worker/engine/sampler.py` in four launches, one token a row, without the host and without sorting.
// Compiled by `worker.model.gpu.cuda`.
//
//   survey   each block of a row: its best score
//   weigh    each block: how much mass, and how many tokens, are in bins of scores below the row's best; the last block
//            of a row: in which bins the edges of top-k and top-p are
//   collect  each block: the winner of the draw among those that are surely kept, and a list of those in the edges' bins
//   choose   each row: the edges among what was listed, and the winner of all
//
// A token that is further than `reach` from the best, in units of the temperature, is never drawn: either top-p cuts it
// off, or no noise brings it before the best. Masses are whole numbers, so that a row's token does not depend on the
// order in which its blocks end.
//
// `numbers` fp32 [4, capacity]: temperature, top-p, repetition penalty, reach; `ints` [2, capacity]: top-k (0: off), slot
// in `slots` (-1: no penalty); `keys` [capacity]: of the noise; `slots` [., words]: a bit an id that was seen. Nothing
// has __restrict__: it would be read through the cache for constants, which is not coherent while a launch runs.

#include "sampling.cuh"

// The best key of a row, out of what its blocks found; each warp looks for itself.
__device__ __forceinline__ u64 best_of(const u64* tops, int row, int blocks) {
  u64 key = NO_KEY;
  for (int i = threadIdx.x % 32; i < blocks; i += 32) key = min(key, tops[(size_t)row * blocks + i]);
  for (int apart = 16; apart; apart /= 2) key = min(key, __shfl_xor_sync(~0u, key, apart));
  return key;
}

// Grid (blocks, rows). `tops` [rows, blocks]: keys, BROKEN where a score is not finite.
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
survey(const void* logits, const unsigned* slots, const float* numbers, const int* ints, u64* tops, Tally* tallies,
       int columns, int n_vocab, int words, int capacity) {
  __shared__ u64 room[WARPS];
  start_after_previous();
  const Row<WIDE> row(logits, slots, numbers, ints, blockIdx.y, columns, n_vocab, words, capacity);
  if (row.drawn() && row.cut()) {
    unsigned* words_of = (unsigned*)&tallies[blockIdx.y];
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < CLEARED; i += gridDim.x * THREADS) words_of[i] = 0;
  }
  float top = -3.4028235e38f;
  int first = 0x7FFFFFFF;
  bool broken = false;
  row.each(blockIdx.x, [&](int, int id, float s) {
    broken |= !(fabsf(s) <= 3.4028235e38f);
    if (s > top || first == 0x7FFFFFFF) top = s, first = id;
  });
  const u64 best = least(broken ? BROKEN : first == 0x7FFFFFFF ? NO_KEY : key_of(top, first), room);
  if (threadIdx.x == 0) tops[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// Grid (blocks, rows).
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
weigh(const void* logits, const unsigned* slots, const float* numbers, const int* ints, const u64* tops, Tally* tallies,
      int columns, int n_vocab, int words, int capacity) {
  __shared__ Histogram masses;
  __shared__ unsigned counts[BINS];
  __shared__ Finder find;
  __shared__ bool last;
  start_after_previous();
  const Row<WIDE> row(logits, slots, numbers, ints, blockIdx.y, columns, n_vocab, words, capacity);
  if (!row.drawn() || !row.cut()) return;
  Tally& tally = tallies[blockIdx.y];
  const float top = score_of(best_of(tops, blockIdx.y, gridDim.x));
  for (int i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
  masses.clear();
  float beyond = 0;
  row.each(blockIdx.x, [&](int, int, float s) {
    const int bin = row.bin(s, top);
    const float mass = row.mass(s, top);
    if (bin == BINS) {
      beyond += mass;
    } else {
      masses.add(bin, units(mass));
      if (row.top_k > 0) atomicAdd(&counts[bin], 1);
    }
  });
  // What is out of reach is less than 1 for each thread; a thread's ids and a block's threads are always the same.
  u64 rest = units(beyond).whole();
  for (int apart = 16; apart; apart /= 2) rest += __shfl_xor_sync(~0u, rest, apart);
  if (threadIdx.x % 32 == 0 && rest) atomicAdd(&tally.masses[BINS], rest);
  __syncthreads();
  for (int i = threadIdx.x; i < BINS; i += THREADS) {
    if (const u64 mass = masses.of(i)) atomicAdd(&tally.masses[i], mass);
    if (counts[i]) atomicAdd(&tally.counts[i], counts[i]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(&tally.weighed, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const Edges found = edges(row, tally, find);
  if (threadIdx.x == 0) tally.edges = found;
}

// Grid (blocks, rows). `winners` and `winner_ids` [rows, blocks].
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
collect(const void* logits, const unsigned* slots, const float* numbers, const int* ints, const u64* keys,
        const u64* tops, Tally* tallies, double* winners, int* winner_ids, int columns, int n_vocab, int words,
        int capacity) {
  __shared__ Drawn room[WARPS];
  __shared__ unsigned mine, first_place;
  start_after_previous();
  const Row<WIDE> row(logits, slots, numbers, ints, blockIdx.y, columns, n_vocab, words, capacity);
  if (!row.drawn()) return;
  Tally& tally = tallies[blockIdx.y];
  if (threadIdx.x == 0) mine = 0;
  const float top = score_of(best_of(tops, blockIdx.y, gridDim.x));
  int first = BINS, last = -1;
  if (row.cut()) first = tally.edges.first, last = tally.edges.last;
  const u64 key = keys[blockIdx.y];
  // A bit an id of the thread: those at an edge, and those of the kept that may be the thread's best.
  unsigned listed = 0, near = 0;
  float values[IDS], highest = -1e30f;
#pragma unroll
  for (int i = 0; i < IDS; i++) values[i] = -1e30f;
  row.each(blockIdx.x, [&](int place, int id, float s) {
    const int bin = row.bin(s, top);
    if (bin < first) values[place] = row.nearly(s, top, id, key);
    listed |= (unsigned)(bin >= first && bin <= last) << place;
  });
#pragma unroll
  for (int i = 0; i < IDS; i++) highest = fmaxf(highest, values[i]);
#pragma unroll
  for (int i = 0; i < IDS; i++) near |= (unsigned)(values[i] >= highest - MARGIN && values[i] > -1e29f) << i;
  Drawn drawn = nobody();
  for (; near; near &= near - 1) {
    const int id = row.id_at(blockIdx.x, __ffs(near) - 1);
    drawn.take(row.value(row.one(id), top, id, key), id);
  }
  drawn = winner(drawn, room);
  const int at = blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) winners[at] = drawn.value, winner_ids[at] = drawn.id;
  unsigned place = listed ? atomicAdd(&mine, __popc(listed)) : 0;
  __syncthreads();
  if (mine == 0) return;
  if (threadIdx.x == 0) first_place = atomicAdd(&tally.listed, mine);
  __syncthreads();
  for (place += first_place; listed; listed &= listed - 1, place++) {
    const int id = row.id_at(blockIdx.x, __ffs(listed) - 1);
    if (place < LISTED) tally.list[place] = key_of(row.one(id), id);
  }
}

// What is in the bins of the edges: out of the list, or out of all scores where it is too short for them.
template <bool WIDE>
struct Listed {
  const Row<WIDE>& row;
  const Tally& tally;
  const Edges& at;
  float top;

  // Call `take` with each key.
  template <class F>
  __device__ __forceinline__ void each(F take) const {
    if (tally.listed <= LISTED) {
      for (int i = threadIdx.x; i < tally.listed; i += THREADS) take(tally.list[i]);
    } else {
      for (int id = threadIdx.x; id < row.n_vocab; id += THREADS) {
        const float s = row.one(id);
        const int bin = row.bin(s, top);
        if (bin >= at.first && bin <= at.last) take(key_of(s, id));
      }
    }
  }
};

// Finds the last key that is kept: a key is while what those before it weigh is less than what is needed.
struct Selector {
  Histogram masses;
  Finder find;
  u64 keys[THREADS], weights[THREADS];
  unsigned count;

  // Among keys up to `limit`, which is the answer where all are kept; `sum` is the weight of what comes before the list.
  template <class L, class F>
  __device__ __forceinline__ u64 operator()(const L& listed, F weight, double needed, u64 sum, u64 limit) {
    u64 low = 0, high = limit;
    while (true) {
      u64 smallest = NO_KEY, greatest = 0, some = 0;
      listed.each([&](u64 key) {
        if (key < low || key > high) return;
        if (key < smallest) smallest = key;
        if (key > greatest) greatest = key;
        some++;
      });
      smallest = least(smallest, find.room);
      greatest = ~least(~greatest, find.room);
      some = ::sum(some, find.room);
      if (some <= THREADS) return among(listed, weight, needed, sum, low, high, (int)some);
      int shift = 0;
      while ((greatest - smallest) >> shift >= BINS) shift++;
      masses.clear();
      listed.each([&](u64 key) {
        if (key >= low && key <= high) masses.add((int)((key - smallest) >> shift), weight(key));
      });
      __syncthreads();
      u64 mine[BINS_A_THREAD];
      for (int i = 0; i < BINS_A_THREAD; i++) mine[i] = masses.of(threadIdx.x * BINS_A_THREAD + i);
      const Place place = find(mine, sum, needed);
      low = smallest + ((u64)place.bin << shift);
      if (low > greatest) return limit;  // there is not so much
      high = min(greatest, low + ((u64)1 << shift) - 1);
      sum = place.before;
    }
  }

  // Of so few that each can be compared with all.
  template <class L, class F>
  __device__ __forceinline__ u64 among(const L& listed, F weight, double needed, u64 sum, u64 low, u64 high, int some) {
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    listed.each([&](u64 key) {
      if (key < low || key > high) return;
      const unsigned place = atomicAdd(&count, 1);
      keys[place] = key, weights[place] = weight(key).whole();
    });
    __syncthreads();
    u64 kept = 0;
    if (threadIdx.x < some) {
      const u64 mine = keys[threadIdx.x];
      for (int i = 0; i < some; i++) sum += keys[i] < mine ? weights[i] : 0;
      if ((double)sum < needed) kept = mine;
    }
    return ~least(~kept, find.room);
  }
};

// Grid (1, rows). `tokens` [rows]: -1 where the logits are not finite.
template <bool WIDE>
__global__ void __launch_bounds__(THREADS)
choose(const void* logits, const unsigned* slots, const float* numbers, const int* ints, const u64* keys,
       const u64* tops, const Tally* tallies, const double* winners, const int* winner_ids, long long* tokens,
       int columns, int n_vocab, int words, int capacity, int blocks) {
  __shared__ Selector select;
  __shared__ Drawn room[WARPS];
  start_after_previous();
  const int at = blockIdx.y;
  const Row<WIDE> row(logits, slots, numbers, ints, at, columns, n_vocab, words, capacity);
  const u64 best = best_of(tops, at, blocks);
  if (best == BROKEN || !row.drawn()) {
    if (threadIdx.x == 0) tokens[at] = best == BROKEN ? -1 : (long long)(best & 0xFFFFFFFF);
    return;
  }
  const float top = score_of(best);
  Drawn drawn = {nobody().value, (int)(best & 0xFFFFFFFF)};  // the best one is kept in any case
  for (int i = threadIdx.x; i < blocks; i += THREADS) drawn.take(winners[at * blocks + i], winner_ids[at * blocks + i]);
  if (row.cut()) {
    const Tally& tally = tallies[at];
    const Edges& found = tally.edges;
    const Listed<WIDE> listed = {row, tally, found, top};
    auto mass = [&](u64 key) { return units(row.mass(score_of(key), top)); };
    u64 all = found.all, limit = NO_KEY;
    if (row.top_k > 0) {
      limit = select(listed, [](u64) { return Units{1, 0, 0}; }, (double)row.top_k - (double)found.count, 0, NO_KEY);
      limit |= 0xFFFFFFFF;  // equal scores at the edge are all kept
      u64 some = 0;
      listed.each([&](u64 key) { some += key <= limit ? mass(key).whole() : 0; });
      all = found.mass + sum(some, select.find.room);
    }
    if (row.top_p < 1) limit = select(listed, mass, row.top_p * (double)all, found.mass, limit);
    listed.each([&](u64 key) {
      if (key <= limit) drawn.consider(row, score_of(key), top, (int)(key & 0xFFFFFFFF), keys[at]);
    });
  }
  drawn = winner(drawn, room);
  if (threadIdx.x == 0) tokens[at] = drawn.id;
}

__device__ __forceinline__ void mark(unsigned* slots, int slot, long long token, int words) {
  if (slot >= 0 && token >= 0) slots[(size_t)slot * words + token / 32] |= 1u << token % 32;
}

// Grid (1, rows): the id that a row reads, seen from now on in the slot of the row.
__global__ void observe(const long long* ids, const int* ints, unsigned* slots, int words, int capacity) {
  start_after_previous();
  if (threadIdx.x == 0) mark(slots, ints[capacity + blockIdx.y], ids[blockIdx.y], words);
}

// Grid (1, rows). What a row reads: its id, out of `tokens` where `sources` says which, seen from now on, and its
// rotation [dim]. With `places` it is seen in the slot of the token that is chosen after the row. `Int`: int or long long.
template <class Int>
__global__ void begin(const long long* tokens, const Int* given, const Int* sources, const Int* positions,
                      const Int* places, const int* ints, unsigned* slots, const float* cos_table,
                      const float* sin_table, long long* ids, float* cos, float* sin, int words, int capacity,
                      int dim) {
  start_after_previous();
  const int row = blockIdx.y;
  const long long position = positions[row];
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    cos[(size_t)row * dim + d] = cos_table[position * dim + d];
    sin[(size_t)row * dim + d] = sin_table[position * dim + d];
  }
  if (threadIdx.x) return;
  const long long token = sources[row] < 0 ? given[row] : tokens[sources[row]];
  ids[row] = token < 0 ? 0 : token;  // a row whose logits were not finite goes on as anything; it is dropped
  const long long place = places == nullptr ? row : places[row];
  if (place >= 0) mark(slots, ints[capacity + place], ids[row], words);
}
