/* Attention over depth: each token's average of its sources by a softmax of their scores.
 *
 * Every source is read once: a few rows of a few tokens at a time are scored, and added to the
 * averages while they are in the first cache, with the softmax carried along (its largest score so
 * far and its sum). Backward reads every source once more, for the gradient of the query;
 * gradients of sources are drawn later, a few sources at a time, from all routers that read them
 * (depth_attention_pull): each of them hands over one row a token instead of one for each of its sources.
 * The token range is cut into `threads` parts of fixed size, so results depend on the number of
 * threads but not on their order.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "norm_kinds.h"

enum { WRITE, ADD };       /* what to do with the gradient of a source */
enum { BATCH = 4 };        /* sources at a time */
enum { BLOCK = 8 };        /* most tokens at a time */
enum { FLUSH = 16 };       /* blocks summed in the working type before they go to the double sums */
enum { ROOM = 4096 };      /* bytes for the rows of one source: with BATCH of them half a cache */

/* compiled.py declares the same; strides count elements. */
struct call {
    int64_t tokens, width, sources, groups, norms, threads, kind;
    double eps, norm_eps;
    const void *const *history; /* [sources] rows */
    const int64_t *history_strides;
    void *const *scales;  /* [sources] of [tokens]: 1 / root mean square; see `fresh` */
    const int64_t *fresh; /* [sources] whether its scales are to be computed: forward only */
    const void *query;    /* [width] */
    const void *const *gains, *const *biases; /* [norms] rows of `width`, or NULL */
    void *average;    /* [tokens, width], which forward writes, or leaves out where it is NULL */
    void *const *rows; /* forward: [norms] of [tokens, width] to write */
    void *scores;     /* [sources, tokens, groups] or NULL; forward writes, backward reads */
    void *lse;        /* [tokens, groups] log of the sum of the scores' exponentials; likewise */
    /* What follows is for backward only. */
    const void *const *grads; /* [norms + 1] rows, NULL where nothing comes back; last the average */
    const int64_t *grad_strides;
    void *dmix;     /* [tokens, width] to write: the gradient of the average */
    void *parts;    /* [sources, tokens, 2 * groups + 1] to write; see depth_attention_pull */
    double *totals; /* [threads, 1 + 2 * norms, width], room for sums over tokens */
    void *sums;     /* [1 + 2 * norms, width]: of the query, gains, biases */
};

/* The gradients of up to BATCH sources: each the sum over readers r and groups g of
 * part[g] * grads[r] + part[groups + g] * queries[r], less part[2 * groups] * x. */
struct pull {
    int64_t tokens, width, sources, readers, groups, threads;
    const void *const *x;         /* [sources] rows */
    const int64_t *x_strides;
    const int64_t *modes;         /* [sources] WRITE or ADD */
    const void *const *grads;     /* [readers] of [tokens, width] */
    const void *const *queries;   /* [readers] of [width] */
    const void *const *parts;     /* [readers, sources] of [tokens, 2 * groups + 1] */
    void *const *outs;            /* [sources] of [tokens, width] */
};

/* RUN(n) by code made for n = 1 .. BATCH. */
#define BY_COUNT(count, RUN)                                                                       \
    switch (count) {                                                                               \
        case 4: RUN(4); break;                                                                     \
        case 3: RUN(3); break;                                                                     \
        case 2: RUN(2); break;                                                                     \
        default: RUN(1);                                                                           \
    }

#define REAL float
#define BITS uint32_t
#define NAME(name) name##_float
#define LOWEST -87.0f      /* below this, e^x is as good as 0 */
#define MAGIC 12582912.0f  /* 1.5 * 2^23: a number added to it is rounded to an integer */
#define LN2_HIGH 0.693145752f
#define LN2_LOW 1.42860677e-6f
#define DEGREE 7
#define MANTISSA 23
#define BIAS 127
#include "depth_attention.h"
#undef REAL
#undef BITS
#undef NAME
#undef LOWEST
#undef MAGIC
#undef LN2_HIGH
#undef LN2_LOW
#undef DEGREE
#undef MANTISSA
#undef BIAS

#define REAL double
#define BITS uint64_t
#define NAME(name) name##_double
#define LOWEST -708.0
#define MAGIC 6755399441055744.0
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define DEGREE 14
#define MANTISSA 52
#define BIAS 1023
#include "depth_attention.h"
