/* Sweeps over rows of `width` numbers. The last vector of a row may have fewer than LANES. */

INLINE VEC NAME(load)(const REAL *p, int64_t count)
{
    VEC v = {0};
    if (count == LANES) return *(const VEC *)p;
    memcpy(&v, p, (size_t)count * sizeof(REAL));
    return v;
}

INLINE void NAME(store)(REAL *p, VEC v, int64_t count)
{
    if (count == LANES) *(VEC *)p = v;
    else memcpy(p, &v, (size_t)count * sizeof(REAL));
}

/* BODY(d, count) for all vectors of a row. */
#define SWEEP(width, BODY)                                                                         \
    {                                                                                              \
        int64_t d = 0;                                                                             \
        for (; d + LANES <= (width); d += LANES) { BODY(d, LANES) }                                \
        if (d < (width)) { BODY(d, (width) - d) }                                                  \
    }

/* new_k = sum_j mix[j, k] x_j + write[k] y, with y in pieces or not. */
INLINE void NAME(end_row)(const int n, const struct call *c, const REAL *const *x, const REAL *y,
                          const REAL *mix, const REAL *write, REAL *out)
{
    const int64_t width = c->width, piece = c->ends == PIECES_END ? width : 0;
    REAL m[MOST_LANES * MOST_LANES], by[MOST_LANES];
    for (int i = 0; i < n * n; i++) m[i] = mix[i];
    for (int i = 0; i < n; i++) by[i] = write[i];
#define BODY(d, count)                                                                             \
    VEC v[MOST_LANES];                                                                             \
    for (int j = 0; j < n; j++) v[j] = NAME(load)(x[j] + d, count);                                \
    for (int k = 0; k < n; k++) {                                                                  \
        VEC sum = by[k] * NAME(load)(y + k * piece + d, count);                                    \
        for (int j = 0; j < n; j++) sum += m[j * n + k] * v[j];                                    \
        NAME(store)(out + k * width + d, sum, count);                                              \
    }
    SWEEP(width, BODY)
#undef BODY
}

/* From the gradient g of the new lanes: those of x, y (rows, or NULL), mix and write. */
INLINE void NAME(end_row_back)(const int n, const struct call *c, const REAL *const *x,
                               const REAL *y, const REAL *mix, const REAL *write, const REAL *g,
                               REAL *dx, REAL *dy, REAL *dmix, REAL *dwrite)
{
    const int64_t width = c->width, piece = c->ends == PIECES_END ? width : 0;
    REAL m[MOST_LANES * MOST_LANES], by[MOST_LANES];
    VEC dots[MOST_LANES * MOST_LANES], along[MOST_LANES];
    for (int i = 0; i < n * n; i++) m[i] = mix[i], dots[i] = (VEC){0};
    for (int i = 0; i < n; i++) by[i] = write[i], along[i] = (VEC){0};
#define BODY(d, count)                                                                             \
    VEC v[MOST_LANES], of_y = {0};                                                                 \
    for (int k = 0; k < n; k++) {                                                                  \
        v[k] = NAME(load)(g + k * width + d, count);                                               \
        along[k] += v[k] * NAME(load)(y + k * piece + d, count);                                   \
        if (piece) NAME(store)(dy + k * piece + d, by[k] * v[k], count);                           \
        else of_y += by[k] * v[k];                                                                 \
    }                                                                                              \
    if (!piece) NAME(store)(dy + d, of_y, count);                                                  \
    for (int j = 0; j < n; j++) {                                                                  \
        const VEC old = NAME(load)(x[j] + d, count);                                               \
        VEC sum = {0};                                                                             \
        for (int k = 0; k < n; k++) {                                                              \
            dots[j * n + k] += old * v[k];                                                         \
            sum += m[j * n + k] * v[k];                                                            \
        }                                                                                          \
        NAME(store)(dx + j * width + d, sum, count);                                               \
    }
    SWEEP(width, BODY)
#undef BODY
    for (int i = 0; i < n * n; i++) dmix[i] += NAME(across)(dots[i]);
    for (int i = 0; i < n; i++) dwrite[i] += NAME(across)(along[i]);
}

/* u_r = sum_i read[i, r] lane_i. */
INLINE void NAME(read_row)(const int n, int64_t reads, int64_t width, const REAL *lanes,
                           const REAL *read, REAL *u)
{
    for (int64_t r = 0; r < reads; r++) {
        REAL by[MOST_LANES];
        for (int i = 0; i < n; i++) by[i] = read[(i * reads + r) * TOKENS];
#define BODY(d, count)                                                                             \
    VEC sum = {0};                                                                                 \
    for (int i = 0; i < n; i++) sum += by[i] * NAME(load)(lanes + i * width + d, count);           \
    NAME(store)(u + r * width + d, sum, count);
        SWEEP(width, BODY)
#undef BODY
    }
}

/* dlane_i = dstate_i (or 0) + sum_r read[i, r] du_r, and dread[i, r] = <du_r, lane_i>. */
INLINE void NAME(read_row_back)(const int n, int64_t reads, int64_t width, const REAL *lanes,
                                const REAL *read, const REAL *du, const REAL *dstate, REAL *dread,
                                REAL *dlanes)
{
    for (int64_t r = 0; r < reads; r++) {
        const REAL *before = r ? dlanes : dstate;
        REAL by[MOST_LANES];
        VEC dots[MOST_LANES];
        for (int i = 0; i < n; i++) by[i] = read[(i * reads + r) * TOKENS], dots[i] = (VEC){0};
#define BODY(d, count)                                                                             \
    const VEC g = NAME(load)(du + r * width + d, count);                                           \
    for (int i = 0; i < n; i++) {                                                                  \
        VEC sum = before ? NAME(load)(before + i * width + d, count) : (VEC){0};                   \
        dots[i] += g * NAME(load)(lanes + i * width + d, count);                                   \
        NAME(store)(dlanes + i * width + d, sum + by[i] * g, count);                               \
    }
        SWEEP(width, BODY)
#undef BODY
        for (int i = 0; i < n; i++) dread[(i * reads + r) * TOKENS] = NAME(across)(dots[i]);
    }
}

/* Four rows times n rows of the matrix: out[c * step + r] = <x_r - mean_r, matrix_c>. */
INLINE void NAME(dots)(const int n, const REAL *const *x, const REAL *mean, const REAL *matrix,
                       int64_t width, REAL out[4][TILE])
{
    VEC sum[4][TILE];
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < n; c++) sum[r][c] = (VEC){0};
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) {
        VEC v[4];
        for (int r = 0; r < 4; r++) v[r] = *(const VEC *)(x[r] + d) - mean[r];
        for (int c = 0; c < n; c++) {
            const VEC m = *(const VEC *)(matrix + c * width + d);
            for (int r = 0; r < 4; r++) sum[r][c] += v[r] * m;
        }
    }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < n; c++) {
            REAL whole = NAME(across)(sum[r][c]);
            for (int64_t e = d; e < width; e++)
                whole += (x[r][e] - mean[r]) * matrix[c * width + e];
            out[r][c] = whole;
        }
}

/* dx_r += sum_c factors[r, c] matrix_c - along_r (x_r - mean_r) - flat_r, for SPREAD rows, of which
 * the first `rows` are there. */
INLINE void NAME(spread)(int64_t columns, const REAL *const *x, const REAL *mean,
                         const REAL *factors, const REAL *along, const REAL *flat,
                         const REAL *matrix, int64_t width, int rows, REAL *const *dx)
{
#define BODY(d, count)                                                                             \
    VEC sum[SPREAD];                                                                               \
    for (int r = 0; r < SPREAD; r++)                                                               \
        sum[r] = -along[r] * (NAME(load)(x[r] + d, count) - mean[r]) - flat[r];                    \
    for (int64_t f = 0; f < columns; f++) {                                                        \
        const VEC m = NAME(load)(matrix + f * width + d, count);                                   \
        for (int r = 0; r < SPREAD; r++) sum[r] += factors[r * columns + f] * m;                   \
    }                                                                                              \
    for (int r = 0; r < rows; r++)                                                                 \
        NAME(store)(dx[r] + d, NAME(load)(dx[r] + d, count) + sum[r], count);
    SWEEP(width, BODY)
#undef BODY
}

/* n rows of the matrix's gradient: += sum_r factors[r, c] (x_r - mean_r), over all rows. */
INLINE void NAME(gather)(const int n, int64_t columns, int64_t rows, const REAL *const *x,
                         const REAL *mean, const REAL *factors, int64_t width, REAL *out)
{
#define BODY(d, count)                                                                             \
    VEC sum[TILE];                                                                                 \
    for (int c = 0; c < n; c++) sum[c] = NAME(load)(out + c * width + d, count);                   \
    for (int64_t r = 0; r < rows; r++) {                                                           \
        const VEC v = NAME(load)(x[r] + d, count) - mean[r];                                       \
        for (int c = 0; c < n; c++) sum[c] += factors[r * columns + c] * v;                        \
    }                                                                                              \
    for (int c = 0; c < n; c++) NAME(store)(out + c * width + d, sum[c], count);
    SWEEP(width, BODY)
#undef BODY
}
