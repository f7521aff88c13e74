/* A linear map of few rows, as those of single tokens of a batch are: reading the weight from memory, once, is most of
 * the time that it takes. */
#include "common.h"

enum { WIDE = 16, TILE = 4 }; /* lanes; rows of x, and rows of the weight, whose products are kept in registers */
typedef float lanes __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t order __attribute__((vector_size(4 * WIDE)));
/* Keep a vector in its register. Left to itself, the compiler reads it again at every use, and reading then limits the product. */
#ifdef __AVX512F__
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector)
#endif
typedef float quad __attribute__((vector_size(4 * TILE), aligned(4), may_alias));

#define IN_QUADS(a, b, c, d) {a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12}

/* The sums of the lanes of four vectors. */
INLINE quad sums_of(const lanes *v) {
    lanes first = __builtin_shuffle(v[0], v[1], (order)IN_QUADS(0, 16, 1, 17)) + __builtin_shuffle(v[0], v[1], (order)IN_QUADS(2, 18, 3, 19));
    lanes second = __builtin_shuffle(v[2], v[3], (order)IN_QUADS(0, 16, 1, 17)) + __builtin_shuffle(v[2], v[3], (order)IN_QUADS(2, 18, 3, 19));
    lanes all = __builtin_shuffle(first, second, (order)IN_QUADS(0, 1, 16, 17)) + __builtin_shuffle(first, second, (order)IN_QUADS(2, 3, 18, 19));
    all += __builtin_shuffle(all, (order){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    all += __builtin_shuffle(all, (order){4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3});
    return (quad){all[0], all[1], all[2], all[3]};
}

/* TILE outputs of `rows` rows of x; `rows` is a constant where this is inlined. */
INLINE void tile(const long rows, long inputs, long outputs, const float *x, const float *weight, const float *bias, float scale, long add, float *y) {
    lanes sums[TILE][TILE];
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < TILE; o++) sums[r][o] = (lanes){0.0f};
    long whole = inputs / WIDE * WIDE;
    for (long i = 0; i < whole; i += WIDE) {
        lanes w[TILE];
        for (long o = 0; o < TILE; o++) {
            w[o] = *(const lanes *)(weight + o * inputs + i);
            KEEP(w[o]);
        }
        for (long r = 0; r < rows; r++) {
            lanes in = *(const lanes *)(x + r * inputs + i);
            KEEP(in);
            for (long o = 0; o < TILE; o++) sums[r][o] += in * w[o];
        }
    }
    for (long r = 0; r < rows; r++) {
        quad total = sums_of(sums[r]), *out = (quad *)(y + r * outputs);
        for (long i = whole; i < inputs; i++)
            total += x[r * inputs + i] * (quad){weight[i], weight[inputs + i], weight[2 * inputs + i], weight[3 * inputs + i]};
        if (bias) total += *(const quad *)bias;
        total *= scale;
        if (add) total += *out;
        *out = total;
    }
}

/* TILE outputs of every row of x. */
INLINE void tiles(long rows, long inputs, long outputs, const float *x, const float *weight, const float *bias, float scale, long add, float *y) {
    for (; rows >= TILE; rows -= TILE, x += TILE * inputs, y += TILE * outputs) tile(TILE, inputs, outputs, x, weight, bias, scale, add, y);
    if (rows == 3) tile(3, inputs, outputs, x, weight, bias, scale, add, y);
    if (rows == 2) tile(2, inputs, outputs, x, weight, bias, scale, add, y);
    if (rows == 1) tile(1, inputs, outputs, x, weight, bias, scale, add, y);
}

INLINE float dot(long n, const float *x, const float *w) {
    float sum = 0.0f;
#pragma GCC ivdep
    for (long i = 0; i < n; i++) sum += x[i] * w[i];
    return sum;
}

/* y = scale (x weight^T + bias), added to y where `add` is not 0. */
KERNEL linear_step(long rows, long inputs, long outputs, const float *x SHAPE(rows, inputs), const float *weight SHAPE(outputs, inputs), const float *bias SHAPE(outputs) OPTIONAL,
    float scale, long add, float *y SHAPE(rows, outputs), int threads) {
    long whole = outputs / TILE * TILE;
    PARALLEL(rows * inputs * outputs)
    for (long o = 0; o < whole; o += TILE) tiles(rows, inputs, outputs, x, weight + o * inputs, bias ? bias + o : 0, scale, add, y + o);
    for (long o = whole; o < outputs; o++)
        for (long r = 0; r < rows; r++) {
            float value = scale * (dot(inputs, x + r * inputs, weight + o * inputs) + (bias ? bias[o] : 0.0f)), *out = y + r * outputs + o;
            *out = add ? *out + value : value;
        }
}
