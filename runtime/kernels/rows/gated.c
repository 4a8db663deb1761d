/* y = w act(gate) x in float32, act silu or gelu, w one number a row: gated feed-forward parts.
 *
 * Nothing but gate and x is kept for the backward pass, which makes y once more.
 */
#include <math.h>
#include <stdint.h>

enum { SILU, GELU };

/* gated_compiled.py declares the same. Rows are contiguous. */
struct call {
    int64_t rows, width, kind, threads;
    const float *x, *gate; /* [rows, width] */
    const float *weights;  /* [rows] or NULL for 1 */
    const float *grad;     /* of y: backward */
    float *y;              /* backward: or NULL */
    float *dx, *dgate;     /* backward; dx may be grad */
    float *dweights;       /* backward: [rows] or NULL */
};

#define REAL float
#define NAME(name) name
#include "vectors.h"
#include "gelu.h"
#include "sigmoid.h"

INLINE float active(int kind, float x) { return x * (kind == SILU ? sigmoid(x) : distribution(x)); }

INLINE void forward_row(const int kind, const float *x, const float *gate, float weight, float *y,
                        int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = weight * (active(kind, gate[j]) * x[j]);
}

/* The gradient of the weight. */
INLINE float backward_row(const int kind, const float *x, const float *gate, float weight,
                          const float *grad, float *y, float *dx, float *dgate, int64_t n) {
    float along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t j = 0; j < n; j++) {
        const float g = gate[j], s = kind == SILU ? sigmoid(g) : distribution(g), a = g * s;
        const float steep = kind == SILU ? s * (1 + g * (1 - s)) : slope(g), d = grad[j];
        const float whole = a * x[j];
        along += d * whole;
        if (y) y[j] = weight * whole;
        dgate[j] = weight * d * x[j] * steep;
        dx[j] = weight * d * a;
    }
    return along;
}

void gated_forward(const struct call *c) {
    const int64_t n = c->width;
#pragma omp parallel for schedule(static) num_threads(c->threads)
    for (int64_t row = 0; row < c->rows; row++) {
        const float *x = c->x + row * n, *gate = c->gate + row * n;
        const float weight = c->weights ? c->weights[row] : 1;
        if (c->kind == SILU) forward_row(SILU, x, gate, weight, c->y + row * n, n);
        else forward_row(GELU, x, gate, weight, c->y + row * n, n);
    }
}

void gated_backward(const struct call *c) {
    const int64_t n = c->width;
#pragma omp parallel for schedule(static) num_threads(c->threads)
    for (int64_t row = 0; row < c->rows; row++) {
        const int64_t at = row * n;
        const float weight = c->weights ? c->weights[row] : 1;
        float *y = c->y ? c->y + at : 0;
        const float along =
            c->kind == SILU
                ? backward_row(SILU, c->x + at, c->gate + at, weight, c->grad + at, y, c->dx + at,
                               c->dgate + at, n)
                : backward_row(GELU, c->x + at, c->gate + at, weight, c->grad + at, y, c->dx + at,
                               c->dgate + at, n);
        if (c->dweights) c->dweights[row] = along;
    }
}
