/* Products of a few rows with a small matrix, for kernels in C that go on with the rows at once.
 *
 * A matrix [n, k] is packed first, transposed: its n in groups of LANES, COLUMNS groups side by side
 * as one panel [k, groups, LANES]. ROWS rows by one panel are then summed in registers. Meant for
 * matrices that stay in the second cache; those of a model are torch's business. */
#ifndef COLUMNS
#if defined(__AVX512F__)
#define COLUMNS 4
#else
#define COLUMNS 2
#endif
enum { ROWS = 6 };
enum { DEPTH = 512 }; /* of k at a time, so that the part of a panel in use is not evicted */
#endif

#include "vectors.h"

/* How many groups there are of n. */
INLINE int64_t NAME(groups)(int64_t n) { return (n + LANES - 1) / LANES; }

/* Packs one group of matrix [n, k]; what is beyond n is 0. */
static void NAME(pack)(const REAL *matrix, int64_t n, int64_t k, int64_t group, REAL *packed)
{
    const int64_t panel = group / COLUMNS * COLUMNS, beside = NAME(groups)(n) - panel;
    const int64_t pitch = (beside < COLUMNS ? beside : COLUMNS) * LANES;
    const int64_t first = group * LANES, left = n - first < LANES ? n - first : LANES;
    REAL *to = packed + panel * LANES * k + (group - panel) * LANES;
    for (int64_t q = 0; q < k; q++)
        for (int64_t i = 0; i < LANES; i++)
            to[q * pitch + i] = i < left ? matrix[(first + i) * k + q] : 0;
}

/* `rows` rows of a by `columns` groups of a panel, added to those of `from`, or to one row of it
 * where its step is 0. */
INLINE void NAME(product_tile)(const int rows, const int columns, int64_t k, const REAL *a,
                               int64_t a_step, const REAL *panel, const REAL *from,
                               int64_t from_step, REAL *c, int64_t c_step)
{
    VEC sum[ROWS][COLUMNS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            sum[i][j] = *(const VEC *)(from + i * from_step + j * LANES);
    for (int64_t q = 0; q < k; q++) {
        VEC b[COLUMNS];
        for (int j = 0; j < columns; j++) b[j] = *(const VEC *)(panel + (q * columns + j) * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++) sum[i][j] += a[i * a_step + q] * b[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) *(VEC *)(c + i * c_step + j * LANES) = sum[i][j];
}

INLINE void NAME(product_panel)(const int columns, int64_t rows, int64_t k, const REAL *a,
                                int64_t a_step, const REAL *panel, const REAL *from,
                                int64_t from_step, REAL *c, int64_t c_step)
{
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        NAME(product_tile)(ROWS, columns, k, a + i * a_step, a_step, panel, from + i * from_step,
                           from_step, c + i * c_step, c_step);
    for (; i < rows; i++)
        NAME(product_tile)(1, columns, k, a + i * a_step, a_step, panel, from + i * from_step,
                           from_step, c + i * c_step, c_step);
}

/* c [rows, groups of n] = shift + a [rows, k] times the packed [n, k]. shift: a row of all groups. */
static void NAME(product)(int64_t rows, int64_t n, int64_t k, const REAL *a, int64_t a_step,
                          const REAL *packed, const REAL *shift, REAL *c, int64_t c_step)
{
    const int64_t count = NAME(groups)(n);
    for (int64_t q = 0; q < k; q += DEPTH) {
        const int64_t depth = k - q < DEPTH ? k - q : DEPTH, from_step = q ? c_step : 0;
        for (int64_t j = 0; j < count; j += COLUMNS) {
            const int64_t columns = count - j < COLUMNS ? count - j : COLUMNS;
            const REAL *panel = packed + (j * k + q * columns) * LANES;
            const REAL *from = (q ? c : shift) + j * LANES;
#define PANEL(number)                                                                              \
    NAME(product_panel)(number, rows, depth, a + q, a_step, panel, from, from_step,               \
                        c + j * LANES, c_step)
            if (columns == COLUMNS) PANEL(COLUMNS);
            else if (columns == 3) PANEL(3);
            else if (columns == 2) PANEL(2);
            else PANEL(1);
#undef PANEL
        }
    }
}
