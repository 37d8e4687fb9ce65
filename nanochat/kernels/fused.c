// The operations between a training step's matrix products, each in one pass over memory; torch takes a pass for each elementwise
// operation. Compiled at the first start for this machine's processor, once for each type of the activations: float32, or
// bfloat16 with -DBFLOAT16. BLOCK is given as well: the rows that are added up in one sum, and the columns that one thread takes. All
// arithmetic is float32. No fast-math: NaN must propagate.
//
// Rows are contiguous; strides are in elements. A sum over rows is made of blocks of a fixed size, for any number of threads.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t size;

#ifdef BFLOAT16
typedef uint16_t real;

static inline float get(real x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline real put(float value) { // round to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (real)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
#else
typedef float real;

static inline float get(real x) { return x; }
static inline real put(float value) { return value; }
#endif

#define WORTH 16384 // elements from which several threads are faster
#define PRAGMA(...) _Pragma(#__VA_ARGS__)
#define FOR_ROWS(n, width) PRAGMA(omp parallel for schedule(static) if ((n) * (width) >= WORTH))
#define SUM(...) PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#define EACH PRAGMA(omp simd)

// e^x within 2e-7 of it, for a vector at a time (Moshier, Cephes); below e^-87 it stays at that.
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: rounds, and leaves the integer in the lowest bits
    float whole = shifted - 12582912.0f;
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline float dot(size n, const real *a, const real *b) {
    float sum = 0;
    SUM(sum) for (size i = 0; i < n; i++) sum += get(a[i]) * get(b[i]);
    return sum;
}

// sum += factor * x, each (n).
void accumulate(size n, float factor, const real *x, float *sum) {
    FOR_ROWS(n, 1) for (size i = 0; i < n; i++) sum[i] += factor * get(x[i]);
}

// Whether each of n indices is below `end`, and none negative.
static int inside(size n, size end, const int64_t *indices) {
    int all = 1;
    for (size i = 0; i < n; i++) all &= 0 <= indices[i] && indices[i] < end;
    return all;
}

// out[i] = table[ids[i]]: ids (n), table (rows, d), out (n, d). Returns 1 and writes nothing if an id is outside of the table.
int embed(size n, size rows, size d, const int64_t *ids, const float *table, real *out) {
    if (!inside(n, rows, ids)) return 1;
    FOR_ROWS(n, d) for (size row = 0; row < n; row++) {
        const float *in = table + ids[row] * d;
        EACH for (size i = 0; i < d; i++) out[row * d + i] = put(in[i]);
    }
    return 0;
}

// sum[ids[i]] += grad[i], in the order of i for any number of threads, because each takes a part of the columns.
void embed_backward(size n, size d, const int64_t *ids, const real *grad, float *sum) {
    FOR_ROWS(n, d) for (size column = 0; column < d; column += BLOCK) {
        size end = column + BLOCK < d ? column + BLOCK : d;
        for (size row = 0; row < n; row++) {
            float *to = sum + ids[row] * d;
            EACH for (size i = column; i < end; i++) to[i] += get(grad[row * d + i]);
        }
    }
}

// y = x / rms(x): x and y (n, d), scale (n).
void rms_norm(size n, size d, float eps, const real *x, real *y, float *scale) {
    FOR_ROWS(n, d) for (size row = 0; row < n; row++) {
        const real *in = x + row * d;
        real *out = y + row * d;
        float s = scale[row] = 1.0f / sqrtf(dot(d, in, in) / d + eps);
        EACH for (size i = 0; i < d; i++) out[i] = put(get(in[i]) * s);
    }
}

void rms_norm_backward(size n, size d, const real *y, const float *scale, const real *grad, real *out) {
    FOR_ROWS(n, d) for (size row = 0; row < n; row++) {
        const real *g = grad + row * d, *in = y + row * d;
        float s = scale[row], along = dot(d, g, in) / d;
        EACH for (size i = 0; i < d; i++) out[row * d + i] = put(s * (get(g[i]) - along * get(in[i])));
    }
}

// y = gain * rms_norm(rotate(x)): x (rows, t, h, k) with any strides, cos and sin (t, k / 2), y (rows, t, h, k), scale (rows, t, h).
void rotary_norm(size rows, size t, size h, size k, size row_stride, size t_stride, size h_stride, float eps, float gain, const real *x,
                 const float *cos, const float *sin, real *y, float *scale) {
    FOR_ROWS(rows *t, h *k) for (size at = 0; at < rows * t; at++) {
        const float *c = cos + at % t * (k / 2), *s = sin + at % t * (k / 2);
        for (size head = 0; head < h; head++) {
            const real *first = x + at / t * row_stride + at % t * t_stride + head * h_stride, *second = first + k / 2;
            real *out = y + (at * h + head) * k;
            float norm = scale[at * h + head] = 1.0f / sqrtf(dot(k, first, first) / k + eps); // a rotation keeps the length
            EACH for (size i = 0; i < k / 2; i++) {
                float a = get(first[i]) * norm * gain, b = get(second[i]) * norm * gain;
                out[i] = put(a * c[i] + b * s[i]);
                out[i + k / 2] = put(b * c[i] - a * s[i]);
            }
        }
    }
}

// The strides are those of the gradient; out (rows, t, h, k).
void rotary_norm_backward(size rows, size t, size h, size k, size row_stride, size t_stride, size h_stride, float gain, const real *y,
                          const float *cos, const float *sin, const float *scale, const real *grad, real *out) {
    FOR_ROWS(rows *t, h *k) for (size at = 0; at < rows * t; at++) {
        const float *c = cos + at % t * (k / 2), *s = sin + at % t * (k / 2);
        for (size head = 0; head < h; head++) {
            const real *g = grad + at / t * row_stride + at % t * t_stride + head * h_stride, *in = y + (at * h + head) * k;
            real *to = out + (at * h + head) * k;
            float norm = scale[at * h + head], along = dot(k, g, in) / k / gain;
            EACH for (size i = 0; i < k / 2; i++) {
                float a = norm * (gain * get(g[i]) - along * get(in[i]));
                float b = norm * (gain * get(g[i + k / 2]) - along * get(in[i + k / 2]));
                to[i] = put(a * c[i] - b * s[i]);
                to[i + k / 2] = put(a * s[i] + b * c[i]);
            }
        }
    }
}

// out = a * x + b * first, each (n).
void mix(size n, float a, float b, const real *x, const real *first, real *out) {
    FOR_ROWS(n, 1) for (size i = 0; i < n; i++) out[i] = put(a * get(x[i]) + b * get(first[i]));
}

// sums (blocks, 2): for each block of BLOCK rows its part of the gradients of a and of b.
void mix_backward(size n, size d, float a, float b, const real *x, const real *first, const real *grad, real *grad_x, real *grad_first,
                  float *sums) {
    FOR_ROWS(n, d) for (size block = 0; block < (n + BLOCK - 1) / BLOCK; block++) {
        float sum_a = 0, sum_b = 0;
        size end = (block + 1) * BLOCK < n ? (block + 1) * BLOCK * d : n * d;
        SUM(sum_a, sum_b) for (size i = block * BLOCK * d; i < end; i++) {
            float g = get(grad[i]);
            sum_a += g * get(x[i]);
            sum_b += g * get(first[i]);
            grad_x[i] = put(a * g);
            grad_first[i] = put(b * g);
        }
        sums[2 * block] = sum_a;
        sums[2 * block + 1] = sum_b;
    }
}

// y = max(x, 0)^2, each (n).
void relu_square(size n, const real *x, real *y) {
    FOR_ROWS(n, 1) for (size i = 0; i < n; i++) {
        float value = get(x[i]);
        value = value < 0 ? 0 : value; // NaN stays
        y[i] = put(value * value);
    }
}

void relu_square_backward(size n, const real *x, const real *grad, real *out) {
    FOR_ROWS(n, 1) for (size i = 0; i < n; i++) {
        float value = get(x[i]);
        out[i] = put(2 * (value < 0 ? 0 : value) * get(grad[i]));
    }
}

// out = v + 3 sigmoid(gate) * embedding: v, embedding and out (n, k), gate (n).
void add_gated(size n, size k, const real *v, const real *gate, const real *embedding, real *out) {
    FOR_ROWS(n, k) for (size row = 0; row < n; row++) {
        float weight = 3 / (1 + exponential(-get(gate[row])));
        EACH for (size i = row * k; i < (row + 1) * k; i++) out[i] = put(get(v[i]) + weight * get(embedding[i]));
    }
}

void add_gated_backward(size n, size k, const real *gate, const real *embedding, const real *grad, real *grad_gate, real *grad_embedding) {
    FOR_ROWS(n, k) for (size row = 0; row < n; row++) {
        float open = 1 / (1 + exponential(-get(gate[row])));
        grad_gate[row] = put(3 * open * (1 - open) * dot(k, grad + row * k, embedding + row * k));
        EACH for (size i = row * k; i < (row + 1) * k; i++) grad_embedding[i] = put(3 * open * get(grad[i]));
    }
}

// Logits (n, v) are overwritten with their gradients, and each row's loss is written to nats (n); targets and counts (n).
// Softcapped by cap * tanh(x / cap) = 2 cap * (sigmoid(2x / cap) - 1/2), if cap is not 0.
// Returns 1 if memory cannot be allocated, and 2, before any change, if a target is outside of the logits.
int cross_entropy(size n, size v, float cap, real *logits, const int64_t *targets, const float *counts, float *nats) {
    int failed = 0;
    if (!inside(n, v, targets)) return 2;
#pragma omp parallel reduction(| : failed)
    {
        float *weights = malloc(v * sizeof *weights); // of one row, times the softcap's derivative
        failed = !weights;
#pragma omp for schedule(static)
        for (size row = 0; row < n; row++) {
            if (!weights) continue;
            real *x = logits + row * v;
            size target = targets[row];
            float sum = 0, wanted = get(x[target]), weight, slope = 1;
            if (cap) {
                float turn = -2 / cap, twice = 2 * cap;
                SUM(sum) for (size i = 0; i < v; i++) {
                    float half = 1 / (1 + exponential(turn * get(x[i]))) - 0.5f;
                    float e = exponential(twice * half); // no overflow within +-cap
                    sum += e;
                    weights[i] = e * (1 - 4 * half * half);
                }
                float half = 1 / (1 + exponential(turn * wanted)) - 0.5f;
                wanted = twice * half;
                weight = exponential(wanted);
                slope = 1 - 4 * half * half;
            } else {
                float highest = -INFINITY;
                PRAGMA(omp simd reduction(max : highest)) for (size i = 0; i < v; i++) highest = get(x[i]) > highest ? get(x[i]) : highest;
                SUM(sum) for (size i = 0; i < v; i++) sum += weights[i] = exponential(get(x[i]) - highest);
                wanted -= highest;
                weight = weights[target];
            }
            float scale = counts[row] / sum;
            EACH for (size i = 0; i < v; i++) x[i] = put(scale * weights[i]);
            x[target] = put((scale * weight - counts[row]) * slope);
            nats[row] = (logf(sum) - wanted) * counts[row];
        }
        free(weights);
    }
    return failed;
}

// Part of attention's backward pass (Dao et al., 2022, appendix B.2), for t queries and keys in each of `heads` heads. Scores
// (heads, t, t) are overwritten with attention weights, and grads (heads, t, t) of the weights with gradients of the scores.
// logsumexp (heads, t) is of each query's scores; along (heads, t) is the product of its output with its gradient.
void attention_backward(size heads, size t, float scale, const float *logsumexp, const float *along, real *scores, real *grads) {
    FOR_ROWS(heads *t, t) for (size row = 0; row < heads * t; row++) {
        real *s = scores + row * t, *g = grads + row * t;
        float whole = logsumexp[row], mean = along[row];
        size seen = row % t + 1;
        EACH for (size i = 0; i < seen; i++) {
            float weight = exponential(scale * get(s[i]) - whole);
            s[i] = put(weight);
            g[i] = put(scale * weight * (get(g[i]) - mean));
        }
        memset(s + seen, 0, (t - seen) * sizeof *s);
        memset(g + seen, 0, (t - seen) * sizeof *g);
    }
}
