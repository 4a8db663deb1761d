/* Norms of one row of n numbers of type REAL. */

#include "vectors.h"

INLINE void NAME(affine)(const REAL *restrict x, REAL mean, REAL by, const REAL *restrict gain,
                         const REAL *restrict bias, REAL *restrict y, int64_t n) {
    if (gain && bias) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by * gain[j] + bias[j];
    else if (gain) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by * gain[j];
    else if (bias) for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by + bias[j];
    else for (int64_t j = 0; j < n; j++) y[j] = (x[j] - mean) * by;
}

/* Adds what the gradient of one row gives to those of gain and bias. d: the gradient before the gain. */
INLINE void NAME(gather)(const REAL *restrict grad, const REAL *restrict h, const REAL *restrict gain,
                         REAL *restrict dgain, REAL *restrict dbias, REAL *restrict d, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        dgain[j] += grad[j] * h[j];
        dbias[j] += grad[j];
    }
    if (gain) for (int64_t j = 0; j < n; j++) d[j] = grad[j] * gain[j];
    else for (int64_t j = 0; j < n; j++) d[j] = grad[j];
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
