/* Gates of routers and what is counted of them: a row of scores for each token, one number an expert.
 *
 * In torch's operators these are 10 to 20 small passes each way. Tokens are cut into `threads` parts
 * of fixed size; statistics are summed in double, one row of tokens at a time, so that they do not
 * depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SOFTMAX, SIGMOID };

/* routers_compiled.py declares the same. Everything is contiguous. */
struct gates {
    int64_t tokens, experts, most, score, normalise, threads;
    double scale, tiny;
    const void *logits, *bias; /* [tokens, experts], [experts] or NULL */
    void *scores, *gates;      /* [tokens, experts]; forward makes them, backward reads them */
    const void *grad;          /* of gates */
    void *dlogits;
};

struct statistics {
    int64_t rows, length, experts, score, threads;
    const void *gates, *logits, *wanted; /* [rows, length, experts]; wanted: or NULL */
    const uint8_t *padding;              /* [rows, length] or NULL */
    void *load, *probability;            /* [rows, experts] */
    void *z, *entropy, *dropped, *there; /* [rows] */
    const void *dprobability, *dz, *dentropy; /* gradients or NULL */
    void *dlogits;
};

#define REAL float
#define NAME(name) name##_float
#define EXP expf
#define LOG logf
#include "routers.h"
#undef REAL
#undef NAME
#undef EXP
#undef LOG

#define REAL double
#define NAME(name) name##_double
#define EXP exp
#define LOG log
#include "routers.h"
