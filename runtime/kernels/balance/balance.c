/* y = u a + v b for two numbers u and v: one reading of a and b each way.
 *
 * The elements are cut into `threads` parts of fixed size, so results depend on the number of
 * threads but not on their order. Sums of products are kept in double for every part.
 */
#include <stdint.h>

enum { RUN = 1024 }; /* products that are summed in REAL before they go into a double */

#define REAL float
#define NAME(name) name##_float
#include "balance.h"
#undef REAL
#undef NAME

#define REAL double
#define NAME(name) name##_double
#include "balance.h"
