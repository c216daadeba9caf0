/* step.h - the one compute entry, in full: rows of (sequence, pending tokens, which positions want logits), prefill
 * chunks and single decode tokens mixed, cut into runs of at most kg_model_chunk rows. kg_step in kigo.h is the
 * common case. */
#ifndef KG_STEP_H
#define KG_STEP_H

#include "sequence.h"

typedef struct kg_step_item {
  kg_sequence *sequence;
  kg_buffer *all_logits; /* NULL, or takes the logits behind every evaluated position from `from` on: those of position
                            p are vocab floats from float at + (p - from) * vocab on */
  int64_t at;
  int32_t from;
  int32_t most;          /* most positions to evaluate, the first ones that are pending; 0: all of them */
} kg_step_item;

/* A value to record for every evaluated row: row i of the step (items in order) to [at + i * width). */
typedef kg_trace kg_step_trace;

/* As kg_step, with all-position logits, limits and traces. A sequence may appear once. The logits of one that has
 * reached its limit are not there yet: another step goes on with it. */
int kg_step_items(kg_model *model, const kg_step_item *items, size_t n, const kg_step_trace *traces, size_t n_traces,
                  kg_error *err);

/* What the step of these items would take, stage by stage (backend.h). It must fit one run; the tokens stay pending.
 * KG_ERR_UNSUPPORTED where the backend has no such thing. */
int kg_step_profile(kg_model *model, const kg_step_item *items, size_t n, kg_profile *out, kg_error *err);

#endif
