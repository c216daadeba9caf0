/* linear.h - products of packed weights with rows of activations. */
#ifndef KG_CUDA_LINEAR_H
#define KG_CUDA_LINEAR_H

#include "format.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  KG_LINEAR_PARTS = 3,
  KG_LINEAR_FEW = 8,
  KG_LINEAR_FEW_NUMBERS = 32768,
  KG_LINEAR_ONE_BESIDE = 70 << 10, /* bytes of a block's shared memory beside x at most: of one row, */
  KG_LINEAR_FEW_BESIDE = 84 << 10, /* and of few */
  KG_LINEAR_SLOTS = 8
};

typedef enum kg_cuda_act {
  KG_CUDA_SILU,
  KG_CUDA_GELU,
  KG_CUDA_GELU_ERF,
  KG_CUDA_RELU,
  KG_CUDA_SWIGLU_CLAMPED
} kg_cuda_act;

typedef struct kg_linear_part {
  kg_matrix m;
  const float *bias; /* [planes][rows] or NULL */
  float *out;        /* [n][rows] */
} kg_linear_part;

/* Rows of out by their planes, so that a plane's weights are read once for several rows. kg_cuda_group makes it. */
typedef struct kg_linear_group { int32_t plane, first, n; } kg_linear_group; /* rows order[first, first + n) */
typedef struct kg_linear_groups {
  int32_t *order;           /* [n] */
  kg_linear_group *list;    /* [n / rows + planes], unused ones with n = 0; NULL: none */
  int32_t n, rows;          /* of the list; most rows of a group */
} kg_linear_groups;

/* out = x * W^T + bias + residual for up to three matrices of one width and kg_cuda_linear_run, or, gated, for two of
 * one type and shape: out of part 0 = act(gate) * up of parts 0 and 1. */
typedef struct kg_linear_args {
  kg_linear_part part[KG_LINEAR_PARTS];
  int32_t n_parts;
  bool gated;
  int32_t act;
  float act_limit, act_alpha;
  int32_t n;                /* rows of x; with `planes`: rows of out */
  const void *x;            /* F32: float [n][cols]; else f16 as in format.h, [n][32 n_blocks] or in panels */
  bool x_panels;            /* x stands in panels (format.h) */
  const float *x_scale;     /* [n] what undoes the scale of x; not for F32 */
  /* Instead of x, for few rows (kg_cuda_linear_is_few) whose width is a multiple of 32: float32 rows that each block
   * brings to f16 by itself, with or without a root-mean-square norm. */
  const float *x_floats;    /* [n][cols] or NULL */
  const float *norm_scale;  /* [cols] or NULL: no norm */
  float norm_max;           /* its largest magnitude */
  float norm_epsilon;
  const float *x_max;       /* [n] largest magnitudes of x_floats' rows */
  float x_up;               /* without a norm: the power of two of its f16 form where that is known (bounds.c), or 0 */
  /* Of one matrix, or gated; each may be NULL: */
  float *out_max;           /* [n] raised to the largest magnitudes of its rows; not for F32, nor panels */
  kg_half_out half;         /* gated, x in panels: the f16 form of part 0, whose out may then be NULL */
  const float *residual;    /* [n][rows]; may be out; not gated */
  float *const *out_rows;   /* [n] where its rows go instead of out */

  float *scratch;           /* room for the sums of runs, scratch_floats numbers */
  size_t scratch_floats;
  bool starts_next;         /* few rows: what follows fetches much before it waits, and should start as early as this */
  const int32_t *planes;    /* experts: [n] plane of each row of out, or NULL: plane 0 */
  kg_linear_groups groups;  /* of these rows, or nothing */
  int32_t x_share, x_first; /* experts: row i of out reads row x_first + i / x_share of x */
} kg_linear_args;

int kg_cuda_linear(kg_stream *s, const kg_linear_args *a, kg_error *err);
/* How many blocks of 32 columns of a matrix are summed in one chain: the same for all members of a launch. */
int kg_cuda_linear_run(const kg_matrix *m);

/* Are n rows of this width so few that each block can bring them to f16 in its shared memory? */
static inline bool kg_cuda_linear_is_few(const kg_stream *s, int64_t n, int64_t width)
{
  const int64_t room = (s->shared_max - (n == 1 ? KG_LINEAR_ONE_BESIDE : KG_LINEAR_FEW_BESIDE)) / 2;
  return n <= KG_LINEAR_FEW && n * width <= KG_LINEAR_FEW_NUMBERS && n * width <= room;
}
/* Can two matrices of this type and shape be multiplied gated? */
bool kg_cuda_linear_gates(const kg_matrix *m);
/* Most rows of a plane that this matrix is multiplied with at a time. */
int32_t kg_cuda_linear_group_rows(const kg_stream *s, const kg_matrix *m);
/* Are there kernels for rows of x in panels, where matrices of these tiles (kg_cuda_linear_many_tiles) read them? */
static inline bool kg_cuda_linear_has_many(const kg_stream *s, int32_t n_tiles) { return s->has_wgmma && n_tiles; }
/* Numbers of scratch with which a product of few rows in panels fills the device; n_tiles of all its matrices. */
size_t kg_cuda_linear_scratch(const kg_stream *s, const kg_matrix *m, int32_t n_tiles);
/* Tiles of 16 rows of a matrix, 0 where many rows have no kernel of their own. */
int32_t kg_cuda_linear_many_tiles(const kg_matrix *m);

#ifdef __cplusplus
}
#endif

#endif
