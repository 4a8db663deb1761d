/* Norms of rows: one reading of x for several gains.
 *
 * y_k = norm(x) * gain_k + bias_k. Nothing but x is kept for the backward pass. The rows are
 * cut into `threads` parts of fixed size, so results depend on the number of threads but not on
 * their order. Of bfloat16 nothing is rounded but results: each row is computed in float.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "norm_kinds.h"

enum { MOST = 2, FLUSH = 32 }; /* rows summed in REAL before the double sums */

/* norms_compiled.py declares the same; strides count elements. */
struct call {
    int64_t rows, width, x_stride, norm, ways, threads;
    double eps;
    const void *x;
    const void *gains[MOST], *biases[MOST]; /* rows of `width`, or NULL */
    const void *grads[MOST];                /* backward: contiguous rows, or NULL for no gradient */
    void *outs[MOST];                       /* forward */
    void *dx;                               /* backward */
    double *totals; /* backward: [threads, ways, 2, width], room for sums over rows */
    void *dgains[MOST], *dbiases[MOST]; /* backward: rows of `width`, or NULL where not wanted */
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
