/* ahead.h - drawing several tokens in one round trip to the device. What was drawn ahead is a guess that the caller
 * will feed each id back: a sequence keeps such ids, with their rows in its cache pages, beside its timeline. A draw of
 * the same chain takes the next one, and waits for it where the device is still at it, which goes on with those behind
 * it meanwhile (kg_backend.wait_ahead). Feeding that id goes on to the one after; anything else drops them, which is no
 * more than a shorter page table, once the device is done. So nobody can tell, but by the clock, whether ids were drawn
 * one by one or ahead:
 * - Timeline, logits, random numbers and errors are those of kg_step and kg_chain_pick, token by token.
 * - A token counts as evaluated, and its pass as a step, when the draw behind it is taken. Rows that nobody took are
 *   counted apart (kg_model_stats.n_tokens_dropped).
 * - Looking at the logits of a token in the middle computes that token again, and what comes after it. */
#ifndef KG_AHEAD_H
#define KG_AHEAD_H

#include "sampler.h"
#include "step.h"

enum { KG_AHEAD_MAX = 1024 };

typedef struct kg_draw_item {
  kg_sequence *sequence;
  kg_chain *chain;
} kg_draw_item;

/* Draw one id for each of these sequences of one model, from the logits behind their last tokens, which are computed
 * where they are missing, in shared passes; and up to `ahead` - 1 further ones each, where the device can. `steps` are
 * evaluated beside them, in the same passes where no device draws. On failure nothing was drawn, and what was evaluated
 * stays so. */
int kg_draw_items(kg_model *model, const kg_draw_item *items, size_t n, int32_t ahead, const kg_step_item *steps,
                  size_t n_steps, int32_t *ids, kg_error *err);
/* Would a draw of this chain take what was drawn ahead, and compute nothing? It may have to wait for the device; and
 * where that draw failed it is computed after all. */
bool kg_sequence_has_drawn(const kg_sequence *sequence, const kg_chain *chain);

/* ---- for sequence.c and step.c ---- */

/* Forget what was drawn ahead, because a step computes logits in the middle of it: whoever looks once will look
 * again. */
void kg_sequence_interrupt(kg_sequence *sequence);
/* Forget what was drawn ahead. */
void kg_sequence_drop_ahead(kg_sequence *sequence);
/* The caller feeds these ids: keep what was drawn ahead if they are the one that was taken last, else forget it. */
void kg_sequence_follow(kg_sequence *sequence, const int32_t *ids, size_t n);

/* ---- for backends without a device to run ahead on ---- */

/* kg_backend.run_ahead step by step, with the twin of the kernels. The batch's tokens, positions and spans, and the
 * histories, which need room behind them, go on with it. */
int kg_run_ahead_on_host(kg_executable *exe, const kg_backend *backend, const kg_batch *batch,
                         const kg_run_ahead *ahead, int32_t n_vocab, kg_error *err);

#endif
