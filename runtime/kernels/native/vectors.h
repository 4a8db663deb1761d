/* Vectors as wide as the processor's, and what is summed in them; for kernels in C.
 *
 * Included once for every type, with REAL and NAME(name) as that type has them. A sum in one vector
 * waits for its last addition each time, and one over the elements of a vector, added in order, is
 * as long a wait for each: both are cut here, where rows are short and there are many of them. */
#ifndef VECTOR_BYTES
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE static inline __attribute__((always_inline))
#define VEC NAME(vec)
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
enum { RUNNING = 4 }; /* sums of a row at a time */
#endif

typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL NAME(vec16) __attribute__((vector_size(16)));
typedef REAL NAME(vec32) __attribute__((vector_size(32)));

/* The sum of a vector's elements, by halves. */
INLINE REAL NAME(across)(VEC x)
{
#if VECTOR_BYTES == 64
    const union { VEC whole; NAME(vec32) half[2]; } at64 = {x};
    const union { NAME(vec32) whole; NAME(vec16) half[2]; } at32 = {at64.half[0] + at64.half[1]};
    const NAME(vec16) y = at32.half[0] + at32.half[1];
#elif VECTOR_BYTES == 32
    const union { VEC whole; NAME(vec16) half[2]; } at32 = {x};
    const NAME(vec16) y = at32.half[0] + at32.half[1];
#else
    const VEC y = x;
#endif
    const int half = 8 / (int)sizeof(REAL);
    REAL sum = y[0] + y[half];
    for (int i = 1; i < half; i++) sum += y[i] + y[half + i];
    return sum;
}

/* The sum over a row of x - from, or of its squares. */
INLINE REAL NAME(sum_row)(const int squares, const REAL *x, REAL from, int64_t width)
{
    VEC sum[RUNNING];
    int64_t d = 0;
    for (int u = 0; u < RUNNING; u++) sum[u] = (VEC){0};
#define ADD_TO(total, value)                                                                       \
    if (squares) total += (value) * (value);                                                       \
    else total += value
    for (; d + RUNNING * LANES <= width; d += RUNNING * LANES)
        for (int u = 0; u < RUNNING; u++) {
            const VEC v = *(const VEC *)(x + d + u * LANES) - from;
            ADD_TO(sum[u], v);
        }
    for (; d + LANES <= width; d += LANES) {
        const VEC v = *(const VEC *)(x + d) - from;
        ADD_TO(sum[0], v);
    }
    REAL total = NAME(across)((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; d < width; d++) { ADD_TO(total, x[d] - from); }
#undef ADD_TO
    return total;
}

/* Mean (0 unless `centred`) and reciprocal deviation of a row. */
INLINE void NAME(statistics)(const REAL *x, int64_t width, int centred, double eps, REAL *mean,
                             REAL *by)
{
    *mean = centred ? NAME(sum_row)(0, x, 0, width) / (REAL)width : 0;
    *by = 1 / (REAL)sqrt((double)NAME(sum_row)(1, x, *mean, width) / (double)width + eps);
}
