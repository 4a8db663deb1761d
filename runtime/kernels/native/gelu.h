/* gelu(x) = x Phi(x), Phi the normal distribution, and its slope, in float32; for kernels in C.
 *
 * Phi - 1/2 and the slope of gelu less 1/2 are odd. Over x they are smooth functions of x^2, each
 * fitted as a quotient of polynomials in x^2 (least squares, weighted again and again until the
 * largest error no longer falls). Unlike the branches of erff, that is a row of multiplications
 * and one division, the same for every number, so a compiler makes vectors of it. */

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
