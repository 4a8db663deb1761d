/* norms.c for one type, REAL; HALF: rows, gains and biases are of bfloat16, and REAL is float. */

#include "rows.h"
#include "scratch.h"
#include "totals.h"

enum { NAME(ROOMS) = HALF ? 2 * MOST : 0 }; /* rows that hold gains and biases */

/* Gains and biases, which every row reads. */
INLINE void NAME(vectors)(const struct call *c, REAL *room, int64_t step, const REAL **gains,
                          const REAL **biases) {
    const int64_t n = c->width;
    for (int64_t k = 0; k < c->ways; k++) {
        gains[k] = c->gains[k] ? READ(c->gains[k], 0, room + 2 * k * step) : NULL;
        biases[k] = c->biases[k] ? READ(c->biases[k], 0, room + (2 * k + 1) * step) : NULL;
    }
}

/* This and backward_rows return whether there was no memory to work in. */
static int NAME(forward_rows)(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width, step = apart(n);
    REAL *room = scratch((NAME(ROOMS) + 2) * step * (int64_t)sizeof(REAL)), mean, by;
    if (!room) return 1;
    REAL *wide = room + NAME(ROOMS) * step, *made = wide + step;
    const REAL *gains[MOST], *biases[MOST];
    NAME(vectors)(c, room, step, gains, biases);
    for (int64_t row = first; row < last; row++) {
        const REAL *x = READ(c->x, row * c->x_stride, wide);
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t k = 0; k < c->ways; k++) {
            REAL *y = BEGIN(c->outs[k], row * n, made);
            NAME(affine)(x, mean, by, gains[k], biases[k], y, n);
            END(c->outs[k], row * n, y);
        }
    }
    free(room);
    return 0;
}

static int NAME(backward_rows)(const struct call *c, int64_t first, int64_t last, double *totals) {
    const int64_t n = c->width, step = apart(n), rows = NAME(ROOMS) + 4 + MOST * 3;
    REAL *room = scratch(rows * step * (int64_t)sizeof(REAL)), mean, by;
    if (!room) return 1;
    REAL *h = room + NAME(ROOMS) * step, *d = h + step, *wide = d + step, *made = wide + step;
    REAL *wide_grads = made + step, *sums = wide_grads + MOST * step;
    const REAL *gains[MOST], *biases[MOST], *grads[MOST];
    NAME(vectors)(c, room, step, gains, biases);
    memset(sums, 0, c->ways * 2 * step * sizeof(REAL));
    for (int64_t row = first; row < last; row++) {
        const REAL *x = READ(c->x, row * c->x_stride, wide);
        REAL *dx = BEGIN(c->dx, row * n, made);
        for (int64_t k = 0; k < c->ways; k++)
            grads[k] = c->grads[k] ? READ(c->grads[k], row * n, wide_grads + k * step) : NULL;
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t j = 0; j < n; j++) h[j] = (x[j] - mean) * by;
        int fresh = 1;
        if (c->ways == 2 && grads[0] && grads[1] && gains[0] && gains[1]) {
            NAME(gather_both)(grads[0], grads[1], h, gains[0], gains[1], sums, step, d, n);
            fresh = 0;
        } else for (int64_t k = 0; k < c->ways; k++) {
            if (!grads[k]) continue;
            NAME(gather)(grads[k], h, gains[k], fresh, sums + 2 * k * step,
                         sums + (2 * k + 1) * step, d, n);
            fresh = 0;
        }
        NAME(through)(d, h, by, c->norm == LAYER_NORM, dx, n);
        END(c->dx, row * n, dx);
        if ((row - first) % FLUSH == FLUSH - 1 || row == last - 1)
            for (int64_t k = 0; k < c->ways * 2; k++) NAME(flush)(sums + k * step, totals + k * n, n);
    }
    free(room);
    return 0;
}

/* Both return how many threads got no memory: 0 when all is well. */
int NAME(norms_forward)(const struct call *c) {
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++)
        failed += NAME(forward_rows)(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads);
    return failed;
}

int NAME(norms_backward)(const struct call *c) {
    const int64_t sums = c->ways * 2 * c->width;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, sums);
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++)
        failed += NAME(backward_rows)(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads,
                                      c->totals + i * sums);
    for (int64_t k = 0; k < c->ways; k++)
        for (int64_t bias = 0; bias < 2; bias++) {
            void *out = bias ? c->dbiases[k] : c->dgains[k];
            const double *from = c->totals + (2 * k + bias) * c->width;
            if (out) NAME(add_up)(HALF, from, c->threads, sums, c->width, out);
        }
    return failed;
}

#undef HALF
#undef REAL
#undef NAME
