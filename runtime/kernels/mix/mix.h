/* The kernel for one type, REAL; included by mix.c once for each. HALF: everything is read and written
 * in bfloat16 and REAL is float; nothing is rounded but results. */

#include "vectors.h"
#include "totals.h"

#if HALF
#define ELEMENT uint16_t
typedef uint16_t NAME(halves) __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t NAME(words) __attribute__((vector_size(VECTOR_BYTES)));

INLINE VEC NAME(load)(const uint16_t *x)
{
    return (VEC)(__builtin_convertvector(*(const NAME(halves) *)x, NAME(words)) << 16);
}

INLINE void NAME(store)(uint16_t *y, VEC x)
{
    const NAME(words) bits = (NAME(words))x;
    *(NAME(halves) *)y = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, NAME(halves));
}

INLINE float NAME(one)(uint16_t x) { return (union float_bits){.bits = (uint32_t)x << 16}.real; }
INLINE void NAME(put)(uint16_t *y, float x) { narrow(&x, y, 1); }
#else
#define ELEMENT REAL
INLINE VEC NAME(load)(const REAL *x) { return *(const VEC *)x; }
INLINE void NAME(store)(REAL *y, VEC x) { *(VEC *)y = x; }
INLINE REAL NAME(one)(REAL x) { return x; }
INLINE void NAME(put)(REAL *y, REAL x) { *y = x; }
#endif

/* What one thread works in. */
struct NAME(work) {
    int64_t pitch;                 /* elements from row to row of scratch */
    int64_t active;                /* number of ways that anything is computed for */
    int64_t *way, *slot;           /* [ways]: of each slot its way, of each way its slot or -1 */
    const ELEMENT **sources;       /* [sources] rows of this token */
    const REAL **weights;          /* [active] rows of this token's weights */
    REAL **streams;                /* [active] where the streams of this token stand */
    REAL *scratch, *deltas;        /* [active, pitch] streams; their gradients */
    REAL *ones, *zeros;            /* [pitch] for a norm without gain or bias */
    REAL *wide, *made;             /* of bfloat16: weights; a row of a result or of its gradient */
    const REAL **gains, **biases;  /* [norms] */
    REAL *dgains, *dbiases;        /* [norms, pitch] summed since the last flush */
    REAL *dshared;                 /* [active, sources] likewise, for weights that tokens share */
    char *block;
};

/* A row as REAL: where it stands, or in `room` where it is of bfloat16. */
INLINE const REAL *NAME(vector)(const void *x, REAL *room, int64_t n)
{
    return HALF ? (const REAL *)row_of(1, x, 0, (float *)room, n) : (const REAL *)x;
}

static int NAME(start)(struct NAME(work) *w, const struct call *c, int backward)
{
    const int64_t pitch = (c->width + LANES - 1) / LANES * LANES;
    const int64_t rows = c->ways * (1 + backward) + 2 + 2 * c->norms * backward
                         + HALF * (1 + 2 * c->norms);
    const size_t reals = (size_t)(rows * pitch + c->ways * c->sources * (1 + HALF)) * sizeof(REAL);
    const size_t words = (size_t)(4 * c->ways + c->sources + 2 * c->norms) * 8;
    memset(w, 0, sizeof *w);
    w->block = calloc(1, reals + words + 64);
    if (!w->block) return 1;
    REAL *at = (REAL *)(((uintptr_t)w->block + 63) / 64 * 64);
    w->pitch = pitch;
    w->scratch = at;
    at += c->ways * pitch;
    w->ones = at;
    at += pitch;
    w->zeros = at;
    at += pitch;
    if (backward) {
        w->deltas = at;
        at += c->ways * pitch;
        w->dgains = at;
        at += c->norms * pitch;
        w->dbiases = at;
        at += c->norms * pitch;
    }
    if (HALF) {
        w->made = at;
        at += pitch * (1 + 2 * c->norms); /* and gains and biases behind it */
        w->wide = at;
        at += c->ways * c->sources;
    }
    w->dshared = at;
    at += c->ways * c->sources;
    int64_t *word = (int64_t *)(((uintptr_t)at + 7) / 8 * 8);
    w->way = word;
    w->slot = word + c->ways;
    w->weights = (const REAL **)(word + 2 * c->ways);
    w->streams = (REAL **)(word + 3 * c->ways);
    w->sources = (const ELEMENT **)(word + 4 * c->ways);
    w->gains = (const REAL **)(word + 4 * c->ways + c->sources);
    w->biases = w->gains + c->norms;
    for (int64_t d = 0; d < pitch; d++) w->ones[d] = 1;
    for (int64_t i = 0; i < c->norms; i++) {
        REAL *room = w->made + (1 + 2 * i) * pitch;
        w->gains[i] = c->gains ? NAME(vector)(c->gains[i], room, c->width) : w->ones;
        w->biases[i] = c->biases ? NAME(vector)(c->biases[i], room + pitch, c->width) : w->zeros;
    }
    for (int64_t way = 0; way < c->ways; way++) w->slot[way] = -1;
    for (int64_t i = 0; i < c->norms + c->raws; i++) {
        const int64_t way = c->outputs[i];
        if (w->slot[way] >= 0 || (backward && !c->grads[i])) continue;
        w->slot[way] = w->active;
        w->way[w->active++] = way;
    }
    return 0;
}

/* The rows of token t. */
static void NAME(point)(struct NAME(work) *w, const struct call *c, int64_t t)
{
    const REAL *weights =
        NAME(vector)((const ELEMENT *)c->weights + t * c->weight_stride, w->wide, c->ways * c->sources);
    for (int64_t l = 0; l < c->sources; l++)
        w->sources[l] = (const ELEMENT *)c->history[l] + t * c->history_strides[l];
    for (int64_t a = 0; a < w->active; a++) {
        w->weights[a] = weights + w->way[a] * c->sources;
        w->streams[a] = w->scratch + a * w->pitch;
    }
}

/* n streams, `unroll` vectors of each, held in registers over all sources. */
INLINE void NAME(tile)(const int n, const int unroll, const struct NAME(work) *w, int64_t first,
                       int64_t sources, int64_t d)
{
    VEC sum[4][UNROLL];
    for (int i = 0; i < n; i++)
        for (int u = 0; u < unroll; u++) sum[i][u] = (VEC){0};
    for (int64_t l = 0; l < sources; l++) {
        const ELEMENT *row = w->sources[l] + d;
        VEC x[UNROLL];
        for (int u = 0; u < unroll; u++) {
            __builtin_prefetch((const char *)(row + u * LANES) + AHEAD, 0, 2);
            x[u] = NAME(load)(row + u * LANES);
        }
        for (int i = 0; i < n; i++) {
            const REAL weight = w->weights[first + i][l];
            for (int u = 0; u < unroll; u++) sum[i][u] += weight * x[u];
        }
    }
    for (int i = 0; i < n; i++)
        for (int u = 0; u < unroll; u++)
            *(VEC *)(w->streams[first + i] + d + u * LANES) = sum[i][u];
}

INLINE void NAME(sum)(const int n, const struct NAME(work) *w, int64_t first, const struct call *c)
{
    const int64_t width = c->width, sources = c->sources;
    int64_t d = 0;
    for (; d + UNROLL * LANES <= width; d += UNROLL * LANES)
        NAME(tile)(n, UNROLL, w, first, sources, d);
    for (; d + LANES <= width; d += LANES) NAME(tile)(n, 1, w, first, sources, d);
    for (; d < width; d++)
        for (int i = 0; i < n; i++) {
            REAL sum = 0;
            for (int64_t l = 0; l < sources; l++) sum += w->weights[first + i][l] * NAME(one)(w->sources[l][d]);
            w->streams[first + i][d] = sum;
        }
}

static void NAME(sums)(const struct NAME(work) *w, const struct call *c)
{
#define RUN(n) NAME(sum)(n, w, first, c)
    BY_GROUPS(w->active, first, RUN)
#undef RUN
}

static void NAME(forward_token)(struct NAME(work) *w, const struct call *c, int64_t t)
{
    const int64_t width = c->width;
    NAME(point)(w, c, t);
    for (int64_t i = c->norms; i < c->norms + c->raws && !HALF; i++)
        w->streams[w->slot[c->outputs[i]]] = (REAL *)c->rows[i] + t * width;
    NAME(sums)(w, c);
    for (int64_t i = 0; i < c->norms; i++) {
        const REAL *restrict x = w->streams[w->slot[c->outputs[i]]];
        const REAL *restrict gain = w->gains[i], *restrict bias = w->biases[i];
        REAL *restrict y = HALF ? w->made : (REAL *)c->rows[i] + t * width;
        REAL mean, scale;
        NAME(statistics)(x, width, c->kind == LAYER_NORM, c->eps, &mean, &scale);
#pragma omp simd
        for (int64_t d = 0; d < width; d++) y[d] = (x[d] - mean) * scale * gain[d] + bias[d];
        end_row(HALF, c->rows[i], t * width, (const float *)y, width);
    }
    for (int64_t i = c->norms; i < c->norms + c->raws; i++) { /* a way that is asked for twice */
        const REAL *x = w->streams[w->slot[c->outputs[i]]];
        REAL *y = (REAL *)c->rows[i] + t * width;
        end_row(HALF, c->rows[i], t * width, (const float *)x, width);
        if (!HALF && x != y) memcpy(y, x, (size_t)width * sizeof(REAL));
    }
}

/* Adds to `delta` the gradient that output i sends to its stream x; sums those of gain and bias. */
static void NAME(norm_backward)(struct NAME(work) *w, const struct call *c, int64_t i,
                                const REAL *restrict x, const REAL *restrict dy,
                                REAL *restrict delta)
{
    const int64_t width = c->width;
    const REAL *restrict gain = w->gains[i];
    REAL mean, scale, dot = 0, sum = 0;
    NAME(statistics)(x, width, c->kind == LAYER_NORM, c->eps, &mean, &scale);
#pragma omp simd reduction(+ : dot, sum)
    for (int64_t d = 0; d < width; d++) {
        sum += dy[d] * gain[d];
        dot += dy[d] * gain[d] * ((x[d] - mean) * scale);
    }
    dot /= (REAL)width;
    sum = c->kind == LAYER_NORM ? sum / (REAL)width : 0;
#pragma omp simd
    for (int64_t d = 0; d < width; d++)
        delta[d] += scale * (dy[d] * gain[d] - sum - (x[d] - mean) * scale * dot);
    if (c->gains) {
        REAL *restrict dgain = w->dgains + i * w->pitch;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) dgain[d] += dy[d] * ((x[d] - mean) * scale);
    }
    if (c->biases) {
        REAL *restrict dbias = w->dbiases + i * w->pitch;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) dbias[d] += dy[d];
    }
}

/* The gradients of this token's streams, from those of all outputs that have one. */
static void NAME(stream_grads)(struct NAME(work) *w, const struct call *c, int64_t t)
{
    const int64_t width = c->width;
    int recompute = 0;
    for (int64_t i = 0; i < c->norms; i++) recompute |= c->grads[i] != NULL;
    if (recompute) NAME(sums)(w, c);
    memset(w->deltas, 0, (size_t)(w->active * w->pitch) * sizeof(REAL));
    for (int64_t i = 0; i < c->norms + c->raws; i++) {
        if (!c->grads[i]) continue;
        const int64_t slot = w->slot[c->outputs[i]];
        const ELEMENT *from = (const ELEMENT *)c->grads[i] + t * c->grad_strides[i];
        const REAL *restrict dy = NAME(vector)(from, w->made, width);
        REAL *restrict delta = w->deltas + slot * w->pitch;
        if (i < c->norms) {
            NAME(norm_backward)(w, c, i, w->streams[slot], dy, delta);
        } else {
#pragma omp simd
            for (int64_t d = 0; d < width; d++) delta[d] += dy[d];
        }
    }
}

/* n ways by m sources: <delta_i, x_j> into dots[i][j], and sum_i weight_ij delta_i written or added
 * to p[j]. Both in one sweep, with the dot products in registers. */
INLINE void NAME(push)(const int n, const int m, const int mode, int64_t width, int64_t pitch,
                       const REAL *g, const ELEMENT *const *x, ELEMENT *const *p,
                       const REAL weights[4][2], REAL dots[4][2])
{
    VEC sum[4][2];
    int64_t d = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) sum[i][j] = (VEC){0};
    for (; d + LANES <= width; d += LANES) {
        VEC total[2];
        for (int j = 0; j < m; j++) {
            __builtin_prefetch(x[j] + width + d);
            if (mode != SKIP) __builtin_prefetch(p[j] + width + d, 1);
        }
        for (int j = 0; j < m; j++)
            total[j] = mode == ADD ? NAME(load)(p[j] + d) : (VEC){0};
        for (int i = 0; i < n; i++) {
            const VEC delta = *(const VEC *)(g + i * pitch + d);
            for (int j = 0; j < m; j++) {
                sum[i][j] += delta * NAME(load)(x[j] + d);
                if (mode != SKIP) total[j] += weights[i][j] * delta;
            }
        }
        for (int j = 0; j < m; j++)
            if (mode != SKIP) NAME(store)(p[j] + d, total[j]);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) dots[i][j] = NAME(across)(sum[i][j]);
    for (; d < width; d++)
        for (int j = 0; j < m; j++) {
            REAL total = mode == ADD ? NAME(one)(p[j][d]) : 0;
            for (int i = 0; i < n; i++) {
                dots[i][j] += g[i * pitch + d] * NAME(one)(x[j][d]);
                total += weights[i][j] * g[i * pitch + d];
            }
            if (mode != SKIP) NAME(put)(p[j] + d, total);
        }
}

/* Ways [first, first + n) and sources [l, l + m), which all have one mode, of token t. */
INLINE void NAME(source_group)(const int n, const int m, struct NAME(work) *w, const struct call *c,
                               int64_t t, int64_t first, int64_t l)
{
    const REAL *g = w->deltas + first * w->pitch;
    const ELEMENT *x[2];
    const int64_t pitch = w->pitch, width = c->width;
    const int64_t mode = c->modes[l] == WRITE && first > 0 ? ADD : c->modes[l];
    REAL weights[4][2], dots[4][2];
    ELEMENT *p[2];
    for (int j = 0; j < m; j++) {
        x[j] = w->sources[l + j];
        p[j] = mode == SKIP ? NULL : (ELEMENT *)c->pushes[l + j] + t * width;
        for (int i = 0; i < n; i++) weights[i][j] = w->weights[first + i][l + j];
    }
    if (mode == SKIP) NAME(push)(n, m, SKIP, width, pitch, g, x, p, weights, dots);
    else if (mode == WRITE) NAME(push)(n, m, WRITE, width, pitch, g, x, p, weights, dots);
    else NAME(push)(n, m, ADD, width, pitch, g, x, p, weights, dots);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            const int64_t way = w->way[first + i];
            if (c->dweights)
                NAME(put)((ELEMENT *)c->dweights + (t * c->ways + way) * c->sources + l + j, dots[i][j]);
            else
                w->dshared[(first + i) * c->sources + l + j] += dots[i][j];
        }
}

static void NAME(backward_token)(struct NAME(work) *w, const struct call *c, int64_t t)
{
    NAME(point)(w, c, t);
    NAME(stream_grads)(w, c, t);
    for (int64_t l = 0, m; l < c->sources; l += m) {
        m = l + 1 < c->sources && c->modes[l] == c->modes[l + 1] ? 2 : 1;
#define RUN(n)                                                                                     \
    if (m == 2) NAME(source_group)(n, 2, w, c, t, first, l);                                       \
    else NAME(source_group)(n, 1, w, c, t, first, l)
        BY_GROUPS(w->active, first, RUN)
#undef RUN
    }
}

/* Moves what was summed since the last time into the double sums of this thread. */
static void NAME(flush)(struct NAME(work) *w, const struct call *c, double *totals)
{
    const int64_t norms = c->norms, width = c->width;
    for (int64_t i = 0; i < norms; i++)
        for (int64_t d = 0; d < width; d++) {
            totals[i * width + d] += w->dgains[i * w->pitch + d];
            totals[(norms + i) * width + d] += w->dbiases[i * w->pitch + d];
        }
    for (int64_t a = 0; a < w->active; a++)
        for (int64_t l = 0; l < c->sources; l++)
            totals[(2 * norms * width + w->way[a] * c->sources) + l] += w->dshared[a * c->sources + l];
    memset(w->dgains, 0, (size_t)(2 * norms * w->pitch) * sizeof(REAL));
    memset(w->dshared, 0, (size_t)(w->active * c->sources) * sizeof(REAL));
}

/* Both return how many threads got no memory: 0 when all is well. */
int NAME(mix_forward)(const struct call *c)
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
        for (int64_t t = part * c->tokens / c->threads; t < end; t++) NAME(forward_token)(&w, c, t);
        free(w.block);
    }
    return failed;
}

int NAME(mix_backward)(const struct call *c)
{
    const int64_t sums = 2 * c->norms * c->width + c->ways * c->sources;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, sums);
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(+ : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        struct NAME(work) w;
        if (NAME(start)(&w, c, 1)) {
            failed++;
            continue;
        }
        const int64_t end = (part + 1) * c->tokens / c->threads;
        for (int64_t t = part * c->tokens / c->threads, since = 0; t < end; t++) {
            NAME(backward_token)(&w, c, t);
            if (++since == FLUSH || t + 1 == end) {
                NAME(flush)(&w, c, c->totals + part * sums);
                since = 0;
            }
        }
        free(w.block);
    }
    for (int64_t i = 0; i <= 2 * c->norms; i++) {
        const int64_t n = i < 2 * c->norms ? c->width : c->ways * c->sources;
        if (c->sums[i]) NAME(add_up)(HALF, c->totals + i * c->width, c->threads, sums, n, c->sums[i]);
    }
    return failed;
}

#undef ELEMENT
#undef HALF
#undef REAL
#undef NAME
