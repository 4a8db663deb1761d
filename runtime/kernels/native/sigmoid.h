/* 1 / (1 + exp(-x)) in float32, without a branch, so that a compiler makes vectors of it. */

/* exp(-x) for x in [0, 87], 1e-7 of it from it: 2^-n times exp of what is left of x, by its series. */
INLINE float decay(float x) {
    const float shift = 12582912; /* 1.5 * 2^23: beside it, a float is a whole number */
    const union { float real; int32_t bits; } moved = {x * 1.44269504f + shift};
    const float n = moved.real - shift;
    const float r = (n * 0.693145752f - x) + n * 1.42860677e-6f; /* log 2 in two parts */
    const float series = 1 + r * (1 + r * (0.5f + r * (0.166666667f + r * (0.0416666667f
                       + r * (0.00833333333f + r * 0.00138888889f)))));
    const union { int32_t bits; float real; } power = {(127 - (moved.bits - 0x4b400000)) << 23};
    return series * power.real;
}

INLINE float sigmoid(float x) {
    const float size = x < 0 ? -x : x, e = decay(size > 87 ? 87 : size);
    return (x < 0 ? e : 1) / (1 + e);
}
