/* The kinds of norms, numbered as NORMS of calls.py names them. */
enum { NO_NORM, LAYER_NORM, RMS_NORM };
