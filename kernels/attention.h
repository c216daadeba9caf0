/* attention.h - keys and values to the cache, and attention over it.
 *
 * A page holds, at layer_offset, for each kv head the keys [KG_PAGE][head_dim], then the values. Attention is split at
 * fixed positions (KG_ATTENTION_SPLIT); a split's softmax is computed by itself and the splits are joined in order, so
 * that it does not matter which block does which split. */
#ifndef KG_CUDA_ATTENTION_H
#define KG_CUDA_ATTENTION_H

#include "rows.h"

#ifndef KG_PAGE
#define KG_PAGE 64 /* as in backend.h */
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  KG_ATTENTION_SPLIT = 64,
  KG_ATTENTION_MAX_DIM = 256,
  KG_ATTENTION_SPREAD = 64, /* most splits of a row that are computed at the same time */
  KG_ATTENTION_FEW = 16     /* rows of a span: so many and fewer are computed one by one, more of them together */
};

typedef struct kg_attention_args {
  const float *q;            /* [n][n_heads][head_dim] */
  const float *k, *v;        /* [n][n_kv_heads][head_dim] */
  kg_rotation q_rotation, k_rotation;
  int32_t n, n_heads, n_kv_heads, head_dim;
  float scale, softcap;      /* scale is positive */
  int32_t window;
  const float *sinks;        /* [n_heads] or NULL */
  bool half;                 /* of the cache: f16, else f32 */
  size_t layer_offset;       /* bytes */
  const int32_t *positions;  /* [n] */
  unsigned char *const *pages;
  const int32_t *row_pages;  /* [n] where the row's pages begin in `pages` */
  bool is_alone;             /* every row is its sequence's only one */
  int32_t max_splits;        /* of a row, at most KG_ATTENTION_SPREAD: a hint */
  const int32_t *few;        /* [n_few] rows of spans of few rows */
  int32_t n_few;
  const int32_t *spans;      /* [n_spans][2] first row and number of rows of the other spans */
  int32_t n_spans, span_rows; /* rows of all of those */
  float *out_max;            /* [n] raised to the largest magnitude of the row, or NULL */
  float *out;                /* [n][n_heads][head_dim] */
} kg_attention_args;

/* Rotates q and k, stores k and v. What changes during a step (q, k, v, rotations, the rows' places in the cache) is
 * written by kernels before this one; positions, pages, few and spans were there before the step's first kernel. */
int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
