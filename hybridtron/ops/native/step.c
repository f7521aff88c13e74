/* One token of every sequence: norm, attention over a cache, Mamba-2. States are read and written where they lie. */
#include "common.h"

/* y = scale (offset + weight) x / sqrt(mean(x^2) + eps) of each row, added to y where `add` is not 0. */
KERNEL norm_step(long rows, long width, const float *x SHAPE(rows, width), const float *weight SHAPE(width), float offset, float eps, float scale, long add, float *y SHAPE(rows, width), int threads) {
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * width;
        float *out = y + row * width, squares = 0.0f;
#pragma GCC ivdep
        for (long i = 0; i < width; i++) squares += in[i] * in[i];
        float factor = scale / sqrtf(squares / width + eps);
        if (add)
            for (long i = 0; i < width; i++) out[i] += in[i] * factor * (offset + weight[i]);
        else
            for (long i = 0; i < width; i++) out[i] = in[i] * factor * (offset + weight[i]);
    }
}

/* Turns channel pairs (i, i + half) of one head. */
INLINE void turn(long half, const float *c, const float *s, float *x) {
#pragma omp simd
    for (long i = 0; i < half; i++) {
        float first = x[i], second = x[half + i];
        x[i] = first * c[i] - second * s[i];
        x[half + i] = second * c[i] + first * s[i];
    }
}

enum { KEYS = 64, MOST_HEADS = 128 }; /* whose scores are kept at a time; that share a key */
static const float LOWEST = -1e9f; /* score; `exponential` takes no infinity */

/* Softmax of q's scores over `count` keys, times their values, with maximum and sum of what came before. */
INLINE void attend(long count, long dim, float scale, const float *q, const float *k, const float *v, float *peak, float *total, float *y) {
    float scores[KEYS], highest = *peak, sum = 0.0f;
    for (long t = 0; t < count; t++) {
        float score = 0.0f;
        for (long i = 0; i < dim; i++) score += q[i] * k[t * dim + i];
        scores[t] = scale * score;
    }
    for (long t = 0; t < count; t++) highest = scores[t] > highest ? scores[t] : highest;
    for (long t = 0; t < count; t++) {
        scores[t] = exponential(scores[t] - highest);
        sum += scores[t];
    }
    float before = exponential(*peak - highest);
    for (long i = 0; i < dim; i++) y[i] *= before;
    long t = 0;
    for (; t + 4 <= count; t += 4)
        for (long i = 0; i < dim; i++) {
            const float *row = v + t * dim + i;
            y[i] += (scores[t] * row[0] + scores[t + 1] * row[dim]) + (scores[t + 2] * row[2 * dim] + scores[t + 3] * row[3 * dim]);
        }
    for (; t < count; t++)
        for (long i = 0; i < dim; i++) y[i] = fmaf(scores[t], v[t * dim + i], y[i]);
    *total = *total * before + sum;
    *peak = highest;
}

/* Rotates queries and keys of packed [b, (heads + 2 kv) dim] by their positions, writes keys and values into the caches
 * and attends to those that are held: y [b, heads dim]. Token t has the index t, or t modulo the window. counts[0] is how
 * many tokens were before this one, and is counted on; of these the first counts[1 + b] are padding of sequence b. */
KERNEL attention_step(long batch, long heads, long kv, long dim, long half, long positions, long capacity, long window,
    float *packed SHAPE(batch, (heads + 2 * kv) * dim), const float *cosines SHAPE(positions, half), const float *sines SHAPE(positions, half),
    const float *sinks SHAPE(heads) OPTIONAL, float scale,
    float *keys SHAPE(batch, kv, capacity, dim), float *values SHAPE(batch, kv, capacity, dim), long *counts SHAPE(batch + 1), float *y SHAPE(batch, heads * dim), int threads)
    REQUIRE(kv >= 1, kv <= heads, heads <= MOST_HEADS * kv, 2 * half <= dim) {
    long now = counts[0], index = window ? now % window : now, held = window ? least(now + 1, window) : now + 1;
    if (now < 0 || index >= capacity || now >= positions) return;
    long group = heads / kv;
    PARALLEL(batch * kv * group * held * dim)
    for (long pair = 0; pair < batch * kv; pair++) {
        long b = pair / kv, own = pair % kv, unseen = counts[1 + b];
        float *row = packed + b * (heads + 2 * kv) * dim, *k = keys + pair * capacity * dim, *v = values + pair * capacity * dim;
        const float *c = cosines + (now - unseen) * half, *s = sines + (now - unseen) * half;
        turn(half, c, s, row + (heads + own) * dim);
        memcpy(k + index * dim, row + (heads + own) * dim, dim * sizeof(float));
        memcpy(v + index * dim, row + (heads + kv + own) * dim, dim * sizeof(float));
        long oldest = now + 1 - held, hidden = unseen > oldest ? unseen - oldest : 0, start = window ? oldest % window : oldest;
        float *q = row + own * group * dim, *out = y + (b * heads + own * group) * dim, peak[MOST_HEADS], total[MOST_HEADS];
        memset(out, 0, group * dim * sizeof(float));
        for (long g = 0; g < group; g++) {
            turn(half, c, s, q + g * dim);
            peak[g] = sinks ? sinks[own * group + g] : LOWEST;
            total[g] = sinks ? 1.0f : 0.0f;
        }
        for (long t = hidden, count; t < held; t += count) {
            long at = start + t, first = window && at >= window ? at - window : at;
            count = least(window && at < window ? least(held - t, window - at) : held - t, KEYS);
            for (long g = 0; g < group; g++) attend(count, dim, scale, q + g * dim, k + first * dim, v + first * dim, peak + g, total + g, out + g * dim);
        }
        for (long g = 0; g < group; g++)
            for (long i = 0; i < dim; i++) out[g * dim + i] /= total[g];
    }
    counts[0] = now + 1;
}

INLINE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/* silu of a short convolution of x [channels] after the inputs in `before` [taps - 1, channels], which move on by one. */
INLINE void convolve(long taps, long channels, const float *weight, const float *bias, float *before, float *x) {
#pragma GCC ivdep
    for (long i = 0; i < channels; i++) {
        float in = x[i], sum = (bias ? bias[i] : 0.0f) + weight[i * taps + taps - 1] * in;
        for (long j = 0; j + 1 < taps; j++) {
            sum += weight[i * taps + j] * before[j * channels + i];
            if (j > 0) before[(j - 1) * channels + i] = before[j * channels + i];
        }
        if (taps > 1) before[(taps - 2) * channels + i] = in;
        x[i] = sum;
    }
    for (long i = 0; i < channels; i++) x[i] *= sigmoid(x[i]);
}

/* A step of the state h [dim, states] of one head: h = kept h + step x B^T; y = h C + skip x. */
INLINE void head_step(long dim, long states, float kept, float step, float skip, const float *x, const float *B, const float *C, float *h, float *y) {
    for (long p = 0; p < dim; p++) {
        float *own = h + p * states, in = step * x[p], sum = 0.0f;
#pragma GCC ivdep
        for (long n = 0; n < states; n++) {
            own[n] = kept * own[n] + in * B[n];
            sum += own[n] * C[n];
        }
        y[p] = sum + skip * x[p];
    }
}

/* What is between the projections of a Mamba-2 layer. packed [b, z | x | B | C | dt] is overwritten. */
KERNEL mamba2_step(long batch, long heads, long groups, long dim, long states, long taps, float *packed SHAPE(batch, 2 * heads * dim + 2 * groups * states + heads),
    float *before SHAPE(batch, taps - 1, heads * dim + 2 * groups * states), const float *conv_weight SHAPE(heads * dim + 2 * groups * states, taps), const float *conv_bias SHAPE(heads * dim + 2 * groups * states) OPTIONAL,
    const float *dt_bias SHAPE(heads), const float *A_log SHAPE(heads), const float *D SHAPE(heads), float smallest, float largest, const float *norm_weight SHAPE(heads * dim), float eps,
    float *memory SHAPE(batch, heads, dim, states), float *y SHAPE(batch, heads * dim), int threads) REQUIRE(groups >= 1, taps >= 1) {
    long inner = heads * dim, channels = inner + 2 * groups * states, width = inner / groups;
    PARALLEL(batch * inner * states)
    for (long b = 0; b < batch; b++) {
        float *z = packed + b * (inner + channels + heads), *x = z + inner, *dt = x + channels, *out = y + b * inner, *last = before + b * (taps - 1) * channels;
        if (taps == 4) convolve(4, channels, conv_weight, conv_bias, last, x);
        else convolve(taps, channels, conv_weight, conv_bias, last, x);
        for (long head = 0; head < heads; head++) {
            float step = softplus(dt[head] + dt_bias[head]);
            step = step < smallest ? smallest : step > largest ? largest : step;
            const float *B = x + inner + head / (heads / groups) * states;
            head_step(dim, states, expf(-step * expf(A_log[head])), step, D[head], x + head * dim, B, B + groups * states, memory + (b * heads + head) * dim * states, out + head * dim);
        }
        for (long i = 0; i < inner; i++) out[i] *= z[i] * sigmoid(z[i]);
        for (long group = 0; group < groups; group++) {
            float *own = out + group * width, squares = 0.0f;
#pragma GCC ivdep
            for (long i = 0; i < width; i++) squares += own[i] * own[i];
            float factor = 1.0f / sqrtf(squares / width + eps);
            for (long i = 0; i < width; i++) own[i] *= factor * norm_weight[group * width + i];
        }
    }
}
