/* attend.c for one type, REAL. */

enum { NAME(LANES) = VECTOR_BYTES / sizeof(REAL) };
#define LANES ((int64_t)NAME(LANES))
#define GROUP (LANES < TILE ? TILE : LANES)
typedef REAL NAME(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef WORD NAME(words) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL NAME(loose)
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
#define VEC NAME(vec)
#define WORDS NAME(words)
#define AT(p) (*(NAME(loose) *)(p))

INLINE VEC NAME(choose)(WORDS yes, VEC a, VEC b) {
    return (VEC)((yes & (WORDS)a) | (~yes & (WORDS)b));
}

/* x in all lanes. */
INLINE VEC NAME(all)(REAL x) { return x - (VEC){0}; }

/* exp, for x up to 80; 0 below LOWEST, NaN for NaN. */
INLINE VEC NAME(exponential)(VEC x) {
    static const double inverse[] = {1.,        1.,         1. / 2,      1. / 6,       1. / 24,
                                     1. / 120,  1. / 720,   1. / 5040,   1. / 40320,   1. / 362880,
                                     1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    const WORDS low = (WORDS)(x < LOWEST);
    x = NAME(choose)(low, NAME(all)(LOWEST), x);
    VEC n = x * LOG2E + ROUNDER;
    const VEC power = (VEC)(((WORDS)n << MANTISSA) + (BIAS << MANTISSA));
    n -= ROUNDER;
    x -= n * HIGH;
    x -= n * LOW;
    VEC y = NAME(all)((REAL)inverse[DEGREE]);
    UNROLL
    for (int i = DEGREE - 1; i >= 0; i--) y = y * x + (REAL)inverse[i];
    return (VEC)((WORDS)(y * power) & ~low);
}

/* c[i][j] = (0, 1 or keep[i]) * c[i][j] + sum over k < n of a[i, k] * b[k, j], for TILE rows i and
 * `wide` vectors j. a: by a_row and a_step; b: rows of b_step; c: rows of c_row. */
INLINE void NAME(tile)(const int wide, const int mode, int64_t n, const REAL *a, int64_t a_row,
                       int64_t a_step, const REAL *b, int64_t b_step, REAL *c, int64_t c_row,
                       const REAL *keep) {
    VEC sum[TILE][VECTORS];
    UNROLL
    for (int i = 0; i < TILE; i++) {
        UNROLL
        for (int j = 0; j < wide; j++) {
            if (mode == WRITE) sum[i][j] = (VEC){0};
            else if (mode == ADD) sum[i][j] = AT(c + i * c_row + j * LANES);
            else sum[i][j] = AT(c + i * c_row + j * LANES) * keep[i];
        }
    }
    for (int64_t k = 0; k < n; k++) {
        VEC right[VECTORS];
        UNROLL
        for (int j = 0; j < wide; j++) right[j] = AT(b + j * LANES);
        UNROLL
        for (int i = 0; i < TILE; i++) {
            const REAL left = a[i * a_row];
            UNROLL
            for (int j = 0; j < wide; j++) sum[i][j] += left * right[j];
        }
        a += a_step;
        b += b_step;
    }
    UNROLL
    for (int i = 0; i < TILE; i++) {
        UNROLL
        for (int j = 0; j < wide; j++) AT(c + i * c_row + j * LANES) = sum[i][j];
    }
}

/* The same for any number of vectors. */
INLINE void NAME(strip)(const int mode, int64_t vectors, int64_t n, const REAL *a, int64_t a_row,
                        int64_t a_step, const REAL *b, int64_t b_step, REAL *c, int64_t c_row,
                        const REAL *keep) {
    for (; vectors >= VECTORS; vectors -= VECTORS) {
        NAME(tile)(VECTORS, mode, n, a, a_row, a_step, b, b_step, c, c_row, keep);
        b += VECTORS * LANES;
        c += VECTORS * LANES;
    }
#if VECTORS > 2
    if (vectors == 3) NAME(tile)(3, mode, n, a, a_row, a_step, b, b_step, c, c_row, keep);
    if (vectors == 2) NAME(tile)(2, mode, n, a, a_row, a_step, b, b_step, c, c_row, keep);
#endif
    if (vectors == 1) NAME(tile)(1, mode, n, a, a_row, a_step, b, b_step, c, c_row, keep);
}

static __attribute__((noinline)) void NAME(strip_write)(int64_t vectors, int64_t n, const REAL *a,
                                                        int64_t a_row, const REAL *b,
                                                        int64_t b_step, REAL *c, int64_t c_row) {
    NAME(strip)(WRITE, vectors, n, a, a_row, 1, b, b_step, c, c_row, NULL);
}

static __attribute__((noinline)) void NAME(strip_add)(int64_t vectors, int64_t n, const REAL *a,
                                                      int64_t a_row, int64_t a_step, const REAL *b,
                                                      int64_t b_step, REAL *c, int64_t c_row) {
    NAME(strip)(ADD, vectors, n, a, a_row, a_step, b, b_step, c, c_row, NULL);
}

static __attribute__((noinline)) void NAME(strip_scale)(int64_t vectors, int64_t n, const REAL *a,
                                                        const REAL *b, int64_t b_step, REAL *c,
                                                        int64_t c_row, const REAL *keep) {
    NAME(strip)(SCALE, vectors, n, a, 1, QUERIES, b, b_step, c, c_row, keep);
}

/* A block of queries beside a block of keys, and what of it causality leaves. */
struct NAME(block) {
    int64_t query, queries; /* the first, and how many */
    int64_t key, keys;
    int64_t width, wide; /* width: rounded up to vectors in `wide` */
    int64_t causal;
};

/* The first of the block's queries that sees its key c. */
INLINE int64_t NAME(first_query)(const struct NAME(block) *b, int64_t c) {
    return b->causal ? within(b->key + c - b->query, b->queries) : 0;
}

/* How many of its keys are seen by query r or one before it. */
INLINE int64_t NAME(seen)(const struct NAME(block) *b, int64_t r) {
    return b->causal ? within(b->query + r + 1 - b->key, b->keys) : b->keys;
}

/* scores[c][r] = rows[c] . columns[:, r] where any query of a vector sees any key of a tile. */
static __attribute__((noinline)) void NAME(score)(const struct NAME(block) *b, const REAL *rows, const REAL *columns,
                        REAL *scores) {
    const int64_t vectors = rounded(b->queries, LANES) / LANES;
    for (int64_t c = 0; c < b->keys; c += TILE) {
        const int64_t first = NAME(first_query)(b, c) / LANES;
        if (first < vectors)
            NAME(strip_write)(vectors - first, b->width, rows + c * b->wide, b->wide,
                              columns + first * LANES, QUERIES,
                              scores + c * QUERIES + first * LANES, QUERIES);
    }
}

/* into[r] += sum over the keys c that r sees of weights[c][r] * rows[c]; keep: first times keep. */
static __attribute__((noinline)) void NAME(to_queries)(const struct NAME(block) *b, const REAL *weights, const REAL *rows,
                             REAL *into, const REAL *keep) {
    for (int64_t r = 0; r < b->queries; r += TILE) {
        const int64_t n = NAME(seen)(b, r + TILE - 1);
        if (keep)
            NAME(strip_scale)(b->wide / LANES, n, weights + r, rows, b->wide, into + r * b->wide,
                              b->wide, keep + r);
        else
            NAME(strip_add)(b->wide / LANES, n, weights + r, 1, QUERIES, rows, b->wide,
                            into + r * b->wide, b->wide);
    }
}

/* into[c] += sum over the queries r that see c of weights[c][r] * rows[r]. */
static __attribute__((noinline)) void NAME(to_keys)(const struct NAME(block) *b, const REAL *weights, const REAL *rows,
                          REAL *into) {
    for (int64_t c = 0; c < b->keys; c += TILE) {
        const int64_t r = NAME(first_query)(b, c);
        NAME(strip_add)(b->wide / LANES, b->queries - r, weights + c * QUERIES + r, QUERIES, 1,
                        rows + r * b->wide, b->wide, into + c * b->wide, b->wide);
    }
}

/* Scores of hidden keys become -inf. */
static __attribute__((noinline)) void NAME(hide)(const struct NAME(block) *b, const uint8_t *mask, REAL *scores) {
    for (int64_t c = 0; c < b->keys; c++)
        if (!mask[b->key + c])
            for (int64_t r = 0; r < QUERIES; r++) scores[c * QUERIES + r] = -(REAL)INFINITY;
}

/* Where a lane of the vector at query r does not see key c. */
INLINE WORDS NAME(later)(const struct NAME(block) *b, int64_t c, int64_t r) {
    WORDS lane;
    UNROLL
    for (int64_t i = 0; i < LANES; i++) lane[i] = (WORD)i;
    /* At most a vector away from the diagonal, and never above it by more than GROUP. */
    const WORD shift = (WORD)(b->key + c - b->query - r);
    return (WORDS)(lane < shift);
}

/* Scores become weights: exp of them over a maximum that grows from block to block. top, sum:
 * of every query so far; keep: what the sums so far are to be multiplied with. */
static __attribute__((noinline)) void NAME(softmax)(const struct NAME(block) *b, REAL scale, REAL *scores, REAL *top,
                          REAL *sum, REAL *keep) {
    for (int64_t r = 0; r < b->queries; r += LANES) {
        const int64_t full = NAME(seen)(b, r), some = NAME(seen)(b, r + GROUP - 1);
        REAL *const s = scores + r;
        const VEC minus = NAME(all)(-(REAL)INFINITY), before = AT(top + r);
        VEC high = minus;
        for (int64_t c = full; c < some; c++) {
            AT(s + c * QUERIES) = NAME(choose)(NAME(later)(b, c, r), minus, AT(s + c * QUERIES));
        }
        for (int64_t c = 0; c < some; c++) {
            const VEC x = AT(s + c * QUERIES);
            high = NAME(choose)((WORDS)(x > high), x, high);
        }
        high *= scale;
        high = NAME(choose)((WORDS)(before > high), before, high);
        const VEC base = (VEC)((WORDS)high & ~(WORDS)(high == minus));
        const VEC factor = NAME(exponential)(before - base);
        VEC total = AT(sum + r) * factor;
        for (int64_t c = 0; c < some; c++) {
            const VEC p = NAME(exponential)(AT(s + c * QUERIES) * scale - base);
            AT(s + c * QUERIES) = p;
            total += p;
        }
        AT(top + r) = high;
        AT(sum + r) = total;
        AT(keep + r) = factor;
    }
}

/* Scores become weights, and gradients of weights those of scores (without the scale). */
static __attribute__((noinline)) void NAME(softmax_grad)(const struct NAME(block) *b, REAL scale, const REAL *lse,
                               const REAL *along, REAL *scores, REAL *grads) {
    for (int64_t r = 0; r < b->queries; r += LANES) {
        const int64_t full = NAME(seen)(b, r), some = NAME(seen)(b, r + GROUP - 1);
        const VEC base = AT(lse + r), middle = AT(along + r);
        REAL *const s = scores + r, *const g = grads + r;
        for (int64_t c = 0; c < full; c++) {
            const VEC p = NAME(exponential)(AT(s + c * QUERIES) * scale - base);
            AT(s + c * QUERIES) = p;
            AT(g + c * QUERIES) = p * (AT(g + c * QUERIES) - middle);
        }
        for (int64_t c = full; c < some; c++) {
            const WORDS no = NAME(later)(b, c, r);
            const VEC p = NAME(exponential)(AT(s + c * QUERIES) * scale - base);
            const VEC d = p * (AT(g + c * QUERIES) - middle);
            AT(s + c * QUERIES) = (VEC)((WORDS)p & ~no);
            AT(g + c * QUERIES) = (VEC)((WORDS)d & ~no);
        }
    }
}

/* The address of a head. */
INLINE REAL *NAME(head)(const struct heads *x, int64_t batch, int64_t head) {
    return x->data ? (REAL *)x->data + batch * x->batch + head * x->head : NULL;
}

/* Rows as they lie, to rows of `wide` with zeros behind; zero rows up to a multiple of TILE. */
static __attribute__((noinline)) void NAME(pack_rows)(const REAL *x, int64_t stride, int64_t count, int64_t width,
                            int64_t wide, REAL *to) {
    for (int64_t i = 0; i < count; i++) {
        memcpy(to + i * wide, x + i * stride, width * sizeof(REAL));
        for (int64_t j = width; j < wide; j++) to[i * wide + j] = 0;
    }
    memset(to + count * wide, 0, (rounded(count, TILE) - count) * wide * sizeof(REAL));
}

/* Up to QUERIES rows to columns, [width, QUERIES], zeros behind. */
static __attribute__((noinline)) void NAME(pack_columns)(const REAL *x, int64_t stride, int64_t count, int64_t width,
                               REAL *to) {
    enum { STEP = 16 };
    for (int64_t i = 0; i < rounded(count, LANES); i += STEP) {
        for (int64_t j = 0; j < width; j++) {
            REAL *const column = to + j * QUERIES + i;
            if (i + STEP <= count) {
                UNROLL
                for (int64_t k = 0; k < STEP; k++) column[k] = x[(i + k) * stride + j];
            } else {
                for (int64_t k = 0; k < STEP; k++)
                    column[k] = i + k < count ? x[(i + k) * stride + j] : 0;
            }
        }
    }
}

/* What a thread works in. */
struct NAME(scratch) {
    REAL *keys, *values;           /* [keys, wide], a multiple of TILE rows */
    REAL *key_grads, *value_grads; /* the same */
    REAL *queries, *grads;         /* [QUERIES, wide]; queries: in the forward pass, the sums */
    REAL *query_columns, *grad_columns, *query_grads;
    REAL *scores, *score_grads; /* [KEYS, QUERIES] */
};

INLINE struct NAME(scratch) NAME(scratch_of)(const struct call *c) {
    REAL *at = (REAL *)c->scratch + omp_get_thread_num() * c->scratch_each;
    const int64_t all = rounded(c->keys, KEYS) * rounded(c->width, 16);
    const int64_t some = QUERIES * rounded(c->width, 16);
    struct NAME(scratch) s = {.keys = at, .values = at + all};
    at += 2 * all;
    s.scores = at, s.score_grads = at + KEYS * QUERIES, at += 2 * KEYS * QUERIES;
    s.queries = at, s.query_columns = at + some, at += 2 * some;
    s.grads = at, s.grad_columns = at + some, s.query_grads = at + 2 * some, at += 3 * some;
    s.key_grads = at, s.value_grads = at + all; /* not there in the forward pass */
    return s;
}

/* How many keys the queries before `end` see. */
INLINE int64_t NAME(reach)(const struct call *c, int64_t end) {
    return c->causal ? least(c->keys, end) : c->keys;
}

INLINE struct NAME(block) NAME(block_at)(const struct call *c, int64_t query) {
    return (struct NAME(block)){.query = query,
                                .queries = least(QUERIES, c->length - query),
                                .width = c->width,
                                .wide = rounded(c->width, LANES),
                                .causal = c->causal};
}

static __attribute__((noinline)) void NAME(forward_block)(const struct call *c, const struct NAME(scratch) *s, int64_t batch,
                                int64_t head, int64_t query) {
    struct NAME(block) b = NAME(block_at)(c, query);
    const int64_t reach = NAME(reach)(c, query + b.queries);
    const uint8_t *mask = c->mask ? c->mask + batch * c->mask_batch : NULL;
    REAL top[QUERIES], sum[QUERIES], keep[QUERIES];
    for (int64_t r = 0; r < QUERIES; r++) top[r] = -(REAL)INFINITY, sum[r] = 0;
    memset(s->queries, 0, QUERIES * b.wide * sizeof(REAL));
    NAME(pack_columns)(NAME(head)(&c->query, batch, head) + query * c->query.token, c->query.token,
                       b.queries, c->width, s->query_columns);
    for (b.key = 0; b.key < reach; b.key += KEYS) {
        b.keys = least(KEYS, reach - b.key);
        NAME(score)(&b, s->keys + b.key * b.wide, s->query_columns, s->scores);
        if (mask) NAME(hide)(&b, mask, s->scores);
        NAME(softmax)(&b, (REAL)c->scale, s->scores, top, sum, keep);
        NAME(to_queries)(&b, s->scores, s->values + b.key * b.wide, s->queries, keep);
    }
    REAL *out = NAME(head)(&c->out, batch, head) + query * c->out.token;
    REAL *lse = (REAL *)c->lse + (batch * c->heads + head) * c->length + query;
    for (int64_t r = 0; r < b.queries; r++) {
        /* A query that sees nothing gives 0, and lets exp(score - lse) be 0 in the backward pass. */
        const REAL by = sum[r] == 0 ? 0 : 1 / sum[r];
        for (int64_t j = 0; j < c->width; j++)
            out[r * c->out.token + j] = s->queries[r * b.wide + j] * by;
        lse[r] = sum[r] == 0 ? (REAL)INFINITY : top[r] + LOG(sum[r]);
    }
}

static __attribute__((noinline)) void NAME(backward_block)(const struct call *c, const struct NAME(scratch) *s, int64_t batch,
                                 int64_t head, int64_t query) {
    struct NAME(block) b = NAME(block_at)(c, query);
    const int64_t reach = NAME(reach)(c, query + b.queries);
    const uint8_t *mask = c->mask ? c->mask + batch * c->mask_batch : NULL;
    const REAL *const q = NAME(head)(&c->query, batch, head) + query * c->query.token;
    const REAL *const g = NAME(head)(&c->grad, batch, head) + query * c->grad.token;
    const REAL *const out = NAME(head)(&c->out, batch, head) + query * c->out.token;
    REAL along[QUERIES] = {0}, lse[QUERIES] = {0};
    memcpy(lse, (REAL *)c->lse + (batch * c->heads + head) * c->length + query,
           b.queries * sizeof(REAL));
    for (int64_t r = 0; r < b.queries; r++) {
        REAL total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < c->width; j++)
            total += g[r * c->grad.token + j] * out[r * c->out.token + j];
        along[r] = total;
    }
    NAME(pack_rows)(q, c->query.token, b.queries, c->width, b.wide, s->queries);
    NAME(pack_rows)(g, c->grad.token, b.queries, c->width, b.wide, s->grads);
    NAME(pack_columns)(q, c->query.token, b.queries, c->width, s->query_columns);
    NAME(pack_columns)(g, c->grad.token, b.queries, c->width, s->grad_columns);
    REAL *const to = NAME(head)(&c->query_grad, batch, head);
    if (to) memset(s->query_grads, 0, QUERIES * b.wide * sizeof(REAL));
    for (b.key = 0; b.key < reach; b.key += KEYS) {
        b.keys = least(KEYS, reach - b.key);
        const int64_t at = b.key * b.wide;
        NAME(score)(&b, s->keys + at, s->query_columns, s->scores);
        if (mask) NAME(hide)(&b, mask, s->scores);
        NAME(score)(&b, s->values + at, s->grad_columns, s->score_grads);
        NAME(softmax_grad)(&b, (REAL)c->scale, lse, along, s->scores, s->score_grads);
        if (c->value_grad.data) NAME(to_keys)(&b, s->scores, s->grads, s->value_grads + at);
        if (c->key_grad.data) NAME(to_keys)(&b, s->score_grads, s->queries, s->key_grads + at);
        if (to) NAME(to_queries)(&b, s->score_grads, s->keys + at, s->query_grads, NULL);
    }
    for (int64_t r = 0; to && r < b.queries; r++)
        for (int64_t j = 0; j < c->width; j++)
            to[(query + r) * c->query_grad.token + j] =
                s->query_grads[r * b.wide + j] * (REAL)c->scale;
}

/* Sums over all queries, to where the gradient belongs. */
static __attribute__((noinline)) void NAME(unpack_rows)(const struct call *c, const struct heads *to, int64_t batch,
                              int64_t head, const REAL *sums, REAL scale) {
    REAL *const rows = NAME(head)(to, batch, head);
    for (int64_t i = 0; rows && i < c->keys; i++)
        for (int64_t j = 0; j < c->width; j++)
            rows[i * to->token + j] = sums[i * rounded(c->width, LANES) + j] * scale;
}

/* Keys and values of a head, up to `reach`. */
static __attribute__((noinline)) void NAME(pack_head)(const struct call *c, const struct NAME(scratch) *s, int64_t batch,
                            int64_t head, int64_t reach) {
    const int64_t wide = rounded(c->width, LANES);
    NAME(pack_rows)(NAME(head)(&c->key, batch, head), c->key.token, reach, c->width, wide, s->keys);
    NAME(pack_rows)(NAME(head)(&c->value, batch, head), c->value.token, reach, c->width, wide,
                    s->values);
}

void NAME(attend_forward)(const struct call *c) {
    const int64_t units = c->batch * c->key_heads * c->parts, group = c->heads / c->key_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(c->threads)
    for (int64_t unit = 0; unit < units; unit++) {
        const struct NAME(scratch) s = NAME(scratch_of)(c);
        const int64_t part = unit % c->parts, which = unit / c->parts;
        const int64_t batch = which / c->key_heads, key_head = which % c->key_heads;
        NAME(pack_head)(c, &s, batch, key_head, NAME(reach)(c, c->length));
        for (int64_t i = 0; i < group; i++)
            for (int64_t query = part * QUERIES; query < c->length; query += c->parts * QUERIES)
                NAME(forward_block)(c, &s, batch, key_head * group + i, query);
    }
}

void NAME(attend_backward)(const struct call *c) {
    const int64_t units = c->batch * c->key_heads, group = c->heads / c->key_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(c->threads)
    for (int64_t unit = 0; unit < units; unit++) {
        const struct NAME(scratch) s = NAME(scratch_of)(c);
        const int64_t batch = unit / c->key_heads, key_head = unit % c->key_heads;
        const size_t bytes = rounded(c->keys, TILE) * rounded(c->width, LANES) * sizeof(REAL);
        NAME(pack_head)(c, &s, batch, key_head, NAME(reach)(c, c->length));
        memset(s.key_grads, 0, bytes);
        memset(s.value_grads, 0, bytes);
        for (int64_t i = 0; i < group; i++)
            for (int64_t query = 0; query < c->length; query += QUERIES)
                NAME(backward_block)(c, &s, batch, key_head * group + i, query);
        NAME(unpack_rows)(c, &c->key_grad, batch, key_head, s.key_grads, (REAL)c->scale);
        NAME(unpack_rows)(c, &c->value_grad, batch, key_head, s.value_grads, 1);
    }
}

#undef LANES
#undef GROUP
#undef VEC
#undef WORDS
#undef AT
