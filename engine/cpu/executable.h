/* executable.h - a plan compiled for the CPU: packed weights, programs, memory, threads. Shared by cpu.c (life and
 * interface), weights.c (packing), cache.c (pages) and stages.c (running). */
#ifndef KG_CPU_EXECUTABLE_H
#define KG_CPU_EXECUTABLE_H

#include "pool.h"
#include "program.h"
#include "vector_ops.h"

enum {
  KG_PASS_ROWS = 192,  /* most rows that go through all stages together: larger batches are cut, to keep memory small */
  KG_AHEAD_BYTES = 256 << 10, /* of weights fetched before their products begin: a part of the second-level cache */
  KG_SPLIT_ROWS = 8,   /* runs of at most this many rows spread the splits of attention over the threads */
  KG_HEAD_GROUPS = 32, /* weight groups of the head whose results stand together before they are copied out */
  KG_TILE_ROWS = 64,   /* rows whose products stand in a tile until their terms are added */
  KG_TILE_FLOATS = 32 << 10,
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

  kg_program fused, traced;
  unsigned char *arena;     /* intermediate results of the running program */
  float *angles;            /* [rotation][row][cosines n_dims, sines n_dims] */
  size_t *angle_offsets;    /* by rotation of either program: floats from the start of angles */
  unsigned char *worker_memory;
  size_t worker_bytes;      /* of each worker: for local rows, attention or tiles, whichever is largest; then spare */
  size_t spare_bytes;       /* rows for use within one operation */

  bool half;                /* cache elements are binary16 */
  kg_cache_layer *layers;
  size_t page_bytes;
  unsigned char **pages;    /* by page id */
  int32_t n_pages;
  struct kg_slab *slabs;
  float *partials;          /* attention splits of at most KG_SPLIT_ROWS rows: [row][split][head][partial] */
  int64_t partial_row_floats; /* of one row and split: the widest attention's heads */
  int32_t n_splits;           /* room of `partials` */
  int32_t block_rows;         /* rows that attention takes together */

  kg_span *spans;            /* the part of a batch that is in the current pass: at most pass_rows each */
  kg_wanted *wanted;
  kg_trace *traces;          /* at most one per value */

  /* of the current pass, by row */
  int32_t *identity;         /* 0, 1, 2, ... */
  int32_t *tail_source;      /* batch row of each row of the tail */
  int32_t *tail_wanted;      /* its index in batch->wanted, or -1 */
  unsigned char **row_page;  /* page and slot of the row's position */
  int32_t *row_slot;
  kg_row_block *blocks;
  const kg_trace **trace_of; /* by value: the trace of it, or NULL */
};

/* weights.c */
int kg_cpu_weights_open(kg_executable *exe, kg_error *err); /* find what each weight is for, and its size */
int kg_cpu_weights_pack(kg_executable *exe, const kg_backend_options *options, kg_error *err);

/* cache.c */
int kg_cpu_cache_open(kg_executable *exe, kg_error *err); /* the layout of a page */
void kg_cpu_cache_close(kg_executable *exe);
int kg_cpu_cache_reserve(kg_executable *exe, int32_t n_pages, kg_error *err);
int kg_cpu_cache_copy(kg_executable *exe, int32_t to, int32_t from, int32_t n_positions, kg_error *err);

/* stages.c: at most pass_rows rows, which have been checked */
void kg_cpu_run(kg_executable *exe, const kg_batch *batch);

#endif
