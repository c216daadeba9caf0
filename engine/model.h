/* model.h - a plan compiled for a device, with its page pool and counters. */
#ifndef KG_MODEL_H
#define KG_MODEL_H

#include "kv.h"
#include "sha256.h"
#include "state.h"

typedef struct kg_model_options {
  const char *device;       /* "auto", "cpu", "reference", "cuda", "cuda:N" */
  const char *variant;      /* see kg_backend_options */
  int32_t n_threads;        /* 0: one per available core */
  int32_t context;          /* positions a sequence may hold; 0: what the file says, at most 4096 */
  int32_t pool;             /* positions of all sequences together; 0: no limit but memory */
  int32_t chunk;            /* most rows per forward pass; 0: 512 */
  int32_t prefix_cache; /* positions for whose sake the pool grows although no sequence holds them (kv.h); 0: as many
                           as a sequence may hold; -1: no prefix cache */
  const char *kv;           /* "f32", "f16"; NULL or "auto": f32 for models with float32 matrices, else f16 */
  kg_progress progress;     /* during the load; may be NULL */
  void *progress_user;
} kg_model_options;

/* Compile a finished plan. Takes the plan (frees it in kg_model_close); the caller still owns it after a failure.
 * Both plan and file must stay alive as long as the model. */
int kg_model_open_take(kg_plan *plan, const kg_model_options *options, kg_model **out, kg_error *err);

const kg_plan *kg_model_plan(const kg_model *model);
const kg_backend *kg_model_backend(const kg_model *model);
kg_executable *kg_model_executable(const kg_model *model);
kg_kv *kg_model_kv(const kg_model *model);
kg_state_pool *kg_model_states(const kg_model *model); /* NULL: the plan has no states */
int32_t kg_model_chunk(const kg_model *model);
int32_t kg_model_sequence_count(const kg_model *model); /* open ones */

/* Permute the packed bytes of every weight whose name starts with `prefix`, in 64-byte pieces, on the device: what the
 * haiku check damages its copy with. *n_weights says how many; none is KG_ERR_ARGUMENT. */
int kg_model_scramble(kg_model *model, const char *prefix, uint64_t seed, int32_t *n_weights, kg_error *err);

/* A zeroed tensor on the model's device. */
int kg_model_tensor(kg_model *model, int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err);
/* The logits [n_rows, vocab] that follow from rows [n_rows, width] of the plan's residual, both tensors on the model's
 * device: bit for bit what a pass makes of them. KG_ERR_UNSUPPORTED where the plan has no residual (plan.h). May be
 * called within a hook. */
int kg_model_unembed(kg_model *model, const kg_tensor *x, kg_tensor *logits, kg_error *err);

/* Rows [row, row + n_rows) of a tensor of the model's file, counted over all planes and dequantized, to the start of a
 * buffer. */
int kg_model_read_tensor(const kg_model *model, const kg_gguf_tensor *tensor, int64_t row, int64_t n_rows,
                         kg_buffer *out, kg_error *err);

/* An adapter for this model from an open file (adapter.h). KG_ERR_UNSUPPORTED too where the backend takes none. */
int kg_model_adapter(const kg_model *model, const kg_gguf *gguf, kg_adapter **out, kg_error *err);

/* ---- for sequence.c and step.c ---- */

/* Memory of the step, kept between steps so that decoding allocates nothing. The first five hold kg_model_chunk
 * rows. */
typedef struct kg_scratch {
  int32_t *tokens, *positions;
  kg_span *spans;
  kg_wanted *wanted;
  kg_state_out *states; /* of the spans, one after the other */
  kg_trace *traces;
  size_t traces_capacity;
  kg_tap *taps;
  void *tapped; /* of step.c, one for each tap */
  size_t taps_capacity, tapped_capacity;
  void *items; /* kg_step_item of kg_step */
  size_t items_capacity;
  kg_draw *draws; /* of ahead.c, as the next two */
  void *missing;  /* kg_draw_item */
  struct kg_passes *under_way; /* whose draws the device may still be making, or NULL; borrowed */
  size_t draws_capacity, missing_capacity;
  int64_t serial; /* of the step, to find a sequence that is named twice */
} kg_scratch;
kg_scratch *kg_model_scratch(kg_model *model);
/* SHA-256 of the model's file; of a split one, of its parts' SHA-256 in hexadecimal, one after the other. Computed
 * once. */
int kg_model_digest(kg_model *model, char hex[KG_SHA256_HEX], kg_error *err);
int64_t kg_model_next_serial(kg_model *model); /* a number that nothing else of this model has */

/* Progress and cancellation between the runs of a step; KG_ERR_CANCELLED when the callback says so. */
int kg_model_progress(kg_model *model, const char *what, int64_t done, int64_t total, kg_error *err);
void kg_model_count(kg_model *model, int64_t n_tokens, int64_t n_steps);
void kg_model_count_reused(kg_model *model, int64_t n_tokens);
void kg_model_count_dropped(kg_model *model, int64_t n_tokens, int64_t n_steps);
kg_sequence **kg_model_drafting(kg_model *model); /* head of a list, of draft.c */
void kg_model_sequence_opened(kg_model *model);
void kg_model_sequence_closed(kg_model *model);

/* While a step runs, its progress callback may look but not touch: everything that changes a sequence or starts a step
 * fails with KG_ERR_ARGUMENT, and nothing may be freed. */
bool kg_model_is_stepping(const kg_model *model);
void kg_model_set_stepping(kg_model *model, bool stepping);
int kg_model_check_idle(const kg_model *model, kg_error *err);

#endif
