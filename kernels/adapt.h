/* adapt.h - what adapters add to products and to embeddings: for each row those of its own sequence. */
#ifndef KG_CUDA_ADAPT_H
#define KG_CUDA_ADAPT_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KG_ADAPT_ROWS = 8 /* most of a tile */, KG_ADAPT_RANKS = 8 /* that are computed together */ };

/* What an adapter does to one operation, on the device; as kg_adapter_part. */
typedef struct kg_adapt_part {
  const float *a; /* [rank][inputs]; of a table [tokens][rank] */
  const float *b; /* [rank][outputs] */
  float factor;
  int32_t rank;   /* 0: nothing */
} kg_adapt_part;

/* An adapter of some rows, in device memory. */
typedef struct kg_adapt_entry {
  const kg_adapt_part *parts; /* by operation of the plan */
  float scale;
} kg_adapt_entry;

/* Consecutive rows of one sequence, in device memory: entries [first, first + n) are its adapters. */
typedef struct kg_adapt_tile {
  int32_t row, n_rows, first, n;
} kg_adapt_tile;

/* Up to three products of one value, or an embedding, and what is done with them afterwards:
 * y += scale * factor * B (A x), adapters in their order, ranks in theirs; then out = act(y0) * y1, or out = y0 +
 * residual, or, with several parts or nothing to do, the y are their own out. */
typedef struct kg_adapt_args {
  int32_t n_parts;
  int32_t op[KG_LINEAR_PARTS];    /* whose part of an adapter it is */
  int32_t width[KG_LINEAR_PARTS]; /* columns of y */
  float *y[KG_LINEAR_PARTS];      /* [n][width] */
  const float *x;                 /* [n][cols] */
  int32_t cols;
  const float *norm_scale;        /* [cols] or NULL: x is brought to a root-mean-square norm first; for few rows */
  float norm_epsilon;
  const int32_t *ids;             /* [n] tokens: of an embedding, instead of x */
  bool gated;                     /* parts 0 and 1 are a gate and what it lets through */
  int32_t act;
  float act_limit, act_alpha;
  const float *residual;          /* or NULL; may be out */
  float *out;                     /* [n][width of part 0]; may be y[0] */
  float *out_max;                 /* [n] raised to the largest magnitudes of out's rows, or NULL */
  const kg_adapt_tile *tiles;     /* [n_tiles] of all rows */
  int32_t n_tiles, n_rows;
  const kg_adapt_entry *entries;
  float *down;                    /* [parts][n_rows][stride]: room for A x */
  int32_t stride, n_ranks;        /* of a row's adapters at most, each rounded up to KG_ADAPT_RANKS: room, and in use */
} kg_adapt_args;

/* down = A x. Reads x, cols or ids, op; nothing else writes `down` before kg_cuda_adapt_out has read it. */
int kg_cuda_adapt_in(kg_stream *s, const kg_adapt_args *a, kg_error *err);
/* The rest. */
int kg_cuda_adapt_out(kg_stream *s, const kg_adapt_args *a, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
