/* Norms of rows: y = norm(x) * gain + bias.
 *
 * Nothing but x is kept for the backward pass. The rows are cut into `threads` parts of fixed size,
 * so results depend on the number of threads but not on their order. Of bfloat16 nothing is rounded
 * but results: each row is computed in float.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "norm_kinds.h"

enum { FLUSH = 32 }; /* rows summed in REAL before the double sums */

/* norms_compiled.py declares the same. Rows are contiguous. */
struct call {
    int64_t rows, width, norm, threads;
    double eps;
    const void *x, *gain, *bias; /* gain, bias: [width] or NULL */
    const void *grad;            /* backward */
    void *out;                   /* forward; backward: the gradient of x */
    double *totals;              /* backward: [threads, 2, width], room for sums over rows */
    void *dgain, *dbias;         /* backward: [width], or NULL where not wanted */
};

#define REAL float
#define HALF 0
#define NAME(name) name##_float
#include "norms.h"

#define REAL double
#define HALF 0
#define NAME(name) name##_double
#include "norms.h"

#define REAL float
#define HALF 1
#define NAME(name) name##_bfloat16
#include "norms.h"
