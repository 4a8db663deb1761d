/* A block of tokens through the end of one site and the beginning of the next, and back. */

/* Old lanes of a token, one pointer each. */
INLINE void NAME(old_lanes)(const struct call *c, int64_t token, const REAL **x)
{
    for (int64_t i = 0; i < c->lanes; i++)
        x[i] = (const REAL *)c->x + token * c->x_token + i * c->x_lane;
}

/* Points to the lanes that the site reads: computed, or as they came. `out`: where to, or NULL. */
static void NAME(end_block)(struct NAME(work) *w, const struct call *c, int64_t first, int64_t count,
                            REAL *out)
{
    const int64_t n = c->lanes, width = c->width;
    for (int64_t t = 0; t < count; t++) {
        const int64_t token = first + t;
        const REAL *x[MOST_LANES];
        NAME(old_lanes)(c, token, x);
        REAL *to = out ? out + token * n * width : w->fresh + t * w->pitch;
        w->lanes[t] = to;
        if (c->ends) {
            const REAL *y = (const REAL *)c->y + token * c->y_token;
            const REAL *mix = (const REAL *)c->mix + token * c->mix_token;
            const REAL *write = (const REAL *)c->write + token * c->write_token;
#define RUN(n) NAME(end_row)(n, c, x, y, mix, write, to)
            BY_LANES((int)n, RUN)
#undef RUN
        } else if (c->x_lane == width) {
            w->lanes[t] = (REAL *)x[0];
        } else {
            for (int64_t i = 0; i < n; i++)
                memcpy(to + i * width, x[i], (size_t)width * sizeof(REAL));
        }
    }
}

/* A group of rows that the generator's norm sees: pointers, and how many they are. */
INLINE int NAME(group)(const int size, const struct NAME(work) *w, const struct call *c,
                       int64_t count, int64_t first, const REAL **x, int64_t *slot)
{
    const int64_t all = count * w->rows, left = all - first;
    for (int64_t r = 0; r < size; r++) {
        const int64_t at = r < left ? first + r : all - 1;
        x[r] = w->lanes[at / w->rows] + at % w->rows * c->width;
        slot[r] = at % w->rows * TOKENS + at / w->rows; /* in [rows] */
    }
    return left < size ? (int)left : size;
}

/* Statistics of the rows and their products with the matrix. */
static void NAME(project)(struct NAME(work) *w, const struct call *c, int64_t count)
{
    const REAL *matrix = c->matrix, *x[4];
    int64_t slot[4];
    const int64_t numbers = (NAME(slots)(c) + 2 * w->rows) * TOKENS;
    if (count < TOKENS) memset(w->z, 0, (size_t)numbers * sizeof(REAL)); /* else what is not there */
    for (int64_t first = 0; first < count * w->rows; first += 4) {
        const int found = NAME(group)(4, w, c, count, first, x, slot);
        REAL mean[4], by[4], out[4][TILE];
        for (int r = 0; r < 4; r++)
            NAME(statistics)(x[r], w->row, c->weights == TANH, c->eps, mean + r, by + r);
        for (int r = 0; r < found; r++) w->mean[slot[r]] = mean[r], w->by[slot[r]] = by[r];
        for (int64_t f = 0; f < c->columns; f += TILE) {
            const int64_t tile = c->columns - f < TILE ? c->columns - f : TILE;
            const REAL *part = matrix + f * w->row;
#define RUN(n) NAME(dots)(n, x, mean, part, w->row, out)
            switch (tile) {
            case 1: RUN(1); break;
            case 2: RUN(2); break;
#if TILE > 2
            case 3: RUN(3); break;
            case 4: RUN(4); break;
            case 5: RUN(5); break;
            default: RUN(6);
#endif
            }
#undef RUN
            for (int r = 0; r < found; r++)
                for (int64_t e = 0; e < tile; e++) {
                    const int64_t lane = slot[r] / TOKENS, t = slot[r] % TOKENS;
                    w->z[(lane * c->columns + f + e) * TOKENS + t] = by[r] * out[r][e];
                }
        }
    }
}

/* Gradients of the rows and of the matrix, from those of the products. */
static void NAME(project_back)(struct NAME(work) *w, const struct call *c, int64_t count)
{
    const int64_t columns = c->columns, all = count * w->rows;
    const REAL *matrix = c->matrix, *x[TOKENS * MOST_LANES + SPREAD];
    REAL mean[TOKENS * MOST_LANES + SPREAD], along[TOKENS * MOST_LANES + SPREAD];
    REAL flat[TOKENS * MOST_LANES + SPREAD], *dx[TOKENS * MOST_LANES + SPREAD];
    for (int64_t at = 0; at < all; at += SPREAD) {
        int64_t slot[SPREAD];
        const int found = NAME(group)(SPREAD, w, c, count, at, x + at, slot);
        for (int r = 0; r < SPREAD; r++) {
            const int64_t lane = slot[r] / TOKENS, t = slot[r] % TOKENS;
            const REAL by = w->by[slot[r]];
            REAL dot = 0, sum = 0, *factors = w->factors + (at + r) * columns;
            for (int64_t f = 0; f < columns; f++) {
                const int64_t place = (lane * columns + f) * TOKENS + t;
                dot += w->dmade[place] * w->z[place];
                sum += w->dmade[place] * w->middle[f];
                factors[f] = w->dmade[place] * by;
            }
            mean[at + r] = w->mean[slot[r]];
            along[at + r] = by * by * dot / (REAL)w->row;
            flat[at + r] = c->weights == TANH ? by * sum : 0;
            dx[at + r] = w->grads + t * w->pitch + lane * c->width;
        }
        NAME(spread)(columns, x + at, mean + at, w->factors + at * columns, along + at, flat + at,
                     matrix, w->row, found, dx + at);
    }
    for (int64_t f = 0; f < columns; f += TILE) {
        REAL *out = w->sums + c->at[MATRIX] + f * w->row;
        const REAL *factors = w->factors + f;
#define RUN(n) NAME(gather)(n, columns, all, x, mean, factors, w->row, out)
        switch (columns - f) {
        case 1: RUN(1); break;
#if TILE > 2
        case 2: RUN(2); break;
        case 3: RUN(3); break;
        case 4: RUN(4); break;
        case 5: RUN(5); break;
#endif
        default: RUN(TILE);
        }
#undef RUN
    }
}

/* Weights from outside, laid out weight by weight. */
static void NAME(given)(struct NAME(work) *w, const struct call *c, int64_t first, int64_t count)
{
    const int64_t size = c->lanes * c->reads;
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < size; i++)
            w->read[i * TOKENS + t] = ((const REAL *)c->read)[(first + t) * c->read_token + i];
}

/* Between a block's rows [size] and a tensor [tokens, size]. */
INLINE void NAME(put)(REAL *to, const REAL *from, int64_t size, int64_t first, int64_t count)
{
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < size; i++) to[(first + t) * size + i] = from[i * TOKENS + t];
}

INLINE void NAME(get)(REAL *to, const REAL *from, int64_t size, int64_t first, int64_t count)
{
    memset(to, 0, (size_t)(size * TOKENS) * sizeof(REAL));
    for (int64_t t = 0; from && t < count; t++)
        for (int64_t i = 0; i < size; i++) to[i * TOKENS + t] = from[(first + t) * size + i];
}

/* sinkhorn's matrix as it is used: turned where that is asked for. */
static void NAME(turn)(const struct call *c, REAL *m)
{
    if (!c->transpose) return;
    for (int64_t j = 0; j < c->lanes; j++)
        for (int64_t k = 0; k < j; k++) {
            REAL *a = m + (j * c->lanes + k) * TOKENS, *b = m + (k * c->lanes + j) * TOKENS;
            EACH_TOKEN {
                const REAL kept = a[t];
                a[t] = b[t];
                b[t] = kept;
            }
        }
}

/* What a token reads, normalised and as it is. */
static void NAME(read_token)(struct NAME(work) *w, const struct call *c, int64_t token, int64_t t)
{
    const int64_t wide = c->reads * c->width;
    REAL *u = c->raw ? (REAL *)c->raw + token * wide : w->u, mean, by;
#define RUN(n) NAME(read_row)(n, c->reads, c->width, w->lanes[t], w->read + t, u)
    BY_LANES((int)c->lanes, RUN)
#undef RUN
    if (!c->norms) return;
    NAME(statistics)(u, wide, c->norm == LAYER_NORM, c->norm_eps, &mean, &by);
    for (int64_t i = 0; i < c->norms; i++) {
        const REAL *gain = c->gains[i], *offset = c->offsets[i];
        REAL *y = (REAL *)c->normed[i] + token * wide;
#define BODY(d, count)                                                                             \
    VEC v = (NAME(load)(u + d, count) - mean) * by;                                                \
    if (gain) v *= NAME(load)(gain + d, count);                                                    \
    if (offset) v += NAME(load)(offset + d, count);                                                \
    NAME(store)(y + d, v, count);
        SWEEP(wide, BODY)
#undef BODY
    }
}

/* The gradient of what a token reads, w->du; sums those of gains and offsets. */
static void NAME(read_token_back)(struct NAME(work) *w, const struct call *c, int64_t token,
                                  int64_t t)
{
    const int64_t wide = c->reads * c->width;
    REAL *u = w->u, *du = w->du, mean, by, sum = 0, dot = 0;
    memset(du, 0, (size_t)wide * sizeof(REAL));
#define RUN(n) NAME(read_row)(n, c->reads, c->width, w->lanes[t], w->read + t, u)
    BY_LANES((int)c->lanes, RUN)
#undef RUN
    if (c->norms) NAME(statistics)(u, wide, c->norm == LAYER_NORM, c->norm_eps, &mean, &by);
    for (int64_t i = 0; i < c->norms; i++) {
        if (!c->dnormed[i]) continue;
        const REAL *gain = c->gains[i], *g = (const REAL *)c->dnormed[i] + token * wide;
        REAL *dgain = w->sums + c->at[GAINS] + i * wide, *doffset = w->sums + c->at[OFFSETS];
        doffset += i * wide;
#define BODY(d, count)                                                                             \
    const VEC v = NAME(load)(g + d, count);                                                        \
    const VEC h = (NAME(load)(u + d, count) - mean) * by;                                          \
    NAME(store)(dgain + d, NAME(load)(dgain + d, count) + v * h, count);                           \
    NAME(store)(doffset + d, NAME(load)(doffset + d, count) + v, count);                           \
    VEC scaled = v;                                                                                \
    if (gain) scaled *= NAME(load)(gain + d, count);                                               \
    NAME(store)(du + d, NAME(load)(du + d, count) + scaled, count);
        SWEEP(wide, BODY)
#undef BODY
    }
    if (c->norms) {
#pragma omp simd reduction(+ : sum, dot)
        for (int64_t d = 0; d < wide; d++) {
            sum += du[d];
            dot += du[d] * ((u[d] - mean) * by);
        }
        sum = c->norm == LAYER_NORM ? sum / (REAL)wide : 0;
        dot /= (REAL)wide;
#pragma omp simd
        for (int64_t d = 0; d < wide; d++) du[d] = by * (du[d] - sum - (u[d] - mean) * by * dot);
    }
    if (c->draw) {
        const REAL *g = (const REAL *)c->draw + token * wide;
#pragma omp simd
        for (int64_t d = 0; d < wide; d++) du[d] += g[d];
    }
}

static void NAME(forward_block)(struct NAME(work) *w, const struct call *c, int64_t block)
{
    const int64_t first = block * TOKENS, n = c->lanes;
    const int64_t count = c->tokens - first < TOKENS ? c->tokens - first : TOKENS;
    NAME(point)(w, c, block);
    NAME(end_block)(w, c, first, count, c->state);
    if (c->weights == GIVEN) NAME(given)(w, c, first, count);
    if (c->weights >= TANH) {
        NAME(project)(w, c, count);
        NAME(weigh)(w, c);
        if (c->goes_on) {
            NAME(turn)(c, w->mix);
            NAME(put)(c->mixing, w->mix, n * n, first, count);
            NAME(put)(c->writing, w->write, n, first, count);
        }
    }
    for (int64_t t = 0; t < count && c->reads; t++) NAME(read_token)(w, c, first + t, t);
}

/* The gradients of old lanes, y, mix and write, from those of the new lanes. */
static void NAME(end_back)(struct NAME(work) *w, const struct call *c, int64_t first, int64_t count)
{
    const int64_t n = c->lanes, width = c->width;
    for (int64_t t = 0; t < count; t++) {
        const int64_t token = first + t;
        const REAL *x[MOST_LANES], *g = w->grads + t * w->pitch;
        REAL *dx = (REAL *)c->dx + token * n * width;
        if (!c->ends) {
            memcpy(dx, g, (size_t)(n * width) * sizeof(REAL));
            continue;
        }
        NAME(old_lanes)(c, token, x);
        const REAL *y = (const REAL *)c->y + token * c->y_token;
        const REAL *mix = (const REAL *)c->mix + token * c->mix_token;
        const REAL *write = (const REAL *)c->write + token * c->write_token;
        REAL *dy = (REAL *)c->dy + token * (c->ends == PIECES_END ? n : 1) * width;
        REAL *dmix = c->dmix ? (REAL *)c->dmix + token * n * n : w->sums + c->at[MIX];
        REAL *dwrite = c->dwrite ? (REAL *)c->dwrite + token * n : w->sums + c->at[WRITE];
        if (c->dmix) memset(dmix, 0, (size_t)(n * n) * sizeof(REAL));
        if (c->dwrite) memset(dwrite, 0, (size_t)n * sizeof(REAL));
#define RUN(n) NAME(end_row_back)(n, c, x, y, mix, write, g, dx, dy, dmix, dwrite)
        BY_LANES((int)n, RUN)
#undef RUN
    }
}

static void NAME(backward_block)(struct NAME(work) *w, const struct call *c, int64_t block)
{
    const int64_t first = block * TOKENS, n = c->lanes, width = c->width, size = n * c->reads;
    const int64_t count = c->tokens - first < TOKENS ? c->tokens - first : TOKENS;
    NAME(point)(w, c, block);
    NAME(end_block)(w, c, first, count, NULL);
    if (c->weights == GIVEN) NAME(given)(w, c, first, count);
    if (c->weights >= TANH) NAME(weigh)(w, c);
    memset(w->dread, 0, (size_t)(size * TOKENS) * sizeof(REAL));
    for (int64_t t = 0; t < count; t++) {
        REAL *grads = w->grads + t * w->pitch;
        const REAL *state = c->dstate ? (const REAL *)c->dstate + (first + t) * n * width : NULL;
        if (c->reads) {
            NAME(read_token_back)(w, c, first + t, t);
#define RUN(n)                                                                                     \
    NAME(read_row_back)(n, c->reads, width, w->lanes[t], w->read + t, w->du, state, w->dread + t, grads)
            BY_LANES((int)n, RUN)
#undef RUN
        } else if (state) {
            memcpy(grads, state, (size_t)(n * width) * sizeof(REAL));
        } else {
            memset(grads, 0, (size_t)(n * width) * sizeof(REAL));
        }
    }
    if (c->weights == GIVEN && c->dread) {
        NAME(put)(c->dread, w->dread, size, first, count);
    } else if (c->weights == GIVEN) {
        for (int64_t i = 0; i < size; i++)
            w->sums[c->at[READ] + i] += NAME(sum_tokens)(w->dread + i * TOKENS);
    }
    if (c->weights >= TANH) {
        if (c->goes_on) {
            NAME(get)(w->dmix, c->dmixing, n * n, first, count);
            NAME(get)(w->dwrite, c->dwriting, n, first, count);
            NAME(turn)(c, w->dmix);
        }
        NAME(weigh_back)(w, c);
        NAME(project_back)(w, c, count);
    }
    NAME(end_back)(w, c, first, count);
}

int NAME(lanes_forward)(const struct call *c)
{
    const int64_t blocks = (c->tokens + TOKENS - 1) / TOKENS;
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(+ : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        struct NAME(work) w;
        if (NAME(start)(&w, c, 0)) {
            failed++;
            continue;
        }
        const int64_t end = (part + 1) * blocks / c->threads;
        for (int64_t b = part * blocks / c->threads; b < end; b++) NAME(forward_block)(&w, c, b);
        free(w.block);
    }
    return failed;
}

int NAME(lanes_backward)(const struct call *c)
{
    const int64_t blocks = (c->tokens + TOKENS - 1) / TOKENS;
    int failed = 0;
    NAME(clear)(c->totals, c->threads, c->at[SUMS]);
#pragma omp parallel for schedule(static, 1) num_threads((int)c->threads) reduction(+ : failed)
    for (int64_t part = 0; part < c->threads; part++) {
        struct NAME(work) w;
        if (NAME(start)(&w, c, 1)) {
            failed++;
            continue;
        }
        const int64_t begin = part * blocks / c->threads, end = (part + 1) * blocks / c->threads;
        for (int64_t b = begin; b < end; b++) {
            NAME(backward_block)(&w, c, b);
            if ((b - begin) % FLUSH == FLUSH - 1 || b == end - 1)
                NAME(flush)(&w, c, c->totals + part * c->at[SUMS]);
        }
        free(w.block);
    }
    NAME(add_up)(0, c->totals, c->threads, c->at[SUMS], c->at[SUMS], c->sums);
    return failed;
}
