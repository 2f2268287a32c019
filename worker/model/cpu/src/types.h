// What the kernels of all instruction sets share: the packed weight, quantised activations, and the table of functions.
#pragma once
#include <cstdint>

constexpr int PANEL = 32;  // outputs that are stored and computed together
constexpr int BLOCK = 32;  // inputs that share one scale of the activations

enum Dtype : int32_t { F32 = 0, BF16 = 1, F16 = 2 };

// A matrix of 4- or 8-bit codes: w = scale * (code - zero). Inputs are padded to blocks and outputs to panels.
//   codes   [panel][input / 8 (4 bits) or / 4 (8 bits)][PANEL][4]; with 4 bits a byte's low half is input 8i + e and its
//           high half is input 8i + 4 + e
//   scales  fp16 [panel][group][PANEL]
//   zeros   zero point minus one [panel][group][PANEL], or null where all are 2**(bits - 1)
struct Packed {
    const uint8_t *codes;
    const uint16_t *scales;
    const uint8_t *zeros;
    const float *bias;  // [out], or null
    int32_t in, out, group, bits;

    int blocks() const { return (in + BLOCK - 1) / BLOCK; }
    int groups() const { return (in + group - 1) / group; }
    int panels() const { return (out + PANEL - 1) / PANEL; }
    int64_t panel_bytes() const { return int64_t(blocks()) * BLOCK * PANEL * bits / 8; }
};

// Rows of activations in 8 bits, x = scale * code: codes [row][block][BLOCK]; scale and sum [row][block].
struct Rows {
    int8_t *codes;
    float *scales;
    int32_t *minus_sums;  // minus the sum of a block's codes
    int32_t rows, blocks;
};

// Where a product goes: [row][out], `stride` elements from row to row. With `add` it is added to what is there (F32).
struct Target {
    void *data;
    int64_t stride;
    Dtype dtype;
    bool add;
};

// A plain 16-bit matrix [out][in].
struct Dense {
    const uint16_t *weight;
    int32_t in, out;
    Dtype dtype;
};

// Keys and values of one sequence in one layer: fp32 or fp16 [slot][head][dim], where a slot is a block times its size
// plus a place in it. `dim` is a multiple of 16.
struct Pages {
    const void *keys, *values;
    const int64_t *blocks;
    int32_t block_size, heads, dim;
    Dtype dtype;

    int64_t slot(int position) const { return blocks[position / block_size] * block_size + position % block_size; }
};

// Some heads of a row: `count` from `first` on, and their queries [count][dim].
struct Heads {
    int first, count;
    const float *queries;
};

// How a row's token is drawn; `top_k` is 0 where all may be.
struct Choice {
    double temperature, top_p;
    int64_t top_k;
};

struct Kernels {
    const char *name;
    // x [features] of one row, blocks `from` to `to` of it.
    void (*quantize)(const void *x, Dtype dtype, int features, const Rows &rows, int row, int from, int to);
    void (*product)(const Packed &weight, const Rows &x, int from_panel, int to_panel, const Target &y);
    void (*dense)(const Dense &weight, const float *x, int rows, int from_out, int to_out, float *y);
    void (*rms_norm)(const float *x, const float *weight, float eps, int features, float *y);
    // y = up * silu(gate)
    void (*gate)(const float *up, const float *gate, int features, float *y);
    void (*attend)(const Pages &pages, const Heads &heads, int length, float *weights, int stride, float *y);
    void (*keep)(const float *x, int count, Dtype dtype, void *y, int64_t at);
    int (*candidates)(const float *scores, int count, const Choice &how, int64_t *ids, double *logs);
};

extern const Kernels avx2_kernels, avx512_kernels;
