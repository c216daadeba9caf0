/* executable.h - a plan compiled for the CPU: packed weights, programs, memory, threads. Shared by cpu.c (life and
 * interface), weights.c (packing), cache.c (pages), stages.c (running) and taps.c (programs made on demand). */
#ifndef KG_CPU_EXECUTABLE_H
#define KG_CPU_EXECUTABLE_H

#include <stdatomic.h>

#include "pool.h"
#include "program.h"
#include "states.h"
#include "vector_ops.h"

enum {
  KG_PASS_ROWS = 192,  /* most rows that go through all stages together: larger batches are cut, to keep memory small */
  KG_AHEAD_BYTES = 256 << 10, /* of weights fetched before their products begin: a part of the second-level cache */
  KG_SPLIT_ROWS = 8,   /* runs of at most this many rows spread the splits of attention over the threads */
  KG_HEAD_GROUPS = 32, /* weight groups of the head whose results stand together before they are copied out */
  KG_TILE_ROWS = 64,   /* rows whose products stand in a tile until their terms are added */
  KG_TILE_FLOATS = 32 << 10,
  KG_TAPPED_PROGRAMS = 4, /* that are kept: a script hooks the same values step after step */
  KG_CONV_CHANNELS = 128, /* of a convolution that are one item of work for each span */
  KG_ADAPTED_RANKS = 4,   /* of A x that are one item of work */
  KG_ADAPTED_COLUMNS = 512, /* and of B */
  KG_ALIGNMENT = 64
};

typedef struct kg_cpu_weight {
  kg_packed packed;     /* when used as a matrix; packed.data points into `data` */
  float *vector;        /* all values as floats, when used as a norm, bias or sink; points into `data` */
  bool is_matrix, is_vector;
  unsigned char *data;  /* in the executable's block of weights */
  size_t n_bytes;
} kg_cpu_weight;

/* Keys and values of one attention operation in a page: per kv head the keys, then the values. */
typedef struct kg_cache_layer {
  size_t offset;     /* of the first kv head, bytes from the start of a page */
  size_t key_bytes;  /* of one head: its values follow */
  size_t head_bytes; /* from head to head */
} kg_cache_layer;

/* Up to `block_rows` consecutive rows of one span. */
typedef struct kg_row_block {
  int32_t span, row, n_rows, pos;
} kg_row_block;

/* A program that stops at some values, or has adapters added to some. */
typedef struct kg_tapped_program {
  kg_program program;
  bool *key;      /* [2 * values + 1]: which are tapped, which adapted, and is it traced too? NULL: free */
  int64_t used;   /* when, by exe->n_tapped_runs */
} kg_tapped_program;

struct kg_executable {
  const kg_plan *plan;
  const kg_kernels *kernels;
  const kg_vector_ops *vector;
  kg_pool *pool;
  int32_t chunk;     /* most rows in a batch */
  int32_t pass_rows; /* and in a pass */

  kg_cpu_weight *weights; /* by weight index */
  int32_t n_weights;
  unsigned char *weight_block;
  size_t weight_bytes;
  atomic_int_least64_t expert_bytes; /* kg_model_stats */

  kg_program fused, traced;
  kg_tapped_program tapped[KG_TAPPED_PROGRAMS];
  bool *tapped_key;         /* [2 * values + 1] of the next one */
  bool *was_adapted;        /* [values] by an adapter that some batch had: as few programs as can be */
  int64_t n_tapped_runs;
  kg_program unembedding;   /* made on first use; with an arena of its own, because taps may call for it */
  unsigned char *unembedding_arena;
  unsigned char *arena;     /* intermediate results of the running program */
  size_t arena_bytes;
  float *angles;            /* [rotation][row][cosines n_dims, sines n_dims] */
  size_t *angle_offsets;    /* by rotation, which all programs number alike: floats from the start of angles */
  unsigned char *worker_memory;
  size_t worker_bytes;      /* of each worker: for local rows, attention or tiles, whichever is largest; then spare */
  size_t spare_bytes;       /* rows for use within one operation */
  float *adapted;           /* [pass row][adapted_stride]: A x of all adapters of the row, one after the other */
  int64_t adapted_stride;   /* the ranks of all adapters of a row, at most */

  bool half;                /* cache elements are binary16 */
  kg_cache_layer *layers;
  size_t page_bytes[KG_PAGE_GROUPS];     /* by page group, as the next two */
  unsigned char **pages[KG_PAGE_GROUPS]; /* by page id */
  int32_t n_pages[KG_PAGE_GROUPS];
  struct kg_slab *slabs;
  float *partials;          /* attention splits of at most KG_SPLIT_ROWS rows: [row][split][head][partial] */
  int64_t partial_row_floats; /* of one row and split: the widest attention's heads */
  int32_t n_partials;         /* room: so many splits, of all rows together */
  int32_t block_rows;         /* rows that attention takes together */

  kg_host_states states;
  kg_state_out *state_outs;  /* of the part of a batch that is in the current pass */
  size_t state_outs_capacity;

  kg_span *spans;            /* the part of a batch that is in the current pass: at most pass_rows each */
  kg_wanted *wanted;
  kg_trace *traces;          /* at most one per value */
  kg_tap *taps;
  size_t taps_capacity;

  /* of the current pass, by row */
  int32_t *identity;         /* 0, 1, 2, ... */
  int32_t *tail_source;      /* batch row of each row of the tail */
  int32_t *tail_wanted;      /* its index in batch->wanted, or -1 */
  unsigned char **row_page[KG_PAGE_GROUPS]; /* page and slot of the row's position */
  int32_t *row_slot;
  int32_t *row_last;         /* the last position of the row's span */
  int32_t *row_span;         /* index in batch->spans */
  kg_row_block *blocks;
  const kg_trace **trace_of; /* by value: the trace of it, or NULL */
};

/* weights.c */
int kg_cpu_weights_open(kg_executable *exe, kg_error *err); /* find what each weight is for, and its size */
int kg_cpu_weights_pack(kg_executable *exe, const kg_backend_options *options, kg_error *err);

/* cache.c */
int kg_cpu_cache_open(kg_executable *exe, kg_error *err); /* the layout of a page */
void kg_cpu_cache_close(kg_executable *exe);
int kg_cpu_cache_reserve(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err);
int kg_cpu_cache_copy(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions, kg_error *err);
/* Room for the splits of attention of at most KG_SPLIT_ROWS rows, all of them before position `end`. */
int kg_cpu_reserve_splits(kg_executable *exe, int32_t n_rows, int32_t end, kg_error *err);
size_t kg_cpu_page_bytes(const kg_executable *exe, int32_t group);
kg_kv_type kg_cpu_cache_type(const kg_executable *exe);
int kg_cpu_cache_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err);
int kg_cpu_cache_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err);

/* cpu.c */
int kg_cpu_program_build(kg_executable *exe, kg_program_input *input, kg_program *out, kg_error *err); /* completes it */
/* Memory to run it in: of the arena and of the workers, or of the workers alone. The arena must hold nothing. */
int kg_cpu_reserve(kg_executable *exe, const kg_program *program, kg_error *err);
int kg_cpu_reserve_workers(kg_executable *exe, const kg_program *program, kg_error *err);

/* taps.c: the program that stops at the values of the batch's taps and adds its adapters */
bool kg_cpu_is_adapted(const kg_batch *batch);
int kg_cpu_tapped_program(kg_executable *exe, const kg_batch *batch, const kg_program **out, kg_error *err);
int kg_cpu_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                   int64_t logits_at, kg_error *err);
void kg_cpu_taps_close(kg_executable *exe);

/* stages.c: at most pass_rows rows, which have been checked. Only taps can fail. */
int kg_cpu_run(kg_executable *exe, const kg_program *program, const kg_batch *batch, kg_error *err);
/* Rows x [n_rows][width], at most the unembedding's tail_rows, to where the logits are wanted. */
void kg_cpu_run_unembedding(kg_executable *exe, const float *x, const kg_wanted *wanted, int32_t n_rows);

#endif
