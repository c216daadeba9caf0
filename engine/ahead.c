#include "ahead.h"

#include <string.h>

#include "alloc.h"
#include "constraint.h"
#include "draft.h"
#include "error.h"

enum { ALONE = 64 }; /* draws without looking ahead, after somebody looked at the logits in between */

/* One look ahead: passes that several sequences share. The first one to take a row of a pass has it counted, the last
 * one to leave has those counted that nobody took anything of.
 *
 * While the caller works with the first draws the device may still be at the others: one look of a model at a time, its
 * scratch's `under_way`. Whoever wants draw `at` waits for it. A sequence that leaves, and another look, wait for all,
 * so that nothing that the passes use changes under them. Where waiting fails the draws from there on are lost: whoever
 * asks for one computes it as if nothing had been drawn, and hears what is wrong with the device. */
struct kg_passes {
  kg_model *model;
  int32_t n_refs, n, n_counted;
  int32_t n_draws, n_there; /* of each row, and how many of them are there, or will ever be if it is not under way */
  kg_drawn *drawn;          /* [rows][n_draws] */
};

static kg_passes *passes_new(kg_model *model, int32_t n_rows, int32_t n_draws)
{
  kg_passes *passes = kg_alloc(sizeof *passes);
  kg_drawn *drawn = passes ? kg_alloc_array((size_t)n_rows * (size_t)n_draws, sizeof *drawn) : NULL;
  if (!drawn) {
    kg_free(passes);
    return NULL;
  }
  *passes = (kg_passes){.model = model, .n_refs = 1, .n_draws = n_draws, .drawn = drawn};
  return passes;
}

/* Is draw `at` of all rows there, once it has been waited for? */
static bool passes_wait(kg_passes *passes, int32_t at)
{
  kg_passes **under_way = &kg_model_scratch(passes->model)->under_way;
  if (at < passes->n_there || *under_way != passes) return at < passes->n_there;
  const bool is_there = !kg_model_backend(passes->model)->wait_ahead(kg_model_executable(passes->model), at, NULL);
  if (is_there) passes->n_there = at + 1;
  if (!is_there || passes->n_there == passes->n_draws) *under_way = NULL;
  return is_there;
}

/* Then the device is not at them any more. */
static void passes_finish(kg_passes *passes) { (void)passes_wait(passes, passes->n_draws - 1); }

static void passes_unref(kg_passes *passes)
{
  if (--passes->n_refs) return;
  passes_finish(passes);
  kg_model_count_dropped(passes->model, 0, passes->n - passes->n_counted);
  kg_free(passes->drawn);
  kg_free(passes);
}

/* ---- what a sequence keeps ---- */

static const kg_drawn *next_of(const kg_future *future)
{
  return &future->passes->drawn[(size_t)future->row * (size_t)future->passes->n_draws + (size_t)future->at];
}

/* The pass over the row that draw `at` was made from: which of those of this look ahead; -1: one before it. */
static int32_t pass_of(const kg_future *future, int32_t at) { return future->evaluates_first ? at : at - 1; }

void kg_sequence_drop_ahead(kg_sequence *sequence)
{
  kg_future *future = &sequence->future;
  if (!future->passes) return;
  passes_finish(future->passes);
  const int32_t n_taken = future->at + future->is_taken;
  const int32_t n_rows = pass_of(future, future->passes->n_draws - 1) + 1, n_used = pass_of(future, n_taken - 1) + 1;
  kg_model_count_dropped(sequence->model, n_rows - (n_used > 0 ? n_used : 0), 0);
  kg_chain_free(future->chain);
  passes_unref(future->passes);
  future->chain = NULL;
  future->passes = NULL;
  kg_sequence_trim(sequence);
  if (kg_sequence_resume_point(sequence, sequence->n_evaluated) < sequence->n_evaluated) /* in the middle of its rows */
    kg_sequence_go_back(sequence, sequence->n_evaluated);
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
  if (n == 1 && future->is_taken && ids[0] == next_of(future)->id && future->at + 1 < future->passes->n_draws) {
    future->at++;
    future->is_taken = false;
  } else
    kg_sequence_drop_ahead(sequence);
}

bool kg_sequence_has_drawn(const kg_sequence *sequence, const kg_chain *chain)
{
  const kg_future *future = &sequence->future;
  return future->passes && future->chain == chain &&
         kg_sequence_draws(sequence) == (future->at ? 0 : future->n_draws);
}

/* Is it there, and good? Else nothing is drawn ahead any more. */
static bool has_next(const kg_draw_item *item)
{
  kg_sequence *sequence = item->sequence;
  const kg_future *future = &sequence->future;
  if (!kg_sequence_has_drawn(sequence, item->chain)) return false;
  if (passes_wait(future->passes, future->at) && next_of(future)->status >= 0) return true;
  kg_sequence_drop_ahead(sequence);
  return false;
}

static int32_t take(kg_sequence *sequence)
{
  kg_future *future = &sequence->future;
  const kg_drawn drawn = *next_of(future);
  if (!future->is_taken) {
    const int32_t pass = pass_of(future, future->at), n_new = kg_sequence_pos(sequence) - sequence->n_evaluated;
    const bool is_new_pass = pass >= future->passes->n_counted;
    if (is_new_pass) future->passes->n_counted = pass + 1;
    kg_model_count(sequence->model, n_new, is_new_pass);
    kg_sequence_evaluated(sequence, n_new);
    if (future->at == future->passes->n_draws - 1) {
      sequence->logits_pos = sequence->n_evaluated;
      sequence->banned_pos = -1;
    }
    future->is_taken = true;
  }
  kg_sequence_set_draws(sequence, kg_sequence_draws(sequence) + (uint64_t)drawn.status);
  return drawn.id;
}

/* ---- looking ahead ---- */

/* Sequences that look ahead together, each with one row in a pass. */
typedef struct group {
  kg_model *model;
  const kg_backend *backend;
  kg_scratch *scratch;
  const kg_draw_item *items;
  int32_t n, n_draws;
  bool evaluates_first;
} group;

int kg_run_ahead_on_host(kg_executable *exe, const kg_backend *backend, const kg_batch *batch,
                         const kg_run_ahead *ahead, int32_t n_vocab, kg_error *err)
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
      const kg_wanted *wanted = &batch->wanted[i];
      code = kg_draw_alone(&draw, (const float *)wanted->buffer->data + wanted->at, n_vocab, drawn, err);
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

/* Does this look write over the logits that are there? Else it only draws from them. */
static bool has_rows(const group *g) { return g->evaluates_first || g->n_draws > 1; }

/* Rows from position `pos` on go on with the state there, in a slot of their own: what they leave is of the last row.
 * Where there are none to come, that state itself stands for it. */
static int prepare_state(const group *g, kg_sequence *sequence, int32_t pos, kg_error *err)
{
  kg_state_pool *pool = kg_model_states(g->model);
  if (!pool) return KG_OK;
  const int32_t from = kg_snapshots_slot(&sequence->snapshots, pos);
  if (pos && from == KG_NONE) return kg_fail(err, KG_ERR_UNSUPPORTED, "no state of position %d", pos);
  if (!has_rows(g)) {
    kg_states_ref(pool, from);
    sequence->future.state = from;
    return KG_OK;
  }
  const int status = kg_states_take(pool, &sequence->future.state, err);
  return status ? status : g->backend->state_copy(kg_model_executable(g->model), sequence->future.state, from, err);
}

static int prepare_row(group *g, int32_t i, kg_draw *draw, kg_error *err)
{
  kg_sequence *sequence = g->items[i].sequence;
  const int32_t pos = kg_sequence_pos(sequence);
  if (!kg_grow((void **)&sequence->tokens.ids, &sequence->tokens.capacity, (size_t)pos + (size_t)g->n_draws,
               sizeof *sequence->tokens.ids)) /* room behind the timeline for what the host draws */
    return kg_fail_memory(err, ((size_t)pos + (size_t)g->n_draws) * sizeof *sequence->tokens.ids, "the timeline");
  if (!kg_chain_plan_draw(g->items[i].chain, sequence, kg_model_vocab_size(g->model), draw))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "this chain draws on the host");
  int status = kg_sequence_ensure_logits(sequence, err);
  const int32_t first = g->evaluates_first ? pos - 1 : pos;
  if (!status && has_rows(g))
    status = kg_kv_reserve(kg_model_kv(g->model), &sequence->pages, first, pos + g->n_draws - 1, err);
  if (!status) status = prepare_state(g, sequence, first, err);
  if (status) return status;
  g->scratch->tokens[i] = sequence->tokens.ids[pos - 1];
  g->scratch->positions[i] = pos - 1;
  g->scratch->states[i] = (kg_state_out){1, sequence->future.state};
  g->scratch->spans[i] = (kg_span){.row = i,
                                   .n_rows = 1,
                                   .pos = pos - 1,
                                   .pages = sequence->pages.ids,
                                   .n_adapters = sequence->n_adapters,
                                   .adapters = sequence->adapters,
                                   .state = sequence->future.state,
                                   .n_states = 1,
                                   .states = &g->scratch->states[i]};
  g->scratch->wanted[i] = (kg_wanted){i, sequence->logits, 0};
  return KG_OK;
}

static void keep(const group *g, int32_t i, const kg_draw *draw, kg_passes *passes)
{
  kg_sequence *sequence = g->items[i].sequence;
  kg_future *future = &sequence->future;
  passes->n_refs++;
  future->passes = passes;
  future->row = i;
  future->chain = kg_chain_ref(g->items[i].chain);
  future->at = 0;
  future->is_taken = false;
  future->evaluates_first = g->evaluates_first;
  future->n_draws = draw->n_draws;
  if (future->state != KG_NONE)
    kg_snapshots_put_take(kg_model_states(g->model), &sequence->snapshots, kg_sequence_pos(sequence) + g->n_draws - 1,
                          future->state);
  future->state = KG_NONE;
  if (has_rows(g)) sequence->logits_pos = -1; /* the buffer is at the end of what was computed */
}

static int run_look(group *g, const kg_draw *draws, kg_passes *passes, kg_error *err)
{
  if (g->scratch->under_way) passes_finish(g->scratch->under_way);
  kg_batch batch = {.n_rows = g->n,
                    .tokens = g->scratch->tokens,
                    .positions = g->scratch->positions,
                    .n_spans = g->n,
                    .spans = g->scratch->spans,
                    .n_wanted = g->n,
                    .wanted = g->scratch->wanted};
  const kg_run_ahead ahead = {
      .n_draws = g->n_draws, .evaluates_first = g->evaluates_first, .draws = draws, .drawn = passes->drawn};
  kg_executable *exe = kg_model_executable(g->model);
  const int status = g->backend->run_ahead
                         ? g->backend->run_ahead(exe, &batch, &ahead, err)
                         : kg_run_ahead_on_host(exe, g->backend, &batch, &ahead, kg_model_vocab_size(g->model), err);
  if (status) return status;
  passes->n = g->n_draws - !g->evaluates_first;
  if (g->backend->wait_ahead)
    g->scratch->under_way = passes;
  else
    passes->n_there = g->n_draws;
  return KG_OK;
}

static int look_ahead(group *g, kg_error *err)
{
  kg_scratch *scratch = g->scratch;
  if (!kg_grow((void **)&scratch->draws, &scratch->draws_capacity, (size_t)g->n, sizeof *scratch->draws))
    return kg_fail_memory(err, (size_t)g->n * sizeof *scratch->draws, "drawing ahead");
  kg_draw *draws = scratch->draws;
  kg_passes *passes = passes_new(g->model, g->n, g->n_draws);
  if (!passes)
    return kg_fail_memory(err, (size_t)g->n * (size_t)g->n_draws * sizeof *passes->drawn, "drawing ahead");
  int status = KG_OK;
  for (int32_t i = 0; i < g->n && !status; i++) status = prepare_row(g, i, &draws[i], err);
  const bool is_run = !status;
  kg_model_set_stepping(g->model, true);
  if (!status) status = run_look(g, draws, passes, err);
  kg_model_set_stepping(g->model, false);
  for (int32_t i = 0; i < g->n; i++) {
    kg_sequence *sequence = g->items[i].sequence;
    if (!status)
      keep(g, i, &draws[i], passes);
    else {
      kg_states_drop(kg_model_states(g->model), sequence->future.state);
      sequence->future.state = KG_NONE;
      kg_sequence_trim(sequence);
      if (is_run && has_rows(g)) sequence->logits_pos = -1; /* may have been written to */
    }
  }
  passes_unref(passes);
  return status;
}

/* ---- the draw ---- */

static int check_items(kg_model *model, const kg_draw_item *items, size_t n, kg_error *err)
{
  const int64_t serial = ++kg_model_scratch(model)->serial;
  for (size_t i = 0; i < n; i++) {
    kg_sequence *sequence = items[i].sequence;
    if (sequence->model != model)
      return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the draw belongs to another model", i);
    if (sequence->step.serial == serial)
      return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the draw is in it twice", i);
    if (!kg_sequence_pos(sequence))
      return kg_fail(err, KG_ERR_ARGUMENT, "an empty sequence has no logits: feed it a token first");
    sequence->step.serial = serial;
  }
  return KG_OK;
}

/* The items for which nothing was drawn ahead, into the scratch. */
static int find_missing(kg_model *model, const kg_draw_item *items, size_t n, size_t *n_missing, kg_error *err)
{
  kg_scratch *scratch = kg_model_scratch(model);
  *n_missing = 0;
  if (!kg_grow(&scratch->missing, &scratch->missing_capacity, n, sizeof *items))
    return kg_fail_memory(err, n * sizeof *items, "the draw");
  kg_draw_item *missing = scratch->missing;
  for (size_t i = 0; i < n; i++)
    if (!has_next(&items[i])) missing[(*n_missing)++] = items[i];
  return KG_OK;
}

/* Draws that fit everybody's context when the last one is not fed back, and after which those that need none now will
 * need some too: then all share their passes again. A draft says already what may come next. */
static int32_t limit_draws(kg_model *model, const kg_draw_item *items, size_t n, int32_t ahead)
{
  for (size_t i = 0; i < n; i++) {
    kg_sequence *sequence = items[i].sequence;
    kg_future *future = &sequence->future;
    if (future->n_alone) {
      future->n_alone--;
      ahead = 1;
    }
    const int32_t room = has_next(&items[i]) ? future->passes->n_draws - future->at
                                             : kg_model_context(model) - kg_sequence_pos(sequence) + 1;
    if (room < ahead) ahead = room;
    if (kg_draft_is_open(sequence) || kg_sequence_is_constrained(sequence)) ahead = 1;
    /* Rows drawn ahead leave a state at their end alone: it shall be at the end of a page too, for the prefix cache. */
    const int32_t to_page = KG_PAGE - kg_sequence_pos(sequence) % KG_PAGE + 1;
    if (n == 1 && kg_model_states(model) && to_page < ahead) ahead = to_page;
  }
  return ahead;
}

/* A step of what is missing and of others. */
static int step_with(kg_model *model, const kg_draw_item *missing, size_t n_missing, const kg_step_item *steps,
                     size_t n_steps, kg_error *err)
{
  kg_scratch *scratch = kg_model_scratch(model);
  if (!kg_grow(&scratch->items, &scratch->items_capacity, n_missing + n_steps, sizeof *steps))
    return kg_fail_memory(err, (n_missing + n_steps) * sizeof *steps, "the step");
  kg_step_item *all = scratch->items;
  for (size_t i = 0; i < n_missing; i++) all[i] = (kg_step_item){.sequence = missing[i].sequence};
  if (n_steps) memcpy(all + n_missing, steps, n_steps * sizeof *steps);
  return kg_step_items(model, all, n_missing + n_steps, NULL, 0, err);
}

/* Leave out those whose chains draw on the host, and those who draw from logits that are there: nothing can be computed
 * behind them (kg_sequence_is_released), or somebody may have written to them, and looking further writes over them. */
static size_t keep_able(kg_draw_item *items, size_t n, int32_t ahead)
{
  size_t n_kept = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_sequence *sequence = items[i].sequence;
    if (!kg_chain_is_plain(items[i].chain)) continue;
    if (kg_sequence_is_released(sequence) || (ahead > 1 && !kg_sequence_pending(sequence))) continue;
    items[n_kept++] = items[i];
  }
  return n_kept;
}

/* Look ahead for these, for which nothing was. */
static int look_in_groups(kg_model *model, const kg_draw_item *items, size_t n, int32_t ahead, kg_error *err)
{
  group g = {.model = model,
             .backend = kg_model_backend(model),
             .scratch = kg_model_scratch(model),
             .n_draws = ahead,
             .evaluates_first = true};
  for (size_t i = 0; i < n; i++)
    if (kg_sequence_pos(items[i].sequence) - items[i].sequence->n_evaluated != 1 ||
        kg_sequence_pending(items[i].sequence) != 1 || kg_draft_is_open(items[i].sequence))
      g.evaluates_first = false;
  int status = g.evaluates_first ? KG_OK : step_with(model, items, n, NULL, 0, err);
  size_t most = (size_t)kg_model_chunk(model);
  if (g.backend->run_ahead && most > KG_AHEAD_ROWS) most = KG_AHEAD_ROWS;
  for (size_t i = 0; i < n && !status; i += most) {
    g.items = items + i;
    g.n = (int32_t)(n - i < most ? n - i : most);
    status = look_ahead(&g, err);
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
static int draw_each(const kg_draw_item *items, size_t n, int32_t *ids, kg_error *err)
{
  int status = KG_OK;
  size_t i = 0;
  for (; i < n && !status; i++) {
    kg_sequence *sequence = items[i].sequence;
    if (has_next(&items[i])) continue;
    const uint64_t n_draws = kg_sequence_draws(sequence);
    status = pick(sequence, items[i].chain, &ids[i], err);
    sequence->step.row = (int64_t)(kg_sequence_draws(sequence) - n_draws);
  }
  for (size_t j = 0; j < n; j++) {
    kg_sequence *sequence = items[j].sequence;
    if (!status && has_next(&items[j]))
      ids[j] = take(sequence);
    else if (status && j < i && !has_next(&items[j]))
      kg_sequence_set_draws(sequence, kg_sequence_draws(sequence) - (uint64_t)sequence->step.row);
  }
  return status;
}

/* Does somebody want to see what comes between two draws, or might rows come out otherwise that were computed between
 * two states when they are computed again? */
static bool is_watched(const kg_draw_item *items, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    const kg_sequence *sequence = items[i].sequence;
    if (sequence->hooks || kg_sequence_is_constrained(sequence)) return true;
    if (sequence->is_private && kg_model_states(sequence->model)) return true;
  }
  return false;
}

/* Have ids drawn ahead where that is possible. */
static int look(kg_model *model, const kg_draw_item *items, size_t n, int32_t ahead, size_t *n_missing, kg_error *err)
{
  kg_draw_item *missing = kg_model_scratch(model)->missing;
  const size_t n_ahead = keep_able(missing, *n_missing, ahead);
  const int status = n_ahead ? look_in_groups(model, missing, n_ahead, ahead, err) : KG_OK;
  if (status && !is_lack(status)) return status;
  return find_missing(model, items, n, n_missing, err);
}

int kg_draw_items(kg_model *model, const kg_draw_item *items, size_t n, int32_t ahead, const kg_step_item *steps,
                  size_t n_steps, int32_t *ids, kg_error *err)
{
  size_t n_missing;
  int status = kg_model_check_idle(model, err);
  if (!status && !kg_plan_has_head(kg_model_plan(model)))
    status = kg_fail(err, KG_ERR_UNSUPPORTED,
                     "the model has no head: it makes embeddings, nothing can be drawn from it");
  if (!status) status = check_items(model, items, n, err);
  if (!status) status = find_missing(model, items, n, &n_missing, err);
  if (status) return status;
  kg_draw_item *missing = kg_model_scratch(model)->missing;
  ahead = limit_draws(model, items, n, ahead);
  for (size_t i = 0; i < n_missing; i++) kg_sequence_drop_ahead(missing[i].sequence);
  const bool is_device = kg_model_backend(model)->run_ahead != NULL; /* all rows of one draw at once */
  if (n_missing && (ahead > 1 || is_device) && !is_watched(missing, n_missing)) {
    if (n_steps) status = kg_step_items(model, steps, n_steps, NULL, 0, err);
    n_steps = 0;
    if (!status) status = look(model, items, n, ahead, &n_missing, err);
  }
  if (!status && n_missing + n_steps) status = step_with(model, missing, n_missing, steps, n_steps, err);
  return status ? status : draw_each(items, n, ids, err);
}
