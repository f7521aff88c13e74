/* Softmax over the keys that a query sees, as the middle of attention. */
#include "common.h"

enum { LANES = 16 }; /* whole vectors are worked on, with keys that are not seen hidden or zero */
static const float HIDDEN = -1e30f;

/* Keys [first, last) that a query sees, widened to whole vectors [from, to). */
typedef struct { long first, last, from, to; } Seen;

INLINE Seen seen(long query, long keys, long ahead, long window) {
    long last = query + ahead + 1, first = last - window;
    last = least(last, keys);
    first = first < 0 ? 0 : first;
    return (Seen){first, last, first / LANES * LANES, least(keys, (last + LANES - 1) / LANES * LANES)};
}

/* Scores [rows, keys], where row r is of query r % queries and that query stands at key `query + ahead` and sees the
 * last `window` keys up to it, become softmax(scale scores). With sinks, row r is of head r / queries % heads, whose
 * sink joins the softmax as one more score; its probability goes to `sunk` [rows]. */
KERNEL softmax_forward(long rows, long queries, long keys, long ahead, long window, float scale, float *scores SHAPE(rows, keys),
    long heads, const float *sinks SHAPE(heads) OPTIONAL, float *sunk SHAPE(rows) OPTIONAL, int threads)
    REQUIRE(queries >= 1, window >= 1, queries + ahead <= keys, heads >= 1 or sinks is None) {
    PARALLEL(rows * keys)
    for (long row = 0; row < rows; row++) {
        Seen s = seen(row % queries, keys, ahead, window);
        float *p = scores + row * keys, largest = HIDDEN, total = 0.0f;
        float sink = sinks ? sinks[row / queries % heads] : 0.0f;
        for (long j = s.from; j < s.first; j++) p[j] = HIDDEN;
        for (long j = s.last; j < s.to; j++) p[j] = HIDDEN;
#pragma omp simd reduction(max : largest)
        for (long j = s.from; j < s.to; j++) largest = p[j] > largest ? p[j] : largest;
        if (sinks && sink > scale * largest) largest = sink / scale;
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) {
            p[j] = exponential(scale * (p[j] - largest));
            total += p[j];
        }
        if (largest <= HIDDEN) { /* as keys that are not seen: scores that are as good as -inf */
            total = 0.0f;
            for (long j = s.first; j < s.last; j++) total += p[j];
        }
        float sunken = sinks ? exponential(sink - scale * largest) : 0.0f;
        float factor = 1.0f / (total + sunken);
        if (sunk) sunk[row] = sunken * factor;
        for (long j = s.from; j < s.to; j++) p[j] *= factor;
        for (long j = s.from; j < s.first; j++) p[j] = 0.0f; /* after the factor, which is infinite for a total of 0 */
        for (long j = s.last; j < s.to; j++) p[j] = 0.0f;
        memset(p, 0, s.from * sizeof(float));
        memset(p + s.to, 0, (keys - s.to) * sizeof(float));
    }
}

/* The gradient by the probabilities [rows, keys] becomes that by what the softmax is of. The sums of their products,
 * which minus `sunk` times are the gradients by sinks, go to `sums` [rows] if wanted. */
KERNEL softmax_backward(long rows, long queries, long keys, long ahead, long window,
    const float *probabilities SHAPE(rows, keys), float *gradient SHAPE(rows, keys), float *sums SHAPE(rows) OPTIONAL, int threads)
    REQUIRE(queries >= 1, window >= 1, queries + ahead <= keys) {
    PARALLEL(rows * keys)
    for (long row = 0; row < rows; row++) {
        Seen s = seen(row % queries, keys, ahead, window);
        const float *p = probabilities + row * keys;
        float *g = gradient + row * keys, along = 0.0f;
#pragma GCC ivdep
        for (long j = s.from; j < s.to; j++) along += p[j] * g[j];
        if (sums) sums[row] = along;
        for (long j = s.from; j < s.to; j++) g[j] = p[j] * (g[j] - along);
        memset(g, 0, s.from * sizeof(float));
        memset(g + s.to, 0, (keys - s.to) * sizeof(float));
    }
}
