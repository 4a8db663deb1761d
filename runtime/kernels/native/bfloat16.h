/* Rows of bfloat16 as floats and back; for kernels in C, which compute in float. */

union float_bits { float real; uint32_t bits; };

INLINE void widen(const uint16_t *restrict from, float *restrict to, int64_t n) {
    for (int64_t j = 0; j < n; j++) to[j] = (union float_bits){.bits = (uint32_t)from[j] << 16}.real;
}

/* To the nearest, of two as near to the even one. What comes from numbers of bfloat16 has no NaN whose
 * lower bits would carry into its sign. */
INLINE void narrow(const float *restrict from, uint16_t *restrict to, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        const uint32_t bits = (union float_bits){.real = from[j]}.bits;
        to[j] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
