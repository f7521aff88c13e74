/* Causal attention whose scores never leave the nearest cache: 8 queries meet 512 keys, the softmax is made, and its
 * probabilities meet the values (FlashAttention-2, Dao 2023, arXiv 2307.08691). */
#include "common.h"

enum { GROUP = 8, LANE = 16, PACKED = 32, SPAN = 512, STRIP = 528, BLOCK = 64, BACK_SPAN = 256, BACK_STRIP = 272, MOST_WIDTH = 512 }; /* a strip's rows lie in different sets of the cache */
static const float OUT_OF_SIGHT = -1e30f;

typedef float vector __attribute__((vector_size(64)));
typedef float anywhere __attribute__((vector_size(64), aligned(4), may_alias));
INLINE vector load(const float *x) { return *(const anywhere *)x; }
INLINE void store(float *x, vector y) { *(anywhere *)x = y; }

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* strip [8, step] begins with queries [width, 8] times packed keys [width, 32]. */
INLINE void meet_keys(long width, const float *q, const float *k, float *strip, const long step) {
#define ZERO(i) vector a##i = {0}, b##i = {0};
#define ADD(i) a##i += q[c * GROUP + i] * k0, b##i += q[c * GROUP + i] * k1;
#define PUT(i) store(strip + i * step, a##i), store(strip + i * step + LANE, b##i);
    EACH(ZERO)
    for (long c = 0; c < width; c++) {
        vector k0 = load(k + c * PACKED), k1 = load(k + c * PACKED + LANE);
        EACH(ADD)
    }
    EACH(PUT)
#undef ZERO
#undef ADD
#undef PUT
}

/* Transpose x [8, width]. */
INLINE void turn(long width, const float *x, float *across) {
    for (long c = 0; c < width; c++)
        for (long i = 0; i < GROUP; i++) across[c * GROUP + i] = x[i * width + c];
}

/* 32 channels of out [8, channels] = factors [8] out + strip [8, keys] v [keys, channels], of which row i takes the first
 * `seen` + i: the others may hold a NaN. */
INLINE void meet_values(long seen, long keys, long channels, const float *strip, const long step, const float *v, const float *factors, float *out) {
#define GET(i) vector a##i = factors[i] * load(out + i * channels), b##i = factors[i] * load(out + i * channels + LANE);
#define ADD(i) a##i += strip[i * step + j] * v0, b##i += strip[i * step + j] * v1;
#define ADD_SEEN(i) if (j < seen + i) { ADD(i) }
#define PUT(i) store(out + i * channels, a##i), store(out + i * channels + LANE, b##i);
    EACH(GET)
    long j = 0;
    for (; j < least(seen, keys); j++) {
        vector v0 = load(v + j * channels), v1 = load(v + j * channels + LANE);
        EACH(ADD)
    }
    for (; j < keys; j++) {
        vector v0 = load(v + j * channels), v1 = load(v + j * channels + LANE);
        EACH(ADD_SEEN)
    }
    EACH(PUT)
#undef GET
#undef ADD
#undef ADD_SEEN
#undef PUT
}

/* The first `seen` products of a row become e^(score - largest). Returns the factor of what has been added up before. */
INLINE float make_probabilities(long seen, float scale, float cap, float *p, float *largest, float *total) {
    long to = ceil_div(seen, LANE) * LANE;
    float before = *largest, most = before, sum = 0.0f;
    if (cap > 0.0f) {
#pragma GCC ivdep
        for (long j = 0; j < to; j++) p[j] = cap * hyperbolic_tangent(scale / cap * p[j]);
    } else {
#pragma GCC ivdep
        for (long j = 0; j < to; j++) p[j] *= scale;
    }
    for (long j = seen; j < to; j++) p[j] = OUT_OF_SIGHT;
#pragma omp simd reduction(max : most)
    for (long j = 0; j < to; j++) most = p[j] > most ? p[j] : most;
#pragma GCC ivdep
    for (long j = 0; j < to; j++) {
        p[j] = exponential(p[j] - most);
        sum += p[j];
    }
    if (most <= OUT_OF_SIGHT) { /* as what is not seen: scores that are as good as -inf */
        sum = 0.0f;
        for (long j = 0; j < seen; j++) sum += p[j];
    }
    float factor = most > before ? exponential(before - most) : 1.0f;
    *largest = most;
    *total = *total * factor + sum;
    return factor;
}

/* Queries q [groups, repeats, queries, width], of which query i stands at key i + ahead, or past the last key where the
 * queries are padded, meet the keys up to theirs, packed as [.., width, 32] for every 32, and values [groups, keys,
 * channels]. Adds probabilities times their values to `out`, relative to `largest`, and probabilities to `total`. Scores
 * are cap tanh(scale x / cap), or scale x without a cap (0). */
KERNEL attention_forward(long groups, long repeats, long queries, long ahead, long keys, long width, long channels,
    float scale, float cap, const float *q SHAPE(groups, repeats, queries, width),
    const float *k SHAPE(groups, ceil_div(keys, PACKED), width, PACKED), const float *v SHAPE(groups, keys, channels),
    float *out SHAPE(groups, repeats, queries, channels), float *largest SHAPE(groups, repeats, queries),
    float *total SHAPE(groups, repeats, queries), int threads)
    REQUIRE(queries % GROUP == 0, channels % PACKED == 0, width <= MOST_WIDTH, cap >= 0) {
    long blocks = ceil_div(queries, BLOCK), packed = ceil_div(keys, PACKED) * PACKED;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long item = 0; item < groups * blocks; item++) {
        long g = item % groups, first = (blocks - 1 - item / groups) * BLOCK; /* those with the most keys come first */
        long stop = least(queries, first + BLOCK), last = least(keys, stop + ahead);
        float strip[GROUP * STRIP], factors[GROUP], across[GROUP * MOST_WIDTH];
        for (long start = 0; start < last; start += SPAN) {
            long some = least(SPAN, last - start);
            for (long head = g * repeats; head < (g + 1) * repeats; head++)
                for (long row = head * queries + first; row < head * queries + stop; row += GROUP) {
                    long seen = row - head * queries + ahead + 1 - start, met = least(some, seen + GROUP - 1); /* by the first, by any */
                    if (met <= 0) continue;
                    turn(width, q + row * width, across);
                    for (long j = 0; j < met; j += PACKED)
                        meet_keys(width, across, k + (g * packed + start + j) * width, strip + j, STRIP);
                    for (long i = 0; i < GROUP; i++) {
                        long own = seen + i < 0 ? 0 : least(seen + i, met);
                        factors[i] = make_probabilities(own, scale, cap, strip + i * STRIP, largest + row + i, total + row + i);
                    }
                    for (long c = 0; c < channels; c += PACKED)
                        meet_values(seen, met, channels, strip, STRIP, v + (g * keys + start) * channels + c, factors, out + row * channels + c);
                }
        }
    }
}

/* 32 channels of out [8, channels] += strip [rows, 8] transposed times x [rows, channels], of which key i takes those from
 * row `first` + i on: the others may hold a NaN. */
INLINE void meet_rows(long first, long rows, long channels, const float *strip, const float *x, float *out) {
#define GET(i) vector a##i = load(out + i * channels), b##i = load(out + i * channels + LANE);
#define ADD(i) a##i += strip[r * BACK_STRIP + i] * x0, b##i += strip[r * BACK_STRIP + i] * x1;
#define ADD_SEEN(i) if (r >= first + i) { ADD(i) }
#define PUT(i) store(out + i * channels, a##i), store(out + i * channels + LANE, b##i);
    EACH(GET)
    long r = first < 0 ? 0 : first;
    for (; r < least(first + GROUP - 1, rows); r++) {
        vector x0 = load(x + r * channels), x1 = load(x + r * channels + LANE);
        EACH(ADD_SEEN)
    }
    for (; r < rows; r++) {
        vector x0 = load(x + r * channels), x1 = load(x + r * channels + LANE);
        EACH(ADD)
    }
    EACH(PUT)
#undef GET
#undef ADD
#undef ADD_SEEN
#undef PUT
}

/* The first `seen` products p of a row become probabilities, and the gradients g by these become those by products over
 * `scale`; the others, up to `keys`, become 0. */
INLINE void make_gradients(long seen, long keys, float scale, float cap, float log_sum, float along, float *p, float *g) {
    if (cap > 0.0f) {
#pragma GCC ivdep
        for (long j = 0; j < keys; j++) {
            float share = hyperbolic_tangent(scale / cap * p[j]);
            p[j] = exponential(cap * share - log_sum);
            g[j] = p[j] * (g[j] - along) * (1.0f - share * share);
        }
    } else {
#pragma GCC ivdep
        for (long j = 0; j < keys; j++) {
            p[j] = exponential(scale * p[j] - log_sum);
            g[j] = p[j] * (g[j] - along);
        }
    }
    if (seen < keys) {
        memset(p + seen, 0, (keys - seen) * sizeof(float));
        memset(g + seen, 0, (keys - seen) * sizeof(float));
    }
}

/* Gradients of attention_forward, added to dq, dk and dv: `packed_k` and `packed_v` are packed, `k` is not, and rows of
 * keys are padded to whole packs; those by q and k lack the factor `scale`. `log_sums` are the logarithms of the sums in
 * the softmaxes, `along` the sums of outputs times their gradients `dy`. */
KERNEL attention_backward(long groups, long repeats, long queries, long ahead, long keys, long width, long channels,
    float scale, float cap, const float *q SHAPE(groups, repeats, queries, width),
    const float *packed_k SHAPE(groups, ceil_div(keys, PACKED), width, PACKED), const float *packed_v SHAPE(groups, ceil_div(keys, PACKED), channels, PACKED),
    const float *k SHAPE(groups, ceil_div(keys, PACKED), PACKED, width), const float *log_sums SHAPE(groups, repeats, queries),
    const float *along SHAPE(groups, repeats, queries), const float *dy SHAPE(groups, repeats, queries, channels),
    float *dq SHAPE(groups, repeats, queries, width), float *dk SHAPE(groups, ceil_div(keys, PACKED), PACKED, width),
    float *dv SHAPE(groups, ceil_div(keys, PACKED), PACKED, channels), int threads)
    REQUIRE(queries % GROUP == 0, channels % PACKED == 0, width % PACKED == 0, width <= MOST_WIDTH, channels <= MOST_WIDTH, cap >= 0) {
    long packed = ceil_div(keys, PACKED) * PACKED;
    static const float ones[GROUP] = {1, 1, 1, 1, 1, 1, 1, 1};
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (long g = 0; g < groups; g++) {
        float p[BLOCK * BACK_STRIP], d[BLOCK * BACK_STRIP], across[GROUP * MOST_WIDTH];
        for (long start = 0; start < keys; start += BACK_SPAN)
            for (long first = 0; first < queries; first += BLOCK) {
                long stop = least(queries, first + BLOCK), some = least(BACK_SPAN, least(keys, stop + ahead) - start);
                if (some <= 0) continue;
                long whole = ceil_div(some, GROUP) * GROUP, from = g * packed + start;
                for (long head = g * repeats; head < (g + 1) * repeats; head++) {
                    long top = head * queries + first;
                    for (long i = 0; i < stop - first; i += GROUP) {
                        float *strip = p + i * BACK_STRIP, *change = d + i * BACK_STRIP;
                        long seen = first + i + ahead + 1 - start, met = least(some, seen + GROUP - 1); /* by the first, by any */
                        turn(width, q + (top + i) * width, across);
                        for (long j = 0; j < some; j += PACKED)
                            meet_keys(width, across, packed_k + (from + j) * width, strip + j, BACK_STRIP);
                        turn(channels, dy + (top + i) * channels, across);
                        for (long j = 0; j < some; j += PACKED)
                            meet_keys(channels, across, packed_v + (from + j) * channels, change + j, BACK_STRIP);
                        for (long r = 0; r < GROUP; r++) {
                            long own = seen + r < 0 ? 0 : least(seen + r, some);
                            make_gradients(own, whole, scale, cap, log_sums[top + i + r], along[top + i + r], strip + r * BACK_STRIP, change + r * BACK_STRIP);
                        }
                        for (long c = 0; c < width; c += PACKED)
                            meet_values(seen, met, width, change, BACK_STRIP, k + from * width + c, ones, dq + (top + i) * width + c);
                    }
                    for (long j = 0; j < whole; j += GROUP) {
                        long reader = start + j - ahead - first; /* the row at this key */
                        for (long c = 0; c < channels; c += PACKED)
                            meet_rows(reader, stop - first, channels, p + j, dy + top * channels + c, dv + (from + j) * channels + c);
                        for (long c = 0; c < width; c += PACKED)
                            meet_rows(reader, stop - first, width, d + j, q + top * width + c, dk + (from + j) * width + c);
                    }
                }
            }
    }
}
