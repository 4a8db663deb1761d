/* gelu of rows in float32, with or without the norm that follows it.
 *
 * y = x Phi(x), Phi the normal distribution, or norm(x Phi(x)) * gain + shift. Nothing but x is
 * kept for the backward pass. Rows are cut into `threads` parts, as in norms.c.
 *
 * Phi - 1/2 and the slope of gelu less 1/2 are odd. Over x they are smooth functions of x^2, each
 * fitted as a quotient of polynomials in x^2 (least squares, weighted again and again until the
 * largest error no longer falls). Unlike the branches of erff, that is a row of multiplications
 * and one division, the same for every number, so a compiler makes vectors of it.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { NO_NORM, LAYER_NORM, RMS_NORM };
enum { WIDEST = 8192, FLUSH = 32 }; /* rows summed in float before the double sums */

/* gelu.py declares the same. Rows are contiguous. */
struct call {
    int64_t rows, width, norm, threads;
    double eps;
    const float *x, *gain, *shift, *grad; /* gain, shift: [width] or NULL; grad: backward */
    float *out;                           /* forward: may be x; backward: the gradient of x */
    double *totals; /* backward: [threads, 3, width], of x, gain and shift, zero before */
};

#define REAL float
#define NAME(name) name
#include "rows.h"

/* gelu of rows, each times the reciprocal root mean square of a row of `source`. Contiguous rows;
 * gelu.py declares the same. */
struct scaled {
    int64_t rows, width, source_width, threads;
    double eps;
    const float *x, *source;
    float *scales, *out; /* [rows]; out is not x, which backward reads */
    /* What follows is for backward only. */
    const float *grad;
    float *dx, *dsource; /* dsource: or NULL */
};

/* Phi(x); the fit is 1e-8 from it. Beyond, Phi is 2e-8 at most, or as near to 1. */
INLINE float distribution(float x) {
    const float most = 5.6f, low = x > most ? most : x, z = low < -most ? -most : low, t = z * z;
    const float p = ((((2.214528941e-08f * t + 6.356539137e-06f) * t + 1.738513537e-04f) * t
                      + 4.707263208e-03f) * t + 3.437616423e-02f) * t + 3.989422216e-01f;
    const float q = ((((1.180211830e-06f * t + 7.510213860e-05f) * t + 1.912981682e-03f) * t
                      + 2.894012120e-02f) * t + 2.528339782e-01f) * t + 1;
    const float inside = 0.5f + z * p / q;
    return x < -most ? 0 : x > most ? 1 : inside;
}

/* Phi(x) + x phi(x); the fit is 5e-9 from it. Beyond, it is 4e-8 at most from 0 or 1. */
INLINE float slope(float x) {
    const float most = 6, low = x > most ? most : x, z = low < -most ? -most : low, t = z * z;
    const float p = ((((((-2.888027524e-11f * t + 1.300307181e-08f) * t + 1.121937593e-06f) * t
                        + 3.202716528e-05f) * t + 2.852252669e-04f) * t + 1.356900772e-02f) * t
                     - 1.803794872e-02f) * t + 7.978845225e-01f;
    const float q = (((((3.636371917e-07f * t + 1.081225352e-05f) * t + 2.586064439e-04f) * t
                       + 4.150223176e-03f) * t + 4.558284339e-02f) * t + 3.107256341e-01f) * t + 1;
    const float inside = 0.5f + z * p / q;
    return x < -most ? 0 : x > most ? 1 : inside;
}

/* y may be x. */
INLINE void gelu(const float *x, float *y, int64_t n) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = x[j] * distribution(x[j]);
}

static void forward_rows(const struct call *c, int64_t first, int64_t last) {
    const int64_t n = c->width;
    float active[WIDEST], mean, by;
    for (int64_t row = first; row < last; row++) {
        const float *x = c->x + row * n;
        float *out = c->out + row * n;
        if (c->norm == NO_NORM) {
            gelu(x, out, n);
            continue;
        }
        gelu(x, active, n);
        statistics(active, n, c->norm == LAYER_NORM, c->eps, &mean, &by);
        affine(active, mean, by, c->gain, c->shift, out, n);
    }
}

/* The gradient of gelu(x), from that of its norm; adds to the gradients of gain and shift. */
static void before_norm(const struct call *c, const float *x, const float *grad, float *room,
                        int64_t step, float *dgain, float *dshift) {
    const int64_t n = c->width;
    float *unit = room + step, *d = unit + step, mean, by;
    const int layer = c->norm == LAYER_NORM;
    gelu(x, room, n);
    statistics(room, n, layer, c->eps, &mean, &by);
    for (int64_t j = 0; j < n; j++) unit[j] = (room[j] - mean) * by;
    gather(grad, unit, c->gain, 1, dgain, dshift, d, n);
    through(d, unit, by, layer, room, n);
}

static void backward_rows(const struct call *c, int64_t first, int64_t last, double *totals) {
    const int64_t n = c->width;
    /* One row behind the other with a gap: rows 4096 bytes apart would share their cache sets. */
    const int64_t step = (n + 47) / 16 * 16;
    float room[6 * (WIDEST + 48)];
    float *sums = room + 3 * step, *dgain = sums + step, *dshift = dgain + step;
    const int64_t kinds = c->norm == NO_NORM ? 1 : 3;
    memset(sums, 0, 3 * step * sizeof(float));
    for (int64_t row = first; row < last; row++) {
        const float *x = c->x + row * n, *grad = c->grad + row * n;
        float *dx = c->out + row * n;
        if (c->norm != NO_NORM) {
            before_norm(c, x, grad, room, step, dgain, dshift);
            grad = room;
        }
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            const float d = grad[j] * slope(x[j]);
            dx[j] = d;
            sums[j] += d;
        }
        if ((row - first) % FLUSH == FLUSH - 1 || row == last - 1)
            for (int64_t k = 0; k < kinds; k++) flush(sums + k * step, totals + k * n, n);
    }
}

void gelu_forward(const struct call *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        forward_rows(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads);
}

void gelu_scaled(const struct scaled *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        for (int64_t row = c->rows * i / c->threads; row < c->rows * (i + 1) / c->threads; row++) {
            const float *x = c->x + row * c->width;
            float mean, by, *out = c->out + row * c->width;
            statistics(c->source + row * c->source_width, c->source_width, 0, c->eps, &mean, &by);
            c->scales[row] = by;
            for (int64_t j = 0; j < c->width; j++) out[j] = x[j] * by;
            gelu(out, out, c->width);
        }
}

/* The gradient of the scale meets every number of a row of x; from it comes that of the source. */
static void scaled_backward_row(const struct scaled *c, int64_t row) {
    const int64_t n = c->width, from = c->source_width;
    const float *restrict x = c->x + row * n, *restrict grad = c->grad + row * n, by = c->scales[row];
    float *restrict dx = c->dx + row * n, *restrict out = c->out + row * n, along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t j = 0; j < n; j++) {
        const float z = x[j] * by, d = grad[j] * slope(z);
        out[j] = z * distribution(z);
        along += d * x[j];
        dx[j] = d * by;
    }
    if (!c->dsource) return;
    const float *restrict source = c->source + row * from, part = -by * by * by * along / (float)from;
    float *restrict dsource = c->dsource + row * from;
    for (int64_t j = 0; j < from; j++) dsource[j] = part * source[j];
}

void gelu_scaled_backward(const struct scaled *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        for (int64_t row = c->rows * i / c->threads; row < c->rows * (i + 1) / c->threads; row++)
            scaled_backward_row(c, row);
}

void gelu_backward(const struct call *c) {
#pragma omp parallel for schedule(static, 1) num_threads(c->threads)
    for (int64_t i = 0; i < c->threads; i++)
        backward_rows(c, c->rows * i / c->threads, c->rows * (i + 1) / c->threads,
                      c->totals + i * 3 * c->width);
}
