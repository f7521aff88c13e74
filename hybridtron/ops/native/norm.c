/* Root-mean-square norm. */
#include "common.h"

/* y = x inverse weight with inverse = 1 / sqrt(mean(x^2) + eps) of each row of x [rows, width]. */
KERNEL rms_norm_forward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, const float *weight SHAPE(width), float eps, float *y SHAPE(rows, width), float *inverse SHAPE(rows), int threads) {
    PARALLEL(rows * width)
    for (long row = 0; row < rows; row++) {
        const float *in = x + row * x_step;
        float *out = y + row * width, squares = 0.0f;
#pragma GCC ivdep
        for (long i = 0; i < width; i++) squares += in[i] * in[i];
        float factor = inverse[row] = 1.0f / sqrtf(squares / width + eps);
        for (long i = 0; i < width; i++) out[i] = in[i] * factor * weight[i];
    }
}

/* dweight [pieces, width] is by piece of rows. */
KERNEL rms_norm_backward(long rows, long width, const float *x SHAPE(rows, width) STRIDES(x_step), long x_step, const float *weight SHAPE(width), const float *inverse SHAPE(rows),
    const float *dy SHAPE(rows, width) STRIDES(dy_step), long dy_step, float *dx SHAPE(rows, width), float *dweight SHAPE(pieces(rows), width), int threads) {
    PARALLEL(rows * width)
    for (long piece = 0; piece < pieces(rows); piece++) {
        float *sums = dweight + piece * width;
        memset(sums, 0, width * sizeof(float));
        for (long row = piece * ROWS; row < least(rows, (piece + 1) * ROWS); row++) {
            const float *in = x + row * x_step, *g = dy + row * dy_step;
            float *out = dx + row * width, factor = inverse[row], along = 0.0f;
#pragma GCC ivdep
            for (long i = 0; i < width; i++) along += g[i] * weight[i] * in[i];
            float pull = along * factor * factor * factor / width;
#pragma omp simd
            for (long i = 0; i < width; i++) {
                sums[i] += g[i] * in[i] * factor;
                out[i] = g[i] * weight[i] * factor - in[i] * pull;
            }
        }
    }
}
