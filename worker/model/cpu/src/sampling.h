// The candidates of a draw: what top-k and top-p leave of a row of scores, as `worker/engine/sampler.py` says.
//
// Few of the vocabulary's tokens are near the best. So it is read once for the sum of all, and then by bands below the
// best, which end half as far again from it each time, until what was found is enough. Only the last band is sorted.
#pragma once
#include <algorithm>
#include <memory>

namespace {

struct Found {
    float score;
    int32_t id;
    double mass;  // e**((score - best) / temperature)
};

constexpr float LEAST = -3.4028235e38f;  // that is finite

inline double within(double x, double least, double most) { return x < least ? least : x > most ? most : x; }

// The next 16 of `left` scores; behind the last stands what is never chosen.
inline F next(const float *scores, int left) {
    if (left >= 16) return load(scores);
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = i < left ? scores[i] : -INFINITY;
    return load(lanes);
}

// The best score, and how many there are that may be chosen at all: that are not minus infinity.
struct Best {
    float score;
    int choosable;
    Best(const float *scores, int count) : choosable(0) {
        F top = splat(-INFINITY);
        for (int i = 0; i < count; i += 16) {
            const F x = next(scores + i, count - i);
            top = max(top, x);
            choosable += __builtin_popcount(at_least(x, splat(LEAST)));
        }
        score = highest(top);
    }
};

// The sum of e**((score - best) / temperature): fp32 within 1,024 scores, in double from there on.
inline double mass_of(const float *scores, int count, float best, float inverse) {
    double sum = 0;
    for (int from = 0; from < count; from += 1024) {
        F part = zero();
        for (int i = from; i < from + 1024 && i < count; i += 16)
            part = add(part, exponential(mul(sub(next(scores + i, count - i), splat(best)), splat(inverse))));
        sum += total(part);
    }
    return sum;
}

// The candidates' ids and logarithms of masses, each with room for `count`, and how many there are; -1 where even forty
// bands do not reach far enough. Those of a band stand in the order of their ids, which says nothing of their masses.
int candidates(const float *scores, int count, const Choice &how, int64_t *ids, double *logs) {
    constexpr int BANDS = 40;
    constexpr double WIDER = 1.5;
    const Best of_all(scores, count);
    const float best = of_all.score;
    const bool some = how.top_k > 0 && how.top_k < count;
    // What the best are a part of: all, or where top-k says how many, those.
    double everything =
        some ? 0 : mass_of(scores, count, best, float(1 / within(how.temperature, 1e-30, 1e30)));
    std::unique_ptr<Found[]> found(new Found[count]);
    int have = 0, inner = 0;  // the candidates, and those of them in all bands but the last
    double mass = 0, inner_mass = 0, reach = how.temperature;
    float above = INFINITY;
    bool settled = false;
    for (int band = 0; band < BANDS && !settled; band++, reach *= WIDER) {
        const float least = float(within(best - reach, LEAST, best));  // minus infinity is never chosen
        inner = have, inner_mass = mass;
        for (int i = 0; i < count; i += 16) {
            const F x = next(scores + i, count - i);
            for (uint32_t hits = at_least(x, splat(least)) & ~at_least(x, splat(above)); hits; hits &= hits - 1) {
                const int id = i + __builtin_ctz(hits);
                found[have++] = {scores[id], id, std::exp(double(scores[id] - best) / how.temperature)};
                mass += found[have - 1].mass;
            }
        }
        const bool enough = some ? have >= how.top_k : how.top_p < 1 && mass >= how.top_p * everything;
        settled = enough || have >= of_all.choosable;
        above = least;
    }
    if (!settled) return -1;
    // All but those of the last band are candidates, unless top-p leaves some of the k best.
    if (some && how.top_p < 1) inner = 0, inner_mass = 0;
    std::sort(found.get() + inner, found.get() + have, [](const Found &a, const Found &b) {
        return a.score > b.score || (a.score == b.score && a.id < b.id);
    });
    if (some) {
        int last = how.top_k < have ? int(how.top_k) : have;
        while (last < have && found[last].score == found[last - 1].score) last++;
        have = last;
        for (int i = 0; i < have; i++) everything += found[i].mass;
    }
    int kept = inner;
    for (double before = inner_mass; kept < have && (how.top_p >= 1 || before < how.top_p * everything); kept++)
        before += found[kept].mass;
    for (int i = 0; i < kept; i++) {
        ids[i] = found[i].id;
        logs[i] = double(found[i].score - best) / how.temperature;
    }
    return kept;
}

}  // namespace
