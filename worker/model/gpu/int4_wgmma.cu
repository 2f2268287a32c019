// 9 to 64 rows times int4 weights by Hopper's products of whole warpgroups: norm, bias, SiLU and residual included.
// Compiled by `cuda.py`, for sm_90a alone.
//
// A tile is 64 outputs, the M side of wgmma.m64nNk16, whose weights go from their codes to fp16 in the registers of the
// four warps of a team; the N side is x, in shared memory. Of a group of 128 inputs lane (g, c), g = lane / 4,
// c = lane % 4, has 32 inputs from 32c on, of outputs g and g + 8 of its warp's 16: the words are taken as they lie. So x
// is what is rearranged: pair q of the 16 pairs from 32c on becomes pair 4q + c of the group, and then 16 numbers that
// follow each other are what one wgmma multiplies. What these kernels write for each other has that order already
// (`wgmma.rearranged`); attention's output is brought into it when it is copied.
//
// A block asks for all its weights at once, before it waits for the launch before it: each thread parks its own in shared
// memory, where no other looks. Blocks of a cluster divide the inputs of the same outputs, so that less of x is read; each
// sends the others what it has of their part of the result, and every part is added up in one order. Sent bytes are counted
// where they arrive: a barrier of the cluster there would wait for all memory, a microsecond and more.

#include "int4.cuh"

__device__ __forceinline__ void copy_16(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_4(unsigned to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
}
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// For all but so many of what `end_of_copies` has ended, the first ones first.
__device__ __forceinline__ void wait_for_copies(int but) {
  if (but >= 4) asm volatile("cp.async.wait_group 4;" ::: "memory");
  else if (but == 3) asm volatile("cp.async.wait_group 3;" ::: "memory");
  else if (but == 2) asm volatile("cp.async.wait_group 2;" ::: "memory");
  else if (but == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 0;" ::: "memory");
}

__device__ __forceinline__ uint4 load_16(unsigned at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ unsigned load_4(unsigned at) {
  unsigned v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void store_4(unsigned at, unsigned v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }

__device__ __forceinline__ void store_16(unsigned at, const float* v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}

// A barrier in shared memory that counts the bytes that arrive from other blocks. They may send when the barrier of the
// cluster has shown that all blocks expect something.
__device__ __forceinline__ void expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.mbarrier_init.release.cluster;" ::"r"(barrier) : "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait_for_bytes(unsigned barrier) {
  unsigned done = 0;
  while (!done)
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier) : "memory");
}
// To `at` of another block's shared memory; `at` and `barrier` are the addresses of the same in ours.
__device__ __forceinline__ void send(unsigned rank, unsigned at, unsigned barrier, const float* v) {
  asm volatile("{.reg .b32 to, bar; mapa.shared::cluster.u32 to, %0, %2; mapa.shared::cluster.u32 bar, %1, %2;\n"
               "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [bar];}"
               ::"r"(at), "r"(barrier), "r"(rank), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}

// d += 64 outputs by 16 inputs, a, times the 16 inputs of ROWS rows, b: see PTX's wgmma for who holds what.
template <int ROWS>
__device__ __forceinline__ void multiply(float* d, const unsigned* a, unsigned long long b);
#define SUMS(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define MULTIPLY(ROWS, NAMES, OTHERS, ...)                                                            \
  template <>                                                                                         \
  __device__ __forceinline__ void multiply<ROWS>(float* d, const unsigned* a, unsigned long long b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #ROWS "k16.f32.f16.f16 {" NAMES "}, " OTHERS ", 1, 1, 1, 0;" \
                 : __VA_ARGS__                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                               \
  }
#define TO_7 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TO_15 TO_7 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TO_23 TO_15 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TO_31 TO_23 ", %24, %25, %26, %27, %28, %29, %30, %31"
MULTIPLY(16, TO_7, "{%8, %9, %10, %11}, %12", SUMS(0))
MULTIPLY(32, TO_15, "{%16, %17, %18, %19}, %20", SUMS(0), SUMS(8))
MULTIPLY(48, TO_23, "{%24, %25, %26, %27}, %28", SUMS(0), SUMS(8), SUMS(16))
MULTIPLY(64, TO_31, "{%32, %33, %34, %35}, %36", SUMS(0), SUMS(8), SUMS(16), SUMS(24))

// What wgmma is told of 64 inputs (128 bytes) of some rows side by side, in swizzled lines: where they are, 1024 bytes
// from 8 rows to the next 8, swizzle of 128 bytes.
__device__ __forceinline__ unsigned long long descriptor(unsigned at) {
  return (unsigned long long)((at & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
__device__ __forceinline__ void before_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_of_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LATER>
__device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory"); }

// Where number i of a row of x is kept for a kernel that reads it rearranged.
__device__ __forceinline__ int place(int i) { return (i & ~127) | (i >> 1 & 15) << 3 | (i >> 5 & 3) << 1 | (i & 1); }
__device__ __forceinline__ unsigned pair(float low, float high) { return (unsigned)to_half(low) | (unsigned)to_half(high) << 16; }

// Arguments as those of `int4_rows`, of which the weights are rounded here too: see there for NORM, END, and what has no
// __restrict__. `next`, and `out` behind SiLU, are rearranged.
//
// ROWS    of x, at most
// TILES   tiles of 64 outputs a team
// TEAMS   of four warps a block; they have different outputs
// GROUPS  of 128 inputs, the most a block has, filled up to whole turns
// TURN    groups between two barriers
// STAGES  turns of x in shared memory at once: all, or at least 3
// CLUSTER blocks that divide the inputs of the same outputs, two at least
// LIMIT   registers of a thread: what this launch leaves, the next one needs to begin beside it
// PLACED  x is rearranged
template <int ROWS, int TILES, int TEAMS, int GROUPS, int TURN, int STAGES, int CLUSTER, int LIMIT, bool PLACED, bool NORM, int END>
__global__ void __maxnreg__(LIMIT)
int4_wgmma(const half_bits* x, float* squares, float eps, const unsigned* __restrict__ words,
           const half_bits* __restrict__ scales, const half_bits* __restrict__ bias, void* out,
           const float* __restrict__ gamma, half_bits* next, int rows, int inputs, int outputs, int pdl) {
  constexpr int WARPS = TEAMS * 4, THREADS = TEAMS * 128, NT = TILES * TEAMS, TURNS = GROUPS / TURN;
  static_assert(STAGES == TURNS || STAGES >= 3, "copies of a turn would meet products of the one before");
  constexpr int LINES = ROWS * 128, STAGE = TURN * 2 * LINES;  // bytes: 64 inputs of all rows; the groups of a turn
  // A part of the result is a tile of 8 rows, of whose products every thread of a team has 4. A block ends PARTS of them,
  // a team EACH, which are of rows from `from` on, RANGE at most.
  constexpr int PARTS = (ROWS / 8 * NT + CLUSTER - 1) / CLUSTER, EACH = (PARTS + TEAMS - 1) / TEAMS;
  constexpr int RANGE = 8 * (PARTS % NT == 0 ? PARTS / NT : (PARTS + NT - 2) / NT + 1);
  extern __shared__ unsigned char memory[];
  __shared__ float factors[RANGE];  // of the norm
  __shared__ unsigned long long arrived;
  const unsigned shared = ((unsigned)__cvta_generic_to_shared(memory) + 1023) & ~1023u;
  const unsigned received = shared + STAGES * STAGE;  // [CLUSTER][PARTS][128] times 16 bytes
  const unsigned parked = received + CLUSTER * PARTS * 2048 + threadIdx.x * 16;
  const unsigned parked_scales = received + CLUSTER * PARTS * 2048 + GROUPS * NT * 4096 + threadIdx.x / 4 * 4;
  const unsigned barrier = (unsigned)__cvta_generic_to_shared(&arrived);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, team = warp >> 2, g = lane >> 2, c = lane & 3;
  const int groups = inputs / 128, width = inputs / 8, rank = blockIdx.x % CLUSTER;
  const int begin = rank * groups / CLUSTER, end = (rank + 1) * groups / CLUSTER;
  const int first = blockIdx.x / CLUSTER * NT * 64, local = team * TILES * 64 + (warp & 3) * 16 + g;

#pragma unroll
  for (int own = 0; own < GROUPS; own++)
#pragma unroll
    for (int part = 0; part < 2 * TILES; part++) {
      const int n = first + local + part / 2 * 64 + part % 2 * 8;
      const bool there = begin + own < end && n < outputs;
      copy_16(parked + (own * 2 * TILES + part) * THREADS * 16,
              words + (there ? (size_t)n * width + (begin + own) * 16 + c * 4 : 0), there);
    }
  const int parts = max(0, min(PARTS, ROWS / 8 * NT - rank * PARTS));  // that end here
  if (threadIdx.x == 0) expect(barrier, (CLUSTER - 1) * parts * 2048);
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#pragma unroll
  for (int own = 0; own < GROUPS; own++)
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const int n = first + local + t * 64;
      const bool there = begin + own < end;
      const unsigned low = there && n < outputs ? scales[(size_t)n * groups + begin + own] : 0;
      const unsigned high = there && n + 8 < outputs ? scales[(size_t)(n + 8) * groups + begin + own] : 0;
      store_4(parked_scales + (own * TILES + t) * THREADS, low | high << 16);  // of outputs g and g + 8: four lanes' own
    }
  // What the end needs besides the sums is asked for early: norm's weights and bias before the wait, the stream behind it.
  // There, lanes of even g have a row and those of odd g the next one, of outputs n, n + 1, n + 8 and n + 9.
  int rows_of[EACH], outputs_of[EACH];
  float2 gammas[END == ADD ? EACH : 1][2], before[END == ADD ? EACH : 1][2];
  unsigned biases[EACH][2];
#pragma unroll
  for (int q = 0; q < EACH; q++) {
    const int part = rank * PARTS + team + q * TEAMS, m = part / NT * 8 + 2 * c + (g & 1);
    const int n = first + part % NT * 64 + (warp & 3) * 16 + (g & ~1);
    const bool there = team + q * TEAMS < parts && m < rows && n < outputs;
    rows_of[q] = there ? m : -1, outputs_of[q] = n;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (END == ADD) gammas[q][h] = there && gamma ? __ldg((const float2*)(gamma + n + 8 * h)) : make_float2(0, 0);
      biases[q][h] = there && bias ? __ldg((const unsigned*)(bias + n + 8 * h)) : 0;
    }
  }
  if (pdl) asm volatile("griddepcontrol.launch_dependents; griddepcontrol.wait;" ::: "memory");

  auto fetch = [&](int turn) {
    const unsigned stage = shared + turn % STAGES * STAGE;
    if (PLACED) {
      constexpr int CHUNKS = TURN * ROWS * 16;
#pragma unroll
      for (int q = 0; q < (CHUNKS + THREADS - 1) / THREADS; q++) {
        const int chunk = threadIdx.x + q * THREADS, line = chunk / 16, k = chunk % 16, m = line % ROWS, j = line / ROWS;
        if (CHUNKS % THREADS && chunk >= CHUNKS) break;
        const bool there = m < rows && begin + turn * TURN + j < end;
        const half_bits* at = x + (there ? (size_t)m * inputs + (begin + turn * TURN + j) * 128 + k * 8 : 0);
        copy_16(stage + (j * 2 + k / 8) * LINES + m * 128 + ((k % 8 ^ m % 8) << 4), at, there);
      }
    } else {  // a warp copies a row of a group: it reads 32 bytes side by side, and meets no bank twice
      const int part = lane & 7, slot = lane >> 3;
#pragma unroll
      for (int q = 0; q < (TURN * ROWS + WARPS - 1) / WARPS; q++) {
        const int line = warp + q * WARPS, m = line % ROWS, j = line / ROWS;
        if (TURN * ROWS % WARPS && line >= TURN * ROWS) break;
        const bool there = m < rows && begin + turn * TURN + j < end;
        const half_bits* at = x + (there ? (size_t)m * inputs + (begin + turn * TURN + j) * 128 + slot * 32 + part * 2 : 0);
        const unsigned to = stage + j * 2 * LINES + m * 128 + ((part ^ m % 8) << 4) + slot * 4;
        copy_4(to, at, there);
        copy_4(to + LINES, at + (there ? 16 : 0), there);
      }
    }
  };
#pragma unroll 1
  for (int turn = 0; turn < STAGES; turn++) {
    fetch(turn);
    end_of_copies();
  }
  if (END == ADD)
#pragma unroll
    for (int q = 0; q < EACH; q++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (rows_of[q] >= 0) before[q][h] = *(const float2*)((const float*)out + (size_t)rows_of[q] * outputs + outputs_of[q] + 8 * h);
  constexpr int OWN = (RANGE + WARPS - 1) / WARPS;  // rows whose squares a warp adds up
  const int from = rank * PARTS / NT * 8;
  float square[OWN];
  if (NORM)
#pragma unroll
    for (int r = 0; r < OWN; r++) {
      square[r] = 0;
      const int m = from + warp + r * WARPS;
      if (warp + r * WARPS < RANGE && m < rows)
        for (int i = lane; i < inputs / 64; i += 32) {
          const float4 four = *((const float4*)(squares + (size_t)m * (inputs / 16)) + i);
          square[r] += four.x + four.y + four.z + four.w;
        }
    }

  float total[TILES][ROWS / 2];
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int i = 0; i < ROWS / 2; i++) total[t][i] = 0;
  unsigned a[2][2][4];  // the weights of a quarter of a group, and those that are being multiplied
#pragma unroll 1
  for (int turn = 0; turn < TURNS; turn++) {
    wait_for_copies(turn < 2 ? STAGES - 1 - turn : STAGES - 3);  // for those of this turn; later ones may be under way
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads x by another way than copies write it
    __syncthreads();
    // Two turns ago nobody multiplies any more: before that barrier, two quarters of a group were the most under way.
    if (turn >= 2) {
      if (turn - 2 + STAGES < TURNS) fetch(turn - 2 + STAGES);
      end_of_copies();  // of nothing, too: what may be under way is counted
    }
#pragma unroll
    for (int j = 0; j < TURN; j++)
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        const int own = turn * TURN + j;
        const uint4 upper = load_16(parked + (own * 2 * TILES + 2 * t) * THREADS * 16);
        const uint4 lower = load_16(parked + (own * 2 * TILES + 2 * t + 1) * THREADS * 16);
        const unsigned both = load_4(parked_scales + (own * TILES + t) * THREADS);
        const unsigned s0 = __byte_perm(both, 0, 0x1010), s1 = __byte_perm(both, 0, 0x3232);
        const unsigned lines = shared + turn % STAGES * STAGE + j * 2 * LINES;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          wait_for_products<1>();  // of the quarter before the last: its registers are used again
          unsigned u[4], l[4];
          unpack(word(upper, i), u);
          unpack(word(lower, i), l);
#pragma unroll
          for (int p = 0; p < 4; p++) {
            a[i & 1][p / 2][p % 2 * 2] = product(u[p], s0);
            a[i & 1][p / 2][p % 2 * 2 + 1] = product(l[p], s1);
          }
          before_products();
          const unsigned at = lines + i / 2 * LINES + i % 2 * 64;
          multiply<ROWS>(total[t], a[i & 1][0], descriptor(at));
          multiply<ROWS>(total[t], a[i & 1][1], descriptor(at + 32));
          end_of_products();
        }
      }
  }
  wait_for_products<0>();

  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");  // all expect what comes now, since long ago
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int j = 0; j < ROWS / 8; j++) {
      const int part = j * NT + team * TILES + t;
      const unsigned at = received + ((rank * PARTS + part % PARTS) * 128 + threadIdx.x % 128) * 16;
      if (part / PARTS == rank) store_16(at, &total[t][4 * j]);
      else send(part / PARTS, at, barrier, &total[t][4 * j]);
    }
  if (NORM) {
#pragma unroll
    for (int r = 0; r < OWN; r++) {
#pragma unroll
      for (int apart = 16; apart; apart /= 2) square[r] += __shfl_xor_sync(~0u, square[r], apart);
      if (lane == 0 && warp + r * WARPS < RANGE) factors[warp + r * WARPS] = 16.0f * rsqrtf(square[r] / inputs + eps);
    }
  }
  __syncthreads();
  wait_for_bytes(barrier);
#pragma unroll
  for (int q = 0; q < EACH; q++) {
    float4 v = make_float4(0, 0, 0, 0);
    if (team + q * TEAMS < parts)
#pragma unroll
      for (int i = 0; i < CLUSTER; i++) {
        const uint4 more = load_16(received + ((i * PARTS + team + q * TEAMS) * 128 + threadIdx.x % 128) * 16);
        v.x += __uint_as_float(more.x), v.y += __uint_as_float(more.y), v.z += __uint_as_float(more.z), v.w += __uint_as_float(more.w);
      }
    // A thread has outputs g and g + 8 of two rows. Neighbours exchange: of one row, two outputs and two more.
    const bool odd = g & 1;
    const float one = __shfl_xor_sync(~0u, odd ? v.x : v.y, 4), other = __shfl_xor_sync(~0u, odd ? v.z : v.w, 4);
    float2 two[2] = {odd ? make_float2(one, v.y) : make_float2(v.x, one), odd ? make_float2(other, v.w) : make_float2(v.z, other)};
    const int m = rows_of[q], n = outputs_of[q];
    float sum = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float low = two[h].x, high = two[h].y;
      if (NORM && m >= 0) low *= factors[m - from], high *= factors[m - from];
      low += to_float(biases[q][h]), high += to_float(biases[q][h] >> 16);
      const size_t row = (size_t)m * outputs;
      if (END == PLAIN && m >= 0) *(unsigned*)((half_bits*)out + row + n + 8 * h) = pair(low, high);
      if (END == SILU && m >= 0) ((half_bits*)out)[row / 2 + place(n / 2 + 4 * h)] = to_half(low / (1.0f + __expf(-low)) * high);
      if (END == ADD && m >= 0) {
        low += before[q][h].x, high += before[q][h].y;
        *(float2*)((float*)out + row + n + 8 * h) = make_float2(low, high);
        if (gamma) *(unsigned*)(next + row + place(n + 8 * h)) = pair(low * gammas[q][h].x * 0.0625f, high * gammas[q][h].y * 0.0625f);
        sum += low * low + high * high;
      }
    }
    if (END == ADD && gamma) {  // four lanes have 16 outputs of a row
      sum += __shfl_xor_sync(~0u, sum, 8);
      sum += __shfl_xor_sync(~0u, sum, 16);
      if (m >= 0 && g < 2) squares[(size_t)m * (outputs / 16) + n / 16] = sum;
    }
  }
}
