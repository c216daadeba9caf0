/* vector.h - loops over float arrays, compiled for several instruction sets.
 *
 * Every sum has the same order on every machine: element i of a chunk goes to partial sum i mod 32, the 32 are added as
 * a tree, the chunks' sums are added in double. A short tail is padded to 32 with what changes nothing. So equal input
 * gives equal bits, wherever the array stands and whatever the processor can do; no fused multiply-adds. */
#ifndef KG_VECTOR_H
#define KG_VECTOR_H

#include <stdint.h>

enum { KG_VECTOR_BLOCK = 32 };

typedef struct kg_vector {
  const char *name;
  void (*fill)(float *x, int64_t n, float value);
  void (*affine)(float *x, int64_t n, float factor, float offset);           /* x = x * factor + offset */
  void (*divide)(float *x, int64_t n, float divisor);                        /* x = x / divisor */
  void (*add)(float *x, const float *o, int64_t n, float factor);            /* x += factor * o */
  void (*mul)(float *x, const float *o, int64_t n);                          /* x *= o */
  float (*max)(const float *x, int64_t n);                                   /* NaNs skipped; of nothing: -inf */
  float (*min)(const float *x, int64_t n);                                   /* NaNs skipped; of nothing: +inf */
  double (*sum)(const float *x, int64_t n);
  int64_t (*find)(const float *x, int64_t n, float value);                   /* first equal one, or n */
  int64_t (*find_above)(const float *x, int64_t n, float value);             /* first block with one above, or n */
  int64_t (*count_nan)(const float *x, int64_t n);
  /* How many are above -inf, and the least of them (+inf where there is none). No NaNs. */
  int64_t (*count_finite)(const float *x, int64_t n, float *min);
  /* Of those above -inf, the sums of kg_spread_of (draw.h) and of its square. No NaNs. */
  uint64_t (*spread)(const float *x, int64_t n, float max, double scale, uint64_t *squares);
  /* The sum of e = exp(x - max) for max >= every x; e below 2.7e-38 is 0. `out` gets e unless it is NULL (it may be x).
   * A NaN in x makes the sum NaN. */
  double (*exp_sum)(const float *x, int64_t n, float max, float *out);
  /* `out` gets the same e (kg_draw_weight in draw.h); returns the sum of their kg_mass. `moment`, unless NULL, gets the
   * sum of kg_mass(e * (max - x)). No NaNs. */
  uint64_t (*weigh)(const float *x, int64_t n, float max, float scale, float *out, uint64_t *moment);
  /* The sum of p and of p * log(p) of numbers p >= 0. */
  void (*entropy_sums)(const float *p, int64_t n, double *sum, double *p_log_p);
} kg_vector;

/* The best variant that this processor runs. */
const kg_vector *kg_vector_get(void);
/* "base", "avx2" or "avx512" for tests; NULL where this processor does not run it. */
const kg_vector *kg_vector_find(const char *name);

#endif
