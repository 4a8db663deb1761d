/* The kernel for one type, REAL; included by depth_attention.c once for each. */

#include "vectors.h"
#include "totals.h"

/* What one thread works in. Entries [token, group] of a block of tokens lie behind each other. */
struct NAME(work) {
    int64_t block, span, each; /* tokens of a block; their entries; channels of a group */
    REAL *averages;            /* [block, width] */
    REAL *highest, *sum, *keep; /* [span] of the softmax; by what the sums so far are multiplied */
    REAL *part;                /* [BATCH, span] scores, then weights */
    REAL *delta;               /* [span] <gradient of the average, average> */
    REAL *query;               /* [width] gradient of the query since the last flush */
    REAL *ones, *zeros;        /* [width] for a norm without gain or bias */
    REAL *dgains, *dbiases;    /* [norms, width] likewise */
    char *memory;
};

/* e^x for x <= 0, written so that loops over it become vector code. NaN passes. */
INLINE REAL NAME(exponential)(REAL x)
{
    union { REAL real; BITS bits; } turn, power;
    x = x < (REAL)LOWEST ? (REAL)LOWEST : x;
    turn.real = x * (REAL)1.4426950408889634 + MAGIC;
    const REAL whole = turn.real - MAGIC, rest = x - whole * LN2_HIGH - whole * LN2_LOW;
    REAL sum = 1;
    for (int k = DEGREE; k > 0; k--) sum = 1 + sum * (rest * (REAL)(1.0 / k));
    power.bits = (turn.bits + BIAS) << MANTISSA;
    return sum * power.real;
}

static int NAME(start)(struct NAME(work) *w, const struct call *c, int backward)
{
    int64_t block = ROOM / (c->width * (int64_t)sizeof(REAL));
    block = block < 1 ? 1 : block > BLOCK ? BLOCK : block;
    const int64_t span = block * c->groups, norms = backward ? c->norms : 0;
    const int64_t rows = (backward ? 1 : block) + 2 + 2 * norms;
    memset(w, 0, sizeof *w);
    w->memory = calloc((size_t)(rows * c->width + (BATCH + 4) * span) * sizeof(REAL) + 64, 1);
    if (!w->memory) return 1;
    REAL *at = (REAL *)(((uintptr_t)w->memory + 63) / 64 * 64);
    w->block = block;
    w->span = span;
    w->each = c->width / c->groups;
    w->averages = w->query = at; /* one in forward, the other in backward */
    at += (backward ? 1 : block) * c->width;
    w->ones = at;
    at += c->width;
    w->zeros = at;
    at += c->width;
    w->dgains = at;
    at += norms * c->width;
    w->dbiases = at;
    at += norms * c->width;
    w->highest = at;
    w->sum = at + span;
    w->keep = at + 2 * span;
    w->delta = at + 3 * span;
    w->part = at + 4 * span;
    for (int64_t d = 0; d < c->width; d++) w->ones[d] = 1;
    return 0;
}

/* <row j, a> in each group of channels, into out[j * step + group]. */
INLINE void NAME(dots)(const int m, const REAL *const *rows, const REAL *a, int64_t groups,
                       int64_t each, REAL *out, int64_t step)
{
    for (int64_t g = 0, d = 0; g < groups; g++) {
        const int64_t end = (g + 1) * each;
        VEC sum[BATCH];
        REAL left[BATCH];
        for (int j = 0; j < m; j++) {
            sum[j] = (VEC){0};
            left[j] = 0;
        }
        for (; d + LANES <= end; d += LANES) {
            const VEC by = *(const VEC *)(a + d);
            for (int j = 0; j < m; j++) sum[j] += by * *(const VEC *)(rows[j] + d);
        }
        for (; d < end; d++)
            for (int j = 0; j < m; j++) left[j] += a[d] * rows[j][d];
        for (int j = 0; j < m; j++) out[j * step + g] = left[j] + NAME(across)(sum[j]);
    }
}

/* sum = keep * sum + the sum over j of by[j * step] * row j, over `count` channels. */
INLINE void NAME(gather)(const int m, const int kept, REAL keep, const REAL *by, int64_t step,
                         const REAL *const *rows, int64_t first, int64_t count, REAL *sum)
{
    REAL weight[BATCH];
    for (int j = 0; j < m; j++) weight[j] = by[j * step];
    int64_t d = first;
    for (; d + LANES <= first + count; d += LANES) {
        VEC total = *(const VEC *)(sum + d);
        if (kept) total *= keep;
        for (int j = 0; j < m; j++) total += weight[j] * *(const VEC *)(rows[j] + d);
        *(VEC *)(sum + d) = total;
    }
    for (; d < first + count; d++) {
        REAL total = kept ? sum[d] * keep : sum[d];
        for (int j = 0; j < m; j++) total += weight[j] * rows[j][d];
        sum[d] = total;
    }
}

/* Rows of token t of sources [first, first + BATCH), as far as there are so many. Asks for those
 * that come after: of the next sources, or of the first ones of the next block. There are more
 * places to read from than the processor follows by itself. */
INLINE int NAME(point)(const struct NAME(work) *w, const struct call *c, int64_t t, int64_t first,
                       const REAL **rows)
{
    const int m = c->sources - first < BATCH ? (int)(c->sources - first) : BATCH;
    const int more = first + BATCH < c->sources;
    for (int j = 0; j < m; j++)
        rows[j] = (const REAL *)c->history[first + j] + t * c->history_strides[first + j];
    const int64_t next = more ? first + BATCH : 0, at = more ? t : t + w->block;
    for (int64_t l = next; l < next + BATCH && l < c->sources; l++) {
        const REAL *row = (const REAL *)c->history[l] + at * c->history_strides[l];
        for (int64_t d = 0; d < c->width; d += 64 / (int64_t)sizeof(REAL))
            __builtin_prefetch(row + d, 0, 2);
    }
    return m;
}

/* Scores of sources [first, first + m) for `count` tokens from `start` on, into w->part. */
static void NAME(score)(const struct NAME(work) *w, const struct call *c, int64_t start,
                        int64_t count, int64_t first)
{
    for (int64_t i = 0; i < count; i++) {
        const REAL *rows[BATCH];
        const int64_t t = start + i;
        REAL *out = w->part + i * c->groups;
        const int m = NAME(point)(w, c, t, first, rows);
#define RUN(n) NAME(dots)(n, rows, c->query, c->groups, w->each, out, w->span)
        BY_COUNT(m, RUN)
#undef RUN
        for (int j = 0; j < m; j++) {
            REAL *scale = (REAL *)c->scales[first + j] + t;
            REAL mean;
            if (c->fresh[first + j]) NAME(statistics)(rows[j], c->width, 0, c->eps, &mean, scale);
            for (int64_t g = 0; g < c->groups; g++) out[j * w->span + g] *= *scale;
        }
    }
    if (!c->scores) return;
    for (int64_t j = 0; j < BATCH && first + j < c->sources; j++)
        memcpy((REAL *)c->scores + ((first + j) * c->tokens + start) * c->groups,
               w->part + j * w->span, (size_t)(count * c->groups) * sizeof(REAL));
}

/* Turns the scores in w->part into weights, relative to the highest score so far. */
static void NAME(weigh)(const struct NAME(work) *w, const int m, int64_t entries)
{
    const int64_t span = w->span;
    REAL *restrict part = w->part, *restrict highest = w->highest, *restrict sum = w->sum;
    REAL *restrict keep = w->keep;
#pragma omp simd
    for (int64_t i = 0; i < entries; i++) {
        REAL top = highest[i], total = 0;
        for (int j = 0; j < m; j++) top = part[j * span + i] > top ? part[j * span + i] : top;
        keep[i] = NAME(exponential)(highest[i] - top);
        highest[i] = top;
        for (int j = 0; j < m; j++) {
            part[j * span + i] = NAME(exponential)(part[j * span + i] - top);
            total += part[j * span + i];
        }
        sum[i] = sum[i] * keep[i] + total;
    }
}

/* The average of token t, which stands in `row` but for the sum of its weights, and its norms. */
static void NAME(finish)(const struct NAME(work) *w, const struct call *c, int64_t t,
                         REAL *restrict row, const REAL *sum)
{
    const int64_t width = c->width;
    for (int64_t g = 0; g < c->groups; g++) {
        const REAL by = 1 / sum[g];
#pragma omp simd
        for (int64_t d = g * w->each; d < (g + 1) * w->each; d++) row[d] *= by;
    }
    if (c->average) memcpy((REAL *)c->average + t * width, row, (size_t)width * sizeof(REAL));
    REAL mean, scale;
    if (c->norms) NAME(statistics)(row, width, c->kind == LAYER_NORM, c->norm_eps, &mean, &scale);
    for (int64_t i = 0; i < c->norms; i++) {
        const REAL *restrict gain = c->gains ? c->gains[i] : w->ones;
        const REAL *restrict bias = c->biases ? c->biases[i] : w->zeros;
        REAL *restrict y = (REAL *)c->rows[i] + t * width;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) y[d] = (row[d] - mean) * scale * gain[d] + bias[d];
    }
}

static void NAME(forward_block)(const struct NAME(work) *w, const struct call *c, int64_t start,
                                int64_t count)
{
    const int64_t groups = c->groups, entries = count * groups;
    memset(w->averages, 0, (size_t)(count * c->width) * sizeof(REAL));
    for (int64_t i = 0; i < entries; i++) {
        w->highest[i] = -INFINITY;
        w->sum[i] = 0;
    }
    for (int64_t first = 0; first < c->sources; first += BATCH) {
        const int m = c->sources - first < BATCH ? (int)(c->sources - first) : BATCH;
        NAME(score)(w, c, start, count, first);
#define RUN(n) NAME(weigh)(w, n, entries)
        BY_COUNT(m, RUN)
#undef RUN
        for (int64_t i = 0; i < count; i++) {
            const REAL *rows[BATCH];
            for (int j = 0; j < m; j++)
                rows[j] = (const REAL *)c->history[first + j] +
                          (start + i) * c->history_strides[first + j];
            REAL *row = w->averages + i * c->width;
            for (int64_t g = 0; g < groups; g++) {
                const int64_t at = i * groups + g;
#define RUN(n)                                                                                     \
    NAME(gather)(n, 1, w->keep[at], w->part + at, w->span, rows, g * w->each, w->each, row)
                BY_COUNT(m, RUN)
#undef RUN
            }
        }
    }
    for (int64_t i = 0; i < count; i++)
        NAME(finish)(w, c, start + i, w->averages + i * c->width, w->sum + i * groups);
    if (c->lse)
        for (int64_t i = 0; i < entries; i++)
            ((REAL *)c->lse)[start * groups + i] = w->highest[i] + (REAL)log((double)w->sum[i]);
}

/* Adds to `delta` the gradient that norm i sends to its row x; sums those of gain and bias. */
static void NAME(norm_backward)(const struct NAME(work) *w, const struct call *c, int64_t i,
                                const REAL *restrict x, REAL mean, REAL scale,
                                const REAL *restrict dy, REAL *restrict delta)
{
    const int64_t width = c->width;
    const REAL *restrict gain = c->gains ? c->gains[i] : w->ones;
    REAL *restrict dgain = w->dgains + i * width, *restrict dbias = w->dbiases + i * width;
    REAL dot = 0, sum = 0;
#pragma omp simd reduction(+ : dot, sum)
    for (int64_t d = 0; d < width; d++) {
        const REAL unit = (x[d] - mean) * scale;
        sum += dy[d] * gain[d];
        dot += dy[d] * gain[d] * unit;
        dgain[d] += dy[d] * unit;
        dbias[d] += dy[d];
    }
    dot /= (REAL)width;
    sum = c->kind == LAYER_NORM ? sum / (REAL)width : 0;
#pragma omp simd
    for (int64_t d = 0; d < width; d++)
        delta[d] += scale * (dy[d] * gain[d] - sum - (x[d] - mean) * scale * dot);
}

/* The gradient of the average of token t, and its product with the average in each group. */
static void NAME(average_backward)(const struct NAME(work) *w, const struct call *c, int64_t t,
                                   REAL *delta)
{
    const int64_t width = c->width;
    const REAL *x = (const REAL *)c->average + t * width;
    REAL *restrict row = (REAL *)c->dmix + t * width;
    REAL mean = 0, scale = 0;
    if (c->grads[c->norms])
        memcpy(row, (const REAL *)c->grads[c->norms] + t * c->grad_strides[c->norms],
               (size_t)width * sizeof(REAL));
    else
        memset(row, 0, (size_t)width * sizeof(REAL));
    if (c->norms) NAME(statistics)(x, width, c->kind == LAYER_NORM, c->norm_eps, &mean, &scale);
    for (int64_t i = 0; i < c->norms; i++)
        if (c->grads[i])
            NAME(norm_backward)(w, c, i, x, mean, scale,
                                (const REAL *)c->grads[i] + t * c->grad_strides[i], row);
    NAME(dots)(1, &x, row, c->groups, w->each, delta, 0);
}

/* From the products in w->part of rows and gradients of the average to the gradients of scores:
 * what depth_attention_pull needs is written, what the query's gradient needs is left in w->part. */
static void NAME(score_backward)(const struct NAME(work) *w, const struct call *c, int64_t start,
                                 int64_t count, int64_t l, REAL *restrict part)
{
    const int64_t groups = c->groups, entries = count * groups, wide = 2 * groups + 1;
    const REAL *restrict score = (const REAL *)c->scores + (l * c->tokens + start) * groups;
    const REAL *restrict lse = (const REAL *)c->lse + start * groups;
    const REAL *restrict scales = (const REAL *)c->scales[l] + start;
    REAL *restrict out = (REAL *)c->parts + (l * c->tokens + start) * wide;
    REAL *restrict weight = w->keep, *restrict delta = w->delta;
#pragma omp simd
    for (int64_t i = 0; i < entries; i++) {
        weight[i] = NAME(exponential)(score[i] - lse[i]);
        part[i] = weight[i] * (part[i] - delta[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        REAL along = 0;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t at = i * groups + g;
            along += part[at] * score[at];
            part[at] *= scales[i];
            out[i * wide + g] = weight[at];
            out[i * wide + groups + g] = part[at];
        }
        out[i * wide + 2 * groups] = along * scales[i] * scales[i] / (REAL)c->width;
    }
}

static void NAME(backward_block)(const struct NAME(work) *w, const struct call *c, int64_t start,
                                 int64_t count)
{
    const int64_t groups = c->groups, width = c->width;
    for (int64_t i = 0; i < count; i++)
        NAME(average_backward)(w, c, start + i, w->delta + i * groups);
    for (int64_t first = 0; first < c->sources; first += BATCH) {
        const int m = c->sources - first < BATCH ? (int)(c->sources - first) : BATCH;
        const REAL *rows[BLOCK][BATCH];
        for (int64_t i = 0; i < count; i++) {
            const REAL *grad = (const REAL *)c->dmix + (start + i) * width;
            NAME(point)(w, c, start + i, first, rows[i]);
#define RUN(n) NAME(dots)(n, rows[i], grad, groups, w->each, w->part + i * groups, w->span)
            BY_COUNT(m, RUN)
#undef RUN
        }
        for (int j = 0; j < m; j++)
            NAME(score_backward)(w, c, start, count, first + j, w->part + j * w->span);
        for (int64_t i = 0; i < count; i++)
            for (int64_t g = 0; g < groups; g++) {
#define RUN(n)                                                                                     \
    NAME(gather)(n, 0, 0, w->part + i * groups + g, w->span, rows[i], g * w->each, w->each, w->query)
                BY_COUNT(m, RUN)
#undef RUN
            }
    }
}

/* Moves what was summed since the last time into the double sums of this thread. */
static void NAME(flush)(const struct NAME(work) *w, const struct call *c, double *totals)
{
    const int64_t width = c->width, count = c->norms * width;
    for (int64_t d = 0; d < width; d++) totals[d] += w->query[d];
    for (int64_t d = 0; d < count; d++) {
        totals[width + d] += w->dgains[d];
        totals[width + count + d] += w->dbiases[d];
    }
    memset(w->query, 0, (size_t)width * sizeof(REAL));
    memset(w->dgains, 0, (size_t)count * sizeof(REAL));
    memset(w->dbiases, 0, (size_t)count * sizeof(REAL));
}

/* Both return how many threads got no memory: 0 when all is well. */
int NAME(depth_attention_forward)(const struct call *c)
{
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(+ : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        struct NAME(work) w;
        if (NAME(start)(&w, c, 0)) {
            failed++;
            continue;
        }
        const int64_t end = (part + 1) * c->tokens / c->threads;
        for (int64_t t = part * c->tokens / c->threads; t < end; t += w.block)
            NAME(forward_block)(&w, c, t, end - t < w.block ? end - t : w.block);
        free(w.memory);
    }
    return failed;
}

int NAME(depth_attention_backward)(const struct call *c)
{
    const int64_t sums = (1 + 2 * c->norms) * c->width;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, sums);
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(+ : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        struct NAME(work) w;
        if (NAME(start)(&w, c, 1)) {
            failed++;
            continue;
        }
        double *totals = c->totals + part * sums;
        const int64_t end = (part + 1) * c->tokens / c->threads;
        for (int64_t t = part * c->tokens / c->threads, since = 0; t < end; t += w.block) {
            NAME(backward_block)(&w, c, t, end - t < w.block ? end - t : w.block);
            if (++since == FLUSH || t + w.block >= end) {
                NAME(flush)(&w, c, totals);
                since = 0;
            }
        }
        free(w.memory);
    }
    NAME(add_up)(0, c->totals, c->threads, sums, sums, c->sums);
    return failed;
}

/* n readers from r on and all m sources: adds what they send to token t. */
INLINE void NAME(draw)(const int n, const int m, const struct pull *c, int64_t r, int64_t t)
{
    const int64_t groups = c->groups, each = c->width / groups, wide = 2 * groups + 1;
    const REAL *part[2][BATCH], *grad[2], *query[2];
    REAL *out[BATCH];
    for (int i = 0; i < n; i++) {
        grad[i] = (const REAL *)c->grads[r + i] + t * c->width;
        query[i] = c->queries[r + i];
        for (int j = 0; j < m; j++) part[i][j] = (const REAL *)c->parts[(r + i) * m + j] + t * wide;
    }
    for (int j = 0; j < m; j++) out[j] = (REAL *)c->outs[j] + t * c->width;
    for (int64_t g = 0, d = 0; g < groups; g++) {
        const int64_t end = (g + 1) * each;
        for (; d + LANES <= end; d += LANES) {
            VEC from[2], along[2];
            for (int i = 0; i < n; i++) {
                from[i] = *(const VEC *)(grad[i] + d);
                along[i] = *(const VEC *)(query[i] + d);
            }
            for (int j = 0; j < m; j++) {
                VEC total = *(const VEC *)(out[j] + d);
                for (int i = 0; i < n; i++)
                    total += part[i][j][g] * from[i] + part[i][j][groups + g] * along[i];
                *(VEC *)(out[j] + d) = total;
            }
        }
        for (; d < end; d++)
            for (int j = 0; j < m; j++)
                for (int i = 0; i < n; i++)
                    out[j][d] += part[i][j][g] * grad[i][d] + part[i][j][groups + g] * query[i][d];
    }
}

/* What stands in the gradient of source j for token t before anything is drawn. */
static void NAME(begin)(const struct pull *c, int64_t j, int64_t t)
{
    const int64_t width = c->width, last = 2 * c->groups;
    const REAL *restrict x = (const REAL *)c->x[j] + t * c->x_strides[j];
    REAL *restrict out = (REAL *)c->outs[j] + t * width;
    REAL by = 0;
    for (int64_t r = 0; r < c->readers; r++)
        by += ((const REAL *)c->parts[r * c->sources + j])[t * (last + 1) + last];
    if (c->modes[j] == ADD) {
#pragma omp simd
        for (int64_t d = 0; d < width; d++) out[d] -= by * x[d];
    } else {
#pragma omp simd
        for (int64_t d = 0; d < width; d++) out[d] = -by * x[d];
    }
}

/* m sources, `count` tokens from `start` on. Asks for the rows that come after: of the next two
 * readers, or of the first two for the next tokens. */
INLINE void NAME(pull_block)(const int m, const struct pull *c, int64_t start, int64_t count)
{
    const int64_t line = 64 / (int64_t)sizeof(REAL);
    for (int64_t j = 0; j < m; j++)
        for (int64_t t = start; t < start + count; t++) NAME(begin)(c, j, t);
    for (int64_t r = 0; r < c->readers; r += 2) {
        const int more = r + 2 < c->readers;
        for (int64_t t = start; t < start + count; t++) {
            for (int64_t next = more ? r + 2 : 0, end = next + 2; next < end; next++) {
                if (next >= c->readers) break;
                const REAL *row = (const REAL *)c->grads[next] + (more ? t : t + count) * c->width;
                for (int64_t d = 0; d < c->width; d += line) __builtin_prefetch(row + d, 0, 2);
            }
            if (r + 1 < c->readers) NAME(draw)(2, m, c, r, t);
            else NAME(draw)(1, m, c, r, t);
        }
    }
}

void NAME(depth_attention_pull)(const struct pull *c)
{
    int64_t block = ROOM / (c->width * (int64_t)sizeof(REAL));
    block = block < 1 ? 1 : block > BLOCK ? BLOCK : block;
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads)
    for (int64_t part = 0; part < c->threads; part++) {
        const int64_t end = (part + 1) * c->tokens / c->threads;
        for (int64_t t = part * c->tokens / c->threads; t < end; t += block) {
            const int64_t count = end - t < block ? end - t : block;
#define RUN(n) NAME(pull_block)(n, c, t, count)
            BY_COUNT(c->sources, RUN)
#undef RUN
        }
    }
}
