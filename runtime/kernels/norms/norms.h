/* norms.c for one type, REAL. */

/* Mean (0 for RMS_NORM) and reciprocal deviation of a row. */
INLINE void NAME(statistics)(const struct call *c, const REAL *x, REAL *mean, REAL *by) {
    const int64_t n = c->width;
    REAL sum = 0, squares = 0;
    if (c->norm == LAYER_NORM) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) sum += x[j];
    }
    const REAL middle = sum / n;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < n; j++) squares += (x[j] - middle) * (x[j] - middle);
    *mean = middle;
    *by = 1 / SQRT(squares / n + (REAL)c->eps);
}

INLINE void NAME(affine)(const REAL *restrict x, REAL mean, REAL by, const REAL *restrict gain,
                         const REAL *restrict bias, REAL *restrict y, int64_t n) {
    if (gain && bias) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by * gain[j] + bias[j];
    else if (gain) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by * gain[j];
    else if (bias) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by + bias[j];
    else for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by;
}

static void NAME(forward_rows)(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width;
    REAL mean, by;
    for (int64_t row = first; row < last; row++) {
        const REAL *x = (const REAL *)c->x + row * c->x_stride;
        NAME(statistics)(c, x, &mean, &by);
        for (int64_t k = 0; k < c->ways; k++)
            NAME(affine)(x, mean, by, c->gains[k], c->biases[k], (REAL *)c->outs[k] + row * n, n);
    }
}

/* Adds what one gradient gives to those of its gain and bias and to d, the one before the gain. */
INLINE void NAME(gather)(const REAL *restrict grad, const REAL *restrict h, const REAL *restrict gain,
                         int fresh, REAL *restrict dgain, REAL *restrict dbias, REAL *restrict d,
                         int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        dgain[j] += grad[j] * h[j];
        dbias[j] += grad[j];
    }
    if (gain && fresh) for (int64_t j = 0; j < n; j++) d[j] = grad[j] * gain[j];
    else if (gain) for (int64_t j = 0; j < n; j++) d[j] += grad[j] * gain[j];
    else if (fresh) for (int64_t j = 0; j < n; j++) d[j] = grad[j];
    else for (int64_t j = 0; j < n; j++) d[j] += grad[j];
}

/* The same for two gradients at once: h is read once. */
INLINE void NAME(gather_both)(const REAL *restrict g0, const REAL *restrict g1, const REAL *restrict h,
                              const REAL *restrict gain0, const REAL *restrict gain1,
                              REAL *restrict sums, int64_t step, REAL *restrict d, int64_t n) {
    REAL *dgain0 = sums, *dbias0 = sums + step, *dgain1 = dbias0 + step, *dbias1 = dgain1 + step;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        dgain0[j] += g0[j] * h[j];
        dgain1[j] += g1[j] * h[j];
        dbias0[j] += g0[j];
        dbias1[j] += g1[j];
        d[j] = g0[j] * gain0[j] + g1[j] * gain1[j];
    }
}

INLINE void NAME(through)(const REAL *restrict d, const REAL *restrict h, REAL by, int layer,
                          REAL *restrict dx, int64_t n) {
    REAL sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t j = 0; j < n; j++) {
        sum += d[j];
        along += d[j] * h[j];
    }
    const REAL middle = layer ? sum / n : 0, part = along / n;
    for (int64_t j = 0; j < n; j++) dx[j] = by * (d[j] - middle - h[j] * part);
}

static void NAME(flush)(REAL *sums, double *totals, int64_t n) {
    for (int64_t j = 0; j < n; j++) totals[j] += sums[j];
    memset(sums, 0, n * sizeof(REAL));
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
        NAME(statistics)(c, x, &mean, &by);
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
