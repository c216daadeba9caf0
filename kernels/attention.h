/* attention.h - keys and values to the cache, and attention over it.
 *
 * A page holds, at layer_offset, for each kv head the keys [KG_PAGE][head_dim], then the values [KG_PAGE][value_dim],
 * if they are no part of the keys. Attention is split at fixed positions (KG_ATTENTION_SPLIT); a split's softmax is
 * computed by itself and the splits are joined in an order that their positions decide, so that it does not matter
 * which block does which split. */
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
  KG_ATTENTION_MAX_DIM = 1024, /* of heads and of values */
  KG_ATTENTION_SPREAD = 64, /* most splits of a row that are computed at the same time */
  KG_ATTENTION_FEW = 16     /* rows of a span: so many and fewer are computed one by one, more of them together */
};

typedef struct kg_attention_args {
  const float *q;            /* [n][n_heads][head_dim] */
  const float *k;            /* [n][n_kv_heads][head_dim] */
  const float *v;            /* [n][n_kv_heads][value_dim], or NULL: values are the first channels of keys */
  kg_rotation q_rotation, k_rotation;
  int32_t n, n_heads, n_kv_heads, head_dim, value_dim;
  int32_t cached_dim;        /* numbers of a kv head at a position: keys, and values if there are */
  float scale, softcap;      /* scale is positive */
  int32_t window;
  const float *sinks;        /* [n_heads] or NULL */
  bool half;                 /* of the cache: f16, else f32 */
  size_t layer_offset;       /* bytes */
  const int32_t *positions;  /* [n] */
  const int32_t *lasts;      /* [n] the last position that the row sees: its own, or its span's last */
  unsigned char *const *pages;
  const int32_t *row_pages;  /* [n] where in `pages` the row's first page is, or would be: those that are there include
                                all of each split that it sees anything of */
  bool is_alone;             /* every row is its sequence's only one */
  int32_t max_splits;        /* KG_ATTENTION_SPREAD, or no row sees beyond so many splits */
  const int32_t *few;        /* [n_few] rows of spans of few rows */
  int32_t n_few;
  const int32_t *spans;      /* [n_spans][2] first row and number of rows of the other spans */
  int32_t n_spans, span_rows; /* rows of all of those */
  float *scratch;            /* room for splits that blocks share, scratch_floats numbers */
  size_t scratch_floats;
  float *out_max;            /* [n] raised to the largest magnitude of the row, or NULL */
  float *out;                /* [n][n_heads][value_dim]; may be NULL where there is */
  kg_half_out half_out;      /* its f16 form, of the kernels of attention.cu on tensor cores
                                (kg_cuda_attention_is_even) */
} kg_attention_args;

/* Rotates q and k, stores k and v. What changes during a step (q, k, v, rotations, the rows' places in the cache) is
 * written by kernels before this one; positions, pages, few and spans were there before the step's first kernel. */
int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err);

/* How much scratch makes a->n rows of these shapes quick. */
size_t kg_cuda_attention_scratch(const kg_stream *s, const kg_attention_args *a);

/* Are keys and values alike, and such as the kernels of attention.cu take on tensor cores? */
static inline bool kg_cuda_attention_is_even(const kg_attention_args *a)
{
  return a->half && a->cached_dim == 2 * a->head_dim && a->value_dim == a->head_dim && a->head_dim % 8 == 0 &&
         a->head_dim <= 256;
}
/* For others, attention_wide.cu: can they be computed on tensor cores? The cache is written already. */
bool kg_cuda_attention_is_wide(const kg_stream *s, const kg_attention_args *a);
int kg_cuda_attention_wide(kg_stream *s, const kg_attention_args *a, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
