/* What threads sum apart, in double: [threads, n]; for kernels in C, once for every type REAL.
 *
 * A sum over rows is a gradient of few numbers. To clear these and to add them up by torch's operators
 * would take a tenth of a millisecond and more between large products, as long as the sums themselves. */
#include "bfloat16.h"

static void NAME(clear)(double *totals, int64_t threads, int64_t n)
{
    if (n) memset(totals, 0, (size_t)(threads * n) * sizeof(double)); /* else they may be NULL */
}

/* Writes the sum over threads of n numbers, which are `step` apart from thread to thread, to a row of
 * REAL, or of bfloat16 where `half`. */
static void NAME(add_up)(int half, const double *totals, int64_t threads, int64_t step, int64_t n,
                         void *sums)
{
    for (int64_t j = 0; j < n; j++) {
        double sum = totals[j];
        for (int64_t i = 1; i < threads; i++) sum += totals[i * step + j];
        const float rounded = (float)sum;
        if (half) narrow(&rounded, (uint16_t *)sums + j, 1);
        else ((REAL *)sums)[j] = (REAL)sum;
    }
}
