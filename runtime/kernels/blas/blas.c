/* Many products of matrices in one call: each thread asks the BLAS for the products, or the rows of
 * them, that fall to it.
 *
 * A BLAS divides every product among its threads, and waits for all of them after each. Here work is
 * divided once: counted in multiplications, thread t does what lies between t / threads and (t + 1) /
 * threads of it, so that no more than one product is cut at each border. Results do not depend on
 * the order of threads.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum { LINEAR, PLAIN, OUTER }; /* a b', a b, a' b */
enum { STEP = 16 };            /* rows that are not divided */

/* compiled.py declares the same. c = first + bias + the sum over `terms` of products of a and b:
 * a [rows, depth], or [depth, rows] if OUTER; b [depth, columns], or [columns, depth] if LINEAR;
 * c and first [rows, columns], bias [columns]. All are contiguous. */
struct call {
    int64_t groups, terms, kind, threads;
    void *gemm;                            /* sgemm_ or dgemm_ */
    const int64_t *rows, *columns, *depth; /* [groups]; depth [groups, terms] */
    const int64_t *a, *b;                  /* addresses [groups, terms] */
    const int64_t *c, *first, *bias;       /* addresses [groups]; those of first and bias may be 0 */
};

#define REAL float
#define NAME(name) name##_float
#include "blas.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_double
#include "blas.h"
