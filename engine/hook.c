#include "hook.h"

#include <string.h>

#include "ahead.h"
#include "alloc.h"
#include "draft.h"
#include "error.h"

static int check_values(const kg_plan *plan, const int32_t *values, size_t n_values, kg_error *err)
{
  if (!n_values) return kg_fail(err, KG_ERR_ARGUMENT, "a hook of no values");
  for (size_t i = 0; i < n_values; i++) {
    if (values[i] < 0 || values[i] >= kg_plan_value_count(plan))
      return kg_fail(err, KG_ERR_ARGUMENT, "there is no value %d", values[i]);
    for (size_t j = 0; j < i; j++)
      if (values[j] == values[i])
        return kg_fail(err, KG_ERR_ARGUMENT, "value %s is hooked twice", kg_plan_value(plan, values[i])->name);
  }
  return KG_OK;
}

int kg_sequence_hook(kg_sequence *sequence, const int32_t *values, size_t n_values, kg_hook_call call, void *user,
                     kg_hook **out, kg_error *err)
{
  int status = kg_model_check_idle(sequence->model, err);
  if (!status) status = check_values(kg_model_plan(sequence->model), values, n_values, err);
  if (!status) status = kg_draft_take_logits(sequence, err);
  if (status) return status;
  kg_hook *hook = kg_alloc(sizeof *hook + n_values * sizeof *values); /* different values: there are few */
  if (!hook) return kg_fail_memory(err, sizeof *hook + n_values * sizeof *values, "a hook");
  *hook = (kg_hook){
      .sequence = sequence, .from = sequence->n_made, .call = call, .user = user, .n_values = n_values};
  memcpy(hook->values, values, n_values * sizeof *values);
  kg_sequence_drop_ahead(sequence); /* both were evaluated without the hook */
  kg_draft_drop(sequence);
  kg_hook **last = &sequence->hooks;
  while (*last) last = &(*last)->next;
  *last = hook;
  if (!sequence->is_private) sequence->snapshots_free = sequence->n_made;
  sequence->is_private = true;
  *out = hook;
  return KG_OK;
}

void kg_hook_free(kg_hook *hook)
{
  if (hook && hook->sequence) {
    kg_hook **at = &hook->sequence->hooks;
    while (*at != hook) at = &(*at)->next;
    *at = hook->next;
  }
  kg_free(hook);
}

void kg_hooks_go_back(kg_sequence *sequence, int32_t pos)
{
  for (kg_hook *hook = sequence->hooks; hook; hook = hook->next)
    if (hook->from > pos) hook->from = pos;
}

void kg_sequence_drop_hooks(kg_sequence *sequence)
{
  for (kg_hook *hook = sequence->hooks; hook; hook = hook->next) hook->sequence = NULL;
  sequence->hooks = NULL;
}
