/* program.h - a plan turned into stages for the CPU backend. A stage is work that all threads share, with a barrier
 * behind it: a series of row-wise operations (each row goes through all of them on one thread), a group of
 * matrix products that read the same or independent inputs, attention, a step of a mixture of experts. Its second
 * part, the tail, runs on the wanted rows alone, in blocks.
 *
 * There are several programs of a plan: the fused one; the traced one, in which every value of the plan stands in
 * memory for a moment and can be copied out; programs that stop at some values, for taps, or add adapters to
 * some; and the one that leads from the residual to the logits. All do the same arithmetic. */
#ifndef KG_CPU_PROGRAM_H
#define KG_CPU_PROGRAM_H

#include "backend.h"
#include "matmul.h"

/* Where an intermediate result stands: floats or packed activations of all rows in the arena, which places share when
 * their lifetimes do not meet; or one row of floats in each worker's own memory, when one stage makes and uses it. */
typedef struct kg_place {
  size_t n_bytes;
  size_t offset;               /* in the arena or in the worker's memory */
  int64_t stride;              /* floats from row to row; 0 when local */
  int32_t first, last;         /* stages that touch it; -1: none yet */
  bool local;
  bool made_by_row;            /* by a row operation (only such places can be local) */
  bool is_rows;                /* floats [row][stride] */
  bool ready;                  /* while scheduling: its producer has been placed */
  int32_t of;                  /* packed activations: of this place */
  kg_activation_format format; /* and in this format */
  int32_t parts;               /* each of so many equal parts of its rows is packed by itself */
  size_t part_bytes;           /* one of them */
} kg_place;

typedef enum kg_row_kind {
  KG_ROW_ANGLES,   /* cosines and sines of the row's position, for all rotations */
  KG_ROW_EMBED,
  KG_ROW_GATHER,   /* copy the row of the body that a row of the tail continues */
  KG_ROW_NORM,
  KG_ROW_ROPE,
  KG_ROW_CACHE,    /* k, v to the cache */
  KG_ROW_COMBINE,  /* join attention splits that were computed apart */
  KG_ROW_ACT,      /* with one or two inputs */
  KG_ROW_ADD,
  KG_ROW_SCALE,
  KG_ROW_SOFTCAP,
  KG_ROW_SLICE,
  KG_ROW_CONCAT,
  KG_ROW_QUANTIZE, /* to packed activations */
  KG_ROW_ROUTE,    /* choose experts */
  KG_ROW_MIX,      /* weighted sum of the experts' results */
  KG_ROW_LOGITS,   /* copy to where they are wanted */
  KG_ROW_TRACE     /* copy a value out when the batch traces it */
} kg_row_kind;

typedef struct kg_row_op {
  kg_row_kind kind;
  const kg_op *op;
  int32_t in[2], out; /* places or KG_NONE */
  int32_t value;      /* of the plan: out's, or the traced one */
  int32_t index;      /* rotation, mixture */
  int64_t width;
} kg_row_op;

/* One matrix product. */
typedef struct kg_product {
  int32_t weight, bias;        /* bias: KG_NONE for none */
  int32_t x, residual, out;    /* places; out KG_NONE: the wanted logits */
  int64_t planes;              /* of the weight: each times its part of x, side by side */
  int64_t n_groups;            /* of all of them */
} kg_product;

/* A mixture of experts; all of these are places. Pairs are (row, rank) with rank below n_used. */
typedef struct kg_mixture {
  const kg_op *op;
  int32_t router;
  int32_t chosen;   /* int32 [row][n_used]: expert */
  int32_t shares;   /* float [row][n_used]: weight of its result */
  int32_t pairs;    /* int32 [n_pairs]: pairs sorted by expert, then row */
  int32_t slots;    /* int32 [n_pairs]: where a pair stands in `pairs` */
  int32_t bounds;   /* int32 [n_experts + 1]: first slot of each expert */
  int32_t x;        /* row inputs */
  int32_t x_packed[2]; /* of gate, of up: per expert, at a whole panel */
  int32_t gate, up; /* float [slot] */
  int32_t packed;   /* activations for the down product, per expert */
  int32_t down;     /* float [slot] */
} kg_mixture;

typedef enum kg_cpu_stage_kind {
  KG_CPU_STAGE_ROWS,      /* row operations [first, end) */
  KG_CPU_STAGE_PRODUCTS,  /* products [first, end) */
  KG_CPU_STAGE_HEAD,      /* product `first` with out = the wanted logits; then the program's `post` */
  KG_CPU_STAGE_ATTENTION, /* first: op index */
  KG_CPU_STAGE_CONV,      /* first: op index */
  KG_CPU_STAGE_TAP,       /* first: value; on the caller's thread, between two jobs of the pool */
  KG_CPU_STAGE_ADAPT_IN,  /* first: op index; A x of the rows' adapters, to exe->adapted */
  KG_CPU_STAGE_ADAPT_OUT, /* first: op index; what the operation made, and B times that */
  KG_CPU_STAGE_SORT,      /* first, from here on: mixture */
  KG_CPU_STAGE_PAIRS_IN, KG_CPU_STAGE_EXPERTS_UP, KG_CPU_STAGE_PAIRS_ACT, KG_CPU_STAGE_EXPERTS_DOWN
} kg_cpu_stage_kind;

typedef struct kg_cpu_stage {
  kg_cpu_stage_kind kind;
  int32_t first, end;
  /* Places. Attention: of q and of the result; convolution: of x and of the result; tap: of the value before (KG_NONE:
   * it is given), and after; adapters: of x (KG_NONE: tokens); of the value before, and after. */
  int32_t in, out;
  int64_t n_groups; /* products: of all of them */
} kg_cpu_stage;

typedef struct kg_program {
  kg_cpu_stage *stages;
  kg_row_op *rows;
  kg_product *products;
  kg_mixture *mixtures;
  kg_place *places;
  size_t n_stages, n_rows, n_products, n_mixtures, n_places;
  size_t stages_room, rows_room, products_room, mixtures_room, places_room;
  const kg_op **post;              /* scalings of the logits after the head's product */
  const kg_rope_params **rotations; /* different ones: equal ones share their cosines and sines */
  size_t n_post, n_rotations, post_room, rotations_room;
  int32_t n_body;             /* stages [0, n_body) run on all rows, the rest is the tail */
  int32_t body_rows, tail_rows; /* most rows of one pass */
  size_t arena_bytes, local_bytes;
  bool has_taps;
} kg_program;

/* Activations of 8 bits come as two rows each, the rounded one and what rounding left over, whose products are added:
 * the error of one alone is as large as that of 8-bit weights, and visible in the logits. A panel holds the first terms of
 * its rows, then the second ones. */
static inline int32_t kg_terms(kg_activation_format format)
{
  return format == KG_ACTIVATION_Q8 ? 2 : 1;
}

/* Bytes of n_rows rows with their terms. For whole panels, also the distance from their start. */
static inline size_t kg_terms_bytes(kg_activation_format format, int64_t n_rows, int64_t cols)
{
  return kg_activation_bytes(format, kg_terms(format) * n_rows, cols);
}

/* What the builder must know of the executable. */
typedef struct kg_program_input {
  const kg_plan *plan;
  const kg_kernels *kernels;
  const kg_packed *const *weights; /* by weight index; NULL for vectors */
  int32_t max_rows; /* of a pass */
  bool traced;
  const bool *tapped; /* by value: a tap stage stands between what makes it and all that read it; NULL: none */
  const bool *adapted; /* by value: what makes it is followed by what adapters add; NULL: none */
  int32_t given;      /* a tapped value from which alone the logits are made; KG_NONE: the whole plan */
} kg_program_input;

int kg_program_build(const kg_program_input *input, kg_program *out, kg_error *err);
void kg_program_deinit(kg_program *program);

#endif
