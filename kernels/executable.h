/* executable.h - a plan compiled for one GPU. Shared by cuda.c (life and interface), weights.c (packing), bounds.c (of
 * values), program.c (from operations to stages), run.c (running them), adapters.c (what adapters need), cache.c
 * (pages), states.c, and what shows that all this is real: unpack.c, driver.c, profile.c. */
#ifndef KG_CUDA_EXECUTABLE_H
#define KG_CUDA_EXECUTABLE_H

#include "adapt.h"
#include "attention.h"
#include "buffer.h"
#include "conv.h"
#include "draws.h"
#include "host.h"
#include "linear.h"
#include "moe.h"
#include "rows.h"

enum {
  KG_PASS_ROWS = 2048, /* most rows that go through all stages together */
  KG_FEW_ROWS = 64,    /* most wanted rows that the plan's tail takes together; most rows of a graph, or of a traced
                          pass */
  KG_NARROW_HEAD = 8192, /* where a sequence is not cut and the head is no wider, the tail takes all rows together */
  KG_GRAPHS = 64,      /* captured graphs that are kept */
  KG_MOE_ROWS = 2048,  /* rows of experts that are computed together */
  KG_EACH_ROWS = 8192  /* parts of rows that are computed together by products with a plane for each head */
};

typedef struct kg_cuda_weight {
  kg_matrix m;         /* when used as a matrix */
  float *vector;       /* all values as floats, when used as a norm, bias or sink */
  float vector_max;    /* their largest magnitude */
  int32_t *planes;     /* when used for each head: the plane of KG_EACH_ROWS parts of rows */
  bool is_matrix, is_vector;
  unsigned char *data; /* in the block of weights: the matrix, then the vector */
  size_t matrix_bytes, n_bytes;
} kg_cuda_weight;

/* The rows of a pass (0), or the wanted ones among them (1), on which the plan's tail runs. */
typedef enum kg_side { KG_ALL_ROWS, KG_WANTED_ROWS, KG_SIDES } kg_side;

typedef enum kg_stage_kind {
  KG_STAGE_EMBED_ROWS,
  KG_STAGE_GATHER,    /* a value's wanted rows */
  KG_STAGE_NORM_ROWS, /* a norm and the f16 form of what it gives, each if wanted */
  KG_STAGE_HALF,      /* the f16 form of a value */
  KG_STAGE_EACH,      /* a product with a plane for each head */
  KG_STAGE_LINEAR,    /* up to three products of one value; a gate; a residual */
  KG_STAGE_ADAPT_IN,  /* the first half of what adapters add to these, or to an embedding: it comes before them */
  KG_STAGE_ADAPT,     /* the second half; then the gate, the residual */
  KG_STAGE_ANGLES,    /* table of a rotation */
  KG_STAGE_ROPE,
  KG_STAGE_ATTENTION, /* rotations of q and k, cache write, attention */
  KG_STAGE_MOE,
  KG_STAGE_CONV,
  KG_STAGE_COLUMNS,
  KG_STAGE_SCATTER    /* rows of the logits to where they are wanted */
} kg_stage_kind;

typedef struct kg_gpu_stage {
  kg_stage_kind kind;
  kg_side side;
  const kg_op *op;                     /* what it computes; of several linears the first */
  const kg_op *parts[KG_LINEAR_PARTS]; /* linear, adapt */
  int32_t n_parts;
  const kg_op *glu;                    /* linear, adapt: gated, or NULL */
  int32_t residual;                    /* linear, adapt: value to add, or KG_NONE */
  int32_t in[3], out;                  /* values */
  const kg_op *view[2];                /* of in[0] and in[1] only this slice is read, or NULL */
  /* Of few rows (kg_program.max_few) products bring their input to f16 themselves. */
  int32_t fused_in;                    /* linear, adapt in: the norm or half stage that it can do itself, or KG_NONE */
  bool is_needed;                      /* norm, half: by another stage too, or for another form */
  bool is_adapted;                     /* linear, embed: an adapt stage completes it, in a pass with adapters */
  int32_t maker;                       /* half: the stage that makes the value and can write its f16 form, too, or
                                          KG_NONE */
  int32_t half;                        /* linear, attention: the stage of which it is that, or KG_NONE */
  bool has_reader;                     /* norm, half: somebody reads the float32 form of the value; of a norm others
                                          than adapters that can do it themselves */
  int32_t max_slot;                    /* linear, adapt, attention, conv, embed, gather: where the largest magnitudes of
                                          its rows go, or KG_NONE; norm, half: where those of its input are */
  bool is_normed;                      /* norms read them, to which a bound of the value tells too little */
  bool starts_next;                    /* linear: see kg_linear_args */
  bool to_logits;                      /* linear: rows go straight to where they are wanted */
  int32_t rotation[2];                 /* of q and k, of what is put together, or of the stage: index into rotations,
                                          or KG_NONE */
} kg_gpu_stage;

/* Where a value stands in the arena, on one side; SIZE_MAX: nowhere. */
typedef struct kg_value_place {
  size_t at;         /* float32 */
  size_t half;       /* f16 form */
  size_t half_scale; /* and its scales */
  int32_t n_tiles;   /* of the largest product that reads the f16 form (kg_cuda_linear_many_tiles) */
  bool is_alias;     /* on the wanted side: gathered, and where all rows of a pass are wanted, those */
} kg_value_place;

/* One set of angles; its table stands in the arena. */
typedef struct kg_rotation_place {
  const kg_rope_params *params;
  kg_side side;
  size_t table;   /* in the arena */
  float *freqs;   /* on the device */
} kg_rotation_place;

typedef struct kg_program {
  kg_gpu_stage *stages;
  size_t n_stages, stages_capacity;
  kg_value_place *places[KG_SIDES]; /* [values] */
  kg_rotation_place *rotations;
  size_t n_rotations, rotations_capacity;
  int32_t max_rows[KG_SIDES];
  int32_t max_few; /* so many rows and fewer are few: KG_LINEAR_FEW, or 1 where products have kernels for more */
  int32_t n_max_slots; /* of KG_LINEAR_FEW floats each */
  size_t scratch_floats; /* of products and attention */
  size_t arena_bytes;
  float *freqs; /* device: of its rotations */
} kg_program;

/* Experts of KG_MOE_ROWS rows: places in the arena's end. Products of each head use the f16 form. */
typedef struct kg_moe_scratch {
  size_t experts, weights, gate, up, half, half_scale, down, order, groups;
} kg_moe_scratch;

/* Rows of a pass as the kernels read them, in one piece so that one copy brings it over: what stands where, in
 * bytes. */
typedef struct kg_meta_layout {
  size_t tokens, positions, wanted_rows, wanted_tokens, wanted_positions, lasts, few, spans;
  size_t row_pages, group_row_pages; /* the first group's, and from group to group */
  size_t out_rows, state_spans, state_places, pages;
} kg_meta_layout;

typedef struct kg_graph {
  int32_t n_rows, n_wanted, n_splits; /* what it was captured for; n_rows 0: free */
  const kg_program *program;
  int32_t n_ranks;                    /* kg_adapted_rows */
  kg_draws_key draws;                 /* and what draws from its logits */
  bool seen;                          /* ran once without being captured */
  cudaGraphExec_t handle;
} kg_graph;

typedef struct kg_gpu_adapters kg_gpu_adapters;

/* Two marks in the queue; zero-initialise. */
typedef struct kg_gpu_timer {
  cudaEvent_t begin, end;
} kg_gpu_timer;

struct kg_executable {
  const kg_plan *plan;
  kg_stream *stream;
  char variant[128];
  int32_t chunk, pass_rows;
  bool half;                /* cache elements are f16 */

  kg_cuda_weight *weights;  /* by weight index */
  int32_t n_weights;
  unsigned char *weight_block;
  size_t weight_bytes;

  kg_program fused, traced;
  unsigned char *arena;
  size_t values_bytes, scratch_floats; /* what it has room for, as */
  int32_t n_max_slots;                 /* row_max has */
  unsigned char *unembedding_arena; /* values of the traced program for kg_gpu_unembed, which taps may call; made on
                                       first use */
  float *scratch;           /* in the arena */
  kg_moe_scratch moe;
  kg_gpu_adapters *adapters; /* NULL until some batch has any */
  int32_t *planes;          /* of all products of each head */
  float *half_up;           /* [values] powers of two of f16 forms that are known from the weights (bounds.c), or 0 */
  float *row_max;           /* [slots][KG_LINEAR_FEW], zero when a pass begins */

  unsigned char *meta_host, *meta; /* pinned and on the device */
  size_t meta_bytes;
  cudaEvent_t meta_read;    /* the device has the last upload */

  size_t *layer_at;         /* [layers] bytes from the start of a page */
  size_t page_bytes[KG_PAGE_GROUPS];     /* by page group, as the next two */
  unsigned char **pages[KG_PAGE_GROUPS]; /* by page id; host memory, device pointers */
  int32_t n_pages[KG_PAGE_GROUPS];

  size_t state_floats;      /* of a slot; 0: the plan has no states */
  float **states;           /* by slot; host memory, device pointers */
  int32_t n_states;
  struct kg_slab *slabs;    /* of pages and states */

  kg_graph graphs[KG_GRAPHS];
  int32_t next_graph;

  kg_gpu_timer timer;       /* of runs, where they are timed */
  int64_t n_timed;
  double timed_s;
};

/* The arguments of n rows that say what is computed, not where. */
static inline kg_attention_args kg_gpu_attention_shape(const kg_executable *exe, const kg_op *op, int32_t n)
{
  const kg_attention_params *p = &op->u.attention;
  return (kg_attention_args){.n = n,
                             .n_heads = p->n_heads,
                             .n_kv_heads = p->n_kv_heads,
                             .head_dim = p->head_dim,
                             .value_dim = p->value_dim,
                             .cached_dim = p->head_dim + (p->values_in_keys ? 0 : p->value_dim),
                             .scale = p->scale,
                             .softcap = p->softcap,
                             .window = p->window,
                             .half = exe->half,
                             .layer_offset = exe->layer_at[p->layer]};
}

/* How many rows of a span are among rows [row0, row0 + n_rows) of the batch, the first one *first rows behind row0;
 * less than 1: none. */
static inline int32_t kg_rows_of_span(const kg_span *span, int32_t row0, int32_t n_rows, int32_t *first)
{
  const int32_t begin = span->row > row0 ? span->row : row0, span_end = span->row + span->n_rows;
  *first = begin - row0;
  return (span_end < row0 + n_rows ? span_end : row0 + n_rows) - begin;
}

/* weights.c */
int kg_gpu_weights_open(kg_executable *exe, kg_error *err);
int kg_gpu_weights_pack(kg_executable *exe, const kg_backend_options *options, kg_error *err);
/* vector_max of a weight, from the device: somebody has written to it. Takes no memory: only the device can fail. */
int kg_gpu_vector_measure(kg_executable *exe, int32_t weight, kg_error *err);
/* bounds.c */
int kg_gpu_bounds_open(kg_executable *exe, kg_error *err);
/* From weights that are packed; of those values that depend on one of them, or of all (KG_NONE). Graphs know them.
 * Where it fails they are unknown. */
int kg_gpu_bounds_find(kg_executable *exe, int32_t weight, kg_error *err);
/* program.c */
/* Traced: every value is in memory for a moment, and adapters may be added to each that can have some. Else they may to
 * those that are `adapted` ([values], NULL: none). */
int kg_program_build(kg_executable *exe, bool traced, const bool *adapted, kg_program *out, kg_error *err);
void kg_program_deinit(kg_program *program);
/* cuda.c: room on the device for new programs to run in, beside those that are there. Failure changes nothing. */
int kg_gpu_reserve(kg_executable *exe, kg_program *const *programs, size_t n, kg_error *err);
/* cache.c */
/* Device memory that stays where it is until the executable goes. */
int kg_gpu_slab_new(kg_executable *exe, size_t n_bytes, const char *what, void **out, kg_error *err);
void kg_gpu_slabs_close(kg_executable *exe);
int kg_gpu_cache_open(kg_executable *exe, kg_error *err);
void kg_gpu_cache_close(kg_executable *exe);
int kg_gpu_cache_reserve(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err);
int kg_gpu_cache_copy(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions, kg_error *err);
size_t kg_gpu_page_bytes(const kg_executable *exe, int32_t group);
kg_kv_type kg_gpu_cache_type(const kg_executable *exe);
int kg_gpu_cache_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err);
int kg_gpu_cache_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err);
/* adapters.c */
/* All that the batch's adapters need on the device, and the program that adds them; NULL: it has none. Failure changes
 * nothing that matters. */
int kg_gpu_adapters_prepare(kg_executable *exe, const kg_batch *batch, const kg_program **program, kg_error *err);
/* Rows [row0, row0 + n_rows) of a batch that was prepared, with these of its wanted ones: what kernels read about them,
 * to the device. */
typedef struct kg_adapted_rows {
  int32_t row0, n_rows, wanted0, n_wanted;
  int32_t n_tiles, n_ranks; /* found here: see kg_adapt_args; 0: no row of the batch has adapters */
} kg_adapted_rows;
int kg_gpu_adapters_bring(kg_executable *exe, const kg_batch *batch, kg_adapted_rows *rows, kg_error *err);
/* The tiles, from the first one on, of all rows or of the wanted ones, each of which is one; entries, and room. */
void kg_gpu_adapters_set(const kg_executable *exe, bool is_wanted, int32_t first, kg_adapt_args *a);
void kg_gpu_adapters_close(kg_executable *exe);
/* states.c */
int kg_gpu_state_reserve(kg_executable *exe, int32_t n_slots, kg_error *err);
int kg_gpu_state_copy(kg_executable *exe, int32_t to, int32_t from, kg_error *err);
int kg_gpu_state_read(kg_executable *exe, int32_t slot, float *out, kg_error *err);
int kg_gpu_state_write(kg_executable *exe, int32_t slot, const float *in, kg_error *err);
/* run.c */
int kg_gpu_run(kg_executable *exe, const kg_batch *batch, kg_error *err);
int kg_gpu_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                   int64_t logits_at, kg_error *err);
int kg_gpu_run_ahead(kg_executable *exe, const kg_batch *batch, const kg_run_ahead *ahead, kg_error *err);
int kg_gpu_wait_ahead(kg_executable *exe, int32_t step, kg_error *err);
void kg_gpu_forget_graphs(kg_executable *exe);
/* For profile.c: a batch that is one pass, its rows on the device, and single stages of it. The batch must stay. */
typedef struct kg_pass kg_pass;
int kg_gpu_pass_new(kg_executable *exe, const kg_batch *batch, kg_pass **out, kg_error *err);
const kg_program *kg_gpu_pass_program(const kg_pass *p);
int kg_gpu_pass_stage(kg_pass *p, const kg_gpu_stage *stage, kg_error *err);
void kg_gpu_pass_free(kg_pass *p);
/* profile.c */
int kg_gpu_profile(kg_executable *exe, const kg_batch *batch, kg_profile *out, kg_error *err);
/* driver.c */
int kg_gpu_device_info(const kg_executable *exe, kg_device_info *out, kg_error *err);
int kg_gpu_device_rates(const kg_executable *exe, kg_device_rates *out, kg_error *err);
int kg_gpu_set_timing(kg_executable *exe, bool on, kg_error *err);
/* Where runs are timed: mark the queue before the first pass of a call and behind its last, and note the time between
 * when the queue was waited for. */
int kg_gpu_timing_begin(kg_executable *exe, kg_error *err);
int kg_gpu_timing_end(kg_executable *exe, kg_error *err);
int kg_gpu_timing_add(kg_executable *exe, int64_t n_passes, kg_error *err);
int kg_gpu_timer_init(kg_gpu_timer *t, kg_error *err);
void kg_gpu_timer_deinit(kg_gpu_timer *t);
int kg_gpu_timer_start(const kg_gpu_timer *t, const kg_stream *s, kg_error *err);
int kg_gpu_timer_stop(const kg_gpu_timer *t, const kg_stream *s, kg_error *err);
int kg_gpu_timer_read(const kg_gpu_timer *t, double *seconds, kg_error *err); /* waits for the stop */
double kg_gpu_median(double *values, size_t n); /* sorts them */
/* unpack.c */
unsigned kg_gpu_weight_forms(const kg_executable *exe, int32_t weight);
int kg_gpu_weight_unpack(kg_executable *exe, int32_t weight, unsigned form, int64_t row, int64_t n_rows, void *out,
                         kg_error *err);

#endif
