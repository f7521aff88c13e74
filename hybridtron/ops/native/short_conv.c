/* Causal depthwise convolution of a few taps, with or without SiLU. */
#include "common.h"

enum { MOST_CONV_TAPS = 32 };

/* out = sum_j weight[j] rows[j], plus start where it is not null. */
INLINE void correlate(long taps, const float *const rows[], const float *weight, long width, const float *start, float *out) {
#pragma GCC ivdep
    for (long i = 0; i < width; i++) {
        float sum = start ? start[i] : 0.0f;
        for (long j = 0; j < taps; j++) sum = fmaf(weight[j * width + i], rows[j][i], sum);
        out[i] = sum;
    }
}

/* The usual numbers of taps are compiled by themselves, so that their loops unroll. */
static void correlate_rows(long taps, const float *const rows[], const float *weight, long width, const float *start, float *out) {
    switch (taps) {
    case 1: correlate(1, rows, weight, width, start, out); break;
    case 2: correlate(2, rows, weight, width, start, out); break;
    case 3: correlate(3, rows, weight, width, start, out); break;
    case 4: correlate(4, rows, weight, width, start, out); break;
    default:
        correlate(4, rows, weight, width, start, out);
        for (long j = 4; j < taps; j++) {
            const float *row = rows[j], *w = weight + j * width;
#pragma GCC ivdep
            for (long i = 0; i < width; i++) out[i] = fmaf(w[i], row[i], out[i]);
        }
    }
}

INLINE void add_products(long taps, const float *const rows[], const float *g, long width, float *sums) {
#pragma GCC ivdep
    for (long i = 0; i < width; i++)
        for (long j = 0; j < taps; j++) sums[j * width + i] = fmaf(rows[j][i], g[i], sums[j * width + i]);
}

/* The outputs of token t before SiLU: the tokens before the sequence are left out. */
INLINE void conv_token(long t, long taps, const float *x, long step, const float *weight, const float *bias, long width, float *out) {
    const float *rows[MOST_CONV_TAPS];
    long first = t < taps - 1 ? taps - 1 - t : 0;
    for (long j = first; j < taps; j++) rows[j - first] = x + (t - taps + 1 + j) * step;
    correlate_rows(taps - first, rows, weight + first * width, width, bias, out);
}

/* y[b, t] = bias + sum_j weight[j] x[b, t - taps + 1 + j], with `silu` of that. */
KERNEL short_conv_forward(long batch, long seq_len, long width, long taps, long silu,
    const float *x SHAPE(batch, seq_len, width) STRIDES(x_batch, x_token), long x_batch, long x_token,
    const float *weight SHAPE(taps, width), const float *bias SHAPE(width),
    float *y SHAPE(batch, seq_len, width) STRIDES(y_batch, y_token), long y_batch, long y_token, int threads)
    REQUIRE(1 <= taps <= MOST_CONV_TAPS, silu <= 1) {
    PARALLEL(batch * seq_len * width)
    for (long b = 0; b < batch; b++) {
        for (long t = 0; t < seq_len; t++) {
            float *out = y + b * y_batch + t * y_token;
            conv_token(t, taps, x + b * x_batch, x_token, weight, bias, width, out);
            if (!silu) continue;
            for (long i = 0; i < width; i++) out[i] = out[i] * sigmoid(out[i]);
        }
    }
}

/* `inner` is for the gradients before SiLU, if there is one; `reversed` has the taps from the last to the first; dweight and
 * dbias are by sequence. */
KERNEL short_conv_backward(long batch, long seq_len, long width, long taps, long silu,
    const float *x SHAPE(batch, seq_len, width) STRIDES(x_batch, x_token), long x_batch, long x_token,
    const float *weight SHAPE(taps, width), const float *reversed SHAPE(taps, width), const float *bias SHAPE(width),
    const float *dy SHAPE(batch, seq_len, width) STRIDES(dy_batch, dy_token), long dy_batch, long dy_token,
    float *inner SHAPE(silu * batch, seq_len, width),
    float *dx SHAPE(batch, seq_len, width) STRIDES(dx_batch, dx_token), long dx_batch, long dx_token,
    float *dweight SHAPE(batch, taps, width), float *dbias SHAPE(batch, width), int threads)
    REQUIRE(1 <= taps <= MOST_CONV_TAPS, silu <= 1) {
    PARALLEL(batch * seq_len * width)
    for (long b = 0; b < batch; b++) {
        const float *in = x + b * x_batch, *g = dy + b * dy_batch;
        long step = dy_token;
        float *sums = dweight + b * taps * width, *bias_sums = dbias + b * width;
        memset(sums, 0, taps * width * sizeof(float));
        memset(bias_sums, 0, width * sizeof(float));
        if (silu) {
            float *before = inner + b * seq_len * width;
            for (long t = 0; t < seq_len; t++) {
                float *out = before + t * width;
                const float *outer = g + t * dy_token;
                conv_token(t, taps, in, x_token, weight, bias, width, out);
                for (long i = 0; i < width; i++) out[i] = outer[i] * silu_slope(out[i], sigmoid(out[i]));
            }
            g = before;
            step = width;
        }
        for (long t = 0; t < seq_len; t++) {
            const float *rows[MOST_CONV_TAPS], *own = g + t * step;
            long first = t < taps - 1 ? taps - 1 - t : 0, later = least(taps, seq_len - t);
            for (long j = first; j < taps; j++) rows[j - first] = in + (t - taps + 1 + j) * x_token;
            float *kept = sums + first * width;
            if (taps - first == 4) add_products(4, rows, own, width, kept);
            else if (taps - first == 3) add_products(3, rows, own, width, kept);
            else for (long j = 0; j < taps - first; j++) add_products(1, rows + j, own, width, kept + j * width);
            for (long i = 0; i < width; i++) bias_sums[i] += own[i];
            for (long j = 0; j < later; j++) rows[j] = own + j * step;
            correlate_rows(later, rows, reversed, width, 0, dx + b * dx_batch + t * dx_token);
        }
    }
}
