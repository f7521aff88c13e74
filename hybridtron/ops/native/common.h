/* What the kernels share: float32, rows whose last axis is contiguous, loops that a compiler turns into vectors.
 *
 * Work is cut into pieces that do not depend on the number of threads, and sums over rows are kept piece by piece for
 * the caller to add in order: results are the same to the bit on any number of threads.
 *
 * library.py reads the declaration of every kernel and checks each call against it. An array has a SHAPE; it is
 * contiguous, or its last axis is and STRIDES are those of the others. OPTIONAL arrays may be null. REQUIRE follows the
 * parameters and holds of them. Their expressions are Python and may use pieces, ceil_div and the constants of enums.
 */
#ifndef HYBRIDTRON_COMMON_H
#define HYBRIDTRON_COMMON_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define KERNEL __attribute__((visibility("default"))) void
#define SHAPE(...)
#define STRIDES(...)
#define OPTIONAL
#define REQUIRE(...)
#define INLINE static inline __attribute__((always_inline))

/* For the iterations of the loop that follows, when it has work for more than one thread. */
#define PARALLEL_PRAGMA(text) _Pragma(#text)
#define PARALLEL(elements) PARALLEL_PRAGMA(omp parallel for schedule(static) num_threads(threads) if (threads > 1 && (elements) > 32768))

enum { ROWS = 64 }; /* rows in a piece */

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }
INLINE long pieces(long rows) { return ceil_div(rows, ROWS); }

/* e^x with a relative error of about 1e-7 (1 + |x|); 0 below 2^-126, never above 2^127, NaN for NaN and -inf.
 * The exponent is limited once as a float and once as an integer: each is one instruction. */
INLINE float exponential(float x) {
    float t = x * 1.44269504f;
    t = t > 126.0f ? 126.0f : t;
    float n = rintf(t), f = t - n;
    /* 2^f for |f| <= 1/2, fitted for the least relative error */
    float p = fmaf(1.3276467199e-3f, f, 9.6755416821e-3f);
    p = fmaf(p, f, 5.5507132917e-2f);
    p = fmaf(p, f, 2.4022119718e-1f);
    p = fmaf(p, f, 6.9314696705e-1f);
    p = fmaf(p, f, 1.0000000717f);
    int32_t exponent = (int32_t)n;
    exponent = exponent < -127 ? -127 : exponent;
    union { int32_t bits; float value; } power = {(int32_t)((uint32_t)(exponent + 127) << 23)};
    return p * power.value;
}

/* tanh x with an absolute error of about 1e-7, and a relative one of 3e-7 near zero. */
INLINE float hyperbolic_tangent(float x) {
    float square = x * x;
    float series = fmaf(square, fmaf(square, fmaf(square, fmaf(square, 2.1869489e-2f, -5.3968254e-2f), 1.3333333e-1f), -3.3333333e-1f), 1.0f);
    float whole = 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
    return square < 0.1f ? x * series : whole;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* silu(x) = x sigmoid(x) has the slope s (1 + x (1 - s)), s = sigmoid(x). */
INLINE float silu_slope(float x, float s) { return s * fmaf(x, 1.0f - s, 1.0f); }

#endif
