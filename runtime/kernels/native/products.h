/* Products of a few rows with a small matrix, for kernels in C that go on with the rows at once.
 *
 * A matrix [n, k] is packed first, transposed: its n in groups of LANES, up to COLUMNS groups side by
 * side as one panel [k, groups, LANES], all panels as wide as each other or one group less. Some rows
 * by one panel are then summed in registers: the more, the narrower the panel is, so that enough sums
 * run beside each other. Meant for matrices that stay in the second cache; those of a model are
 * torch's business. */
#ifndef COLUMNS
#if defined(__AVX512F__)
#define COLUMNS 4
#else
#define COLUMNS 2
#endif
enum { MOST_ROWS = 12, FEW_ROWS = 4 };
#define ROWS(columns) ((columns) == 1 ? 12 : (columns) == 2 ? 3 * COLUMNS : (columns) == 3 ? 8 : 6)
enum { DEPTH = 512 }; /* of k at a time, so that the part of a panel in use is not evicted */
#endif

#include "vectors.h"

/* How many groups there are of n. */
INLINE int64_t NAME(groups)(int64_t n) { return (n + LANES - 1) / LANES; }

/* The panel that one of `count` groups is in: its first group and its number of groups. */
INLINE int64_t NAME(panel_of)(int64_t count, int64_t group, int64_t *columns)
{
    const int64_t panels = (count + COLUMNS - 1) / COLUMNS, least = count / panels;
    const int64_t wider = count % panels * (least + 1); /* groups in panels of one more */
    *columns = least + (group < wider);
    return group < wider ? group / *columns * *columns : wider + (group - wider) / least * least;
}

/* Packs one group of matrix [n, k]; what is beyond n is 0. */
static void NAME(pack)(const REAL *matrix, int64_t n, int64_t k, int64_t group, REAL *packed)
{
    int64_t columns;
    const int64_t panel = NAME(panel_of)(NAME(groups)(n), group, &columns), pitch = columns * LANES;
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
    VEC sum[MOST_ROWS][COLUMNS];
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
#define TILE_OF(count)                                                                             \
    for (; i + (count) <= rows; i += (count))                                                      \
        NAME(product_tile)((count), columns, k, a + i * a_step, a_step, panel,                     \
                           from + i * from_step, from_step, c + i * c_step, c_step)
    TILE_OF(ROWS(columns));
    TILE_OF(FEW_ROWS);
    TILE_OF(1);
#undef TILE_OF
}

/* c [rows, groups of n] = shift + a [rows, k] times the packed [n, k]. shift: a row of all groups. */
static void NAME(product)(int64_t rows, int64_t n, int64_t k, const REAL *a, int64_t a_step,
                          const REAL *packed, const REAL *shift, REAL *c, int64_t c_step)
{
    const int64_t count = NAME(groups)(n);
    for (int64_t q = 0; q < k; q += DEPTH) {
        const int64_t depth = k - q < DEPTH ? k - q : DEPTH, from_step = q ? c_step : 0;
        for (int64_t j = 0, columns; j < count; j += columns) {
            NAME(panel_of)(count, j, &columns);
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
