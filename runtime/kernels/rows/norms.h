/* norms.c for one type, REAL; HALF: rows, gain and bias are of bfloat16, and REAL is float. */

#include "rows.h"
#include "scratch.h"
#include "totals.h"

/* This and backward_rows return whether there was no memory to work in. */
static int NAME(forward_rows)(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width, step = apart(n);
    REAL *room = scratch(4 * step * (int64_t)sizeof(REAL)), mean, by;
    if (!room) return 1;
    REAL *wide = room + 2 * step, *made = wide + step;
    const REAL *gain = c->gain ? READ(c->gain, 0, room) : NULL;
    const REAL *bias = c->bias ? READ(c->bias, 0, room + step) : NULL;
    for (int64_t row = first; row < last; row++) {
        const REAL *x = READ(c->x, row * n, wide);
        REAL *y = BEGIN(c->out, row * n, made);
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        NAME(affine)(x, mean, by, gain, bias, y, n);
        END(c->out, row * n, y);
    }
    free(room);
    return 0;
}

static int NAME(backward_rows)(const struct call *c, int64_t first, int64_t last, double *totals) {
    const int64_t n = c->width, step = apart(n);
    REAL *room = scratch(8 * step * (int64_t)sizeof(REAL)), mean, by;
    if (!room) return 1;
    REAL *h = room + step, *d = h + step, *wide = d + step, *wide_grad = wide + step;
    REAL *made = wide_grad + step, *sums = made + step;
    const REAL *gain = c->gain ? READ(c->gain, 0, room) : NULL;
    memset(sums, 0, 2 * step * sizeof(REAL));
    for (int64_t row = first; row < last; row++) {
        const REAL *x = READ(c->x, row * n, wide), *grad = READ(c->grad, row * n, wide_grad);
        REAL *dx = BEGIN(c->out, row * n, made);
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t j = 0; j < n; j++) h[j] = (x[j] - mean) * by;
        NAME(gather)(grad, h, gain, sums, sums + step, d, n);
        NAME(through)(d, h, by, c->norm == LAYER_NORM, dx, n);
        END(c->out, row * n, dx);
        if ((row - first) % FLUSH == FLUSH - 1 || row == last - 1)
            for (int64_t k = 0; k < 2; k++) NAME(flush)(sums + k * step, totals + k * n, n);
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
    const int64_t n = c->width, sums = 2 * n;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, sums);
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++)
        failed += NAME(backward_rows)(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads,
                                      c->totals + i * sums);
    if (c->dgain) NAME(add_up)(HALF, c->totals, c->threads, sums, n, c->dgain);
    if (c->dbias) NAME(add_up)(HALF, c->totals + n, c->threads, sums, n, c->dbias);
    return failed;
}

#undef HALF
#undef REAL
#undef NAME
