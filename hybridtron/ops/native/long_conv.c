/* Causal depthwise convolution with long filters, by its formula: at some hundred tokens faster than Fourier transforms.
 *
 * Sixteen channels lie side by side in a vector. Eight outputs are added up in registers while the inputs pass, so that
 * a filter's and an input's vectors are read once for up to eight products. */
#include "common.h"

enum { CONV_LANES = 16, CONV_BLOCK = 8, CONV_VECTORS = 4, MOST_CONV_TOKENS = 2048 };
typedef float conv_vector __attribute__((vector_size(64), may_alias));
#define ALIGNED __attribute__((aligned(64)))

/* sums[r] += sum_a inputs[a] filter[r - a] for eight outputs and inputs; `later` says whether all inputs come before the
 * outputs, else those after an output are left out: they may hold a NaN. */
INLINE void add_block(const float *inputs, const float *filter, conv_vector *sums, const int later) {
    conv_vector taps_here[2 * CONV_BLOCK - 1];
#pragma GCC unroll 16
    for (int r = later ? 0 : CONV_BLOCK - 1; r < 2 * CONV_BLOCK - 1; r++) taps_here[r] = *(const conv_vector *)(filter + (r - (CONV_BLOCK - 1)) * CONV_LANES);
#pragma GCC unroll 8
    for (int a = 0; a < CONV_BLOCK; a++) {
        conv_vector u = *(const conv_vector *)(inputs + a * CONV_LANES);
#pragma GCC unroll 8
        for (int r = later ? 0 : a; r < CONV_BLOCK; r++) sums[r] += u * taps_here[CONV_BLOCK - 1 + r - a];
    }
}

/* out[t] (+)= sum_{i <= t} inputs[i] filter[t - i], begin <= t < tokens, filter[0..taps); all [.., lanes], where outputs and inputs
 * have rows for whole blocks and the filter a block of zero rows in front and two after its last tap. */
INLINE void convolve_lanes(long begin, long tokens, long taps, const float *inputs, const float *filter, float *out, int add) {
    for (long start = begin / CONV_BLOCK * CONV_BLOCK; start < tokens; start += CONV_BLOCK) {
        conv_vector sums[CONV_BLOCK];
        for (int r = 0; r < CONV_BLOCK; r++)
            sums[r] = add ? *(const conv_vector *)(out + (start + r) * CONV_LANES) : (conv_vector){0.0f};
        long from = start - taps + 1;
        for (long i = from < 0 ? 0 : from / CONV_BLOCK * CONV_BLOCK; i < start; i += CONV_BLOCK)
            add_block(inputs + i * CONV_LANES, filter + (start - i) * CONV_LANES, sums, 1);
        add_block(inputs + start * CONV_LANES, filter, sums, 0);
        for (int r = 0; r < CONV_BLOCK; r++) *(conv_vector *)(out + (start + r) * CONV_LANES) = sums[r];
    }
}

/* A run of channels lies as up to CONV_VECTORS arrays of [rows, lanes], so that a token's channels are copied together:
 * tokens may be far apart in memory. */
INLINE void load_lanes(long tokens, long rows, long channels, const float *x, long step, float *arrays) {
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < channels; i += CONV_LANES) {
            float *row = arrays + (i / CONV_LANES * rows + t) * CONV_LANES;
            if (channels - i >= CONV_LANES) memcpy(row, x + t * step + i, CONV_LANES * sizeof(float));
            else for (long lane = 0; lane < CONV_LANES; lane++) row[lane] = lane < channels - i ? x[t * step + i + lane] : 0.0f;
        }
}

INLINE void store_lanes(long tokens, long rows, long channels, const float *arrays, float *x, long step) {
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < channels; i += CONV_LANES)
            memcpy(x + t * step + i, arrays + (i / CONV_LANES * rows + t) * CONV_LANES, least(CONV_LANES, channels - i) * sizeof(float));
}

/* Rows for `tokens` in whole blocks, with zero rows around them if they are a filter. */
INLINE long block_rows(long tokens) { return ceil_div(tokens, CONV_BLOCK) * CONV_BLOCK; }
INLINE long filter_rows(long tokens) { return block_rows(tokens) + 3 * CONV_BLOCK; }

/* y[b, t] = sum_{j <= t} h[j] u[b, t - j] for each channel; h [taps, width]. */
KERNEL long_conv_forward(long batch, long seq_len, long width, long taps,
    const float *u SHAPE(batch, seq_len, width) STRIDES(u_batch, u_token), long u_batch, long u_token,
    const float *h SHAPE(taps, width),
    float *y SHAPE(batch, seq_len, width) STRIDES(y_batch, y_token), long y_batch, long y_token, int threads)
    REQUIRE(1 <= taps <= seq_len, seq_len <= MOST_CONV_TOKENS) {
    long rows = block_rows(seq_len), filter_size = filter_rows(taps), run = CONV_VECTORS * CONV_LANES;
    PARALLEL(batch * seq_len * width)
    for (long block = 0; block < ceil_div(width, run); block++) {
        long first = block * run, channels = least(run, width - first), vectors = ceil_div(channels, CONV_LANES);
        float inputs[CONV_VECTORS * rows * CONV_LANES] ALIGNED, outputs[CONV_VECTORS * rows * CONV_LANES] ALIGNED;
        float filters[CONV_VECTORS * filter_size * CONV_LANES] ALIGNED, *taps_of = filters + CONV_BLOCK * CONV_LANES;
        memset(inputs, 0, sizeof inputs);
        memset(filters, 0, sizeof filters);
        load_lanes(taps, filter_size, channels, h + first, width, taps_of);
        for (long b = 0; b < batch; b++) {
            load_lanes(seq_len, rows, channels, u + b * u_batch + first, u_token, inputs);
            for (long i = 0; i < vectors; i++)
                convolve_lanes(0, seq_len, taps, inputs + i * rows * CONV_LANES, taps_of + i * filter_size * CONV_LANES, outputs + i * rows * CONV_LANES, 0);
            store_lanes(seq_len, rows, channels, outputs, y + b * y_batch + first, y_token);
        }
    }
}

/* With time reversed both gradients are such convolutions: of dy with h, and of dy with u, of which the last `taps`
 * outputs, added up over the batch, are the gradient of h. */
KERNEL long_conv_backward(long batch, long seq_len, long width, long taps,
    const float *u SHAPE(batch, seq_len, width) STRIDES(u_batch, u_token), long u_batch, long u_token,
    const float *h SHAPE(taps, width),
    const float *dy SHAPE(batch, seq_len, width) STRIDES(dy_batch, dy_token), long dy_batch, long dy_token,
    float *du SHAPE(batch, seq_len, width) STRIDES(du_batch, du_token), long du_batch, long du_token,
    float *dh SHAPE(taps, width), int threads)
    REQUIRE(1 <= taps <= seq_len, seq_len <= MOST_CONV_TOKENS) {
    long rows = block_rows(seq_len), filter_size = filter_rows(taps), input_size = filter_rows(seq_len), run = CONV_VECTORS * CONV_LANES;
    PARALLEL(batch * seq_len * width)
    for (long block = 0; block < ceil_div(width, run); block++) {
        long first = block * run, channels = least(run, width - first), vectors = ceil_div(channels, CONV_LANES);
        float reversed[CONV_VECTORS * rows * CONV_LANES] ALIGNED, outputs[CONV_VECTORS * rows * CONV_LANES] ALIGNED, sums[CONV_VECTORS * rows * CONV_LANES] ALIGNED;
        float filters[CONV_VECTORS * filter_size * CONV_LANES] ALIGNED, *taps_of = filters + CONV_BLOCK * CONV_LANES;
        float inputs[CONV_VECTORS * input_size * CONV_LANES] ALIGNED, *inputs_of = inputs + CONV_BLOCK * CONV_LANES;
        memset(reversed, 0, sizeof reversed);
        memset(filters, 0, sizeof filters);
        memset(inputs, 0, sizeof inputs);
        memset(sums, 0, sizeof sums);
        load_lanes(taps, filter_size, channels, h + first, width, taps_of);
        for (long b = 0; b < batch; b++) {
            load_lanes(seq_len, rows, channels, dy + b * dy_batch + (seq_len - 1) * dy_token + first, -dy_token, reversed);
            load_lanes(seq_len, input_size, channels, u + b * u_batch + first, u_token, inputs_of);
            for (long i = 0; i < vectors; i++) {
                float *own = reversed + i * rows * CONV_LANES;
                convolve_lanes(0, seq_len, taps, own, taps_of + i * filter_size * CONV_LANES, outputs + i * rows * CONV_LANES, 0);
                convolve_lanes(seq_len - taps, seq_len, seq_len, own, inputs_of + i * input_size * CONV_LANES, sums + i * rows * CONV_LANES, 1);
            }
            store_lanes(seq_len, rows, channels, outputs, du + b * du_batch + (seq_len - 1) * du_token + first, -du_token);
        }
        store_lanes(taps, rows, channels, sums + (seq_len - taps) * CONV_LANES, dh + (taps - 1) * width + first, -width);
    }
}
