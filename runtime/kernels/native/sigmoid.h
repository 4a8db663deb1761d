/* 1 / (1 + exp(-x)) in float32, without a branch, so that a compiler makes vectors of it. */

/* exp(-x) for x in [0, 87], 1e-7 of it from it: 2^-n times exp of what is left of x, by its series. */
INLINE float decay(float x) {
    const float shift = 12582912; /* 1.5 * 2^23: beside it, a float is a whole number */
    const union { float real; uint32_t bits; } moved = {x * 1.44269504f + shift};
    const float n = moved.real - shift;
    const float r = (n * 0.693145752f - x) + n * 1.42860677e-6f; /* log 2 in two parts */
    const float series = 1 + r * (1 + r * (0.5f + r * (0.166666667f + r * (0.0416666667f
                       + r * (0.00833333333f + r * 0.00138888889f)))));
    const union { uint32_t bits; float real; } power = {(127u - (moved.bits - 0x4b400000u)) << 23};
    return series * power.real;
}

/* Beyond 87 it is 0 or 1: times an x of any size, 1e-38 would be far from 0. */
INLINE float sigmoid(float x) {
    const float size = x < 0 ? -x : x, most = 87, near = decay(size > most ? most : size);
    const float e = size > most ? 0 : near;
    return (x < 0 ? e : 1) / (1 + e);
}
