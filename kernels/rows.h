/* rows.h - what is done to each row alone: embedding, norms, rotations, column by column functions, moving rows. */
#ifndef KG_CUDA_ROWS_H
#define KG_CUDA_ROWS_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = row ids[i] of the table (ids NULL: row 0), or with `add` out[i] += it. */
typedef struct kg_embed_args {
  kg_matrix table;
  const int32_t *ids;
  int32_t n;
  bool add;
  float *out;
  float *out_max;           /* [n] the largest magnitudes of the rows then, or NULL */
  float *cleared;           /* [n_cleared][KG_LINEAR_FEW] made zero before, for as many rows as there are */
  int32_t n_cleared;        /* 0: none */
} kg_embed_args;
int kg_cuda_embed(kg_stream *s, const kg_embed_args *a, kg_error *err);

enum { KG_NORM_MAX = 1 << 17 /* columns of a part */ };

typedef struct kg_norm_args {
  const float *x;     /* [n][width]; where x_parts is not 0, row i is part i % x_parts of row i / x_parts: */
  int32_t x_parts, x_width, x_step; /* rows are x_width numbers apart, their parts x_step */
  int32_t n, width, groups;
  bool normalize;     /* else only the f16 form of x is made */
  bool subtract_mean;
  float epsilon;
  const float *scale; /* [width / groups], or with is_wide [width]: each group its own */
  bool is_wide;       /* the bias is, too */
  float scale_max;    /* its largest magnitude */
  const float *bias;  /* or NULL */
  float *out;         /* [n][width], or NULL */
  void *half;         /* f16 in the order of format.h, [n][width rounded up to 32], or NULL; groups is 1 then */
  bool panels;        /* half in panels */
  float half_up;      /* not of a norm: the power of two of half where that is known (bounds.c), or 0 */
  float *half_scale;  /* [n] what undoes the scale of half */
} kg_norm_args;
int kg_cuda_norm(kg_stream *s, const kg_norm_args *a, kg_error *err);

/* How heads turn. */
typedef struct kg_rotation {
  const float *table;   /* of kg_cuda_angles, or NULL: no rotation, a copy */
  int32_t n_freqs;
  bool pairs;           /* (2 i, 2 i + 1) turn together; else (i, i + n_freqs) */
} kg_rotation;

typedef enum kg_columns_kind { KG_COLUMNS_GLU, KG_COLUMNS_ACT, KG_COLUMNS_ADD, KG_COLUMNS_SCALE, KG_COLUMNS_SOFTCAP,
                               KG_COLUMNS_PARTS } kg_columns_kind;

/* Columns [first, first + dim) of a row's groups. */
typedef struct kg_columns_part {
  const float *x;       /* [n][width] */
  int32_t width, step;  /* step: from group to group; 0: all have the same columns */
  int32_t first, dim;   /* dim 0: none */
  kg_rotation rotation; /* of all of them, or none */
} kg_columns_part;

typedef struct kg_columns_args {
  int32_t kind, act;
  float limit, alpha, scale;
  int32_t n, width;
  const float *a, *b;   /* [n][width] */
  int32_t groups;       /* parts: for each group the columns of part[0], then those of part[1] */
  kg_columns_part part[2];
  float *out;
} kg_columns_args;
int kg_cuda_columns(kg_stream *s, const kg_columns_args *a, kg_error *err);

/* out[i] = in[rows[i]]; out_max[i], where wanted, its largest magnitude */
int kg_cuda_gather(kg_stream *s, const float *in, const int32_t *rows, int32_t n, int32_t width, float *out,
                   float *out_max, kg_error *err);
/* *out[i] = in[rows[i]]; rows NULL: in[i] */
int kg_cuda_scatter(kg_stream *s, const float *in, const int32_t *rows, float *const *out, int32_t n, int32_t width,
                    kg_error *err);

/* What cos and sin are multiplied by: kg_rope_magnitude. */
typedef struct kg_growing {
  float magnitude, growth;
  int32_t length;
} kg_growing;

/* table[i][f] = cos and sin of positions[i] * freqs[f], times the magnitude there: [n][n_freqs][2] */
int kg_cuda_angles(kg_stream *s, const int32_t *positions, int32_t n, const float *freqs, int32_t n_freqs,
                   kg_growing growing, float *table, kg_error *err);

/* Turn the heads of all rows; out is not x. */
int kg_cuda_rope(kg_stream *s, const float *x, int32_t n, int32_t n_heads, int32_t head_dim,
                 const kg_rotation *rotation, float *out, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
