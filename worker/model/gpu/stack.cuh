// What `int4_stack.cu` is made of: barriers that count bytes, copies that arrive at them, and packets.
#pragma once

typedef unsigned long long bits64;

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void prepare(bits64* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(bits64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void expect(bits64* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(bits64* barrier, unsigned parity) {
  asm volatile(
      "{.reg .pred there; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1; @!there bra AGAIN;}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy(void* to, const void* from, int bytes, bits64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
__device__ __forceinline__ void after_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void together(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

__device__ __forceinline__ void put(bits64* to, unsigned what, unsigned turn) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((bits64)turn << 32 | what) : "memory");
}
// Two packets: what, turn, what, turn.
__device__ __forceinline__ uint4 asked(const bits64* from) {
  bits64 a, b;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
  return make_uint4((unsigned)a, (unsigned)(a >> 32), (unsigned)b, (unsigned)(b >> 32));
}

// Numbers that go into a product travel in the pairs that share a byte of the weights, in the order of the bytes: of eight
// inputs 0 and 2, 4 and 6, 1 and 3, 5 and 7. The packet of the first of a pair:
__device__ __forceinline__ int place(int input) { return input / 8 * 4 + (input & 1) * 2 + (input >> 2 & 1); }

// The product of a byte 16 h + l of the weights, h and l codes of two inputs, with numbers x of l and y of h:
//
//     l x + h y = (16 h + l) (y / 16) + l (x - y / 16)
//
// so bytes go into an integer mma as they are, and once more with h masked out: an instruction a word in place of the nine
// that make fp16 of it. x - y / 16 and y / 16 are integers of 24 bits in a unit of 2^-21 of the group's largest number or
// less, cut into three signed bytes: one is a column of the mma each, and of its eight columns one row needs but one else.
constexpr int DIGITS = 2 * 3 * 64;  // bytes of a group: high and low, the digits from the greatest on, the words' bytes
constexpr int ZERO = 0x4B400000;    // added to an integer of 22 bits it makes a float of 1.5 * 2^23 and the integer

// A lane has the pairs of two bytes of a group, 2 * lane and the next one. Returns the unit; not a number where x is not
// finite.
__device__ __forceinline__ float digits(unsigned first, unsigned second, char* to, int lane) {
  unsigned most;
  asm("max.u16x2 %0, %1, %2;" : "=r"(most) : "r"(first & 0x7FFF7FFF), "r"(second & 0x7FFF7FFF));
  most = max(most & 0xFFFF, most >> 16);
  asm volatile("redux.sync.max.u32 %0, %0, 0xffffffff;" : "+r"(most));
  const int exponent = most >> 10;
  const float times = __int_as_float((127 + 35 - exponent) << 23), sixteenth = times * 0.0625f, zero = __int_as_float(ZERO);
  int low[2], high[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const unsigned pair = i ? second : first;
    high[i] = __float_as_int(fmaf(to_float((half_bits)(pair >> 16)), sixteenth, zero)) - ZERO;
    low[i] = __float_as_int(fmaf(to_float((half_bits)pair), times, zero)) - ZERO - high[i];
    high[i] += 0x808080;  // bytes with 128 added to each: without it they are signed
    low[i] += 0x808080;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int* of = i ? low : high;
    const unsigned greatest = __byte_perm(of[0], of[1], 0x4462) ^ 0x8080, rest = __byte_perm(of[0], of[1], 0x4051) ^ 0x80808080;
    half_bits* at = (half_bits*)(to + i * 192) + lane;
    at[0] = (half_bits)greatest;
    at[32] = (half_bits)rest;
    at[64] = (half_bits)(rest >> 16);
  }
  return exponent == 31 ? __int_as_float(0x7FFFFFFF) : __int_as_float((127 - 35 + exponent) << 23);
}

__device__ __forceinline__ void multiply(int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                         unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A group of x as lane (g, c) multiplies it: column g is a digit, of words 4 c to 4 c + 3.
struct Digits {
  uint4 high, low;
  int first[2];         // what a sum begins with: ZERO, less what 8 in place of 0 takes from it
  float weight, second;  // of the columns that this lane has of a sum: of digits 0 and 1, or of digit 2

  __device__ __forceinline__ Digits(const char* from, float unit, int g, int c) {
    const char* at = from + min(g, 2) * 64 + c * 16;
    high = *(const uint4*)at;
    low = *(const uint4*)(at + 192);
    int d[4] = {};
    const unsigned eights = 0x88888888, eight = 0x08080808;
    multiply(d, eights, eights, eights, eights, high.x, high.y);
    multiply(d, eights, eights, eights, eights, high.z, high.w);
    multiply(d, eight, eight, eight, eight, low.x, low.y);
    multiply(d, eight, eight, eight, eight, low.z, low.w);
    first[0] = ZERO - d[0];
    first[1] = ZERO - d[1];
    weight = c == 0 ? 65536.0f * unit : c == 1 ? unit : 0.0f;
    second = c == 0 ? 256.0f * unit : 0.0f;
  }
  __device__ __forceinline__ float value(int a, int b) const {
    const float zero = __int_as_float(ZERO);
    return (__int_as_float(a) - zero) * weight + (__int_as_float(b) - zero) * second;
  }
};
