/* The generator of mixing weights: gelu(rms_norm(x) hidden') output' + static, in float32. Forward takes
 * bfloat16, too, computes in float and rounds once.
 *
 * rms_norm(x) hidden' is a scale of each token times x hidden'. Tokens are taken a block at a time,
 * so that a block's rows are in a cache for the product and for its norm, and what is between both
 * products is never written, unless backward is to have it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 24 }; /* tokens */
enum { FEW = 16 };   /* tokens: up to so many, packing matrices takes longer than it saves */
enum { BESIDE = 4 }; /* rows of a matrix that meet a token at once */

/* token_weights_compiled.py declares the same. Rows are contiguous. */
struct call {
    int64_t tokens, width, features, outputs, threads;
    int64_t half; /* whether what forward reads and its `out` are of bfloat16, all but raw, scales */
    double eps;
    const float *x, *hidden, *output; /* [tokens, width], [features, width], [outputs, features] */
    const float *shift;               /* [outputs] or NULL */
    float *raw, *scales; /* x hidden' [tokens, features] and [tokens], or NULL both */
    float *out;          /* forward: [tokens, outputs]; backward: gelu(raw * scale) once more */
    /* What follows is for backward only. */
    const float *grad; /* of gelu(raw * scale) */
    float *draw, *dx;  /* dx: through the scale alone, or NULL */
    const float *dout; /* of `out` of forward, [tokens, outputs], or NULL where its sum is not wanted */
    double *totals;    /* [threads, outputs], room for that sum */
    float *dshift;     /* [outputs] the sum */
};

#define REAL float
#define NAME(name) name
#include "products.h"
#include "totals.h"
#include "gelu.h"

/* Both matrices packed, and the shift with zeros behind it; `none` are as many zeros. */
struct packed {
    float *hidden, *output, *shift, *none;
};

static float *places(const struct call *c, struct packed *p)
{
    const int64_t features = groups(c->features) * LANES, outputs = groups(c->outputs) * LANES;
    const int64_t most = features > outputs ? features : outputs;
    const int64_t reals = features * c->width + outputs * c->features + outputs + most;
    float *block = aligned_alloc(64, (size_t)(reals * 4 + 63) / 64 * 64);
    if (!block) return NULL;
    p->hidden = block;
    p->output = p->hidden + features * c->width;
    p->shift = p->output + outputs * c->features;
    p->none = p->shift + outputs;
    memset(p->shift, 0, (size_t)(outputs + most) * sizeof(float));
    if (c->shift) memcpy(p->shift, c->shift, (size_t)c->outputs * sizeof(float));
    return block;
}

/* Writes the weights of token t. */
INLINE void put(const struct call *c, int64_t t, const float *weights)
{
    const int64_t at = t * c->outputs;
    if (c->half) narrow(weights, (uint16_t *)c->out + at, c->outputs);
    else memcpy(c->out + at, weights, (size_t)c->outputs * sizeof(float));
}

/* What a thread works in: x as float if it is not, hidden channels, weights; of some tokens. */
struct room {
    float *x, *z, *out;
};

static struct room room_for(const struct call *c, int64_t tokens, float *at)
{
    const int64_t width = c->half ? tokens * groups(c->width) * LANES : 0;
    return (struct room){at, at + width, at + width + tokens * groups(c->features) * LANES};
}

static size_t room_bytes(const struct call *c, int64_t tokens)
{
    const int64_t width = c->half ? groups(c->width) : 0;
    return (size_t)(tokens * (width + groups(c->features) + groups(c->outputs)) * LANES) * sizeof(float);
}

/* The weights of `rows` tokens from t on. */
static void block_weights(const struct call *c, const struct packed *p, int64_t t, int64_t rows,
                          struct room room)
{
    const int64_t n = c->features, step = groups(n) * LANES, out_step = groups(c->outputs) * LANES;
    const float *x = row_of(c->half, c->x, t * c->width, room.x, rows * c->width);
    product(rows, n, c->width, x, c->width, p->hidden, p->none, room.z, step);
    for (int64_t i = 0; i < rows; i++) {
        float mean, by, *z = room.z + i * step;
        statistics(x + i * c->width, c->width, 0, c->eps, &mean, &by);
        if (c->raw) {
            memcpy(c->raw + (t + i) * n, z, (size_t)n * sizeof(float));
            c->scales[t + i] = by;
        }
        for (int64_t j = 0; j < step; j++) z[j] *= by;
        gelu(z, z, step);
    }
    product(rows, c->outputs, n, room.z, step, p->output, p->shift, room.out, out_step);
    for (int64_t i = 0; i < rows; i++) put(c, t + i, room.out + i * out_step);
}

/* y [n] = shift + matrix [n, k] times x, the matrix as it stands. shift: [n] or NULL. */
static void product_of_one(const float *x, const float *matrix, int64_t n, int64_t k,
                           const float *shift, float *y)
{
    for (int64_t j = 0; j < n; j += BESIDE) {
        const int64_t left = n - j < BESIDE ? n - j : BESIDE;
        const float *row[BESIDE];
        VEC sum[BESIDE];
        for (int i = 0; i < BESIDE; i++) {
            row[i] = matrix + (j + (i < left ? i : 0)) * k;
            sum[i] = (VEC){0};
        }
        int64_t d = 0;
        for (; d + LANES <= k; d += LANES)
            for (int i = 0; i < BESIDE; i++)
                sum[i] += *(const VEC *)(row[i] + d) * *(const VEC *)(x + d);
        for (int i = 0; i < left; i++) {
            float total = across(sum[i]) + (shift ? shift[j + i] : 0);
            for (int64_t e = d; e < k; e++) total += row[i][e] * x[e];
            y[j + i] = total;
        }
    }
}

/* The weights of few tokens, by matrices as they stand. */
static int few_weights(const struct call *c)
{
    const int64_t n = c->features;
    float *block = malloc(room_bytes(c, 1)), mean, by;
    if (!block) return 1;
    const struct room room = room_for(c, 1, block);
    for (int64_t t = 0; t < c->tokens; t++) {
        const float *x = row_of(c->half, c->x, t * c->width, room.x, c->width);
        product_of_one(x, c->hidden, n, c->width, NULL, room.z);
        statistics(x, c->width, 0, c->eps, &mean, &by);
        if (c->raw) {
            memcpy(c->raw + t * n, room.z, (size_t)n * sizeof(float));
            c->scales[t] = by;
        }
        for (int64_t j = 0; j < n; j++) room.z[j] *= by;
        gelu(room.z, room.z, n);
        product_of_one(room.z, c->output, c->outputs, n, c->shift, room.out);
        put(c, t, room.out);
    }
    free(block);
    return 0;
}

static int many_weights(const struct call *c)
{
    struct packed p;
    float *block = places(c, &p);
    if (!block) return 1;
    const int64_t features = groups(c->features), outputs = groups(c->outputs);
    int failed = 0;
#pragma omp parallel num_threads((int)c->threads) reduction(+ : failed)
    {
#pragma omp for schedule(static)
        for (int64_t g = 0; g < features + outputs; g++) {
            if (g < features) pack(c->hidden, c->features, c->width, g, p.hidden);
            else pack(c->output, c->outputs, c->features, g - features, p.output);
        }
        float *own = aligned_alloc(64, (room_bytes(c, BLOCK) + 63) / 64 * 64);
        failed += own == NULL;
        const struct room room = room_for(c, BLOCK, own);
#pragma omp for schedule(static, 1)
        for (int64_t part = 0; part < c->threads; part++) {
            const int64_t end = (part + 1) * c->tokens / c->threads;
            for (int64_t t = part * c->tokens / c->threads; own && t < end; t += BLOCK)
                block_weights(c, &p, t, end - t < BLOCK ? end - t : BLOCK, room);
        }
        free(own);
    }
    free(block);
    return failed;
}

/* How many threads got no memory: 0 when all is well. */
int token_weights_forward(const struct call *c)
{
    struct call wide = *c;
    const int64_t hidden = c->features * c->width, output = c->outputs * c->features;
    float *block = NULL;
    if (c->half) {
        block = malloc((size_t)(hidden + output + c->outputs) * sizeof(float));
        if (!block) return 1;
        wide.hidden = row_of(1, c->hidden, 0, block, hidden);
        wide.output = row_of(1, c->output, 0, block + hidden, output);
        if (c->shift) wide.shift = row_of(1, c->shift, 0, block + hidden + output, c->outputs);
    }
    const int failed = c->tokens <= FEW ? few_weights(&wide) : many_weights(&wide);
    free(block);
    return failed;
}

/* The gradient of the scale meets every number of a row of raw; from it comes that of x. */
static void backward_row(const struct call *c, int64_t row)
{
    const int64_t n = c->features, from = c->width;
    const float *restrict raw = c->raw + row * n, *restrict grad = c->grad + row * n;
    float *restrict draw = c->draw + row * n, *restrict out = c->out + row * n, along = 0;
    const float by = c->scales[row];
#pragma omp simd reduction(+ : along)
    for (int64_t j = 0; j < n; j++) {
        const float z = raw[j] * by, d = grad[j] * slope(z);
        out[j] = z * distribution(z);
        along += d * raw[j];
        draw[j] = d * by;
    }
    if (!c->dx) return;
    const float *restrict x = c->x + row * from, part = -by * by * by * along / (float)from;
    float *restrict dx = c->dx + row * from;
    for (int64_t j = 0; j < from; j++) dx[j] = part * x[j];
}

void token_weights_backward(const struct call *c)
{
    const int64_t n = c->dout ? c->outputs : 0;
    clear(c->totals, c->threads, n);
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads)
    for (int64_t i = 0; i < c->threads; i++) {
        double *restrict totals = c->totals + i * n;
        for (int64_t row = c->tokens * i / c->threads; row < c->tokens * (i + 1) / c->threads; row++) {
            backward_row(c, row);
            for (int64_t j = 0; j < n; j++) totals[j] += c->dout[row * n + j];
        }
    }
    if (n) add_up(0, c->totals, c->threads, n, n, c->dshift);
}
