/* routers.c for one type, REAL. */

#include "vectors.h"
#include "scratch.h"

/* exp(x - max) of n numbers and their sum. */
static REAL NAME(exponentials)(const REAL *x, REAL *e, int64_t n, REAL *max) {
    REAL sum = 0;
    *max = x[0];
    for (int64_t i = 1; i < n; i++) *max = x[i] > *max ? x[i] : *max;
    for (int64_t i = 0; i < n; i++) sum += e[i] = EXP(x[i] - *max);
    return sum;
}

static REAL NAME(sigmoids)(const REAL *x, REAL *s, int64_t n) {
    REAL sum = 0;
    for (int64_t i = 0; i < n; i++) sum += s[i] = 1 / (1 + EXP(-x[i]));
    return sum;
}

static void NAME(scores_of)(int64_t score, const REAL *x, REAL *s, int64_t n) {
    REAL max;
    if (score == SIGMOID) {
        NAME(sigmoids)(x, s, n);
        return;
    }
    const REAL by = 1 / NAME(exponentials)(x, s, n, &max);
    for (int64_t i = 0; i < n; i++) s[i] *= by;
}

/* Marks the `most` largest of n numbers by 1, the others by 0; of equal ones the first. What is no number
 * is the largest. */
static void NAME(choose)(const REAL *from, const REAL *bias, int64_t n, int64_t most, REAL *chosen) {
    for (int64_t i = 0; i < n; i++) chosen[i] = 0;
    for (int64_t k = 0; k < most; k++) {
        int64_t best = -1;
        REAL worth = 0;
        for (int64_t i = 0; i < n; i++) {
            const REAL x = bias ? from[i] + bias[i] : from[i];
            if (!chosen[i] && (best < 0 || x > worth || (x != x && worth == worth))) best = i, worth = x;
        }
        chosen[best] = 1;
    }
}

/* Both need no memory of their own: 0, as of those below, is that all is well. */
int NAME(gates_forward)(const struct gates *c) {
    const int64_t n = c->experts;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        for (int64_t t = c->tokens * i / c->threads; t < c->tokens * (i + 1) / c->threads; t++) {
            REAL *s = (REAL *)c->scores + t * n, *gates = (REAL *)c->gates + t * n, sum = 0;
            NAME(scores_of)(c->score, (const REAL *)c->logits + t * n, s, n);
            NAME(choose)(s, c->bias, n, c->most, gates);
            for (int64_t j = 0; j < n; j++) sum += gates[j] ? s[j] : 0;
            const REAL by = (REAL)c->scale, total = c->normalise ? sum + (REAL)c->tiny : 1;
            for (int64_t j = 0; j < n; j++) gates[j] = gates[j] ? by * (s[j] / total) : 0;
        }
    return 0;
}

/* One token: gates = scale * s / total where there is a gate, total the sum of those s or 1. */
static void NAME(gates_back)(const struct gates *c, const REAL *s, const REAL *gates, const REAL *grad,
                             REAL *dlogits) {
    const int64_t n = c->experts;
    REAL total = 0, along = 0, spread = 0;
    for (int64_t j = 0; j < n; j++) {
        total += gates[j] != 0 ? s[j] : 0;
        along += gates[j] != 0 ? grad[j] * s[j] : 0;
    }
    total = c->normalise ? total + (REAL)c->tiny : 1;
    const REAL by = (REAL)c->scale / total, shared = c->normalise ? along / total : 0;
    for (int64_t j = 0; j < n; j++) {
        dlogits[j] = gates[j] != 0 ? by * (grad[j] - shared) : 0;
        spread += dlogits[j] * s[j];
    }
    for (int64_t j = 0; j < n; j++)
        dlogits[j] = s[j] * (c->score == SOFTMAX ? dlogits[j] - spread : dlogits[j] * (1 - s[j]));
}

int NAME(gates_backward)(const struct gates *c) {
    const int64_t n = c->experts;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        for (int64_t t = c->tokens * i / c->threads; t < c->tokens * (i + 1) / c->threads; t++)
            NAME(gates_back)(c, (const REAL *)c->scores + t * n, (const REAL *)c->gates + t * n,
                             (const REAL *)c->grad + t * n, (REAL *)c->dlogits + t * n);
    return 0;
}

/* Probabilities of a token: softmax, or sigmoids over their sum. The softmax and log sum exp of x are
 * found in any case; `sigmoid` and their sum only where they are the scores. */
struct NAME(token) { REAL *soft, *sigmoid, *p, sum, log_sum_exp; };

/* A token in room for 3 n numbers. */
static struct NAME(token) NAME(token_in)(REAL *room, int64_t n) {
    return (struct NAME(token)){.soft = room, .sigmoid = room + n, .p = room + 2 * n};
}

static void NAME(look)(const struct statistics *c, const REAL *x, struct NAME(token) *of) {
    const int64_t n = c->experts;
    REAL max, total = NAME(exponentials)(x, of->soft, n, &max);
    of->log_sum_exp = max + LOG(total);
    for (int64_t j = 0; j < n; j++) of->soft[j] /= total;
    if (c->score == SIGMOID) of->sum = NAME(sigmoids)(x, of->sigmoid, n);
    for (int64_t j = 0; j < n; j++)
        of->p[j] = c->score == SIGMOID ? of->sigmoid[j] / of->sum : of->soft[j];
}

/* Whether there was no memory to work in. */
static int NAME(count_row)(const struct statistics *c, int64_t row) {
    const int64_t n = c->experts;
    double *load = scratch(n * (int64_t)(2 * sizeof(double) + 3 * sizeof(REAL)));
    if (!load) return 1;
    double *probability = load + n, z = 0, entropy = 0, served = 0, there = 0;
    struct NAME(token) of = NAME(token_in)((REAL *)(probability + n), n);
    memset(load, 0, 2 * n * sizeof(double));
    for (int64_t t = row * c->length; t < (row + 1) * c->length; t++) {
        if (c->padding && c->padding[t]) continue;
        const REAL *gates = (const REAL *)c->gates + t * n, *x = (const REAL *)c->logits + t * n;
        const REAL *wanted = c->wanted ? (const REAL *)c->wanted + t * n : gates;
        NAME(look)(c, x, &of);
        there++;
        z += of.log_sum_exp * of.log_sum_exp;
        for (int64_t j = 0; j < n; j++) {
            load[j] += wanted[j] != 0;
            served += gates[j] != 0;
            probability[j] += of.p[j];
            entropy -= of.p[j] != 0 ? of.p[j] * LOG(of.p[j]) : 0;
        }
    }
    double asked = 0;
    for (int64_t j = 0; j < n; j++) {
        ((REAL *)c->load)[row * n + j] = load[j];
        ((REAL *)c->probability)[row * n + j] = probability[j];
        asked += load[j];
    }
    ((REAL *)c->z)[row] = z;
    ((REAL *)c->entropy)[row] = entropy;
    ((REAL *)c->dropped)[row] = asked - served;
    ((REAL *)c->there)[row] = there;
    free(load);
    return 0;
}

/* How many rows got no memory, and likewise below: 0 when all is well. */
int NAME(statistics_forward)(const struct statistics *c) {
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t row = 0; row < c->rows; row++) failed += NAME(count_row)(c, row);
    return failed;
}

static void NAME(statistics_back)(const struct statistics *c, int64_t row, const REAL *x,
                                  struct NAME(token) *of, REAL *dx) {
    const int64_t n = c->experts;
    const REAL *dprobability = c->dprobability ? (const REAL *)c->dprobability + row * n : NULL;
    const REAL dz = c->dz ? ((const REAL *)c->dz)[row] : 0;
    const REAL dentropy = c->dentropy ? ((const REAL *)c->dentropy)[row] : 0;
    REAL along = 0;
    NAME(look)(c, x, of);
    for (int64_t j = 0; j < n; j++) {
        dx[j] = dprobability ? dprobability[j] : 0;
        if (c->dentropy && of->p[j] != 0) dx[j] -= dentropy * (LOG(of->p[j]) + 1);
        along += dx[j] * of->p[j];
    }
    for (int64_t j = 0; j < n; j++) {
        const REAL s = of->sigmoid[j], by = c->score == SIGMOID ? s * (1 - s) / of->sum : of->p[j];
        dx[j] = (dx[j] - along) * by + 2 * dz * of->log_sum_exp * of->soft[j];
    }
}

int NAME(statistics_backward)(const struct statistics *c) {
    const int64_t n = c->experts;
    int failed = 0;
#pragma omp parallel for schedule(static, 1) num_threads(c->threads) reduction(+ : failed)
    for (int64_t row = 0; row < c->rows; row++) {
        REAL *room = scratch(3 * n * (int64_t)sizeof(REAL));
        if (!room) {
            failed++;
            continue;
        }
        struct NAME(token) of = NAME(token_in)(room, n);
        for (int64_t t = row * c->length; t < (row + 1) * c->length; t++) {
            REAL *dx = (REAL *)c->dlogits + t * n;
            if (c->padding && c->padding[t]) memset(dx, 0, n * sizeof(REAL));
            else NAME(statistics_back)(c, row, (const REAL *)c->logits + t * n, &of, dx);
        }
        free(room);
    }
    return failed;
}
