/* Rows of bfloat16 as floats and back; for kernels in C, which compute in float. Behind vectors.h. */
#pragma once

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

/* A row of n numbers as floats, of bfloat16 where `half`: where it stands, or in `room`. */
INLINE const float *row_of(int half, const void *rows, int64_t at, float *room, int64_t n) {
    if (!half) return (const float *)rows + at;
    widen((const uint16_t *)rows + at, room, n);
    return room;
}

/* Where a row of a result is made, and what is to be done when it is. */
INLINE float *begin_row(int half, void *rows, int64_t at, float *room) {
    return half ? room : (float *)rows + at;
}

INLINE void end_row(int half, void *rows, int64_t at, const float *room, int64_t n) {
    if (half) narrow(room, (uint16_t *)rows + at, n);
}

/* For code that is made for several types REAL, with HALF where rows of n numbers are of bfloat16 and
 * REAL is float: row `at` of `rows`, and where that of a result is made. */
#define READ(rows, at, room)                                                                       \
    (HALF ? (const REAL *)row_of(1, rows, at, (float *)(room), n) : (const REAL *)(rows) + (at))
#define BEGIN(rows, at, room) (HALF ? (REAL *)(room) : (REAL *)(rows) + (at))
#define END(rows, at, room) end_row(HALF, rows, at, (const float *)(room), n)
