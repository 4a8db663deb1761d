/* norms.c for one type, REAL. */

#include "rows.h"

static void NAME(forward_rows)(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width;
    REAL mean, by;
    for (int64_t row = first; row < last; row++) {
        const REAL *x = (const REAL *)c->x + row * c->x_stride;
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t k = 0; k < c->ways; k++)
            NAME(affine)(x, mean, by, c->gains[k], c->biases[k], (REAL *)c->outs[k] + row * n, n);
    }
}

static void NAME(backward_rows)(const struct call *c, int64_t first, int64_t last, double *totals) {
    const int64_t n = c->width;
    /* One row behind the other with a gap: rows 4096 bytes apart would share their cache sets. */
    const int64_t step = (n + 47) / 16 * 16;
    REAL room[(2 + MOST * 2) * (WIDEST + 48)], mean, by;
    REAL *h = room, *d = h + step, *sums = d + step;
    memset(sums, 0, c->ways * 2 * step * sizeof(REAL));
    for (int64_t row = first; row < last; row++) {
        const REAL *x = (const REAL *)c->x + row * c->x_stride;
        REAL *dx = (REAL *)c->dx + row * n;
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t j = 0; j < n; j++) h[j] = (x[j] - mean) * by;
        int fresh = 1;
        if (c->ways == 2 && c->grads[0] && c->grads[1] && c->gains[0] && c->gains[1]) {
            NAME(gather_both)((const REAL *)c->grads[0] + row * n, (const REAL *)c->grads[1] + row * n,
                              h, c->gains[0], c->gains[1], sums, step, d, n);
            fresh = 0;
        } else for (int64_t k = 0; k < c->ways; k++) {
            if (!c->grads[k]) continue;
            const REAL *grad = (const REAL *)c->grads[k] + row * n;
            NAME(gather)(grad, h, c->gains[k], fresh, sums + 2 * k * step,
                         sums + (2 * k + 1) * step, d, n);
            fresh = 0;
        }
        NAME(through)(d, h, by, c->norm == LAYER_NORM, dx, n);
        if ((row - first) % FLUSH == FLUSH - 1 || row == last - 1)
            for (int64_t k = 0; k < c->ways * 2; k++) NAME(flush)(sums + k * step, totals + k * n, n);
    }
}

void NAME(norms_forward)(const struct call *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        NAME(forward_rows)(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads);
}

void NAME(norms_backward)(const struct call *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        NAME(backward_rows)(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads,
                            c->totals + i * c->ways * 2 * c->width);
}
