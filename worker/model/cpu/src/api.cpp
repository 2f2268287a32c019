// What Python calls, through ctypes: the choice of the instruction set, and one function for each job of the model.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "pool.h"
#include "types.h"

namespace {

const Kernels *kernels = nullptr;

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}

// Memory of one call: rows of floats, and the same in 8 bits.
struct Floats {
    std::unique_ptr<float[]> data;
    explicit Floats(int64_t count) : data(new float[count]) {}
    float *row(int64_t index, int64_t width) { return data.get() + index * width; }
};
struct Codes {
    Rows rows;
    std::unique_ptr<int8_t[]> codes;
    std::unique_ptr<float[]> scales;
    std::unique_ptr<int32_t[]> sums;
    Codes(int count, const Packed &weight)
        : rows{nullptr, nullptr, nullptr, count, weight.blocks()}, codes(new int8_t[int64_t(count) * rows.blocks * BLOCK]),
          scales(new float[int64_t(count) * rows.blocks]), sums(new int32_t[int64_t(count) * rows.blocks]) {
        rows.codes = codes.get(), rows.scales = scales.get(), rows.minus_sums = sums.get();
    }
};

// Units of work that a thread takes at a time: an eighth of its fair share.
int chunk(int total, const Team &team) { return total / (8 * team.size) > 1 ? total / (8 * team.size) : 1; }

void multiply(Team &team, int phase, const Packed &weight, const Codes &x, const Target &y) {
    team.share(phase, weight.panels(), chunk(weight.panels(), team),
               [&](int from, int to) { kernels->product(weight, x.rows, from, to, y); });
}

struct LinearJob {
    const Packed &weight;
    const void *x;
    Dtype dtype;
    Target y;
    Codes codes;
};

void linear(Team &team, void *arguments) {
    auto &job = *static_cast<LinearJob *>(arguments);
    const int64_t row_bytes = int64_t(job.weight.in) * (job.dtype == F32 ? 4 : 2);
    team.share(0, job.codes.rows.rows, 1, [&](int row, int) {
        kernels->quantize((const char *)job.x + row * row_bytes, job.dtype, job.weight.in, job.codes.rows, row, 0,
                          job.codes.rows.blocks);
    });
    multiply(team, 1, job.weight, job.codes, job.y);
}

struct DenseJob {
    const Dense &weight;
    const float *x;
    int rows;
    float *y;
};

void dense(Team &team, void *arguments) {
    auto &job = *static_cast<DenseJob *>(arguments);
    team.share(0, job.weight.out, 256,
               [&](int from, int to) { kernels->dense(job.weight, job.x, job.rows, from, to, job.y); });
}

}  // namespace

// A layer of the decoder, less its attention.
struct Layer {
    const float *ln_1, *ln_2;
    const Packed *c_attn, *attn_c_proj, *w1, *w2, *mlp_c_proj;
    float eps;
};

namespace {

struct NormJob {
    const float *hidden, *norm;
    float eps;
    const Packed &weight;
    Target y;
    Floats normed;
    Codes codes;
};

void norm_rows(Team &team, int phase, const float *hidden, const float *norm, float eps, int width, Floats &normed,
               Codes &codes) {
    team.share(phase, codes.rows.rows, 1, [&](int row, int) {
        kernels->rms_norm(hidden + int64_t(row) * width, norm, eps, width, normed.row(row, width));
        kernels->quantize(normed.row(row, width), F32, width, codes.rows, row, 0, codes.rows.blocks);
    });
}

void norm_linear(Team &team, void *arguments) {
    auto &job = *static_cast<NormJob *>(arguments);
    norm_rows(team, 0, job.hidden, job.norm, job.eps, job.weight.in, job.normed, job.codes);
    multiply(team, 1, job.weight, job.codes, job.y);
}

struct AfterJob {
    const Layer &layer;
    const float *mixed;
    float *hidden;
    Floats normed, up, gate;
    Codes attended, narrow, wide;
};

void after(Team &team, void *arguments) {
    auto &job = *static_cast<AfterJob *>(arguments);
    const Layer &layer = job.layer;
    const int rows = job.attended.rows.rows, width = layer.w1->in, inner = layer.w1->out;
    const Target residual{job.hidden, width, F32, true};
    team.share(0, rows, 1, [&](int row, int) {
        const int in = layer.attn_c_proj->in;
        kernels->quantize(job.mixed + int64_t(row) * in, F32, in, job.attended.rows, row, 0, job.attended.rows.blocks);
    });
    multiply(team, 1, *layer.attn_c_proj, job.attended, residual);
    norm_rows(team, 2, job.hidden, layer.ln_2, layer.eps, width, job.normed, job.narrow);
    const int panels = layer.w1->panels();  // of w1 and, behind them, of w2
    const Target up{job.up.data.get(), inner, F32, false}, gate{job.gate.data.get(), inner, F32, false};
    team.share(3, 2 * panels, chunk(2 * panels, team), [&](int from, int to) {
        if (from < panels) kernels->product(*layer.w1, job.narrow.rows, from, to < panels ? to : panels, up);
        if (to > panels) kernels->product(*layer.w2, job.narrow.rows, from > panels ? from - panels : 0, to - panels, gate);
    });
    // Split by blocks too: with one row the other threads would wait.
    const int blocks = job.wide.rows.blocks, parts = (blocks + 15) / 16;
    team.share(4, rows * parts, 1, [&](int unit, int) {
        const int row = unit / parts, first = unit % parts * 16, last = first + 16 < blocks ? first + 16 : blocks;
        const int at = first * BLOCK, end = last * BLOCK < inner ? last * BLOCK : inner;
        float *mine = job.up.row(row, inner);
        kernels->gate(mine + at, job.gate.row(row, inner) + at, end - at, mine + at);
        kernels->quantize(mine, F32, inner, job.wide.rows, row, first, last);
    });
    multiply(team, 5, *layer.mlp_c_proj, job.wide, residual);
}

}  // namespace

// One row of a batch that attends: where it writes its key and value, how much it sees, and the blocks of its sequence.
struct Place {
    int64_t slot;
    const int64_t *blocks;
    int32_t length;
};

// The attention of a step: its rows, of which the first `attending` want an answer, and the cache of every layer.
struct Attention {
    const float *cos, *sin;  // [rows][dim], the sine with the sign of the rotation
    void *const *keys, *const *values;
    const Place *places;
    int32_t rows, attending, heads, dim, block_size;
    Dtype dtype;  // of the cache
};

namespace {

struct AttendJob {
    const Attention &step;
    const float *qkv;  // [rows][3 * heads][dim]
    void *keys, *values;
    int longest;
    float *mixed;
};

void rotate(const float *x, const float *cos, const float *sin, int dim, float *y) {
    const int half = dim / 2;
    for (int i = 0; i < half; i++) {
        y[i] = x[i] * cos[i] + x[i + half] * sin[i];
        y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
}

void attend(Team &team, void *arguments) {
    auto &job = *static_cast<AttendJob *>(arguments);
    const Attention &step = job.step;
    const int heads = step.heads, dim = step.dim, width = heads * dim;
    // Keys and values of all rows first: a row of a prompt sees the rows before it.
    team.share(0, step.rows, 16, [&](int from, int to) {
        Floats turned(dim);
        for (int row = from; row < to; row++) {
            const float *x = job.qkv + int64_t(row) * 3 * width;
            const int64_t at = step.places[row].slot * width;
            for (int i = 0; i < width; i += dim) {
                rotate(x + width + i, step.cos + row * dim, step.sin + row * dim, dim, turned.data.get());
                kernels->keep(turned.data.get(), dim, step.dtype, job.keys, at + i);
            }
            kernels->keep(x + 2 * width, width, step.dtype, job.values, at);
        }
    });
    // All heads of a row at a time, where there are rows enough for all threads; their results do not depend on it.
    const int parts = step.attending >= 4 * team.size || heads < 2 * team.size ? 1 : 2 * team.size;
    const int stride = (job.longest + 15) / 16 * 16, most = (heads + parts - 1) / parts;
    Floats weights(int64_t(most) * stride), queries(most * dim);
    team.share(1, step.attending * parts, 1, [&](int unit, int) {
        const int row = unit / parts, part = unit % parts;
        const int first = heads * part / parts, count = heads * (part + 1) / parts - first;
        const Place &place = step.places[row];
        for (int head = 0; head < count; head++)
            rotate(job.qkv + int64_t(row) * 3 * width + (first + head) * dim, step.cos + row * dim, step.sin + row * dim,
                   dim, queries.row(head, dim));
        kernels->attend({job.keys, job.values, place.blocks, step.block_size, heads, dim, step.dtype},
                        {first, count, queries.data.get()}, place.length, weights.data.get(), stride,
                        job.mixed + int64_t(row) * width + first * dim);
    });
}

struct CandidatesJob {
    const float *scores;
    int64_t stride;
    const Choice *choices;
    int rows, vocabulary;
    int64_t *ids;
    double *logs;
    int32_t *counts;
};

void candidates(Team &team, void *arguments) {
    auto &job = *static_cast<CandidatesJob *>(arguments);
    team.share(0, job.rows, 1, [&](int row, int) {
        const int64_t at = int64_t(row) * job.vocabulary;
        job.counts[row] = kernels->candidates(job.scores + row * job.stride, job.vocabulary, job.choices[row],
                                              job.ids + at, job.logs + at);
    });
}

}  // namespace

extern "C" {

// The kernels to use from now on: by name, or the best for null. The name of those in use; null when the CPU has not
// what they need.
const char *qwenq_use(const char *name) {
    for (const Kernels *known : {&avx512_kernels, &avx2_kernels})
        if ((!name || !strcmp(name, known->name)) && (known == &avx512_kernels ? has_avx512() : has_avx2()))
            return (kernels = known)->name;
    return nullptr;
}

void qwenq_linear(const Packed *weight, const void *x, int32_t dtype, int32_t rows, void *y, int32_t threads) {
    LinearJob job{*weight, x, Dtype(dtype), {y, weight->out, Dtype(dtype), false}, Codes(rows, *weight)};
    run(threads, linear, &job);
}


void qwenq_dense(const Dense *weight, const float *x, int32_t rows, float *y, int32_t threads) {
    DenseJob job{*weight, x, rows, y};
    run(threads, dense, &job);
}

// hidden [rows][H] -> queries, keys and values of the layer, [rows][3 * H].
void qwenq_before_attention(const Layer *layer, const float *hidden, int32_t rows, float *qkv, int32_t threads) {
    const Packed &weight = *layer->c_attn;
    NormJob job{hidden, layer->ln_1, layer->eps, weight, {qkv, weight.out, F32, false},
                Floats(int64_t(rows) * weight.in), Codes(rows, weight)};
    run(threads, norm_linear, &job);
}

// hidden += c_proj(mixed); hidden += mlp(norm(hidden))
void qwenq_after_attention(const Layer *layer, const float *mixed, float *hidden, int32_t rows, int32_t threads) {
    const int64_t inner = int64_t(rows) * layer->w1->out;
    AfterJob job{*layer, mixed, hidden, Floats(int64_t(rows) * layer->w1->in), Floats(inner), Floats(inner),
                 Codes(rows, *layer->attn_c_proj), Codes(rows, *layer->w1), Codes(rows, *layer->mlp_c_proj)};
    run(threads, after, &job);
}

// queries, keys and values of one layer [rows][3 * heads][dim] -> mixed [attending][heads][dim].
void qwenq_attend(const Attention *step, int32_t layer, const float *qkv, float *mixed, int32_t threads) {
    AttendJob job{*step, qkv, step->keys[layer], step->values[layer], 0, mixed};
    for (int row = 0; row < step->attending; row++)
        job.longest = step->places[row].length > job.longest ? step->places[row].length : job.longest;
    run(threads, attend, &job);
}

// hidden [rows][H] through all layers, where every row attends.
void qwenq_layers(const Layer *const *layers, int32_t count, const Attention *step, float *hidden, int32_t threads) {
    const int64_t width = int64_t(step->heads) * step->dim;
    Floats qkv(step->rows * 3 * width), mixed(step->rows * width);
    for (int layer = 0; layer < count; layer++) {
        qwenq_before_attention(layers[layer], hidden, step->rows, qkv.data.get(), threads);
        qwenq_attend(step, layer, qkv.data.get(), mixed.data.get(), threads);
        qwenq_after_attention(layers[layer], mixed.data.get(), hidden, step->rows, threads);
    }
}

// scores [rows][vocabulary], `stride` from row to row -> counts [rows]; ids and logs [rows][vocabulary].
void qwenq_candidates(const float *scores, int64_t stride, const Choice *choices, int32_t rows, int32_t vocabulary,
                      int64_t *ids, double *logs, int32_t *counts, int32_t threads) {
    CandidatesJob job{scores, stride, choices, rows, vocabulary, ids, logs, counts};
    run(threads, candidates, &job);
}
}
