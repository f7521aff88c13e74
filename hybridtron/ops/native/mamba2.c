/* The parts of a Mamba-2 layer between its matrix multiplications, for one sequence at a time.
 *
 * Outside, a row holds what the projection gave to one token, and rows of a sequence are `step` apart. Inside, a
 * sequence is cut into chunks of `length` tokens and tensors are [chunks, heads or groups, length, dim], ready for
 * batched matrix multiplications. The last chunk may have fewer tokens; its other rows are zero. See ops/ssm/ssd.py for
 * the names: total is c_i, step dt, inject exp(c_l - c_j) dt_j and carry exp(c_i), each [chunks, heads, length].
 */
#include "common.h"

enum { LANES = 16 };
static const float SMALLEST_STEP = 1e-20f; /* stands for smaller ones: the gradient of a step is found by dividing by it */

/* bias + sum_j weight[j] rows[j] at channel i. */
INLINE float taps_at(long taps, const float *const *rows, const float *weight, long stride, float start, long i) {
    for (long j = 0; j < taps; j++) start = fmaf(weight[j * stride + i], rows[j][i], start);
    return start;
}

enum { MOST_TAPS = 16 };

/* The k rows that meet in a token's output; before the sequence they are zero. */
INLINE void window(const float *rows[], long taps, const float *x, long step, long token, const float *zeros) {
    for (long j = 0; j < taps; j++) {
        long t = token - taps + 1 + j;
        rows[j] = t < 0 ? zeros : x + t * step;
    }
}

INLINE void conv_chunk(long taps, long chunk, long seq_len, long length, long heads, long dim, const float *x, long step, const float *weight, const float *bias, long channels, const float *zeros, float *out) {
    for (long t = 0; t < length; t++) {
        const float *rows[MOST_TAPS];
        long token = chunk * length + t;
        window(rows, taps, x, step, token, zeros);
        for (long head = 0; head < heads; head++) {
            float *y = out + ((chunk * heads + head) * length + t) * dim;
            if (token >= seq_len) {
                memset(y, 0, dim * sizeof(float));
                continue;
            }
            long at = head * dim;
#pragma omp simd
            for (long i = 0; i < dim; i++) {
                float sum = taps_at(taps, rows, weight, channels, bias[at + i], at + i);
                y[i] = sum * sigmoid(sum);
            }
        }
    }
}

/* silu of the causal convolution of x [seq_len, heads dim] by weight [taps, channels], out [chunks, heads, length, dim]. */
KERNEL conv_forward(long seq_len, long length, long heads, long dim, long taps, long channels,
    const float *x SHAPE(seq_len, heads * dim) STRIDES(step), long step, const float *weight SHAPE(taps, heads * dim) STRIDES(channels),
    const float *bias SHAPE(heads * dim), const float *zeros SHAPE(heads * dim),
    float *out SHAPE(ceil_div(seq_len, length), heads, length, dim), int threads)
    REQUIRE(length >= 1, 1 <= taps <= MOST_TAPS) {
    long chunks = ceil_div(seq_len, length);
    PARALLEL(seq_len * heads * dim)
    for (long chunk = 0; chunk < chunks; chunk++) {
        if (taps == 4) conv_chunk(4, chunk, seq_len, length, heads, dim, x, step, weight, bias, channels, zeros, out);
        else conv_chunk(taps, chunk, seq_len, length, heads, dim, x, step, weight, bias, channels, zeros, out);
    }
}

/* Tokens of a chunk and taps - 1 more, whose outputs the chunk's inputs reach. `ring` [taps, heads dim] holds the
 * gradients before silu of the last tokens, token t in row t % taps. */
INLINE void conv_chunk_backward(long taps, long chunk, long seq_len, long length, long heads, long dim, const float *x, long step, const float *weight, const float *bias, long channels, const float *zeros, const float *dy, float *dx, long dx_step, float *dweight, float *dbias, float *ring) {
    long start = chunk * length, stop = least(seq_len, start + length), width = heads * dim;
    for (long token = start; token < stop + taps - 1; token++) {
        float *slot = ring + token % taps * width;
        if (token >= seq_len) {
            memset(slot, 0, width * sizeof(float));
        } else {
            const float *rows[MOST_TAPS];
            window(rows, taps, x, step, token, zeros);
            const float *g = dy + ((token / length * heads) * length + token % length) * dim;
            for (long head = 0; head < heads; head++, g += length * dim) {
                long at = head * dim;
#pragma omp simd
                for (long i = 0; i < dim; i++) {
                    float sum = taps_at(taps, rows, weight, channels, bias[at + i], at + i);
                    slot[at + i] = g[i] * silu_slope(sum, sigmoid(sum));
                }
            }
            if (token < stop) {
                for (long j = 0; j < taps; j++)
                    for (long i = 0; i < width; i++) dweight[j * channels + i] += slot[i] * rows[j][i];
                for (long i = 0; i < width; i++) dbias[i] += slot[i];
            }
        }
        long source = token - taps + 1; /* its outputs are all known now */
        if (source >= start) {
            const float *slots[MOST_TAPS];
            for (long j = 0; j < taps; j++) slots[j] = ring + (token - j) % taps * width;
            float *out = dx + source * dx_step;
#pragma omp simd
            for (long i = 0; i < width; i++) out[i] = taps_at(taps, slots, weight, channels, 0.0f, i);
        }
    }
}

/* From dy [chunks, heads, length, dim]; sums [chunks, taps + 1, channels], the last row that of the bias, by chunk. The
 * chunks need rings to work in. */
KERNEL conv_backward(long seq_len, long length, long heads, long dim, long taps, long channels,
    const float *x SHAPE(seq_len, heads * dim) STRIDES(step), long step, const float *weight SHAPE(taps, heads * dim) STRIDES(channels),
    const float *bias SHAPE(heads * dim), const float *zeros SHAPE(heads * dim),
    const float *dy SHAPE(ceil_div(seq_len, length), heads, length, dim), float *dx SHAPE(seq_len, heads * dim) STRIDES(dx_step), long dx_step,
    float *sums SHAPE(ceil_div(seq_len, length), taps + 1, heads * dim) STRIDES((taps + 1) * channels, channels),
    float *rings SHAPE(ceil_div(seq_len, length), taps, heads * dim), int threads)
    REQUIRE(length >= 1, 1 <= taps <= MOST_TAPS) {
    long chunks = ceil_div(seq_len, length), width = heads * dim;
    PARALLEL(seq_len * width)
    for (long chunk = 0; chunk < chunks; chunk++) {
        float *ring = rings + chunk * taps * width;
        float *dweight = sums + chunk * (taps + 1) * channels, *dbias = dweight + taps * channels;
        for (long j = 0; j <= taps; j++) memset(dweight + j * channels, 0, width * sizeof(float));
        if (taps == 4) conv_chunk_backward(4, chunk, seq_len, length, heads, dim, x, step, weight, bias, channels, zeros, dy, dx, dx_step, dweight, dbias, ring);
        else conv_chunk_backward(taps, chunk, seq_len, length, heads, dim, x, step, weight, bias, channels, zeros, dy, dx, dx_step, dweight, dbias, ring);
    }
}

/* dt = softplus(raw + bias) of raw [seq_len, heads], and what it makes of the tokens of each chunk. */
KERNEL decays_forward(long seq_len, long length, long heads, const float *raw SHAPE(seq_len, heads) STRIDES(step), long step,
    const float *bias SHAPE(heads), const float *A SHAPE(heads), float *dt SHAPE(ceil_div(seq_len, length), heads, length),
    float *total SHAPE(ceil_div(seq_len, length), heads, length), float *inject SHAPE(ceil_div(seq_len, length), heads, length),
    float *carry SHAPE(ceil_div(seq_len, length), heads, length), int threads)
    REQUIRE(length >= 1) {
    long chunks = ceil_div(seq_len, length);
    PARALLEL(8 * chunks * heads * length)
    for (long index = 0; index < chunks * heads; index++) {
        long head = index % heads, start = index / heads * length;
        float *d = dt + index * length, *c = total + index * length;
        double sum = 0.0;
        for (long t = 0; t < length; t++) {
            float size = 0.0f;
            if (start + t < seq_len) {
                float value = raw[(start + t) * step + head] + bias[head];
                size = value > 20.0f ? value : log1pf(expf(value));
            }
            d[t] = size < SMALLEST_STEP ? SMALLEST_STEP : size;
            c[t] = sum += (double)d[t] * A[head];
        }
        for (long t = 0; t < length; t++) {
            inject[index * length + t] = exponential(c[length - 1] - c[t]) * d[t];
            carry[index * length + t] = exponential(c[t]);
        }
    }
}

/* log_total, log_step, log_carry and log_inject are gradients by the logarithms [chunks, heads, length].
 * carry without the first chunk, inject without the last; last [chunks - 1, heads] is by log exp(c_l) of each chunk. */
KERNEL decays_backward(long seq_len, long length, long heads, const float *raw SHAPE(seq_len, heads) STRIDES(step), long step,
    const float *bias SHAPE(heads), const float *A SHAPE(heads), const float *dt SHAPE(ceil_div(seq_len, length), heads, length),
    const float *log_total SHAPE(ceil_div(seq_len, length), heads, length), const float *log_step SHAPE(ceil_div(seq_len, length), heads, length),
    const float *log_carry SHAPE(ceil_div(seq_len, length) - 1, heads, length), const float *log_inject SHAPE(ceil_div(seq_len, length) - 1, heads, length),
    const float *last SHAPE(ceil_div(seq_len, length) - 1, heads), float *draw SHAPE(seq_len, heads) STRIDES(draw_step), long draw_step,
    float *dA SHAPE(heads), float *dbias SHAPE(heads), int threads)
    REQUIRE(seq_len >= 1, length >= 1) {
    long chunks = ceil_div(seq_len, length);
    PARALLEL(8 * chunks * heads * length)
    for (long head = 0; head < heads; head++) {
        double by_rate = 0.0, by_bias = 0.0;
        for (long chunk = 0; chunk < chunks; chunk++) {
            long at = (chunk * heads + head) * length;
            const float *carried = chunk ? log_carry + at - heads * length : 0;
            const float *injected = chunk < chunks - 1 ? log_inject + at : 0;
            /* c_l is in every inject and in what the state before becomes */
            double later = chunk && injected ? last[chunk * heads + head] : 0.0;
            if (injected)
                for (long t = 0; t < length; t++) later += injected[t];
            for (long t = length - 1; t >= 0; t--) {
                /* c_i sums the steps up to i: a step gathers what reaches the sums from it on */
                float own = injected ? injected[t] : 0.0f;
                later += log_total[at + t] + (carried ? carried[t] : 0.0f) - own;
                long token = chunk * length + t;
                if (token >= seq_len) continue;
                float value = raw[token * step + head] + bias[head];
                double slope = (log_step[at + t] + own) / dt[at + t] + later * A[head];
                slope *= 1.0f / (1.0f + expf(-value));
                by_rate += later * dt[at + t];
                by_bias += slope;
                draw[token * draw_step + head] = slope;
            }
        }
        dA[head] = by_rate;
        dbias[head] = by_bias;
    }
}

/* Row i of exp(c_i - c_j) dt_j for j <= i, else 0. Rows are worked on up to a whole vector, with int indices, as many to
 * a vector as floats. */
INLINE float within(float c, const float *total, const float *dt, int i, int j) {
    float value = exponential(c - total[j]) * dt[j];
    return j <= i ? value : 0.0f;
}

/* M = scores exp(c_i - c_j) dt_j with D on its diagonal: [chunks, heads, length, length] from [chunks, groups, length, length]. */
KERNEL ssd_matrices(long chunks, long heads, long groups, long length, const float *scores SHAPE(chunks, groups, length, length),
    const float *total SHAPE(chunks, heads, length), const float *dt SHAPE(chunks, heads, length), const float *D SHAPE(heads),
    float *matrices SHAPE(chunks, heads, length, length), int threads)
    REQUIRE(groups >= 1, heads % groups == 0) {
    PARALLEL(chunks * heads * length * length)
    for (long index = 0; index < chunks * heads; index++) {
        long head = index % heads, group = head / (heads / groups);
        const float *s = scores + (index / heads * groups + group) * length * length;
        const float *c = total + index * length, *d = dt + index * length;
        float *m = matrices + index * length * length;
        for (int i = 0; i < length; i++, s += length, m += length) {
            int to = least(length, (i + LANES) / LANES * LANES);
#pragma omp simd
            for (int j = 0; j < to; j++) m[j] = s[j] * within(c[i], c, d, i, j);
            memset(m + to, 0, (length - to) * sizeof(float));
            m[i] += D[head];
        }
    }
}

/* The gradient by M becomes M itself. Writes dscores, the gradients by c and by log dt, and that by
 * D [chunks, heads]; diagonals are to work in. */
KERNEL ssd_matrices_backward(long chunks, long heads, long groups, long length, const float *scores SHAPE(chunks, groups, length, length),
    const float *total SHAPE(chunks, heads, length), const float *dt SHAPE(chunks, heads, length), const float *D SHAPE(heads),
    float *matrices SHAPE(chunks, heads, length, length), float *dscores SHAPE(chunks, groups, length, length),
    float *log_total SHAPE(chunks, heads, length), float *log_step SHAPE(chunks, heads, length), float *dD SHAPE(chunks, heads),
    float *diagonals SHAPE(chunks, heads, length), int threads)
    REQUIRE(groups >= 1, heads % groups == 0) {
    long repeats = heads / groups;
    PARALLEL(chunks * heads * length * length)
    for (long index = 0; index < chunks * groups; index++) {
        memset(dscores + index * length * length, 0, length * length * sizeof(float));
        for (long repeat = 0; repeat < repeats; repeat++) {
            long head = index % groups * repeats + repeat, at = index / groups * heads + head;
            const float *c = total + at * length, *d = dt + at * length, *s = scores + index * length * length;
            float *by_total = log_total + at * length, *by_source = log_step + at * length, skip = 0.0f;
            float *m = matrices + at * length * length, *ds = dscores + index * length * length, *itself = diagonals + at * length;
            memset(by_source, 0, length * sizeof(float));
            for (int i = 0; i < length; i++, s += length, m += length, ds += length) {
                int to = least(length, (i + LANES) / LANES * LANES);
                float row = 0.0f, diagonal = m[i];
                skip += diagonal;
#pragma GCC ivdep
                for (int j = 0; j < to; j++) {
                    float factor = within(c[i], c, d, i, j), slope = m[j] * factor;
                    /* a token's own entry has no decay */
                    float by_log = j == i ? 0.0f : slope * s[j];
                    ds[j] += slope;
                    by_source[j] += by_log;
                    row += by_log;
                    m[j] = factor * s[j];
                }
                memset(m + to, 0, (length - to) * sizeof(float));
                itself[i] = diagonal * m[i];
                m[i] += D[head];
                by_total[i] = row;
            }
            for (long i = 0; i < length; i++) {
                by_total[i] -= by_source[i];
                by_source[i] += itself[i];
            }
            dD[at] = skip;
        }
    }
}

/* out [chunks, heads, length, dim] = source [chunks, groups, length, dim] times factor [chunks, heads, length]. */
KERNEL scale_tokens(long chunks, long heads, long groups, long length, long dim, const float *source SHAPE(chunks, groups, length, dim),
    const float *factor SHAPE(chunks, heads, length), float *out SHAPE(chunks, heads, length, dim), int threads)
    REQUIRE(groups >= 1, heads % groups == 0) {
    PARALLEL(chunks * heads * length * dim)
    for (long index = 0; index < chunks * heads; index++) {
        const float *x = source + (index / heads * groups + index % heads / (heads / groups)) * length * dim;
        float *y = out + index * length * dim;
        for (long t = 0; t < length; t++, x += dim, y += dim) {
            float by = factor[index * length + t];
            for (long i = 0; i < dim; i++) y[i] = x[i] * by;
        }
    }
}

/* Adds to dsource; log_factor, the gradient by the logarithm of the factor, is written. */
KERNEL scale_tokens_backward(long chunks, long heads, long groups, long length, long dim, const float *source SHAPE(chunks, groups, length, dim),
    const float *factor SHAPE(chunks, heads, length), const float *dout SHAPE(chunks, heads, length, dim),
    float *dsource SHAPE(chunks, groups, length, dim), float *log_factor SHAPE(chunks, heads, length), int threads)
    REQUIRE(groups >= 1, heads % groups == 0) {
    long repeats = heads / groups;
    PARALLEL(chunks * heads * length * dim)
    for (long index = 0; index < chunks * groups; index++) {
        for (long repeat = 0; repeat < repeats; repeat++) {
            long at = index / groups * heads + index % groups * repeats + repeat;
            const float *x = source + index * length * dim, *g = dout + at * length * dim;
            float *dx = dsource + index * length * dim;
            for (long t = 0; t < length; t++, x += dim, g += dim, dx += dim) {
                float by = factor[at * length + t], sum = 0.0f;
#pragma GCC ivdep
                for (long i = 0; i < dim; i++) {
                    dx[i] += g[i] * by;
                    sum += g[i] * x[i];
                }
                log_factor[at * length + t] = sum * by;
            }
        }
    }
}

/* states [count, heads, size], what each chunk adds, become the states after it; carry is of all chunks. */
KERNEL scan_states(long count, long heads, long length, long size, const float *carry SHAPE(count, heads, length),
    float *states SHAPE(count, heads, size), int threads)
    REQUIRE(length >= 1) {
    PARALLEL(count * heads * size)
    for (long head = 0; head < heads; head++)
        for (long chunk = 1; chunk < count; chunk++) {
            float *state = states + (chunk * heads + head) * size, *before = state - heads * size;
            float decay = carry[(chunk * heads + head + 1) * length - 1];
            for (long i = 0; i < size; i++) state[i] = fmaf(decay, before[i], state[i]);
        }
}

/* Gradients by the states as chunks read them become whole; last [count, heads] is by log exp(c_l) of each chunk. */
KERNEL scan_states_backward(long count, long heads, long length, long size, const float *carry SHAPE(count, heads, length),
    const float *states SHAPE(count, heads, size), float *dstates SHAPE(count, heads, size), float *last SHAPE(count, heads), int threads)
    REQUIRE(length >= 1) {
    PARALLEL(count * heads * size)
    for (long head = 0; head < heads; head++)
        for (long chunk = count - 1; chunk > 0; chunk--) {
            long at = (chunk * heads + head) * size, before = at - heads * size;
            float decay = carry[(chunk * heads + head + 1) * length - 1], sum = 0.0f;
#pragma GCC ivdep
            for (long i = 0; i < size; i++) {
                dstates[before + i] = fmaf(decay, dstates[at + i], dstates[before + i]);
                sum += dstates[at + i] * states[before + i];
            }
            last[chunk * heads + head] = sum * decay;
        }
}

/* rms_norm(y silu(z)) weight over groups of `width` channels: y [chunks, heads, length, dim], z and out by rows. */
KERNEL gated_norm_forward(long seq_len, long length, long heads, long dim, long groups, const float *y SHAPE(ceil_div(seq_len, length), heads, length, dim),
    const float *z SHAPE(seq_len, heads * dim) STRIDES(z_step), long z_step, const float *weight SHAPE(heads * dim), float eps,
    float *out SHAPE(seq_len, heads * dim) STRIDES(out_step), long out_step, float *inverse SHAPE(seq_len, groups), int threads)
    REQUIRE(seq_len >= 1, length >= 1, groups >= 1, heads % groups == 0) {
    long repeats = heads / groups, width = repeats * dim;
    PARALLEL(seq_len * heads * dim)
    for (long token = 0; token < seq_len; token++) {
        for (long group = 0; group < groups; group++) {
            float *o = out + token * out_step + group * width, squares = 0.0f;
            const float *gate = z + token * z_step + group * width, *w = weight + group * width;
            const float *source = y + ((token / length * heads + group * repeats) * length + token % length) * dim;
            for (long repeat = 0; repeat < repeats; repeat++, source += length * dim) {
                long at = repeat * dim;
#pragma GCC ivdep
                for (long i = 0; i < dim; i++) {
                    float gated = source[i] * gate[at + i] * sigmoid(gate[at + i]);
                    o[at + i] = gated;
                    squares += gated * gated;
                }
            }
            float factor = inverse[token * groups + group] = 1.0f / sqrtf(squares / width + eps);
            for (long i = 0; i < width; i++) o[i] *= factor * w[i];
        }
    }
}

/* dy in the layout of y, with zeros after the sequence; dweight [pieces, heads dim] by piece of tokens. */
KERNEL gated_norm_backward(long seq_len, long length, long heads, long dim, long groups, const float *y SHAPE(ceil_div(seq_len, length), heads, length, dim),
    const float *z SHAPE(seq_len, heads * dim) STRIDES(z_step), long z_step, const float *weight SHAPE(heads * dim),
    const float *inverse SHAPE(seq_len, groups), const float *g SHAPE(seq_len, heads * dim) STRIDES(g_step), long g_step,
    float *dy SHAPE(ceil_div(seq_len, length), heads, length, dim), float *dz SHAPE(seq_len, heads * dim) STRIDES(dz_step), long dz_step,
    float *dweight SHAPE(pieces(seq_len), heads * dim), int threads)
    REQUIRE(seq_len >= 1, length >= 1, groups >= 1, heads % groups == 0) {
    long repeats = heads / groups, width = repeats * dim, chunks = ceil_div(seq_len, length);
    for (long index = 0; index < heads; index++) {
        long used = seq_len - (chunks - 1) * length;
        memset(dy + (((chunks - 1) * heads + index) * length + used) * dim, 0, (length - used) * dim * sizeof(float));
    }
    PARALLEL(seq_len * heads * dim)
    for (long piece = 0; piece < pieces(seq_len); piece++) {
        float *sums = dweight + piece * heads * dim;
        memset(sums, 0, heads * dim * sizeof(float));
        for (long token = piece * ROWS; token < least(seq_len, (piece + 1) * ROWS); token++) {
            for (long group = 0; group < groups; group++) {
                const float *in = g + token * g_step + group * width, *gate = z + token * z_step + group * width;
                const float *w = weight + group * width;
                long offset = ((token / length * heads + group * repeats) * length + token % length) * dim;
                float *sum = sums + group * width, factor = inverse[token * groups + group], along = 0.0f;
                const float *source = y + offset;
                /* until the gradients are written, their places hold the sigmoids of the gates and the normed values */
                float *dsource = dy + offset, *dgate = dz + token * dz_step + group * width;
                for (long repeat = 0; repeat < repeats; repeat++, source += length * dim, dsource += length * dim) {
                    long at = repeat * dim;
#pragma GCC ivdep
                    for (long i = 0; i < dim; i++) {
                        float s = sigmoid(gate[at + i]), n = source[i] * gate[at + i] * s * factor;
                        dgate[at + i] = s;
                        dsource[i] = n;
                        sum[at + i] += in[at + i] * n;
                        along += in[at + i] * w[at + i] * n;
                    }
                }
                along /= width;
                source = y + offset;
                dsource = dy + offset;
                for (long repeat = 0; repeat < repeats; repeat++, source += length * dim, dsource += length * dim) {
                    long at = repeat * dim;
#pragma omp simd
                    for (long i = 0; i < dim; i++) {
                        float value = gate[at + i], s = dgate[at + i];
                        float dgated = (in[at + i] * w[at + i] - dsource[i] * along) * factor;
                        dsource[i] = dgated * value * s;
                        dgate[at + i] = dgated * source[i] * silu_slope(value, s);
                    }
                }
            }
        }
    }
}
