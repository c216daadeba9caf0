/* hook.h - a look into the forward pass of one sequence, and a hand in it: while a hook is there, every step of the
 * sequence stops at the hooked values of the plan and hands their rows to the hook, which may change them. Others that
 * share the step see nothing of it, and with nothing hooked steps are as they were.
 * - A hook sees the tokens that are evaluated while it is there. Those in the cache stay as they were computed; what
 *   its edits did to them stays too when it is gone; but where a model has states, up to KG_SNAPSHOT_GAP of them are
 *   computed again when the timeline goes back (state.h), under the hooks that are there then. From its first hook on a
 *   sequence is private (is_private in sequence.h): its pages are not what its tokens alone would give.
 * - It sees each of them once per evaluation, in any number of calls: prompts are cut. Behind the plan's last
 *   attention only rows are computed whose logits somebody wants, which of a prompt is the last one; no others are
 *   shown there.
 * - Forks do not inherit hooks, but the pages that were made under them.
 * - A hooked sequence draws nothing ahead (ahead.h) and takes no draft along (draft.h). */
#ifndef KG_HOOK_H
#define KG_HOOK_H

#include "sequence.h"

/* `rows` [n_rows, width] of a value, at positions from `pos` on; the callee may keep a reference to the buffer. What
 * stands there on return goes on. It may look at sequences and models but not change them, and use tensors and
 * kg_model_unembed. On failure the sequence's part in the step is over: its tokens stay pending, and the step ends with
 * this error when the others are done. */
typedef int (*kg_hook_call)(void *user, int32_t value, int32_t pos, const kg_tensor *rows, kg_error *err);

struct kg_hook {
  kg_sequence *sequence;   /* NULL: it is gone */
  int32_t from;            /* rows before this position were made without it, and are when they are made again; but for
                              the last one of the timeline, whose logits are wanted then */
  kg_hook *next;           /* in order of creation */
  kg_hook_call call;
  void *user;
  size_t n_values;
  int32_t values[];
};

/* Hook these values (ids of the model's plan). Hooks of one value are called in order of creation. */
int kg_sequence_hook(kg_sequence *sequence, const int32_t *values, size_t n_values, kg_hook_call call, void *user,
                     kg_hook **out, kg_error *err);
/* Not in the middle of a step. The sequence may be gone already. NULL allowed. */
void kg_hook_free(kg_hook *hook);

/* For sequence.c: its hooks are hooks of nothing from now on. */
void kg_sequence_drop_hooks(kg_sequence *sequence);
void kg_hooks_go_back(kg_sequence *sequence, int32_t pos); /* other tokens may stand from there on */

#endif
