/* Weights from products, for all tokens of a block at once, and back. */

/* exp of [1]. Its error is that of a polynomial of a remainder: about a unit in the last place. */
INLINE void NAME(exps)(REAL *x)
{
    static const double inverse[] = {1.0,        1.0,         1.0 / 2,       1.0 / 3,     1.0 / 4,
                                     1.0 / 5,    1.0 / 6,     1.0 / 7,       1.0 / 8,     1.0 / 9,
                                     1.0 / 10,   1.0 / 11,    1.0 / 12,      1.0 / 13};
    EACH_TOKEN {
        REAL y = x[t] < -LARGEST ? -LARGEST : x[t];
        y = y > LARGEST ? LARGEST : y;
        const REAL turns = y * (REAL)1.44269504088896340736;
        const WORD k = (WORD)(turns + (turns < 0 ? (REAL)-0.5 : (REAL)0.5));
        const REAL rest = (y - (REAL)k * LN2_HIGH) - (REAL)k * LN2_LOW;
        REAL p = 1;
        for (int i = DEGREE; i > 0; i--) p = 1 + p * rest * (REAL)inverse[i];
        union { BITS bits; REAL real; } power = {.bits = (BITS)(k + EXPONENT) << MANTISSA};
        x[t] = p * power.real;
    }
}

/* Divides rows or columns of m [n * n] by their sums plus eps, which are kept as reciprocals. */
INLINE void NAME(divide)(const int n, int columns, REAL eps, REAL *m, REAL *scale)
{
    const int outer = columns ? 1 : n, inner = columns ? n : 1;
    for (int a = 0; a < n; a++) {
        REAL *s = scale + a * TOKENS, *first = m + a * outer * TOKENS;
        EACH_TOKEN s[t] = eps;
        for (int b = 0; b < n; b++) EACH_TOKEN s[t] += first[b * inner * TOKENS + t];
        EACH_TOKEN s[t] = 1 / s[t];
        for (int b = 0; b < n; b++) EACH_TOKEN first[b * inner * TOKENS + t] *= s[t];
    }
}

/* Back through `divide`: m and its gradient g become what they were before it. */
INLINE void NAME(divide_back)(const int n, int columns, REAL *m, REAL *g, const REAL *scale)
{
    const int outer = columns ? 1 : n, inner = columns ? n : 1;
    for (int a = 0; a < n; a++) {
        const REAL *s = scale + a * TOKENS;
        REAL *x = m + a * outer * TOKENS, *dx = g + a * outer * TOKENS, dot[TOKENS], back[TOKENS];
        EACH_TOKEN dot[t] = 0, back[t] = 1 / s[t];
        for (int b = 0; b < n; b++)
            EACH_TOKEN dot[t] += x[b * inner * TOKENS + t] * dx[b * inner * TOKENS + t];
        for (int b = 0; b < n; b++)
            EACH_TOKEN {
                dx[b * inner * TOKENS + t] = (dx[b * inner * TOKENS + t] - dot[t]) * s[t];
                x[b * inner * TOKENS + t] *= back[t];
            }
    }
}

/* Sinkhorn of logits m [n * n], in place. */
INLINE void NAME(balance)(const int n, const struct call *c, struct NAME(work) *w, REAL *m)
{
    const REAL eps = (REAL)c->balance_eps;
    REAL *scale = w->scale;
    for (int j = 0; j < n; j++) {
        REAL *row = m + j * n * TOKENS, most[TOKENS], sum[TOKENS];
        EACH_TOKEN most[t] = row[t], sum[t] = 0;
        for (int k = 1; k < n; k++)
            EACH_TOKEN most[t] = row[k * TOKENS + t] > most[t] ? row[k * TOKENS + t] : most[t];
        for (int k = 0; k < n; k++) {
            EACH_TOKEN row[k * TOKENS + t] -= most[t];
            NAME(exps)(row + k * TOKENS);
            EACH_TOKEN sum[t] += row[k * TOKENS + t];
        }
        if (!c->exps)
            for (int k = 0; k < n; k++) EACH_TOKEN row[k * TOKENS + t] /= sum[t];
    }
    memcpy(w->first, m, (size_t)(n * n * TOKENS) * sizeof(REAL));
    if (!c->exps)
        for (int i = 0; i < n * n * TOKENS; i++) m[i] += eps;
    for (int64_t i = 0; i < c->iterations; i++) {
        if (i || c->exps) NAME(divide)(n, 0, eps, m, scale);
        NAME(divide)(n, 1, eps, m, scale + n * TOKENS);
        scale += 2 * n * TOKENS;
    }
}

/* From the gradient g of what `balance` made of m: that of its logits, in place. m is used up. */
INLINE void NAME(balance_back)(const int n, const struct call *c, struct NAME(work) *w, REAL *m,
                               REAL *g)
{
    for (int64_t i = c->iterations - 1; i >= 0; i--) {
        const REAL *scale = w->scale + 2 * i * n * TOKENS;
        NAME(divide_back)(n, 1, m, g, scale + n * TOKENS);
        if (i || c->exps) NAME(divide_back)(n, 0, m, g, scale);
    }
    for (int j = 0; j < n; j++) {
        const REAL *e = w->first + j * n * TOKENS;
        REAL *dl = g + j * n * TOKENS, dot[TOKENS], ties[TOKENS];
        EACH_TOKEN dot[t] = 0, ties[t] = 0;
        for (int k = 0; k < n; k++)
            EACH_TOKEN {
                dot[t] += e[k * TOKENS + t] * dl[k * TOKENS + t];
                ties[t] += e[k * TOKENS + t] == 1;
            }
        for (int k = 0; k < n; k++)
            EACH_TOKEN {
                /* Of exp(L - max), the largest logits take the gradient of the maximum. */
                const REAL of_most = e[k * TOKENS + t] == 1 ? dot[t] / ties[t] : 0;
                const REAL whole = e[k * TOKENS + t] * dl[k * TOKENS + t];
                dl[k * TOKENS + t] =
                    c->exps ? whole - of_most : whole - e[k * TOKENS + t] * dot[t];
            }
    }
}

/* What a column of the product is for: read, mix or write. */
INLINE int NAME(use)(const struct call *c, int64_t column)
{
    const int64_t read = c->weights == TANH ? c->reads : c->lanes;
    const int64_t mix = c->weights == TANH ? c->lanes : c->lanes * c->lanes;
    return column < read ? 0 : column < read + mix ? 1 : 2;
}

/* Where the weight of a column and lane (tanh), or of a column (gates), stands: row of [..]. */
INLINE REAL *NAME(place)(const struct call *c, int64_t lane, int64_t column, REAL *read, REAL *mix,
                         REAL *write)
{
    const int use = NAME(use)(c, column);
    if (c->weights == TANH) {
        if (use == 0) return read + (lane * c->reads + column) * TOKENS;
        if (use == 1) return mix + (lane * c->lanes + column - c->reads) * TOKENS;
        return write + lane * TOKENS;
    }
    if (use == 0) return read + column * TOKENS;
    if (use == 1) return mix + (column - c->lanes) * TOKENS;
    return write + (column - c->lanes - c->lanes * c->lanes) * TOKENS;
}

/* The weights of read, mix and write of a block; w->made keeps the activations. */
static void NAME(weigh)(struct NAME(work) *w, const struct call *c)
{
    const REAL *shift = c->shift, *scales = c->scales, *statics = c->statics;
    for (int64_t lane = 0; lane < w->rows; lane++)
        for (int64_t f = 0; f < c->columns; f++) {
            const int64_t slot = lane * c->columns + f;
            const REAL *z = w->z + slot * TOKENS;
            REAL *a = w->made + slot * TOKENS;
            REAL *out = NAME(place)(c, lane, f, w->read, w->mix, w->write);
            if (c->weights == TANH) {
                EACH_TOKEN a[t] = 2 * (z[t] + shift[f]);
                NAME(exps)(a);
                EACH_TOKEN a[t] = 1 - 2 / (a[t] + 1);
                EACH_TOKEN out[t] = statics[slot] + scales[f] * a[t];
                continue;
            }
            const int use = NAME(use)(c, f);
            if (use == 1) {
                EACH_TOKEN out[t] = scales[f] * (z[t] + shift[f]) + statics[f];
                continue;
            }
            EACH_TOKEN a[t] = -(scales[f] * (z[t] + shift[f]) + statics[f]);
            NAME(exps)(a);
            const REAL factor = (REAL)c->factors[use / 2], floor = (REAL)c->floors[use / 2];
            EACH_TOKEN a[t] = 1 / (1 + a[t]);
            EACH_TOKEN out[t] = factor * a[t] + floor;
        }
    if (c->weights == GATES && c->goes_on) {
#define RUN(n) NAME(balance)(n, c, w, w->mix)
        BY_LANES((int)c->lanes, RUN)
#undef RUN
    }
}

INLINE REAL NAME(sum_tokens)(const REAL *x)
{
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < TOKENS; t++) sum += x[t];
    return sum;
}

/* From the gradients of the weights: those of products, in w->dmade; sums those of parameters. */
static void NAME(weigh_back)(struct NAME(work) *w, const struct call *c)
{
    const REAL *shift = c->shift, *scales = c->scales;
    REAL *dshift = w->sums + c->at[SHIFT], *dscale = w->sums + c->at[SCALE];
    REAL *dstatic = w->sums + c->at[STATIC];
    if (c->weights == GATES && c->goes_on) {
#define RUN(n) NAME(balance_back)(n, c, w, w->mix, w->dmix)
        BY_LANES((int)c->lanes, RUN)
#undef RUN
    }
    for (int64_t lane = 0; lane < w->rows; lane++)
        for (int64_t f = 0; f < c->columns; f++) {
            const int64_t slot = lane * c->columns + f;
            const REAL *z = w->z + slot * TOKENS, *a = w->made + slot * TOKENS;
            const REAL *g = NAME(place)(c, lane, f, w->dread, w->dmix, w->dwrite);
            REAL *dz = w->dmade + slot * TOKENS, along[TOKENS];
            if (c->weights == TANH) {
                dstatic[slot] += NAME(sum_tokens)(g);
                EACH_TOKEN along[t] = g[t] * a[t];
                EACH_TOKEN dz[t] = g[t] * scales[f] * (1 - a[t] * a[t]);
            } else {
                const int use = NAME(use)(c, f);
                const REAL factor = use == 1 ? 1 : (REAL)c->factors[use / 2];
                REAL logit[TOKENS];
                if (use == 1) EACH_TOKEN logit[t] = g[t];
                else EACH_TOKEN logit[t] = g[t] * factor * a[t] * (1 - a[t]);
                dstatic[f] += NAME(sum_tokens)(logit);
                EACH_TOKEN along[t] = logit[t] * (z[t] + shift[f]);
                EACH_TOKEN dz[t] = logit[t] * scales[f];
            }
            dscale[f] += NAME(sum_tokens)(along);
            dshift[f] += NAME(sum_tokens)(dz);
        }
}
