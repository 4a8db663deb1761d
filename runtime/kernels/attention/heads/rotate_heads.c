/* Heads out of a projection: a norm over the channels of each head and a rotation of pairs.
 *
 * A call handles batch * length tokens; each token's heads are read once and written once, forward
 * and backward, and what lies between stays in a few rows of scratch. The tokens are cut into
 * `threads` parts of fixed size, so results depend on the number of threads but not on their order.
 * Of bfloat16 nothing is rounded but results: each head is computed in float, by tables of float.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "norm_kinds.h"

/* compiled.py declares the same; strides count elements. */
struct call {
    int64_t batch, length, heads, width, turned, adjacent, norm, threads;
    int64_t x_batch, x_token;         /* x: [batch, length, heads * width] */
    int64_t table_batch, table_token; /* cos, sin: [batch or 1, length, turned] */
    int64_t grad_batch, grad_head, grad_token;
    double eps;
    const void *x, *cos, *sin, *gain, *bias; /* cos and sin or neither; gain, bias: [width] or NULL */
    const void *grad;                        /* backward: of the result */
    void *out;      /* forward: [batch, length, heads, width]; backward: of x, the same */
    double *totals; /* backward: [threads, 2, width], room for sums over tokens */
    void *dgain, *dbias; /* backward: [width] each, or NULL where there is no gain or bias */
};


/* Widths for which code of a fixed size is made, and all others. */
#define BY_WIDTH(width, RUN)                                                                       \
    switch (width) {                                                                               \
    case 32: RUN(32); break;                                                                       \
    case 64: RUN(64); break;                                                                       \
    case 128: RUN(128); break;                                                                     \
    default: RUN(width); break;                                                                    \
    }

#define REAL float
#define HALF 0
#define NAME(name) name##_float
#include "rotate_heads.h"

#define REAL double
#define HALF 0
#define NAME(name) name##_double
#include "rotate_heads.h"

#define REAL float
#define HALF 1
#define NAME(name) name##_bfloat16
#include "rotate_heads.h"
