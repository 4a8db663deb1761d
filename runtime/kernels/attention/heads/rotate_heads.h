/* rotate_heads.c for one type, REAL; HALF: x, gain, bias and results are of bfloat16, REAL is float. */

#include "vectors.h"
#include "scratch.h"
#include "totals.h"

/* Turns the leading pairs of x by the angles, or back for sign -1. x and y do not overlap. */
INLINE void NAME(turn)(const struct call *c, const REAL *restrict x, const REAL *restrict cos,
                       const REAL *restrict sin, REAL sign, REAL *restrict y, int64_t n) {
    const int64_t r = c->turned;
    if (c->adjacent) {
#pragma omp simd
        for (int64_t j = 0; j < r; j++) {
            const REAL a = x[2 * j], b = x[2 * j + 1], s = sign * sin[j];
            y[2 * j] = a * cos[j] - b * s;
            y[2 * j + 1] = a * s + b * cos[j];
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < r; j++) {
            const REAL a = x[j], b = x[j + r], s = sign * sin[j];
            y[j] = a * cos[j] - b * s;
            y[j + r] = b * cos[j] + a * s;
        }
    }
    for (int64_t j = 2 * r; j < n; j++) y[j] = x[j];
}

/* room: a row. */
INLINE void NAME(forward_row)(const struct call *c, const REAL *x, const REAL *cos, const REAL *sin,
                              const REAL *gain, const REAL *bias, REAL *restrict room,
                              REAL *restrict y, int64_t n) {
    if (c->norm != NO_NORM) {
        REAL mean, by;
        REAL *restrict h = cos ? room : y;
        NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        for (int64_t j = 0; j < n; j++) h[j] = (x[j] - mean) * by;
        if (gain) for (int64_t j = 0; j < n; j++) h[j] *= gain[j];
        if (bias) for (int64_t j = 0; j < n; j++) h[j] += bias[j];
        x = h;
    }
    if (cos) NAME(turn)(c, x, cos, sin, 1, y, n);
    else if (x != y) memcpy(y, x, n * sizeof(REAL));
}

/* d, h: rows to work in; dgain, dbias: sums of this token. */
INLINE void NAME(backward_row)(const struct call *c, const REAL *x, const REAL *grad, const REAL *cos,
                               const REAL *sin, const REAL *gain, REAL *restrict d,
                               REAL *restrict h, REAL *restrict dx, REAL *restrict dgain,
                               REAL *restrict dbias, int64_t n) {
    REAL mean, by, sum = 0, along = 0;
    if (c->norm == NO_NORM) {
        if (cos) NAME(turn)(c, grad, cos, sin, -1, dx, n);
        else memcpy(dx, grad, n * sizeof(REAL));
        return;
    }
    if (cos) NAME(turn)(c, grad, cos, sin, -1, d, n);
    else memcpy(d, grad, n * sizeof(REAL));
    NAME(statistics)(x, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
    for (int64_t j = 0; j < n; j++) h[j] = (x[j] - mean) * by;
    if (c->bias) for (int64_t j = 0; j < n; j++) dbias[j] += d[j];
    if (gain) {
        for (int64_t j = 0; j < n; j++) dgain[j] += d[j] * h[j];
        for (int64_t j = 0; j < n; j++) d[j] *= gain[j];
    }
#pragma omp simd reduction(+ : sum, along)
    for (int64_t j = 0; j < n; j++) {
        sum += d[j];
        along += d[j] * h[j];
    }
    const REAL middle = c->norm == LAYER_NORM ? sum / n : 0, part = along / n;
    for (int64_t j = 0; j < n; j++) dx[j] = by * (d[j] - middle - h[j] * part);
}

/* This and backward_tokens return whether there was no memory to work in. */
INLINE int NAME(forward_tokens)(const struct call *c, int64_t first, int64_t last, int64_t n) {
    const int64_t step = apart(n);
    REAL *room = scratch((1 + HALF * 4) * step * (int64_t)sizeof(REAL)), *wide = room;
    if (!room) return 1;
    if (HALF) wide += step;
    const REAL *gain = c->gain ? READ(c->gain, 0, wide) : NULL;
    const REAL *bias = c->bias ? READ(c->bias, 0, wide + step) : NULL;
    for (int64_t t = first; t < last; t++) {
        const int64_t b = t / c->length, at = t % c->length;
        const int64_t table = b * c->table_batch + at * c->table_token;
        const int64_t from = b * c->x_batch + at * c->x_token, to = t * c->heads * n;
        const REAL *cos = c->cos ? (const REAL *)c->cos + table : 0;
        const REAL *sin = c->cos ? (const REAL *)c->sin + table : 0;
        for (int64_t h = 0; h < c->heads; h++) {
            const REAL *x = READ(c->x, from + h * n, wide + 2 * step);
            REAL *y = BEGIN(c->out, to + h * n, wide + 3 * step);
            NAME(forward_row)(c, x, cos, sin, gain, bias, room, y, n);
            END(c->out, to + h * n, y);
        }
    }
    free(room);
    return 0;
}

INLINE int NAME(backward_tokens)(const struct call *c, int64_t first, int64_t last, double *totals,
                                 int64_t n) {
    const int64_t step = apart(n);
    REAL *room = scratch((4 + HALF * 4) * step * (int64_t)sizeof(REAL));
    if (!room) return 1;
    REAL *d = room, *unit = d + step, *dgain = unit + step, *dbias = dgain + step, *wide = dbias;
    if (HALF) wide += step;
    const REAL *gain = c->gain ? READ(c->gain, 0, wide) : NULL;
    for (int64_t t = first; t < last; t++) {
        const int64_t b = t / c->length, at = t % c->length;
        const int64_t table = b * c->table_batch + at * c->table_token;
        const int64_t from = b * c->x_batch + at * c->x_token, to = t * c->heads * n;
        const int64_t back = b * c->grad_batch + at * c->grad_token;
        const REAL *cos = c->cos ? (const REAL *)c->cos + table : 0;
        const REAL *sin = c->cos ? (const REAL *)c->sin + table : 0;
        if (c->gain) memset(dgain, 0, n * sizeof(REAL));
        if (c->bias) memset(dbias, 0, n * sizeof(REAL));
        for (int64_t h = 0; h < c->heads; h++) {
            const REAL *x = READ(c->x, from + h * n, wide + step);
            const REAL *grad = READ(c->grad, back + h * c->grad_head, wide + 2 * step);
            REAL *dx = BEGIN(c->out, to + h * n, wide + 3 * step);
            NAME(backward_row)(c, x, grad, cos, sin, gain, d, unit, dx, dgain, dbias, n);
            END(c->out, to + h * n, dx);
        }
        if (c->gain) for (int64_t j = 0; j < n; j++) totals[j] += dgain[j];
        if (c->bias) for (int64_t j = 0; j < n; j++) totals[n + j] += dbias[j];
    }
    free(room);
    return 0;
}

/* Both return how many threads got no memory: 0 when all is well. */
int NAME(rotate_heads_forward)(const struct call *c) {
    const int64_t tokens = c->batch * c->length;
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++) {
        const int64_t first = tokens * i / c->threads, last = tokens * (i + 1) / c->threads;
#define RUN(width) failed += NAME(forward_tokens)(c, first, last, width)
        BY_WIDTH(c->width, RUN)
#undef RUN
    }
    return failed;
}

int NAME(rotate_heads_backward)(const struct call *c) {
    const int64_t tokens = c->batch * c->length;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, 2 * c->width);
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t i = 0; i < c->threads; i++) {
        const int64_t first = tokens * i / c->threads, last = tokens * (i + 1) / c->threads;
        double *totals = c->totals + i * 2 * c->width;
#define RUN(width) failed += NAME(backward_tokens)(c, first, last, totals, width)
        BY_WIDTH(c->width, RUN)
#undef RUN
    }
    const int64_t n = c->width;
    if (c->dgain) NAME(add_up)(HALF, c->totals, c->threads, 2 * n, n, c->dgain);
    if (c->dbias) NAME(add_up)(HALF, c->totals + n, c->threads, 2 * n, n, c->dbias);
    return failed;
}

#undef HALF
#undef REAL
#undef NAME
