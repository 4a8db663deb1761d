/* Sites of parallel lanes: the end of one, the beginning of the next, and the gradients of both.
 *
 * Tokens are handled in blocks of TOKENS. What has one number for each weight of a token (products,
 * gates, Sinkhorn) is laid out weight by weight, so that one instruction serves all tokens of a
 * block; what has `width` numbers is handled token by token, in rows that stay in the caches. Of
 * each token the old lanes are read once from memory and the new ones written once.
 * The blocks are cut into `threads` parts of fixed size, so results depend on the number of threads
 * but not on their order.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "norm_kinds.h"

enum { TOKENS = 16, MOST_LANES = 8, MOST_NORMS = 4 };
enum { SPREAD = 8 }; /* rows that share a reading of the matrix, in backward */
enum { FLUSH = 4 }; /* blocks summed in the working type before they go to the double sums */
enum { NO_SITE, GIVEN, SUM, TANH, GATES };
enum { NO_END, LANES_END, PIECES_END };
enum { MATRIX, SHIFT, SCALE, STATIC, GAINS, OFFSETS, MIX, WRITE, READ, SUMS }; /* parts of sums */

/* compiled.py declares the same; strides count elements. */
struct call {
    int64_t tokens, lanes, width, reads, columns, threads, ends, weights, goes_on, norm, norms;
    int64_t exps, iterations, transpose; /* of sinkhorn; exps: it starts with exp, not softmax */
    int64_t x_token, x_lane, y_token;    /* strides */
    int64_t mix_token, write_token, read_token; /* strides; 0 for weights that tokens share */
    double eps, norm_eps, balance_eps, factors[2], floors[2];
    const void *x, *y, *mix, *write, *read;
    const void *matrix;                    /* [columns, row], the gain of the norm inside */
    const void *shift, *scales, *statics;  /* [columns]; [columns]; [lanes, columns] or [columns] */
    const void *gains[MOST_NORMS], *offsets[MOST_NORMS]; /* rows of reads * width, or NULL */
    void *state, *mixing, *writing, *normed[MOST_NORMS], *raw; /* outputs, or NULL */
    void *saved; /* [blocks, slots, TOKENS]: products and statistics, for backward; or NULL */
    /* What follows is for backward only. */
    const void *dstate, *dmixing, *dwriting, *dnormed[MOST_NORMS], *draw; /* or NULL */
    void *dx, *dy, *dmix, *dwrite, *dread; /* NULL where not wanted or shared by tokens */
    double *totals;                        /* [threads, at[SUMS]], room for sums over tokens */
    void *sums;                            /* [at[SUMS]] */
    int64_t at[SUMS + 1];                  /* where each part of the sums begins */
};

#if defined(__AVX512F__)
#define TILE 6
#else
#define TILE 2
#endif

/* RUN(n) by code made for the number of lanes. */
#define BY_LANES(n, RUN)                                                                           \
    switch (n) {                                                                                   \
    case 2: RUN(2); break;                                                                         \
    case 3: RUN(3); break;                                                                         \
    case 4: RUN(4); break;                                                                         \
    default: RUN(n);                                                                               \
    }

#define REAL float
#define WORD int32_t
#define BITS uint32_t
#define MANTISSA 23
#define EXPONENT 127
#define LARGEST 88
#define DEGREE 7
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define NAME(name) name##_float
#include "lanes.h"
#undef REAL
#undef WORD
#undef BITS
#undef MANTISSA
#undef EXPONENT
#undef LARGEST
#undef DEGREE
#undef LN2_HIGH
#undef LN2_LOW
#undef NAME

#define REAL double
#define WORD int64_t
#define BITS uint64_t
#define MANTISSA 52
#define EXPONENT 1023
#define LARGEST 708
#define DEGREE 13
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define NAME(name) name##_double
#include "lanes.h"
