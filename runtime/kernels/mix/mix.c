/* Weighted sums of earlier hiddens, their norms, and the gradients of both.
 *
 * A call handles `tokens` rows. Of each token, the rows of all sources are read once from memory;
 * everything in between lives in scratch of a few rows, which stays in the first cache.
 * The token range is cut into `threads` parts of fixed size, so results depend on the number of
 * threads but not on their order.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "norm_kinds.h"

enum { SKIP, WRITE, ADD }; /* what to do with the gradient of a source */
/* Rows lie in as many places as there are sources, which is more than the processor follows by
 * itself, so those of later tokens are asked for: so many bytes on in forward, the next token's in
 * backward. A hint beyond the end does no harm. */
enum { AHEAD = 4096 };
enum { FLUSH = 64 };       /* tokens summed in the working type before they go to the double sums */

/* compiled.py declares the same; strides count elements. */
struct call {
    int64_t tokens, width, sources, ways, norms, raws, threads, kind;
    int64_t weight_stride; /* from token to token; 0 for weights that all tokens share */
    double eps;
    const void *const *history; /* [sources] rows */
    const int64_t *history_strides;
    const void *weights;    /* [tokens or 1, ways, sources] */
    const int64_t *outputs; /* [norms + raws] the way of each: normed, then raw */
    const void *const *gains, *const *biases; /* [norms] rows of `width`, or NULL */
    void *const *rows; /* forward: [norms + raws] of [tokens, width] to write */
    /* What follows is for backward only. */
    const void *const *grads; /* [norms + raws] rows, NULL where nothing comes back */
    const int64_t *grad_strides;
    void *const *pushes; /* [sources] of [tokens, width] */
    const int64_t *modes; /* [sources] SKIP, WRITE or ADD */
    void *dweights;       /* [tokens, ways, sources], zero where no gradient arrives, or NULL */
    double *totals; /* [threads, ...] room for sums over tokens */
    void *const *sums; /* [2 * norms + 1] of gains and biases [width], of weights that tokens share
                        * [ways, sources]; NULL where not wanted */
};

#if defined(__AVX512F__)
#define UNROLL 4
#else
#define UNROLL 2
#endif

/* Ways [first, count) in groups of up to four, each group by code made for its size. */
#define BY_GROUPS(count, first, RUN)                                                               \
    for (int64_t first = 0, left; (left = (count) - first) > 0; first += 4) {                      \
        if (left >= 4) { RUN(4); }                                                                 \
        else if (left == 3) { RUN(3); }                                                            \
        else if (left == 2) { RUN(2); }                                                            \
        else { RUN(1); }                                                                           \
    }

#define REAL float
#define HALF 0
#define NAME(name) name##_float
#include "mix.h"

#define REAL double
#define HALF 0
#define NAME(name) name##_double
#include "mix.h"

#define REAL float
#define HALF 1
#define NAME(name) name##_bfloat16
#include "mix.h"
