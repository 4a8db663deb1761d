/* Rows that a thread works in, on the heap: as many bytes as its rows take. In a frame they would have to
 * be as wide as the widest row that is allowed, which is more than the stacks of some threads, and the
 * lower end of such a frame lies beyond their guard page. Behind vectors.h. */
#pragma once
#include <stdlib.h>

/* Room for so many bytes, not cleared, at the beginning of a cache line; NULL where there is no memory. */
INLINE void *scratch(int64_t bytes) { return aligned_alloc(64, (size_t)(bytes / 64 + 1) * 64); }

/* Numbers from row to row of n: rows 4096 bytes apart would share their cache sets. */
INLINE int64_t apart(int64_t n) { return (n + 31) / 16 * 16; }
