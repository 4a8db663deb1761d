/* The kernel for one type, REAL; included by lanes.c once for each. */

#include "vectors.h"
#include "totals.h"
#define EACH_TOKEN _Pragma("omp simd") for (int64_t t = 0; t < TOKENS; t++)

/* What one thread works in. "[n]" below: n rows of TOKENS numbers, one for each token. */
struct NAME(work) {
    int64_t n, row, rows, pitch;     /* lanes; numbers that a generator's norm sees, and how often */
    REAL *lanes[TOKENS];             /* the lanes behind the site that ends, [n * width] */
    REAL *z, *mean, *by;             /* [slots], [rows], [rows]: products, statistics */
    REAL *room;                      /* for them, where nothing is saved */
    REAL *made, *dmade;              /* [slots] activations; gradients, then those of products */
    REAL *read, *dread;              /* [n * reads] */
    REAL *mix, *dmix, *write, *dwrite; /* [n * n], [n] */
    REAL *first, *scale;             /* [n * n], [2 * iterations * n]: the course of sinkhorn */
    REAL *factors;                   /* [TOKENS * rows, columns] of the products, row by row */
    REAL *middle;                    /* [columns] means of the matrix's rows */
    REAL *u, *du;                    /* [reads * width] what a token reads */
    REAL *fresh, *grads;             /* [TOKENS, pitch] lanes; their gradients */
    REAL *sums;                      /* as call.at has them */
    char *block;
};

#include "memory.h"
#include "rows.h"
#include "gates.h"
#include "site.h"

#undef EACH_TOKEN
