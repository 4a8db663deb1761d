/* balance.c for one type, REAL. */

static void NAME(add_part)(int64_t n, const REAL *a, const REAL *b, REAL u, REAL v, REAL *y) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = u * a[i] + v * b[i];
}

void NAME(balance_forward)(int64_t n, int64_t threads, const REAL *a, const REAL *b, double u,
                           double v, REAL *y) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t t = 0; t < threads; t++) {
        const int64_t from = n * t / threads, to = n * (t + 1) / threads;
        NAME(add_part)(to - from, a + from, b + from, (REAL)u, (REAL)v, y + from);
    }
}

/* da = u g, db = v g; products[2] = <g, a>, <g, b> of a run. */
static void NAME(back_run)(int64_t n, const REAL *g, const REAL *a, const REAL *b, REAL u, REAL v,
                           REAL *da, REAL *db, double *products) {
    REAL ga = 0, gb = 0;
#pragma omp simd reduction(+ : ga, gb)
    for (int64_t i = 0; i < n; i++) {
        ga += g[i] * a[i];
        gb += g[i] * b[i];
        da[i] = u * g[i];
        db[i] = v * g[i];
    }
    products[0] += ga;
    products[1] += gb;
}

/* products: [threads, 2], zero before. */
void NAME(balance_backward)(int64_t n, int64_t threads, const REAL *g, const REAL *a,
                            const REAL *b, double u, double v, REAL *da, REAL *db,
                            double *products) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t t = 0; t < threads; t++) {
        const int64_t to = n * (t + 1) / threads;
        for (int64_t from = n * t / threads; from < to; from += RUN) {
            const int64_t length = to - from < RUN ? to - from : RUN;
            NAME(back_run)(length, g + from, a + from, b + from, (REAL)u, (REAL)v, da + from,
                           db + from, products + 2 * t);
        }
    }
}
