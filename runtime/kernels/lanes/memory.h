/* The room that a thread works in. */

static int64_t NAME(slots)(const struct call *c)
{
    return c->weights == TANH ? c->lanes * c->columns : c->weights == GATES ? c->columns : 0;
}

/* Lays everything out from `base` on, and says how many numbers that takes. */
static int64_t NAME(lay_out)(struct NAME(work) *w, const struct call *c, int backward, REAL *base)
{
    const int64_t n = c->lanes, slots = NAME(slots)(c), wide = c->reads * c->width;
    int64_t used = 0;
#define ROOM(field, count)                                                                         \
    w->field = base + used;                                                                        \
    used += ((count) + 15) / 16 * 16
    ROOM(room, (slots + 2 * w->rows) * TOKENS);
    ROOM(made, slots * TOKENS);
    ROOM(dmade, slots * TOKENS);
    ROOM(read, n * c->reads * TOKENS);
    ROOM(dread, n * c->reads * TOKENS);
    ROOM(mix, n * n * TOKENS);
    ROOM(dmix, n * n * TOKENS);
    ROOM(write, n * TOKENS);
    ROOM(dwrite, n * TOKENS);
    ROOM(first, n * n * TOKENS);
    ROOM(scale, 2 * c->iterations * n * TOKENS);
    ROOM(factors, (TOKENS * w->rows + SPREAD) * (c->columns + TILE));
    ROOM(middle, c->columns);
    ROOM(u, wide);
    ROOM(du, wide);
    ROOM(fresh, TOKENS * w->pitch);
    ROOM(grads, backward ? TOKENS * w->pitch : 0);
    ROOM(sums, backward ? c->at[SUMS] : 0);
#undef ROOM
    return used;
}

static int NAME(start)(struct NAME(work) *w, const struct call *c, int backward)
{
    memset(w, 0, sizeof *w);
    w->n = c->lanes;
    w->rows = c->weights == TANH ? c->lanes : c->weights == GATES;
    w->row = c->weights == TANH ? c->width : c->lanes * c->width;
    /* Rows 4096 bytes apart would share their cache sets. */
    w->pitch = (c->lanes * c->width + 15) / 16 * 16 + 16;
    const int64_t count = NAME(lay_out)(w, c, backward, (REAL *)0);
    w->block = calloc(1, (size_t)count * sizeof(REAL) + 64);
    if (!w->block) return 1;
    NAME(lay_out)(w, c, backward, (REAL *)(((uintptr_t)w->block + 63) / 64 * 64));
    if (c->weights == SUM)
        for (int64_t i = 0; i < c->lanes * TOKENS; i++) w->read[i] = 1;
    const REAL *matrix = c->matrix;
    for (int64_t f = 0; f < c->columns; f++) {
        double sum = 0;
        for (int64_t d = 0; d < w->row; d++) sum += matrix[f * w->row + d];
        w->middle[f] = (REAL)(sum / (double)w->row);
    }
    return 0;
}

/* Points to the products and statistics of a block, kept for backward or not. */
static void NAME(point)(struct NAME(work) *w, const struct call *c, int64_t block)
{
    const int64_t slots = NAME(slots)(c), count = (slots + 2 * w->rows) * TOKENS;
    w->z = c->saved ? (REAL *)c->saved + block * count : w->room;
    w->mean = w->z + slots * TOKENS;
    w->by = w->mean + w->rows * TOKENS;
}

static void NAME(flush)(struct NAME(work) *w, const struct call *c, double *totals)
{
    for (int64_t i = 0; i < c->at[SUMS]; i++) totals[i] += w->sums[i];
    memset(w->sums, 0, (size_t)c->at[SUMS] * sizeof(REAL));
}
