/* gelu of rows, with or without the norm that follows it; in float32, whatever the rows are.
 *
 * y = x Phi(x), Phi the normal distribution, or norm(x Phi(x)) * gain + shift. Nothing but x is
 * kept for the backward pass. Rows are cut into `threads` parts, as in norms.c.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "norm_kinds.h"

enum { FLUSH = 32 }; /* rows summed in float before the double sums */

/* gelu_compiled.py declares the same. Rows are contiguous: of bfloat16 where `half`, or else of float. */
struct call {
    int64_t rows, width, norm, threads, half;
    double eps;
    const float *gain, *shift; /* [width] or NULL */
    const void *x, *grad;      /* grad: backward */
    void *out;                 /* forward: may be x; backward: the gradient of x */
    double *totals;            /* backward: [threads, 3, width], room for sums over rows */
    void *sums[3];             /* backward: [width] each, of x, gain and shift, as rows are */
};

#define REAL float
#define NAME(name) name
#include "rows.h"
#include "gelu.h"
#include "scratch.h"
#include "totals.h"

/* This and backward_rows return whether there was no memory to work in. */
static int forward_rows(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width, step = apart(n);
    float *active = scratch(2 * step * (int64_t)sizeof(float)), mean, by;
    if (!active) return 1;
    float *wide = active + step;
    for (int64_t row = first; row < last; row++) {
        const float *x = row_of(c->half, c->x, row * n, wide, n);
        float *out = begin_row(c->half, c->out, row * n, wide);
        if (c->norm == NO_NORM) {
            gelu(x, out, n);
        } else {
            gelu(x, active, n);
            statistics(active, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
            affine(active, mean, by, c->gain, c->shift, out, n);
        }
        end_row(c->half, c->out, row * n, out, n);
    }
    free(active);
    return 0;
}

/* The gradient of gelu(x), from that of its norm; adds to the gradients of gain and shift. */
static void before_norm(const struct call *c, const float *x, const float *grad, float *room,
                        int64_t step, float *dgain, float *dshift) {
    const int64_t n = c->width;
    float *unit = room + step, *d = unit + step, mean, by;
    const int layer = c->norm == LAYER_NORM;
    gelu(x, room, n);
    statistics(room, n, layer, c->eps, &mean, &by);
    for (int64_t j = 0; j < n; j++) unit[j] = (room[j] - mean) * by;
    gather(grad, unit, c->gain, dgain, dshift, d, n);
    through(d, unit, by, layer, room, n);
}

static int backward_rows(const struct call *c, int64_t first, int64_t last, double *totals) {
    const int64_t n = c->width, step = apart(n);
    float *room = scratch(9 * step * (int64_t)sizeof(float));
    if (!room) return 1;
    float *sums = room + 3 * step, *dgain = sums + step, *dshift = dgain + step;
    float *wide = dshift + step, *wide_grad = wide + step, *wide_dx = wide_grad + step;
    const int64_t kinds = c->norm == NO_NORM ? 1 : 3;
    memset(sums, 0, 3 * step * sizeof(float));
    for (int64_t row = first; row < last; row++) {
        const float *x = row_of(c->half, c->x, row * n, wide, n);
        const float *grad = row_of(c->half, c->grad, row * n, wide_grad, n);
        float *dx = begin_row(c->half, c->out, row * n, wide_dx);
        if (c->norm != NO_NORM) {
            before_norm(c, x, grad, room, step, dgain, dshift);
            grad = room;
        }
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const float d = grad[j] * slope(x[j]);
            dx[j] = d;
            sums[j] += d;
        }
        end_row(c->half, c->out, row * n, dx, n);
        if ((row - first) % FLUSH == FLUSH - 1 || row == last - 1)
            for (int64_t k = 0; k < kinds; k++) flush(sums + k * step, totals + k * n, n);
    }
    free(room);
    return 0;
}

/* Both return how many threads got no memory: 0 when all is well. */
int gelu_forward(const struct call *c) {
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++)
        failed += forward_rows(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads);
    return failed;
}

int gelu_backward(const struct call *c) {
    int failed = 0;
    clear(c->totals, c->threads, 3 * c->width);
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++)
        failed += backward_rows(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads,
                                c->totals + i * 3 * c->width);
    for (int64_t k = 0; k < 3; k++)
        add_up(c->half, c->totals + k * c->width, c->threads, 3 * c->width, c->width, c->sums[k]);
    return failed;
}
