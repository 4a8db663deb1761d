/* Attention on blocks of queries and the keys they may see, forward and backward.
 *
 * Scores lie as [keys, QUERIES]: a vector holds one key's scores of as many queries, so that the
 * softmax needs no sum across a vector, and what is above the diagonal is left out by whole vectors
 * and rows. Every product is the same small tile: numbers of one operand times vectors of the
 * other, which are rows as they lie or packed once for a block. Nothing is summed across units of
 * work, so results depend on neither the number of threads nor their order.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

extern int omp_get_thread_num(void); /* not every compiler comes with omp.h */

enum { QUERIES = 64, KEYS = 64, WIDEST = 256 }; /* compiled.py knows the same */
enum { TILE = 4 };                              /* rows of a tile of a product */
enum { WRITE, ADD, SCALE };                     /* what a tile does with what was there */

/* compiled.py declares the same; strides count elements, the last axis is contiguous. */
struct heads {
    void *data; /* [batch, heads, tokens, width], or NULL */
    int64_t batch, head, token;
};

struct call {
    int64_t batch, heads, key_heads, length, keys, width, causal;
    int64_t parts, threads; /* forward: a head's queries are cut into so many units of work */
    int64_t mask_batch, scratch_each;
    double scale;
    struct heads query, key, value, out;
    struct heads grad, query_grad, key_grad, value_grad; /* backward; no gradient where NULL */
    const uint8_t *mask;                                 /* [batch, keys]: 0 for a hidden key, or NULL */
    void *lse;                                           /* [batch, heads, length] */
    void *scratch;                                       /* [threads, scratch_each], aligned */
};

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTORS 4 /* of a row of a tile: with TILE rows they fit the registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define VECTORS 2
#else
#define VECTOR_BYTES 16
#define VECTORS 2
#endif
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t within(int64_t x, int64_t high) { return x < 0 ? 0 : x > high ? high : x; }
INLINE int64_t rounded(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* exp: x = n ln 2 + r, |r| <= ln 2 / 2; Taylor's polynomial of exp(r), times 2^n by its exponent.
 * HIGH + LOW is ln 2, and n * HIGH is exact. ROUNDER added leaves n in the last bits. */
#define REAL float
#define WORD uint32_t
#define NAME(name) name##_float
#define LOG logf
#define LOG2E 0x1.715476p+0f
#define HIGH 0x1.62p-1f
#define LOW 0x1.c85fdep-10f
#define ROUNDER 0x1.8p23f
#define LOWEST -87.0f /* of smaller numbers exp is 0 */
#define MANTISSA 23
#define BIAS 127u
#define DEGREE 7
#include "attend.h"
#undef REAL
#undef WORD
#undef NAME
#undef LOG
#undef LOG2E
#undef HIGH
#undef LOW
#undef ROUNDER
#undef LOWEST
#undef MANTISSA
#undef BIAS
#undef DEGREE

#define REAL double
#define WORD uint64_t
#define NAME(name) name##_double
#define LOG log
#define LOG2E 0x1.71547652b82fep+0
#define HIGH 0x1.62e42feep-1
#define LOW 0x1.a39ef35793c76p-33
#define ROUNDER 0x1.8p52
#define LOWEST -708.0
#define MANTISSA 52
#define BIAS UINT64_C(1023)
#define DEGREE 13
#include "attend.h"
