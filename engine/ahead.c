#include "ahead.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

enum { ALONE = 64 }; /* draws without looking ahead, after somebody looked at the logits in between */

/* Passes that several sequences share: the first one to take a row of a pass has it counted, the last one to leave has
 * those counted that nobody took anything of. */
struct kg_passes {
  kg_model *model;
  int32_t n_refs, n, n_counted;
};

static void passes_unref(kg_passes *passes)
{
  if (--passes->n_refs) return;
  kg_model_count_dropped(passes->model, 0, passes->n - passes->n_counted);
  kg_free(passes);
}

/* ---- what a sequence keeps ---- */

/* The pass over the row that draw `at` was made from: which of those of this look ahead; -1: one before it. */
static int32_t pass_of(const kg_future *future, int32_t at) { return future->evaluates_first ? at : at - 1; }

void kg_sequence_drop_ahead(kg_sequence *sequence)
{
  kg_future *future = &sequence->future;
  if (!future->passes) return;
  const int32_t n_taken = future->at + future->is_taken;
  const int32_t n_rows = pass_of(future, future->n_computed - 1) + 1, n_used = pass_of(future, n_taken - 1) + 1;
  kg_model_count_dropped(sequence->model, n_rows - (n_used > 0 ? n_used : 0), 0);
  kg_kv_truncate(kg_model_kv(sequence->model), &sequence->pages, sequence->n_evaluated);
  kg_chain_free(future->chain);
  passes_unref(future->passes);
  future->chain = NULL;
  future->passes = NULL;
  future->n = future->at = 0;
}

void kg_sequence_interrupt(kg_sequence *sequence)
{
  if (sequence->future.passes) sequence->future.n_alone = ALONE;
  kg_sequence_drop_ahead(sequence);
}

void kg_sequence_follow(kg_sequence *sequence, const int32_t *ids, size_t n)
{
  kg_future *future = &sequence->future;
  if (!future->passes) return;
  if (n == 1 && future->is_taken && ids[0] == future->drawn[future->at].id && future->at + 1 < future->n) {
    future->at++;
    future->is_taken = false;
  } else
    kg_sequence_drop_ahead(sequence);
}

static bool has_next(const kg_sequence *sequence, const kg_chain *chain)
{
  const kg_future *future = &sequence->future;
  return future->passes && future->at < future->n && future->chain == chain &&
         kg_sequence_draws(sequence) == (future->at ? 0 : future->n_draws);
}

static int32_t take(kg_sequence *sequence)
{
  kg_future *future = &sequence->future;
  const kg_drawn drawn = future->drawn[future->at];
  if (!future->is_taken) {
    const int32_t pass = pass_of(future, future->at), n_new = kg_sequence_pos(sequence) - sequence->n_evaluated;
    const bool is_new_pass = pass >= future->passes->n_counted;
    if (is_new_pass) future->passes->n_counted = pass + 1;
    kg_model_count(sequence->model, n_new, is_new_pass);
    sequence->n_evaluated += n_new;
    if (future->at == future->n_computed - 1) sequence->logits_pos = sequence->n_evaluated;
    future->is_taken = true;
  }
  if (drawn.status == KG_DRAWN) kg_sequence_set_draws(sequence, kg_sequence_draws(sequence) + 1);
  return drawn.id;
}

/* ---- looking ahead ---- */

/* Sequences that look ahead together, each with one row in a pass. */
typedef struct look {
  kg_model *model;
  const kg_backend *backend;
  kg_scratch *scratch;
  kg_sequence *const *sequences;
  kg_chain *chain;
  int32_t n, n_draws;
  bool evaluates_first;
} look;

/* Backends without a device to run ahead on: step by step, with the twin of the kernels. */
static int run_on_host(kg_executable *exe, const kg_backend *backend, kg_batch *batch, const kg_run_ahead *ahead,
                       int32_t n_vocab, kg_error *err)
{
  int32_t *tokens = (int32_t *)(uintptr_t)batch->tokens, *positions = (int32_t *)(uintptr_t)batch->positions;
  kg_span *spans = (kg_span *)(uintptr_t)batch->spans; /* all three are the scratch's */
  int code = KG_OK;
  for (int32_t step = 0; step < ahead->n_draws && !code; step++) {
    if (step || ahead->evaluates_first) code = backend->run(exe, batch, err);
    for (int32_t i = 0; i < batch->n_rows && !code; i++) {
      kg_drawn *drawn = &ahead->drawn[(size_t)i * (size_t)ahead->n_draws + (size_t)step];
      kg_draw draw = ahead->draws[i];
      draw.pos += step;
      draw.n_history += draw.history ? step : 0;
      if (step) draw.n_draws = 0;
      code = kg_draw_alone(&draw, (const float *)batch->wanted[i].buffer->data + batch->wanted[i].at, n_vocab, drawn, err);
      if (code) break;
      if (step && drawn[-1].status < 0) *drawn = drawn[-1];
      if (draw.history) ((int32_t *)(uintptr_t)draw.history)[draw.n_history] = drawn->id; /* prepare_row made room */
      tokens[i] = drawn->id;
      positions[i]++;
      spans[i].pos++;
    }
  }
  return code;
}

static int prepare_row(look *l, int32_t i, kg_draw *draw, kg_error *err)
{
  kg_sequence *sequence = l->sequences[i];
  const int32_t pos = kg_sequence_pos(sequence);
  if (!kg_grow((void **)&sequence->tokens.ids, &sequence->tokens.capacity, (size_t)pos + (size_t)l->n_draws,
               sizeof *sequence->tokens.ids)) /* room behind the timeline for what run_on_host draws */
    return kg_fail_memory(err, ((size_t)pos + (size_t)l->n_draws) * sizeof *sequence->tokens.ids, "the timeline");
  if (!kg_chain_plan_draw(l->chain, sequence, kg_model_vocab_size(l->model), draw))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "this chain draws on the host");
  kg_future *future = &sequence->future;
  if (!kg_grow((void **)&future->drawn, &future->capacity, (size_t)l->n_draws, sizeof *future->drawn))
    return kg_fail_memory(err, (size_t)l->n_draws * sizeof *future->drawn, "drawing ahead");
  int status = kg_sequence_ensure_logits(sequence, err);
  if (!status)
    status = kg_kv_reserve(kg_model_kv(l->model), &sequence->pages, l->evaluates_first ? pos - 1 : pos,
                           pos + l->n_draws - 1, err);
  if (status) return status;
  l->scratch->tokens[i] = sequence->tokens.ids[pos - 1];
  l->scratch->positions[i] = pos - 1;
  l->scratch->spans[i] = (kg_span){i, 1, pos - 1, sequence->pages.ids};
  l->scratch->wanted[i] = (kg_wanted){i, sequence->logits, 0};
  return KG_OK;
}

static void keep(const look *l, int32_t i, const kg_draw *draw, const kg_drawn *drawn, kg_passes *passes)
{
  kg_sequence *sequence = l->sequences[i];
  kg_future *future = &sequence->future;
  int32_t n = 0;
  while (n < l->n_draws && drawn[n].status >= 0) n++;
  memcpy(future->drawn, drawn, (size_t)l->n_draws * sizeof *drawn);
  passes->n_refs++;
  future->passes = passes;
  future->chain = kg_chain_ref(l->chain);
  future->n = n;
  future->n_computed = l->n_draws;
  future->at = 0;
  future->is_taken = false;
  future->evaluates_first = l->evaluates_first;
  future->n_draws = draw->n_draws;
  if (l->evaluates_first || l->n_draws > 1) sequence->logits_pos = -1; /* the buffer is at the end of what was computed */
  if (!n) kg_sequence_drop_ahead(sequence);
}

static int run_look(look *l, const kg_draw *draws, kg_drawn *drawn, kg_error *err)
{
  kg_batch batch = {.n_rows = l->n,
                    .tokens = l->scratch->tokens,
                    .positions = l->scratch->positions,
                    .n_spans = l->n,
                    .spans = l->scratch->spans,
                    .n_wanted = l->n,
                    .wanted = l->scratch->wanted};
  const kg_run_ahead ahead = {.n_draws = l->n_draws, .evaluates_first = l->evaluates_first, .draws = draws, .drawn = drawn};
  kg_executable *exe = kg_model_executable(l->model);
  if (l->backend->run_ahead) return l->backend->run_ahead(exe, &batch, &ahead, err);
  return run_on_host(exe, l->backend, &batch, &ahead, kg_model_vocab_size(l->model), err);
}

/* Room for the draws and the results of one look, in the scratch. */
static int reserve(look *l, kg_draw **draws, kg_drawn **drawn, kg_error *err)
{
  kg_scratch *scratch = l->scratch;
  const size_t n = (size_t)l->n, n_drawn = n * (size_t)l->n_draws;
  if (!kg_grow((void **)&scratch->draws, &scratch->draws_capacity, n, sizeof **draws) ||
      !kg_grow((void **)&scratch->drawn, &scratch->drawn_capacity, n_drawn, sizeof **drawn))
    return kg_fail_memory(err, n_drawn * sizeof **drawn, "drawing ahead");
  *draws = scratch->draws;
  *drawn = scratch->drawn;
  return KG_OK;
}

static int look_ahead(look *l, kg_error *err)
{
  kg_draw *draws = NULL;
  kg_drawn *drawn = NULL;
  int status = reserve(l, &draws, &drawn, err);
  if (status) return status;
  kg_passes *passes = kg_alloc(sizeof *passes);
  if (!passes) return kg_fail_memory(err, sizeof *passes, "drawing ahead");
  *passes = (kg_passes){.model = l->model, .n_refs = 1};
  for (int32_t i = 0; i < l->n && !status; i++) status = prepare_row(l, i, &draws[i], err);
  kg_model_set_stepping(l->model, true);
  if (!status) status = run_look(l, draws, drawn, err);
  if (!status) passes->n = l->n_draws - !l->evaluates_first;
  kg_model_set_stepping(l->model, false);
  for (int32_t i = 0; i < l->n; i++) {
    kg_sequence *sequence = l->sequences[i];
    if (!status)
      keep(l, i, &draws[i], drawn + (size_t)i * (size_t)l->n_draws, passes);
    else {
      kg_kv_truncate(kg_model_kv(l->model), &sequence->pages, sequence->n_evaluated);
      if (sequence->logits_pos == kg_sequence_pos(sequence)) sequence->logits_pos = -1; /* may have been written to */
    }
  }
  passes_unref(passes);
  return status;
}

/* ---- the draw ---- */

static int check_sequences(kg_model *model, kg_sequence *const *sequences, size_t n, kg_error *err)
{
  const int64_t serial = ++kg_model_scratch(model)->serial;
  for (size_t i = 0; i < n; i++) {
    if (sequences[i]->model != model)
      return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the draw belongs to another model", i);
    if (sequences[i]->step.serial == serial)
      return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the draw is in it twice", i);
    if (!kg_sequence_pos(sequences[i]))
      return kg_fail(err, KG_ERR_ARGUMENT, "an empty sequence has no logits: feed it a token first");
    sequences[i]->step.serial = serial;
  }
  return KG_OK;
}

/* The sequences for which nothing was drawn ahead, into the scratch. */
static int find_missing(kg_model *model, kg_sequence *const *sequences, size_t n, const kg_chain *chain, size_t *n_missing,
                        kg_error *err)
{
  kg_scratch *scratch = kg_model_scratch(model);
  *n_missing = 0;
  if (!kg_grow((void **)&scratch->missing, &scratch->missing_capacity, n, sizeof(kg_sequence *)))
    return kg_fail_memory(err, n * sizeof(kg_sequence *), "the draw");
  for (size_t i = 0; i < n; i++)
    if (!has_next(sequences[i], chain)) scratch->missing[(*n_missing)++] = sequences[i];
  return KG_OK;
}

/* Draws that fit everybody's context when the last one is not fed back, and after which those that need none now will
 * need some too: then all share their passes again. */
static int32_t limit_draws(kg_model *model, kg_sequence *const *sequences, size_t n, const kg_chain *chain, int32_t ahead)
{
  for (size_t i = 0; i < n; i++) {
    kg_future *future = &sequences[i]->future;
    if (future->n_alone) {
      future->n_alone--;
      ahead = 1;
    }
    const int32_t room = has_next(sequences[i], chain) ? future->n - future->at
                                                       : kg_model_context(model) - kg_sequence_pos(sequences[i]) + 1;
    if (room < ahead) ahead = room;
  }
  return ahead;
}

/* Look ahead for these sequences, for which nothing was. */
static int look_in_groups(kg_model *model, kg_sequence *const *sequences, size_t n, kg_chain *chain, int32_t ahead,
                          kg_error *err)
{
  look l = {.model = model, .backend = kg_model_backend(model), .scratch = kg_model_scratch(model), .chain = chain,
            .n_draws = ahead, .evaluates_first = true};
  for (size_t i = 0; i < n; i++)
    if (kg_sequence_pos(sequences[i]) - sequences[i]->n_evaluated != 1) l.evaluates_first = false;
  int status = l.evaluates_first ? KG_OK : kg_step(model, sequences, n, err);
  size_t most = (size_t)kg_model_chunk(model);
  if (l.backend->run_ahead && most > KG_AHEAD_ROWS) most = KG_AHEAD_ROWS;
  for (size_t i = 0; i < n && !status; i += most) {
    l.sequences = sequences + i;
    l.n = (int32_t)(n - i < most ? n - i : most);
    status = look_ahead(&l, err);
  }
  return status;
}

/* Where that many cannot be drawn, for want of pages or memory or of a chain that devices know, one may do. */
static bool is_lack(int status)
{
  return status == KG_ERR_FULL || status == KG_ERR_MEMORY || status == KG_ERR_UNSUPPORTED;
}

static int pick(kg_sequence *sequence, kg_chain *chain, int32_t *id, kg_error *err)
{
  kg_tensor *logits;
  int status = kg_sequence_logits(sequence, &logits, err);
  if (status) return status;
  status = kg_chain_pick(chain, logits, sequence, id, err);
  kg_tensor_free(logits);
  return status;
}

/* All or nothing: where one cannot draw, the others' random numbers are put back. */
static int draw_each(kg_sequence *const *sequences, size_t n, kg_chain *chain, int32_t *ids, kg_error *err)
{
  int status = KG_OK;
  size_t i = 0;
  for (; i < n && !status; i++) {
    if (has_next(sequences[i], chain)) continue;
    const uint64_t n_draws = kg_sequence_draws(sequences[i]);
    status = pick(sequences[i], chain, &ids[i], err);
    sequences[i]->step.row = (int64_t)(kg_sequence_draws(sequences[i]) - n_draws);
  }
  for (size_t j = 0; j < n; j++) {
    if (!status && has_next(sequences[j], chain))
      ids[j] = take(sequences[j]);
    else if (status && j < i && !has_next(sequences[j], chain))
      kg_sequence_set_draws(sequences[j], kg_sequence_draws(sequences[j]) - (uint64_t)sequences[j]->step.row);
  }
  return status;
}

int kg_draw_items(kg_model *model, kg_sequence *const *sequences, size_t n, kg_chain *chain, int32_t ahead,
                  int32_t *ids, kg_error *err)
{
  size_t n_missing;
  int status = kg_model_check_idle(model, err);
  if (!status) status = check_sequences(model, sequences, n, err);
  if (!status) status = find_missing(model, sequences, n, chain, &n_missing, err);
  if (status) return status;
  kg_sequence **missing = kg_model_scratch(model)->missing;
  ahead = limit_draws(model, sequences, n, chain, ahead);
  for (size_t i = 0; i < n_missing; i++) kg_sequence_drop_ahead(missing[i]);
  if (n_missing && (ahead > 1 || kg_model_backend(model)->run_ahead)) { /* all rows of a device draw at once */
    status = look_in_groups(model, missing, n_missing, chain, ahead, err);
    if (is_lack(status)) status = KG_OK;
    if (!status) status = find_missing(model, sequences, n, chain, &n_missing, err);
  }
  if (!status && n_missing) status = kg_step(model, missing, n_missing, err);
  return status ? status : draw_each(sequences, n, chain, ids, err);
}
