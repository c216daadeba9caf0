/* packing.h - what backends share that pack weights. */
#ifndef KG_PACKING_H
#define KG_PACKING_H

#include "backend.h"
#include "error.h"

/* use(user, weight, as_matrix) for every place where an operation multiplies with a weight or takes its numbers. */
static inline void kg_each_weight_use(const kg_plan *plan, void (*use)(void *user, int32_t weight, bool as_matrix),
                                      void *user)
{
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    const kg_op *op = kg_plan_op(plan, i);
    const int n_matrices = kg_op_matrices(op->kind);
    for (int j = 0; j < KG_OP_WEIGHTS; j++)
      if (op->w[j] != KG_NONE) use(user, op->w[j], j < n_matrices);
  }
}

/* How far it is. */
typedef struct kg_packing_progress {
  const kg_backend_options *options;
  int64_t done, total; /* bytes of the file */
} kg_packing_progress;

/* n_bytes more are packed. KG_ERR_CANCELLED: the caller wants no more. */
static inline int kg_report_packed(kg_packing_progress *p, size_t n_bytes, kg_error *err)
{
  p->done += (int64_t)n_bytes;
  if (!p->options->progress || !p->options->progress(p->options->progress_user, "load", p->done, p->total))
    return KG_OK;
  return kg_fail(err, KG_ERR_CANCELLED, "loading was cancelled");
}

#endif
