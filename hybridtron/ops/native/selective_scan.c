/* Mamba's selective scan of one sequence; see ops/ssm/selective_scan.py for the formulas.
 *
 * x, dt, y and their gradients are [seq_len, width], B and C [seq_len, states], their rows so many floats apart as each
 * `step` says; A is [states, width]. Channels are taken in blocks whose states stay in registers and the nearest cache.
 */
#include "common.h"

enum { BLOCK = 32, SEGMENT = 32, MOST_STATES = 64 }; /* SEGMENT and MOST_STATES as in ops/ssm/selective_scan.py */

INLINE void scan_block(long count, long first, long seq_len, long width, long states, const float *x, long x_step, const float *dt, long dt_step, const float *A, const float *B, long b_step, const float *C, long c_step, const float *D, float *carried, float *starts, float *y, long y_step) {
    float h[MOST_STATES * BLOCK];
    memset(h, 0, sizeof(float) * states * BLOCK);
    if (carried)
        for (long n = 0; n < states; n++) memcpy(h + n * BLOCK, carried + n * width + first, sizeof(float) * count);
    for (long t = 0; t < seq_len; t++) {
        const float *input = x + t * x_step + first, *duration = dt + t * dt_step + first;
        float added[BLOCK], sum[BLOCK];
        if (t % SEGMENT == 0)
            for (long n = 0; n < states; n++)
                memcpy(starts + (t / SEGMENT * states + n) * width + first, h + n * BLOCK, sizeof(float) * count);
#pragma omp simd
        for (long i = 0; i < count; i++) {
            added[i] = duration[i] * input[i];
            sum[i] = D[first + i] * input[i];
        }
        for (long n = 0; n < states; n++) {
            const float *rate = A + n * width + first;
            float *state = h + n * BLOCK, b = B[t * b_step + n], c = C[t * c_step + n];
#pragma omp simd
            for (long i = 0; i < count; i++) {
                state[i] = fmaf(exponential(duration[i] * rate[i]), state[i], added[i] * b);
                sum[i] = fmaf(c, state[i], sum[i]);
            }
        }
        memcpy(y + t * y_step + first, sum, sizeof(float) * count);
    }
    if (carried)
        for (long n = 0; n < states; n++) memcpy(carried + n * width + first, h + n * BLOCK, sizeof(float) * count);
}

/* y, and the states before every segment, starts [segments, states, width]. `carried` is the state before the first
 * token, without it zeros, and becomes that after the last one. */
KERNEL scan_forward(long seq_len, long width, long states,
    const float *x SHAPE(seq_len, width) STRIDES(x_step), long x_step, const float *dt SHAPE(seq_len, width) STRIDES(dt_step), long dt_step,
    const float *A SHAPE(states, width), const float *B SHAPE(seq_len, states) STRIDES(b_step), long b_step,
    const float *C SHAPE(seq_len, states) STRIDES(c_step), long c_step, const float *D SHAPE(width), float *carried SHAPE(states, width) OPTIONAL,
    float *starts SHAPE(ceil_div(seq_len, SEGMENT), states, width), float *y SHAPE(seq_len, width) STRIDES(y_step), long y_step, int threads)
    REQUIRE(states <= MOST_STATES) {
    long blocks = ceil_div(width, BLOCK);
    PARALLEL(seq_len * width * states)
    for (long block = 0; block < blocks; block++) {
        long first = block * BLOCK, count = least(BLOCK, width - first);
        if (count == BLOCK) scan_block(BLOCK, first, seq_len, width, states, x, x_step, dt, dt_step, A, B, b_step, C, c_step, D, carried, starts, y, y_step);
        else scan_block(count, first, seq_len, width, states, x, x_step, dt, dt_step, A, B, b_step, C, c_step, D, carried, starts, y, y_step);
    }
}

/* `later` is what the states after a token send back to it; `decays` and `kept` hold a segment's decays and states. */
INLINE void scan_block_backward(long count, long first, long seq_len, long width, long states, const float *x, long x_step, const float *dt, long dt_step, const float *A, const float *B, long b_step, const float *C, long c_step, const float *D, const float *starts, const float *dy, long dy_step, float *decays, float *kept, float *dx, long dx_step, float *ddt, long ddt_step, float *dA, float *dB, float *dC, float *dD) {
    float later[MOST_STATES * BLOCK];
    memset(later, 0, sizeof(float) * states * BLOCK);
    for (long segment = (seq_len - 1) / SEGMENT; segment >= 0; segment--) {
        long begin = segment * SEGMENT, end = least(seq_len, begin + SEGMENT);
        for (long t = begin; t < end; t++) {
            const float *input = x + t * x_step + first, *duration = dt + t * dt_step + first;
            for (long n = 0; n < states; n++) {
                const float *rate = A + n * width + first;
                long at = ((t - begin) * states + n) * BLOCK;
                const float *before = t == begin ? starts + (segment * states + n) * width + first : kept + at - states * BLOCK;
                float *decay = decays + at, *state = kept + at, b = B[t * b_step + n];
#pragma omp simd
                for (long i = 0; i < count; i++) {
                    decay[i] = exponential(duration[i] * rate[i]);
                    state[i] = fmaf(decay[i], before[i], duration[i] * input[i] * b);
                }
            }
        }
        for (long t = end - 1; t >= begin; t--) {
            const float *input = x + t * x_step + first, *duration = dt + t * dt_step + first;
            const float *g = dy + t * dy_step + first;
            float dadded[BLOCK], dduration[BLOCK];
            memset(dadded, 0, sizeof(dadded));
            memset(dduration, 0, sizeof(dduration));
            for (long n = 0; n < states; n++) {
                const float *rate = A + n * width + first;
                long at = ((t - begin) * states + n) * BLOCK;
                const float *before = t == begin ? starts + (segment * states + n) * width + first : kept + at - states * BLOCK;
                const float *decay = decays + at, *state = kept + at;
                float *sent = later + n * BLOCK, *drate = dA + n * width + first;
                float b = B[t * b_step + n], c = C[t * c_step + n], db = 0, dc = 0;
#pragma omp simd reduction(+ : db, dc)
                for (long i = 0; i < count; i++) {
                    float dstate = fmaf(c, g[i], sent[i]), slope = dstate * decay[i], exponent = slope * before[i];
                    dc = fmaf(state[i], g[i], dc);
                    db = fmaf(dstate, duration[i] * input[i], db);
                    dadded[i] = fmaf(dstate, b, dadded[i]);
                    dduration[i] = fmaf(exponent, rate[i], dduration[i]);
                    drate[i] = fmaf(exponent, duration[i], drate[i]);
                    sent[i] = slope;
                }
                dB[t * states + n] = db;
                dC[t * states + n] = dc;
            }
            float *dinput = dx + t * dx_step + first, *dstep = ddt + t * ddt_step + first;
#pragma omp simd
            for (long i = 0; i < count; i++) {
                dinput[i] = fmaf(dadded[i], duration[i], D[first + i] * g[i]);
                dstep[i] = fmaf(dadded[i], input[i], dduration[i]);
                dD[first + i] = fmaf(g[i], input[i], dD[first + i]);
            }
        }
    }
}

/* dx and ddt; dA [states, width] and dD [width] are added to; dB and dC [blocks, seq_len, states] are sums over the
 * channels of each block. work [blocks, 2, SEGMENT, states, BLOCK]. */
KERNEL scan_backward(long seq_len, long width, long states,
    const float *x SHAPE(seq_len, width) STRIDES(x_step), long x_step, const float *dt SHAPE(seq_len, width) STRIDES(dt_step), long dt_step,
    const float *A SHAPE(states, width), const float *B SHAPE(seq_len, states) STRIDES(b_step), long b_step,
    const float *C SHAPE(seq_len, states) STRIDES(c_step), long c_step, const float *D SHAPE(width),
    const float *starts SHAPE(ceil_div(seq_len, SEGMENT), states, width), const float *dy SHAPE(seq_len, width) STRIDES(dy_step), long dy_step,
    float *work SHAPE(ceil_div(width, BLOCK), 2, SEGMENT, states, BLOCK), float *dx SHAPE(seq_len, width) STRIDES(dx_step), long dx_step,
    float *ddt SHAPE(seq_len, width) STRIDES(ddt_step), long ddt_step, float *dA SHAPE(states, width),
    float *dB SHAPE(ceil_div(width, BLOCK), seq_len, states), float *dC SHAPE(ceil_div(width, BLOCK), seq_len, states), float *dD SHAPE(width), int threads)
    REQUIRE(states <= MOST_STATES) {
    long blocks = ceil_div(width, BLOCK), size = SEGMENT * states * BLOCK, sums = seq_len * states;
    PARALLEL(seq_len * width * states)
    for (long block = 0; block < blocks; block++) {
        long first = block * BLOCK, count = least(BLOCK, width - first);
        float *decays = work + 2 * block * size, *kept = decays + size;
        if (count == BLOCK) scan_block_backward(BLOCK, first, seq_len, width, states, x, x_step, dt, dt_step, A, B, b_step, C, c_step, D, starts, dy, dy_step, decays, kept, dx, dx_step, ddt, ddt_step, dA, dB + block * sums, dC + block * sums, dD);
        else scan_block_backward(count, first, seq_len, width, states, x, x_step, dt, dt_step, A, B, b_step, C, c_step, D, starts, dy, dy_step, decays, kept, dx, dx_step, ddt, ddt_step, dA, dB + block * sums, dC + block * sums, dD);
    }
}
