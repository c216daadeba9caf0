/* vector_ops.h - the row-wise functions and attention of the CPU backend, compiled once per instruction set
 * (vector_<set>.c). Rows are float32. Sums run in an order that depends on the width alone; elementwise functions give
 * the same bits wherever a number stands. */
#ifndef KG_CPU_VECTOR_OPS_H
#define KG_CPU_VECTOR_OPS_H

#include "states.h"

enum {
  KG_SPLIT = 256,         /* positions whose scores are normalized together; splits begin at its multiples */
  KG_ATTENTION_PAIRS = 64, /* most (query row, head) pairs that share a pass over the cache */
  KG_PARTIAL_HEAD = 16,   /* floats before the vector of a partial result: peak, sum, padding */
  KG_KEY_STRIDE = (KG_PAGE + 15) / 16 * 16,              /* slots of a page, in whole vectors */
  KG_SCORES = KG_SPLIT + (KG_KEY_STRIDE > KG_PAGE ? 16 : 0) /* floats from pair to pair: the last page's vector may reach
                                                            beyond the split in stress builds with pages below 16 */
};

/* Some query rows of one sequence against the cache of one kv head, for heads that read that kv head.
 * In a page: keys [head_dim][KG_KEY_STRIDE] at k_offset, values [KG_PAGE][kg_padded(value_dim)] at v_offset. */
typedef struct kg_attention_block {
  const float *q; /* first row, first head; a row has the heads side by side */
  float *out;
  int64_t q_stride, out_stride; /* floats between rows */
  int32_t n_rows, n_heads;      /* n_rows * n_heads <= KG_ATTENTION_PAIRS */
  int32_t head_dim, value_dim;
  bool values_in_keys; /* the first value_dim channels of the keys are the values: no v_offset */
  int32_t pos;        /* of the first row */
  int32_t end;        /* all rows see the positions before it; 0: each sees those up to its own */
  int32_t window;     /* 0: none */
  float scale, softcap;
  const float *sinks; /* of the first head, or NULL */
  const int32_t *pages;
  unsigned char *const *page_data;
  size_t k_offset, v_offset; /* bytes from the start of a page */
  bool half;                 /* cache elements are binary16, else float32 */
  float *scratch;            /* kg_attention_scratch floats, 64-byte aligned */
} kg_attention_block;

static inline int64_t kg_padded(int64_t n) /* floats of a row that is stored in whole vectors */
{
  return (n + 15) / 16 * 16;
}

/* One partial result: peak of the scores, sum of exponentials, padding, then the weighted sum of the values. */
static inline int64_t kg_partial_floats(int32_t value_dim)
{
  return KG_PARTIAL_HEAD + kg_padded(value_dim);
}

/* Floats for a page of keys or of values; of both where values are made from keys. */
static inline int64_t kg_attention_page(int32_t head_dim, int32_t value_dim, bool values_in_keys)
{
  const int64_t keys = kg_padded(head_dim), values = kg_padded(value_dim);
  return KG_KEY_STRIDE * (values_in_keys ? keys + values : keys > values ? keys : values);
}

static inline int64_t kg_attention_scratch(int32_t head_dim, int32_t value_dim, bool values_in_keys)
{
  return kg_attention_page(head_dim, value_dim, values_in_keys) + (int64_t)KG_ATTENTION_PAIRS * KG_SCORES +
         2 * KG_ATTENTION_PAIRS * kg_partial_floats(value_dim);
}

typedef struct kg_vector_ops {
  /* (x - mean) / sqrt(variance + epsilon) * scale + bias, per group; bias may be NULL. Groups have the same scale and
   * bias, or each its own behind the one before: then is_wide. */
  void (*norm)(const kg_norm_params *params, const float *x, const float *scale, const float *bias, bool is_wide,
               float *out, int64_t n);
  /* act(gate) * up; up NULL: act(gate) */
  void (*act)(const kg_act *act, const float *gate, const float *up, float *out, int64_t n);
  void (*add)(const float *a, const float *b, float *out, int64_t n);
  void (*add_scaled)(float *sum, const float *x, float factor, int64_t n); /* sum += factor * x */
  float (*dot)(const float *a, const float *b, int64_t n);
  void (*scale)(const float *x, float factor, float *out, int64_t n);
  /* x = first + second: first are multiples of max|x| / 127 per 32 numbers; n a multiple of 32 */
  void (*split_terms)(const float *x, int64_t n, float *first, float *second);
  /* out = first + second [+ bias] [+ residual], in this order; second, bias and residual may be NULL */
  void (*sum_terms)(const float *first, const float *second, const float *bias, const float *residual, float *out,
                    int64_t n);
  void (*softcap)(const float *x, float cap, float *out, int64_t n);
  /* `cosines` and `sines`: [n_dims] for each rotated channel, the sign of the rotation in the sines */
  void (*rope)(const kg_rope_params *params, const float *x, const float *cosines, const float *sines, float *out);
  /* Channels [first, end) of a convolution of all rows: weights [width][taps], bias [width] or NULL; out is `stride` floats
   * from row to row. */
  void (*conv)(const kg_conv_rows *rows, const float *weights, const float *bias, int32_t first, int32_t end, float *out,
               int64_t stride);
  /* Write a row of keys [n_kv_heads][head_dim] and of values [n_kv_heads][value_dim], unless they are in the keys, to its
   * slot of a page; heads are head_bytes apart. */
  void (*cache_write)(const kg_attention_params *params, const float *k, const float *v, int32_t slot, bool half,
                      unsigned char *keys, unsigned char *values, size_t head_bytes);
  /* Everything the rows may see, normalized, to block->out. */
  void (*attend)(const kg_attention_block *block);
  /* The same in two steps with the same bits. First each split of positions: one partial result per row and head, at
   * partials + row * row_stride + head * kg_partial_floats. Then, per row and head, the splits that the row sees, which
   * lie split_stride floats apart in position order; the first of them is overwritten. */
  void (*attend_split)(const kg_attention_block *block, int32_t split, float *partials, int64_t row_stride);
  void (*combine)(float *partials, int64_t split_stride, int32_t n_splits, const float *sink, int32_t value_dim,
                  float *out);
} kg_vector_ops;

extern const kg_vector_ops kg_vector_ops_generic, kg_vector_ops_avx2, kg_vector_ops_avx512;

#endif
