// All layers for one row in one launch: int4 products, attention over pages, norms, SiLU and residual. For sm_90.
//
// A block keeps 16 numbers of the residual stream through all layers. One of its warps brings weights, keys and values
// into a ring in shared memory in the order in which they are needed, as far ahead as there is room: none of that depends
// on what this launch computes, so that the bus never waits. The others multiply as `int4_rows.cu` does; there are as
// many of them as groups of 128 in the stream, and each takes one group of the inputs.
//
// Blocks wait for numbers, not for each other: a packet of 8 bytes has a number, or two in fp16, and the turn in which it
// was written, and who needs it asks for it until the turn is right. So what goes from block to block costs one write and
// one read of the L2 cache, where a barrier costs a fence, an atomic and the read of a flag besides. A packet's place is
// written again in the next layer, by a block that has seen what depends on all who read it. All blocks must run at once.

#include "int4.cuh"
#include "stack.cuh"

struct Layer {
  const char *c_attn, *attn_c_proj, *gate_up, *mlp_c_proj;  // words
  const char* scales;                                       // [BLOCKS][SCALES], see `Sizes`
  const half_bits* bias;                                    // of c_attn
  const float *ln_1, *ln_2;
  half_bits *keys, *values;                                 // [blocks, heads, 16, 128]
};

template <int HIDDEN, int INNER>
struct Sizes {
  static constexpr int WARPS = HIDDEN / 128, HEADS = WARPS, BLOCKS = HIDDEN / 16, SPLITS = BLOCKS / HEADS;
  static constexpr int QUADS = INNER / 4, MOST = (QUADS + BLOCKS - 1) / BLOCKS * 8;  // outputs of gate and up a block
  static constexpr int C_ATTN = 3, GATE_UP = (MOST + 15) / 16, OUTPUTS = 16 * GATE_UP;  // tiles; most outputs
  static constexpr int GROUPS = INNER / 128, TURNS = (GROUPS + WARPS - 1) / WARPS;      // of mlp_c_proj
  // Bytes. A stage has a tile of 16 outputs of HIDDEN inputs, or whole rows of mlp_c_proj, or pages.
  static constexpr int WIDTH = HIDDEN / 2, LONG = INNER / 2, STAGE = 16 * WIDTH;
  static constexpr int ROWS = 8 * LONG <= STAGE ? 8 : 4, PARTS = 16 / ROWS;  // of mlp_c_proj
  static constexpr int PAGE = 16 * 128 * 2, PAGES = STAGE / PAGE / 2;        // of keys and values
  static_assert(ROWS * LONG <= STAGE, "rows of mlp_c_proj are too long for a stage");
  static_assert(PAGES == 2 && OUTPUTS >= 16 * C_ATTN && OUTPUTS % 32 == 0, "not sizes that this was made for");
  // Where the scales of a block's outputs begin, [outputs, groups] each, those of mlp_c_proj [16, TURNS * WARPS].
  static constexpr int PROJ_SCALES = C_ATTN * 32 * WARPS, GATE_SCALES = PROJ_SCALES + 32 * WARPS;
  static constexpr int MLP_SCALES = GATE_SCALES + MOST * 2 * WARPS, SCALES = MLP_SCALES + 32 * TURNS * WARPS;
  // Where packets are.
  static constexpr int SQUARES = HIDDEN / 2, STREAM = SQUARES + BLOCKS, QKV = 2 * STREAM, MIXED = QKV + 3 * HIDDEN / 2;
  static constexpr int MLP = MIXED + HIDDEN / 2, MEANS = MLP + INNER / 2, BEGUN = MEANS + 2 * 128 * BLOCKS;

  // The first output of gate and up of a block: they come in eights, so that packets are not shared.
  __device__ static int gate_up(int block) { return block * QUADS / BLOCKS * 8; }
};

template <int HIDDEN, int INNER, int STAGES>
struct Ring {
  using S = Sizes<HIDDEN, INNER>;
  char* stages;
  bits64 *full, *empty;
  char* scales;  // [2][SCALES], by turns
  bits64 *scales_full, *scales_empty;
  int slot = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int some) {
    slot += some;
    if (slot >= STAGES) slot -= STAGES, parity ^= 1;
  }
  // The stage that is `ahead` of the next one, when it is full.
  __device__ __forceinline__ const char* filled(int ahead) const {
    const bool round = slot + ahead >= STAGES;
    const int there = round ? slot + ahead - STAGES : slot + ahead;
    wait(full + there, round ? parity ^ 1 : parity);
    return stages + there * S::STAGE;
  }
  __device__ __forceinline__ void release(int some, int lane) {
    __syncwarp();
    if (lane < some) arrive(empty + (slot + lane >= STAGES ? slot + lane - STAGES : slot + lane));
    advance(some);
  }
};

#include "stack_attend.cuh"

// What one warp of a block does: bring all that the others read.
template <int HIDDEN, int INNER, int STAGES>
__device__ __forceinline__ void bring(Ring<HIDDEN, INNER, STAGES> ring, const Layer* layers, int count, const int* table,
                                      const long long* positions, int lane) {
  using S = Sizes<HIDDEN, INNER>;
  const int block = blockIdx.x, head = block / S::SPLITS, split = block % S::SPLITS;
  auto open = [&](int bytes) {
    wait(ring.empty + ring.slot, ring.parity ^ 1);
    if (lane == 0) expect(ring.full + ring.slot, bytes);
    __syncwarp();
    return ring.stages + ring.slot * S::STAGE;
  };
  auto rows = [&](const char* from, int bytes) {
    char* to = open(bytes);
    if (lane == 0 && bytes) copy(to, from, bytes, ring.full + ring.slot);
    ring.advance(1);
  };
  int past = 0, pages = 0;
  for (int l = 0; l < count; l++) {
    const Layer layer = layers[l];
    wait(ring.scales_empty + l % 2, (l / 2 + 1) % 2);
    if (lane == 0) {
      expect(ring.scales_full + l % 2, S::SCALES);
      copy(ring.scales + l % 2 * S::SCALES, layer.scales + (size_t)block * S::SCALES, S::SCALES, ring.scales_full + l % 2);
    }
    __syncwarp();
    for (int t = 0; t < S::C_ATTN; t++) rows(layer.c_attn + (size_t)(S::C_ATTN * block + t) * S::STAGE, S::STAGE);
    if (l == 0) {  // weights are never written; all else may be, by what came before this launch
      after_previous();
      past = (int)*positions;
      pages = (past + 15) / 16;
    }
    int known = 0;
    for (int i = 0, page = split; page < pages; i += S::PAGES, page += S::PAGES * S::SPLITS) {
      if (i % 32 == 0) known = page + lane * S::SPLITS < pages ? table[page + lane * S::SPLITS] : 0;
      const int some = page + S::SPLITS < pages ? 2 : 1;
      char* to = open(some * 2 * S::PAGE) + lane * S::PAGE;
      const int there = __shfl_sync(~0u, known, (i + (lane >> 1)) % 32);
      if (lane < 2 * some)
        copy(to, (const char*)(lane & 1 ? layer.values : layer.keys) + ((size_t)there * S::HEADS + head) * S::PAGE,
             S::PAGE, ring.full + ring.slot);
      ring.advance(1);
    }
    rows(layer.attn_c_proj + (size_t)block * S::STAGE, S::STAGE);
    const int begin = S::gate_up(block), outputs = S::gate_up(block + 1) - begin;
    for (int t = 0; t < S::GATE_UP; t++)
      rows(layer.gate_up + (size_t)(begin + 16 * t) * S::WIDTH, min(16, max(0, outputs - 16 * t)) * S::WIDTH);
    for (int i = 0; i < S::PARTS; i++)
      rows(layer.mlp_c_proj + (size_t)(16 * block + S::ROWS * i) * S::LONG, S::ROWS * S::LONG);
  }
}

// layers   [count]
// id, past int64, of the row; wte fp16 [vocab, HIDDEN]; table int32, the blocks of its pages
// cos, sin fp32 [128], with the sign of the rotation in sin
// packets  at least BEGUN, and BLOCKS numbers of 4 bytes; zeros before the first launch
// hidden   fp32 [HIDDEN], behind the last layer
template <int HIDDEN, int INNER, int STAGES>
__global__ void __launch_bounds__(HIDDEN / 4 + 32, 1)
int4_stack(const Layer* layers, int count, const long long* id, const half_bits* wte, const int* table,
           const long long* positions, const float* cos, const float* sin, bits64* packets, float* hidden, float eps,
           float softmax_scale) {
  using S = Sizes<HIDDEN, INNER>;
  constexpr int WARPS = S::WARPS;
  extern __shared__ __align__(128) char shared[];
  float* sums = (float*)(shared + STAGES * S::STAGE);          // [2][WARPS][OUTPUTS], by turns
  float* squares = sums + 2 * WARPS * S::OUTPUTS;              // [2][WARPS]
  char* xs = (char*)(squares + 2 * WARPS);                     // [WARPS][TURNS] groups of x, see `digits`
  float* mixes = (float*)(xs + WARPS * S::TURNS * DIGITS);     // [WARPS][128]
  float *tops = mixes + WARPS * 128, *totals = tops + WARPS;   // [WARPS]
  bits64* barriers = (bits64*)(totals + WARPS);
  Ring<HIDDEN, INNER, STAGES> ring{shared, barriers, barriers + STAGES, (char*)(barriers + 2 * STAGES + 4),
                                   barriers + 2 * STAGES, barriers + 2 * STAGES + 2};
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3, block = blockIdx.x;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      prepare(ring.full + i, 1);
      prepare(ring.empty + i, WARPS);
    }
    for (int i = 0; i < 2; i++) {
      prepare(ring.scales_full + i, 1);
      prepare(ring.scales_empty + i, WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (warp == WARPS) {
    bring(ring, layers, count, table, positions, lane);
    return;
  }
  after_previous();

  unsigned* begun = (unsigned*)(packets + S::BEGUN) + block;
  const unsigned before = *begun;
  bits64 *stream = packets, *middle = packets + S::STREAM;
  int at = 0;  // which half of sums and squares
  unsigned turn = before + 1;
  xs += warp * S::TURNS * DIGITS;

  // Groups `warp`, `warp + WARPS`, ... of x, to xs, and their units; for a norm the squares of this group, too.
  auto take = [&](const bits64* from, int turns, int groups, bool normed, float* units) {
    uint4 got[S::TURNS], square = make_uint4(0, turn, 0, turn);
    bool there;
    do {
      there = true;
#pragma unroll
      for (int i = 0; i < turns; i++) {
        const int group = warp + i * WARPS;
        got[i] = make_uint4(0, turn, 0, turn);
        if (group < groups) got[i] = asked(from + group * 64 + 2 * lane);
      }
      if (normed && lane < 4) square = asked(from + S::SQUARES + 8 * warp + 2 * lane);
#pragma unroll
      for (int i = 0; i < turns; i++) there = there && got[i].y == turn && got[i].w == turn;
      there = there && square.y == turn && square.w == turn;
    } while (!__all_sync(~0u, there));
#pragma unroll
    for (int i = 0; i < turns; i++) units[i] = digits(got[i].x, got[i].z, xs + DIGITS * i, lane);
    __syncwarp();
    if (normed) {
      float sum = __uint_as_float(square.x) + __uint_as_float(square.z);
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane == 0) squares[at * WARPS + warp] = sum;
    }
  };
  struct Part {
    uint4 upper, lower;  // words of outputs g and g + 8 and a group of inputs
  };
  auto part = [&](const char* upper, const char* lower, int group) {
    const int at = group * 64 + c * 16;
    return Part{*(const uint4*)(upper + at), *(const uint4*)(lower + at)};
  };
  // `scales`: of output g, those of output g + 8 are `apart` bytes behind it.
  auto multiplied = [&](const Part& part, const Digits& x, const char* scales, int apart, float& upper, float& lower) {
    int d[4] = {x.first[0], x.first[1], x.first[0], x.first[1]};
    multiply(d, part.upper.x, part.lower.x, part.upper.y, part.lower.y, x.high.x, x.high.y);
    multiply(d, part.upper.z, part.lower.z, part.upper.w, part.lower.w, x.high.z, x.high.w);
    const unsigned mask = 0x0F0F0F0F;
    multiply(d, part.upper.x & mask, part.lower.x & mask, part.upper.y & mask, part.lower.y & mask, x.low.x, x.low.y);
    multiply(d, part.upper.z & mask, part.lower.z & mask, part.upper.w & mask, part.lower.w & mask, x.low.z, x.low.w);
    upper += to_float(*(const half_bits*)scales) * x.value(d[0], d[1]);
    lower += to_float(*(const half_bits*)(scales + apart)) * x.value(d[2], d[3]);
  };
  auto keep = [&](int t, float upper, float lower) {
    upper += __shfl_xor_sync(~0u, upper, 1);
    lower += __shfl_xor_sync(~0u, lower, 1);
    if (c == 0) {
      sums[(at * WARPS + warp) * S::OUTPUTS + 16 * t + g] = upper;
      sums[(at * WARPS + warp) * S::OUTPUTS + 16 * t + g + 8] = lower;
    }
  };
  // Tiles of 16 outputs of HIDDEN inputs. Their weights are in registers when x arrives.
  auto product = [&](const bits64* from, int tiles, const char* scales, bool normed) {
    Part parts[S::GATE_UP];
#pragma unroll
    for (int t = 0; t < tiles; t++) {
      const char* row = ring.filled(t) + g * S::WIDTH;
      parts[t] = part(row, row + 8 * S::WIDTH, warp);
    }
    ring.release(tiles, lane);
    float unit;
    take(from, 1, WARPS, normed, &unit);
    const Digits x(xs, unit, g, c);
#pragma unroll
    for (int t = 0; t < tiles; t++) {
      float upper = 0, lower = 0;
      multiplied(parts[t], x, scales + ((16 * t + g) * WARPS + warp) * 2, 16 * WARPS, upper, lower);
      keep(t, upper, lower);
    }
    together(WARPS * 32);
  };
  auto reduced = [&](const float* from, int across) {
    float v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += from[at * WARPS * across + i * across];
    return v;
  };
  auto factor = [&] { return 16.0f * rsqrtf(reduced(squares, 1) / HIDDEN + eps); };
  // Two lanes' numbers in one packet.
  auto send = [&](bits64* to, float v, int apart, bool mine) {
    const unsigned h = to_half(v), other = __shfl_down_sync(~0u, h, apart);
    if (mine) put(to, h | other << 16, turn);
  };
  // The block's part of the stream, of which lanes n and n + 16 of warp 0 have number n.
  float residual = to_float(wte[(size_t)*id * HIDDEN + 16 * block + (lane & 15)]);
  auto pass = [&](bits64* to, float gamma) {
    send(to + place(16 * block + lane), residual * gamma * 0.0625f, 2, lane < 16 && (lane & 2) == 0);
    float square = residual * residual;
#pragma unroll
    for (int apart = 8; apart; apart /= 2) square += __shfl_xor_sync(~0u, square, apart);
    if (lane == 0) put(to + S::SQUARES + block, __float_as_uint(square), turn);
  };
  auto added = [&] {
    float v = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i += 2) v += sums[(at * WARPS + i + (lane >> 4)) * S::OUTPUTS + (lane & 15)];
    residual += v + __shfl_xor_sync(~0u, v, 16);
  };

  const int past = (int)*positions, own = 16 * block + (lane & 15);
  if (warp == 0) pass(stream, layers[0].ln_1[own]);
  for (int l = 0; l < count; l++) {
    const Layer& layer = layers[l];
    if (l == count - 1) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const char* scales = ring.scales + l % 2 * S::SCALES;
    wait(ring.scales_full + l % 2, l / 2 % 2);
    {  // c_attn
      const int n = threadIdx.x;
      const float more = n < 16 * S::C_ATTN ? to_float(layer.bias[16 * S::C_ATTN * block + n]) : 0;
      product(stream, S::C_ATTN, scales, true);
      if (warp < (16 * S::C_ATTN + 31) / 32)
        send(packets + S::QKV + (16 * S::C_ATTN * block + n) / 2, reduced(sums + n, S::OUTPUTS) * factor() + more, 1,
             n < 16 * S::C_ATTN && n % 2 == 0);
      at ^= 1;
    }
    attend<HIDDEN, INNER, STAGES>(ring, layer, table, past, cos, sin, packets, turn, mixes, tops, totals, softmax_scale);
    {  // attn_c_proj
      const float gamma = layer.ln_2[own];
      product(packets + S::MIXED, 1, scales + S::PROJ_SCALES, false);
      if (warp == 0) {
        added();
        pass(middle, gamma);
      }
      at ^= 1;
    }
    {  // gate and up
      const int n = threadIdx.x, begin = S::gate_up(block), outputs = S::gate_up(block + 1) - begin;
      product(middle, S::GATE_UP, scales + S::GATE_SCALES, true);
      if (n < S::OUTPUTS) {
        const float v = reduced(sums + n, S::OUTPUTS) * factor(), up = __shfl_down_sync(~0u, v, 1);
        send(packets + S::MLP + place((begin + n) / 2), v / (1.0f + __expf(-v)) * up, 4, n < outputs && (n & 5) == 0);
      }
      at ^= 1;
    }
    {  // mlp_c_proj: one tile, some groups a warp
      const float gamma = l + 1 < count ? layers[l + 1].ln_1[own] : 0;
      const char *stages[S::PARTS], *rows[2];
#pragma unroll
      for (int i = 0; i < S::PARTS; i++) stages[i] = ring.filled(i);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        rows[h] = stages[h * S::PARTS / 2];
#pragma unroll
        for (int i = 1; i < S::PARTS / 2; i++)
          if (g / S::ROWS == i) rows[h] = stages[h * S::PARTS / 2 + i];
        rows[h] += g % S::ROWS * S::LONG;
      }
      Part parts[S::TURNS];
#pragma unroll
      for (int i = 0; i < S::TURNS; i++) parts[i] = part(rows[0], rows[1], min(warp + i * WARPS, S::GROUPS - 1));
      ring.release(S::PARTS, lane);
      float units[S::TURNS], upper = 0, lower = 0;
      take(packets + S::MLP, S::TURNS, S::GROUPS, false, units);
#pragma unroll
      for (int i = 0; i < S::TURNS; i++)  // the scales of a group that is none are 0
        multiplied(parts[i], Digits(xs + DIGITS * i, units[i], g, c),
                   scales + S::MLP_SCALES + (g * S::TURNS * WARPS + warp + i * WARPS) * 2, 16 * S::TURNS * WARPS, upper, lower);
      __syncwarp();
      if (lane == 0) arrive(ring.scales_empty + l % 2);
      keep(0, upper, lower);
      together(WARPS * 32);
      turn++;
      if (warp == 0) {
        added();
        if (l + 1 < count)
          pass(stream, gamma);
        else if (lane < 16)
          hidden[own] = residual;
      }
      at ^= 1;
    }
  }
  if (threadIdx.x == 0) *begun = before + count;
}
