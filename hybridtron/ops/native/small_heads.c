/* Causal attention of many small heads, for which batched matrix products are slow: sixteen queries side by side in a
 * vector, so that their softmaxes and sums need nothing across it. Scores never leave the cache. */
#include "query_lanes.h"

enum { MOST_HEAD_KEYS = 1024, MOST_HEAD_WIDTH = 64 };

/* e^x for x of at most 1/2, as `exponential`; 0 below 2^-126. */
INLINE head_vector exponentials(head_vector x) {
    head_vector t = x * 1.44269504f, lowest = (head_vector){0.0f} - 127.0f;
    head_integers below = t < lowest;
    t = (head_vector)(((head_integers)t & ~below) | ((head_integers)lowest & below));
    head_integers exponent = __builtin_convertvector(t - 0.5f, head_integers); /* the nearest: it rounds towards zero */
    head_vector f = t - __builtin_convertvector(exponent, head_vector);
    head_vector p = f * 1.3276467199e-3f + 9.6755416821e-3f;
    p = p * f + 5.5507132917e-2f;
    p = p * f + 2.4022119718e-1f;
    p = p * f + 6.9314696705e-1f;
    p = p * f + 1.0f; /* e^0 is 1, so that a softmax over one key is exact */
    return p * (head_vector)((exponent + 127) << 23);
}

/* Sixteen queries from `start` on: the key at which the first stands, and the keys [first, last) that any of them sees. */
typedef struct { long start, count, position, first, last; } Queries;

INLINE Queries queries_at(long start, long queries, long keys, long window) {
    long position = start + keys - queries, first = position - window + 1;
    return (Queries){start, least(QUERY_LANES, queries - start), position, first < 0 ? 0 : first / 4 * 4, least(keys, position + QUERY_LANES)};
}

/* Whether some of the queries do not see a key between the first and the last. */
INLINE int hides(Queries some, long key, long window) { return key > some.position || key <= some.position + QUERY_LANES - 1 - window; }

/* y = softmax(scale q k^T) v, where query i stands at key i + keys - queries and sees the last `window` keys up to it;
 * log_sums are the logarithms of the sums of the exponentials. heads / kv query heads share one of k and v. */
KERNEL heads_forward(long batch, long queries, long keys, long heads, long kv, long width, long out_width, long window, float scale,
    const float *q SHAPE(batch, queries, heads, width) STRIDES(q_batch, q_token, q_head), long q_batch, long q_token, long q_head,
    const float *k SHAPE(batch, keys, kv, width) STRIDES(k_batch, k_token, k_head), long k_batch, long k_token, long k_head,
    const float *v SHAPE(batch, keys, kv, out_width) STRIDES(v_batch, v_token, v_head), long v_batch, long v_token, long v_head,
    float *y SHAPE(batch, queries, heads, out_width) STRIDES(y_batch, y_token, y_head), long y_batch, long y_token, long y_head,
    float *log_sums SHAPE(batch, heads, queries), int threads)
    REQUIRE(queries <= keys, keys <= MOST_HEAD_KEYS, kv >= 1, heads % kv == 0, window >= 1, width % 8 == 0, width <= MOST_HEAD_WIDTH, out_width % 8 == 0, out_width <= MOST_HEAD_WIDTH) {
    long rows = ceil_div(keys, 4) * 4;
    PARALLEL(batch * heads * queries * keys)
    for (long piece = 0; piece < batch * kv; piece++) {
        long b = piece / kv, shared = piece % kv;
        float key_rows[rows * width] LINED, value_rows[rows * out_width] LINED, scores[rows * QUERY_LANES] LINED;
        float columns[width * QUERY_LANES] LINED, outputs[out_width * QUERY_LANES] LINED;
        load_head(keys, width, k + b * k_batch + shared * k_head, k_token, key_rows);
        load_head(keys, out_width, v + b * v_batch + shared * v_head, v_token, value_rows);
        for (long head = shared * (heads / kv); head < (shared + 1) * (heads / kv); head++) {
            for (long start = 0; start < queries; start += QUERY_LANES) {
                Queries some = queries_at(start, queries, keys, window);
                load_columns(some.count, width, q + b * q_batch + start * q_token + head * q_head, q_token, columns);
                products(some.first, some.last, width, columns, key_rows, scale, scores);
                head_vector largest = (head_vector){0.0f} - 1e30f, total = {0.0f};
                for (long j = some.first; j < some.last; j++) {
                    head_vector score = VECTOR(scores + j * QUERY_LANES);
                    if (hides(some, j, window)) VECTOR(scores + j * QUERY_LANES) = score = where(sees(j, some.position, window), score, -1e30f);
                    head_integers larger = score > largest;
                    largest = (head_vector)(((head_integers)score & larger) | ((head_integers)largest & ~larger));
                }
                for (long j = some.first; j < some.last; j++) {
                    head_vector p = exponentials(VECTOR(scores + j * QUERY_LANES) - largest);
                    VECTOR(scores + j * QUERY_LANES) = p;
                    total += p;
                }
                combine(some.first, some.last, out_width, scores, value_rows, 1.0f / total, outputs);
                /* 0 times a NaN, or scores that are as good as -inf and no larger than those of keys that are not seen */
                if (any(first_lanes(some.count) & (not_finite(out_width, (head_vector *)outputs) | (largest <= (head_vector){0.0f} - 1e30f)))) {
                    total = (head_vector){0.0f};
                    for (long j = some.first; j < some.last; j++) total += where(sees(j, some.position, window), VECTOR(scores + j * QUERY_LANES), 0.0f);
                    combine_seen(some.first, some.last, out_width, scores, value_rows, 1.0f / total, outputs, some.position, window);
                }
                store_columns(some.count, out_width, outputs, y + b * y_batch + start * y_token + head * y_head, y_token);
                for (long t = 0; t < some.count; t++) log_sums[(b * heads + head) * queries + start + t] = largest[t] + logf(total[t]);
            }
        }
    }
}

KERNEL heads_backward(long batch, long queries, long keys, long heads, long kv, long width, long out_width, long window, float scale,
    const float *q SHAPE(batch, queries, heads, width) STRIDES(q_batch, q_token, q_head), long q_batch, long q_token, long q_head,
    const float *k SHAPE(batch, keys, kv, width) STRIDES(k_batch, k_token, k_head), long k_batch, long k_token, long k_head,
    const float *v SHAPE(batch, keys, kv, out_width) STRIDES(v_batch, v_token, v_head), long v_batch, long v_token, long v_head,
    const float *log_sums SHAPE(batch, heads, queries),
    const float *dy SHAPE(batch, queries, heads, out_width) STRIDES(dy_batch, dy_token, dy_head), long dy_batch, long dy_token, long dy_head,
    float *dq SHAPE(batch, queries, heads, width) STRIDES(dq_batch, dq_token, dq_head), long dq_batch, long dq_token, long dq_head,
    float *dk SHAPE(batch, keys, kv, width) STRIDES(dk_batch, dk_token, dk_head), long dk_batch, long dk_token, long dk_head,
    float *dv SHAPE(batch, keys, kv, out_width) STRIDES(dv_batch, dv_token, dv_head), long dv_batch, long dv_token, long dv_head, int threads)
    REQUIRE(queries <= keys, keys <= MOST_HEAD_KEYS, kv >= 1, heads % kv == 0, window >= 1, width % 8 == 0, width <= MOST_HEAD_WIDTH, out_width % 8 == 0, out_width <= MOST_HEAD_WIDTH) {
    long rows = ceil_div(keys, 4) * 4;
    PARALLEL(batch * heads * queries * keys)
    for (long piece = 0; piece < batch * kv; piece++) {
        long b = piece / kv, shared = piece % kv;
        float key_rows[rows * width] LINED, value_rows[rows * out_width] LINED, key_sums[rows * width] LINED, value_sums[rows * out_width] LINED;
        float weights[rows * QUERY_LANES] LINED, slopes[rows * QUERY_LANES] LINED, query_rows[QUERY_LANES * width] LINED, output_rows[QUERY_LANES * out_width] LINED;
        float columns[width * QUERY_LANES] LINED, outputs[out_width * QUERY_LANES] LINED, log_sum[QUERY_LANES] LINED;
        load_head(keys, width, k + b * k_batch + shared * k_head, k_token, key_rows);
        load_head(keys, out_width, v + b * v_batch + shared * v_head, v_token, value_rows);
        memset(key_sums, 0, rows * width * sizeof(float));
        memset(value_sums, 0, rows * out_width * sizeof(float));
        for (long head = shared * (heads / kv); head < (shared + 1) * (heads / kv); head++) {
            for (long start = 0; start < queries; start += QUERY_LANES) {
                Queries some = queries_at(start, queries, keys, window);
                const float *own = q + b * q_batch + start * q_token + head * q_head, *g = dy + b * dy_batch + start * dy_token + head * dy_head;
                load_columns(some.count, width, own, q_token, columns);
                load_columns(some.count, out_width, g, dy_token, outputs);
                memset(query_rows, 0, sizeof query_rows);
                memset(output_rows, 0, sizeof output_rows);
                load_head(some.count, width, own, q_token, query_rows);
                load_head(some.count, out_width, g, dy_token, output_rows);
                for (long t = 0; t < QUERY_LANES; t++) log_sum[t] = t < some.count ? log_sums[(b * heads + head) * queries + start + t] : 0.0f;
                products(some.first, some.last, width, columns, key_rows, scale, weights);
                products(some.first, some.last, out_width, outputs, value_rows, 1.0f, slopes);
                head_vector along = {0.0f};
                for (long j = some.first; j < some.last; j++) {
                    head_vector p = exponentials(VECTOR(weights + j * QUERY_LANES) - VECTOR(log_sum));
                    if (hides(some, j, window)) {
                        p = where(sees(j, some.position, window), p, 0.0f);
                        VECTOR(slopes + j * QUERY_LANES) = where(sees(j, some.position, window), VECTOR(slopes + j * QUERY_LANES), 0.0f);
                    }
                    VECTOR(weights + j * QUERY_LANES) = p;
                    along += p * VECTOR(slopes + j * QUERY_LANES);
                }
                for (long j = some.first; j < some.last; j++)
                    VECTOR(slopes + j * QUERY_LANES) = VECTOR(weights + j * QUERY_LANES) * (VECTOR(slopes + j * QUERY_LANES) - along);
                combine(some.first, some.last, width, slopes, key_rows, (head_vector){0.0f} + scale, columns);
                if (!any(not_finite(width, (head_vector *)columns))) {
                    scatter(some.first, some.last, out_width, weights, output_rows, value_sums);
                    scatter(some.first, some.last, width, slopes, query_rows, key_sums);
                } else {
                    combine_seen(some.first, some.last, width, slopes, key_rows, (head_vector){0.0f} + scale, columns, some.position, window);
                    scatter_seen(some.first, some.last, out_width, weights, output_rows, value_sums, some.position, window);
                    scatter_seen(some.first, some.last, width, slopes, query_rows, key_sums, some.position, window);
                }
                store_columns(some.count, width, columns, dq + b * dq_batch + start * dq_token + head * dq_head, dq_token);
            }
        }
        for (long t = 0; t < keys; t++) {
            float *key = dk + b * dk_batch + t * dk_token + shared * dk_head, *value = dv + b * dv_batch + t * dv_token + shared * dv_head;
            for (long i = 0; i < width; i++) key[i] = scale * key_sums[t * width + i];
            for (long i = 0; i < out_width; i++) value[i] = value_sums[t * out_width + i];
        }
    }
}
