/* Included by blas.c once for every type. */

/* Fortran's, by columns; where its integers have four bytes it reads the lower half of ours. */
typedef void NAME(gemm)(const char *, const char *, const int64_t *, const int64_t *,
                        const int64_t *, const REAL *, const REAL *, const int64_t *, const REAL *,
                        const int64_t *, const REAL *, REAL *, const int64_t *);

/* What rows of c start from. Whether that is anything. */
static int NAME(start)(const REAL *first, const REAL *bias, REAL *c, int64_t rows, int64_t columns)
{
    if (first && first != c) memcpy(c, first, (size_t)(rows * columns) * sizeof(REAL));
    if (bias)
        for (int64_t r = 0; r < rows; r++, c += columns) {
            if (first)
                for (int64_t j = 0; j < columns; j++) c[j] += bias[j];
            else memcpy(c, bias, (size_t)columns * sizeof(REAL));
        }
    return first || bias;
}

/* Rows `from` to `to` of c of one group. */
static void NAME(some_rows)(const struct call *call, int64_t g, int64_t from, int64_t to)
{
    const int64_t n = call->columns[g], rows = to - from;
    const REAL *first = (const REAL *)call->first[g], *bias = (const REAL *)call->bias[g], one = 1;
    REAL *c = (REAL *)call->c[g] + from * n;
    REAL added = (REAL)NAME(start)(first ? first + from * n : 0, bias, c, rows, n);
    for (int64_t i = g * call->terms; i < (g + 1) * call->terms; i++, added = 1) {
        const int outer = call->kind == OUTER, linear = call->kind == LINEAR;
        const int64_t depth = call->depth[i], least = depth ? depth : 1;
        const int64_t lda = outer ? call->rows[g] : least, ldb = linear ? least : n;
        const REAL *a = (const REAL *)call->a[i] + (outer ? from : from * depth);
        ((NAME(gemm) *)call->gemm)(linear ? "T" : "N", outer ? "T" : "N", &n, &rows, &depth, &one,
                                   (const REAL *)call->b[i], &ldb, a, &lda, &added, c, &n);
    }
}

/* How much one row of a group is: multiplications, and one more for each number that is written. */
static double NAME(row_work)(const struct call *call, int64_t g)
{
    int64_t depth = 1;
    for (int64_t i = g * call->terms; i < (g + 1) * call->terms; i++) depth += call->depth[i];
    return (double)depth * (double)call->columns[g];
}

/* The first row of a group at or behind a border, `work` behind where the group begins. */
static int64_t NAME(border)(double work, double of_row, int64_t rows)
{
    if (work <= 0 || of_row <= 0) return 0;
    const double row = (double)STEP * (double)(int64_t)(work / of_row / STEP + 0.5);
    return row < (double)rows ? (int64_t)row : rows;
}

/* What falls to thread t of `count`. */
static void NAME(share)(const struct call *call, double whole, int t, int count)
{
    const double begin = whole * t / count, end = whole * (t + 1) / count;
    double at = 0;
    for (int64_t g = 0; g < call->groups; g++) {
        const int64_t rows = call->rows[g];
        const double of_row = NAME(row_work)(call, g);
        const int64_t from = NAME(border)(begin - at, of_row, rows);
        const int64_t to = t + 1 < count ? NAME(border)(end - at, of_row, rows) : rows;
        if (from < to && call->columns[g]) NAME(some_rows)(call, g, from, to);
        at += (double)rows * of_row;
    }
}

void NAME(blas)(const struct call *call)
{
    double whole = 0;
    for (int64_t g = 0; g < call->groups; g++)
        whole += (double)call->rows[g] * NAME(row_work)(call, g);
    if (call->threads < 2) { /* no region: inside one, a BLAS with threads would start new ones */
        NAME(share)(call, whole, 0, 1);
        return;
    }
#pragma omp parallel num_threads(call->threads)
    NAME(share)(call, whole, omp_get_thread_num(), omp_get_num_threads());
}
