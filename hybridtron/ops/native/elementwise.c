/* SwiGLU, squared ReLU, GELU and rotary position embedding. */
#include "common.h"

/* y = silu(gate) up, with gate and up side by side in x [rows, 2 width]. */
KERNEL swiglu_forward(long rows, long width, const float *x SHAPE(rows, 2 * width) STRIDES(x_step), long x_step, float *y SHAPE(rows, width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *gate = x + row * x_step, *up = gate + width;
        float *out = y + row * width;
        for (long i = 0; i < width; i++) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

KERNEL swiglu_backward(long rows, long width, const float *x SHAPE(rows, 2 * width) STRIDES(x_step), long x_step, const float *dy SHAPE(rows, width) STRIDES(dy_step), long dy_step, float *dx SHAPE(rows, 2 * width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *gate = x + row * x_step, *up = gate + width, *g = dy + row * dy_step;
        float *dgate = dx + row * 2 * width, *dup = dgate + width;
#pragma omp simd
        for (long i = 0; i < width; i++) {
            float s = sigmoid(gate[i]);
            dgate[i] = g[i] * up[i] * silu_slope(gate[i], s);
            dup[i] = g[i] * gate[i] * s;
        }
    }
}

/* y = max(x, 0)^2 */
KERNEL squared_relu_forward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, float *y SHAPE(rows, width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * x_step;
        float *out = y + row * width;
        for (long i = 0; i < width; i++) {
            float positive = in[i] < 0.0f ? 0.0f : in[i];
            out[i] = positive * positive;
        }
    }
}

KERNEL squared_relu_backward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, const float *dy SHAPE(rows, width) STRIDES(dy_step), long dy_step, float *dx SHAPE(rows, width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * x_step, *g = dy + row * dy_step;
        float *out = dx + row * width;
        for (long i = 0; i < width; i++) out[i] = 2.0f * (in[i] < 0.0f ? 0.0f : in[i]) * g[i];
    }
}

/* y = x / 2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
static const float GELU_SLOPE = 1.5957691216f, GELU_CUBE = 0.044715f; /* 2 sqrt(2 / pi) */

KERNEL gelu_forward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, float *y SHAPE(rows, width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * x_step;
        float *out = y + row * width;
        for (long i = 0; i < width; i++) out[i] = in[i] * sigmoid(GELU_SLOPE * in[i] * fmaf(GELU_CUBE * in[i], in[i], 1.0f));
    }
}

KERNEL gelu_backward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, const float *dy SHAPE(rows, width) STRIDES(dy_step), long dy_step, float *dx SHAPE(rows, width), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * x_step, *g = dy + row * dy_step;
        float *out = dx + row * width;
#pragma omp simd
        for (long i = 0; i < width; i++) {
            float square = GELU_CUBE * in[i] * in[i], s = sigmoid(GELU_SLOPE * in[i] * (1.0f + square));
            out[i] = g[i] * s * fmaf(GELU_SLOPE * in[i] * fmaf(3.0f, square, 1.0f), 1.0f - s, 1.0f);
        }
    }
}

enum { TURNED = 8 }; /* tokens at a time */

INLINE void turn(long half, const float *in, const float *c, const float *s, float *out) {
#pragma omp simd
    for (long i = 0; i < half; i++) {
        float first = in[i], second = in[half + i];
        out[i] = first * c[i] - second * s[i];
        out[half + i] = second * c[i] + first * s[i];
    }
}

/* Turns channel pairs (i, i + half) of x [b, s, h, d] by the angles of their positions; cosines and sines [s, half]. */
KERNEL rotate(long batch, long seq_len, long heads, long width, long half,
    const float *x SHAPE(batch, seq_len, heads, width) STRIDES(x_batch, x_token, x_head), long x_batch, long x_token, long x_head,
    const float *cosines SHAPE(seq_len, half), const float *sines SHAPE(seq_len, half),
    float *y SHAPE(batch, seq_len, heads, width) STRIDES(y_batch, y_token, y_head), long y_batch, long y_token, long y_head, int threads) REQUIRE(2 * half <= width) {
    if (half == 4 && width == 8) { /* so few channels that whole lines are written only where a head's tokens follow each other */
        long blocks = ceil_div(seq_len, TURNED);
        PARALLEL(batch * seq_len * heads * width)
        for (long block = 0; block < batch * blocks; block++) {
            long b = block / blocks, from = block % blocks * TURNED, to = least(seq_len, from + TURNED);
            for (long head = 0; head < heads; head++)
                for (long t = from; t < to; t++)
                    turn(4, x + b * x_batch + t * x_token + head * x_head, cosines + t * 4, sines + t * 4, y + b * y_batch + t * y_token + head * y_head);
        }
        return;
    }
    PARALLEL(batch * seq_len * heads * width)
    for (long row = 0; row < batch * seq_len; row++) {
        long t = row / batch, b = row % batch; /* in the order in which a projection leaves x */
        for (long head = 0; head < heads; head++) {
            const float *in = x + b * x_batch + t * x_token + head * x_head;
            float *out = y + b * y_batch + t * y_token + head * y_head;
            turn(half, in, cosines + t * half, sines + t * half, out);
            for (long i = 2 * half; i < width; i++) out[i] = in[i];
        }
    }
}
