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

enum { KG_ATTENTION_SPLIT = 64, KG_ATTENTION_MAX_DIM = 256 };

typedef struct kg_attention_args {
  const float *q;            /* [n][n_heads][head_dim] */
  const float *k, *v;        /* [n][n_kv_heads][head_dim] */
  kg_rotation q_rotation, k_rotation;
  int32_t n, n_heads, n_kv_heads, head_dim;
  float scale, softcap;
  int32_t window;
  const float *sinks;        /* [n_heads] or NULL */
  bool half;                 /* of the cache: f16, else f32 */
  size_t layer_offset;       /* bytes */
  const int32_t *positions;  /* [n] */
  unsigned char *const *pages;
  const int32_t *row_pages;  /* [n] where the row's pages begin in `pages` */
  bool writes;               /* every row is its sequence's only one: attention writes its keys and values itself */
  int32_t n_splits;          /* 0: one block walks over all splits of a row; else room for so many in `partials` */
  float *partials;           /* [n][n_heads][n_splits][2 + head_dim] */
  unsigned *arrived;         /* [n][n_heads] zero, and zero again afterwards */
  float *out_max;            /* [n] raised to the largest magnitude of the row, or NULL */
  float *out;                /* [n][n_heads][head_dim] */
} kg_attention_args;

/* Rotate and store the keys, store the values; not needed where attention writes. */
int kg_cuda_cache_write(kg_stream *s, const kg_attention_args *a, kg_error *err);
int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
