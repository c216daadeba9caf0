#include "sequence.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "ahead.h"
#include "alloc.h"
#include "checksum.h"
#include "companion.h"
#include "constraint.h"
#include "draft.h"
#include "error.h"
#include "hook.h"
#include "random.h"
#include "step.h"

/* ---- families ---- */

/* Of single thread, as all that belongs to a model; it may outlive that. */
struct kg_family {
  int32_t n_refs;
  int32_t *marked; /* [n_marks] positions of the marks that are there */
  size_t n_marks, capacity;
  int64_t n_unmarked; /* marks that are gone */
};

static void family_unref(kg_family *family)
{
  if (!family || --family->n_refs) return;
  kg_free(family->marked);
  kg_free(family);
}

static bool family_mark(kg_family *family, int32_t pos)
{
  if (!kg_grow((void **)&family->marked, &family->capacity, family->n_marks + 1, sizeof *family->marked)) return false;
  family->marked[family->n_marks++] = pos;
  family->n_refs++;
  return true;
}

static void family_unmark(kg_family *family, int32_t pos)
{
  size_t i = 0;
  while (family->marked[i] != pos) i++;
  family->marked[i] = family->marked[--family->n_marks];
  family->n_unmarked++;
  family_unref(family);
}

/* A sequence without tokens and pages, of a new family unless it is a fork. */
static int create(kg_model *model, uint64_t seed, kg_family *family, kg_sequence **out, kg_error *err)
{
  kg_sequence *sequence = kg_alloc_array(1, sizeof *sequence);
  if (!family && sequence) family = kg_alloc_array(1, sizeof *family);
  if (!family || !sequence) {
    kg_free(sequence);
    return kg_fail_memory(err, sizeof *sequence, "a sequence");
  }
  family->n_refs++;
  sequence->family = family;
  sequence->model = model;
  sequence->seed = seed;
  sequence->logits_pos = sequence->banned_pos = -1;
  sequence->is_apart = kg_plan_is_bidirectional(kg_model_plan(model)); /* no row depends on a prefix alone */
  sequence->rows_serial = kg_model_next_serial(model);
  sequence->future.state = KG_NONE;
  sequence->snapshots_free = INT32_MAX;
  kg_model_sequence_opened(model);
  *out = sequence;
  return KG_OK;
}

int kg_sequence_new(kg_model *model, uint64_t seed, kg_sequence **out, kg_error *err)
{
  const int status = kg_model_check_idle(model, err);
  return status ? status : create(model, seed, NULL, out, err);
}

void kg_sequence_free(kg_sequence *sequence)
{
  if (!sequence) return;
  kg_sequence_drop_ahead(sequence);
  kg_sequence_drop_hooks(sequence);
  for (int32_t i = 0; i < sequence->n_adapters; i++) kg_adapter_unref(sequence->adapters[i].adapter);
  kg_companions_free(sequence->companions);
  kg_draft_deinit(sequence);
  kg_kv_release(kg_model_kv(sequence->model), &sequence->pages);
  kg_snapshots_cut(kg_model_states(sequence->model), &sequence->snapshots, 0);
  kg_buffer_unref(sequence->logits);
  kg_free(sequence->tokens.ids);
  kg_model_sequence_closed(sequence->model);
  family_unref(sequence->family);
  kg_free(sequence);
}

/* ---- the timeline ---- */

static bool grow_tokens(kg_tokens *tokens, size_t n)
{
  return kg_grow((void **)&tokens->ids, &tokens->capacity, n, sizeof *tokens->ids);
}

int kg_sequence_feed(kg_sequence *sequence, const int32_t *ids, size_t n, kg_error *err)
{
  const int32_t vocab = kg_plan_token_count(kg_model_plan(sequence->model));
  const size_t limit = (size_t)kg_model_context(sequence->model), there = sequence->tokens.n;
  int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  for (size_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      return kg_fail(err, KG_ERR_ARGUMENT, "token %zu of %zu: id %d is outside the vocabulary's 0 to %d", i + 1, n,
                     ids[i], vocab - 1);
  if (n > limit - there)
    return kg_fail(err, KG_ERR_FULL, "the context of %zu tokens is full: %zu are there, %zu more do not fit; a larger "
                   "ctx makes room", limit, there, n);
  if (!grow_tokens(&sequence->tokens, there + n)) return kg_fail_memory(err, (there + n) * sizeof *ids, "the timeline");
  if (!n) return KG_OK;
  status = kg_companions_feed(sequence->companions, (int32_t)there, ids, n, err);
  if (status) return status;
  kg_sequence_follow(sequence, ids, n);
  memcpy(sequence->tokens.ids + there, ids, n * sizeof *ids);
  sequence->tokens.n += n;
  kg_draft_follow(sequence, n);
  return KG_OK;
}

/* A number that tells timelines apart by their first n tokens. */
static uint64_t hash_tokens(const kg_sequence *sequence, int32_t n)
{
  kg_checksum sum;
  kg_checksum_begin(&sum);
  if (n) kg_checksum_add(&sum, sequence->tokens.ids, (size_t)n * sizeof *sequence->tokens.ids);
  return kg_checksum_end(&sum);
}

/* Back to `pos`; the companions are left to the caller. */
static void shorten(kg_sequence *sequence, int32_t pos)
{
  kg_sequence_drop_ahead(sequence);
  kg_draft_drop(sequence);
  sequence->tokens.n = (size_t)pos;
  kg_sequence_go_back(sequence, pos);
  if (sequence->n_made > pos) sequence->n_made = pos;
  if (sequence->is_private && sequence->snapshots_free > pos) sequence->snapshots_free = pos;
  kg_hooks_go_back(sequence, pos);
  for (int i = 0; i < 2; i++)
    if (sequence->prompt[i] > pos) sequence->prompt[i] = pos;
  sequence->is_in_prompt = false;
  sequence->logits_pos = sequence->banned_pos = -1; /* of another token, or a sampler may have written to them */
  sequence->n_draws = 0;
}

int kg_sequence_rewind(kg_sequence *sequence, int32_t pos, kg_error *err)
{
  const int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  if (pos < 0 || pos > kg_sequence_pos(sequence))
    return kg_fail(err, KG_ERR_ARGUMENT, "position %d is outside 0 to %d", pos, kg_sequence_pos(sequence));
  shorten(sequence, pos);
  kg_companions_rewind(&sequence->companions, pos);
  return KG_OK;
}

int kg_sequence_mark(const kg_sequence *sequence, kg_mark **out, kg_error *err)
{
  const int32_t pos = kg_sequence_pos(sequence);
  kg_mark *mark = kg_alloc(sizeof *mark);
  if (!mark || !family_mark(sequence->family, pos)) {
    kg_free(mark);
    return kg_fail_memory(err, sizeof *mark, "a mark");
  }
  *mark = (kg_mark){.model = sequence->model,
                    .family = sequence->family,
                    .pos = pos,
                    .hash = hash_tokens(sequence, pos),
                    .n_draws = kg_sequence_draws(sequence),
                    .states = kg_states_hold(kg_model_states(sequence->model)),
                    .rows_serial = sequence->rows_serial,
                    .epoch = sequence->pages.epoch};
  kg_snapshots_share(mark->states, &sequence->snapshots, sequence->n_evaluated, &mark->snapshots);
  const int status = kg_companions_copy(sequence->companions, &mark->companions, err);
  if (status)
    kg_mark_free(mark);
  else
    *out = mark;
  return status;
}

void kg_mark_free(kg_mark *mark)
{
  if (!mark) return;
  kg_companions_free(mark->companions);
  kg_snapshots_cut(mark->states, &mark->snapshots, 0);
  kg_states_free(mark->states);
  family_unmark(mark->family, mark->pos);
  kg_free(mark);
}

int kg_sequence_rewind_to(kg_sequence *sequence, const kg_mark *mark, kg_error *err)
{
  int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  if (mark->model != sequence->model || mark->family != sequence->family)
    return kg_fail(err, KG_ERR_ARGUMENT, "the mark at %d is of another sequence", mark->pos);
  if (mark->pos > kg_sequence_pos(sequence) || mark->hash != hash_tokens(sequence, mark->pos))
    return kg_fail(err, KG_ERR_ARGUMENT, "the mark at %d is not of this timeline any more: its tokens differ",
                   mark->pos);
  kg_companion *companions;
  status = kg_companions_copy(mark->companions, &companions, err); /* the mark stays good for another time */
  if (status) return status;
  const bool is_same = mark->rows_serial == sequence->rows_serial && mark->epoch == sequence->pages.epoch;
  if (is_same && !sequence->is_private) /* the mark's rows are those that are there */
    kg_snapshots_share(mark->states, &mark->snapshots, sequence->n_evaluated, &sequence->snapshots);
  shorten(sequence, mark->pos);
  kg_sequence_set_draws(sequence, mark->n_draws);
  kg_companions_restore_take(&sequence->companions, companions);
  return KG_OK;
}

int kg_sequence_ensure_logits(kg_sequence *sequence, kg_error *err)
{
  if (sequence->logits) return KG_OK;
  kg_model *model = sequence->model;
  const int64_t n = kg_model_vocab_size(model);
  return kg_model_backend(model)->buffer_new(kg_model_executable(model), n, &sequence->logits, err);
}

static bool logits_are_current(const kg_sequence *sequence)
{
  return sequence->logits_pos == kg_sequence_pos(sequence);
}

static int copy_logits(kg_sequence *to, const kg_sequence *from, kg_error *err)
{
  kg_model *model = to->model;
  const int64_t n = kg_model_vocab_size(model);
  int status = kg_model_backend(model)->buffer_new(kg_model_executable(model), n, &to->logits, err);
  if (status) return status;
  if (logits_are_current(from))
    status = to->logits->ops->copy(to->logits, 0, from->logits, 0, n, err);
  else
    status = kg_draft_copy_logits(from, to->logits, err);
  if (status) return status;
  to->logits_pos = kg_sequence_pos(to);
  if (logits_are_current(from)) to->banned_pos = from->banned_pos;
  return status;
}

int kg_sequence_fork(const kg_sequence *sequence, uint64_t seed, kg_sequence **out, kg_error *err)
{
  kg_model *model = sequence->model;
  kg_sequence *fork = NULL;
  int status = kg_model_check_idle(model, err);
  if (!status) status = create(model, seed, sequence->family, &fork, err);
  if (status) return status;
  const size_t n = sequence->tokens.n;
  if (!grow_tokens(&fork->tokens, n)) {
    status = kg_fail_memory(err, n * sizeof *fork->tokens.ids, "the timeline");
    goto fail;
  }
  if (n) memcpy(fork->tokens.ids, sequence->tokens.ids, n * sizeof *fork->tokens.ids);
  fork->tokens.n = n;
  status = kg_kv_share(kg_model_kv(model), &sequence->pages, sequence->n_evaluated, &fork->pages, err);
  if (status) goto fail;
  kg_snapshots_share(kg_model_states(model), &sequence->snapshots, sequence->n_evaluated, &fork->snapshots);
  fork->rows_serial = sequence->rows_serial;
  fork->snapshots_free = sequence->snapshots_free;
  fork->is_private = sequence->is_private;
  fork->n_evaluated = sequence->n_evaluated;
  fork->n_made = sequence->n_made;
  fork->n_public = sequence->n_public;
  memcpy(fork->prompt, sequence->prompt, sizeof fork->prompt);
  fork->is_apart = sequence->is_apart;
  /* What was drawn ahead stays with the other one; there may be no state in the middle of it. */
  kg_sequence_go_back(fork, fork->n_evaluated);
  for (; fork->n_adapters < sequence->n_adapters; fork->n_adapters++) {
    fork->adapters[fork->n_adapters] = sequence->adapters[fork->n_adapters];
    kg_adapter_ref(fork->adapters[fork->n_adapters].adapter);
  }
  if (logits_are_current(sequence) || kg_draft_holds_logits(sequence)) status = copy_logits(fork, sequence, err);
  if (!status) status = kg_companions_copy(sequence->companions, &fork->companions, err);
  if (status) goto fail;
  if (seed == sequence->seed) kg_sequence_set_draws(fork, kg_sequence_draws(sequence)); /* the same future */
  *out = fork;
  return KG_OK;
fail:
  kg_sequence_free(fork);
  return status;
}

/* ---- evaluation ---- */

int32_t kg_sequence_pending(const kg_sequence *sequence)
{
  const int32_t n = kg_sequence_pos(sequence);
  if (!n || logits_are_current(sequence) || kg_draft_holds_logits(sequence)) return 0;
  return n - kg_sequence_resume_point(sequence, n - 1);
}

/* The last position up to `pos` to go on from with the state there. Rows that may come out otherwise are computed again
 * from regular positions on, so that it is no matter how they were cut. */
static int32_t state_before(const kg_sequence *sequence, int32_t pos)
{
  const kg_snapshots *snapshots = &sequence->snapshots;
  const bool goes_on = pos == sequence->n_evaluated && kg_snapshots_slot(snapshots, pos) != KG_NONE;
  return goes_on ? pos : kg_snapshots_before(snapshots, pos, sequence->snapshots_free);
}

int32_t kg_sequence_resume_point(const kg_sequence *sequence, int32_t pos)
{
  if (kg_plan_is_bidirectional(kg_model_plan(sequence->model))) return 0; /* each row depends on all */
  if (pos > sequence->n_evaluated) pos = sequence->n_evaluated;
  for (int32_t before = -1; before != pos;) { /* of pages and of states, each may send the other further back */
    before = pos;
    pos = kg_kv_resume_point(kg_model_kv(sequence->model), &sequence->pages, pos);
    if (kg_model_states(sequence->model)) pos = state_before(sequence, pos);
  }
  return pos;
}

void kg_sequence_go_back(kg_sequence *sequence, int32_t pos)
{
  const int32_t to = kg_sequence_resume_point(sequence, pos);
  sequence->n_evaluated = to;
  if (sequence->n_public > to) sequence->n_public = to;
  kg_kv_truncate(kg_model_kv(sequence->model), &sequence->pages, to);
  kg_snapshots_cut(kg_model_states(sequence->model), &sequence->snapshots, to);
}

bool kg_sequence_is_released(const kg_sequence *sequence)
{
  return logits_are_current(sequence) &&
         kg_sequence_resume_point(sequence, kg_sequence_pos(sequence)) < kg_sequence_pos(sequence);
}

static void forget_rows(kg_sequence *sequence)
{
  sequence->n_evaluated = sequence->n_made = sequence->n_public = 0;
  kg_sequence_trim(sequence);
}

int kg_sequence_release(kg_sequence *sequence, kg_error *err)
{
  int status = kg_model_check_idle(sequence->model, err);
  if (!status) status = kg_draft_take_logits(sequence, err);
  if (status || sequence->is_private) return status;
  kg_sequence_drop_ahead(sequence);
  kg_draft_drop(sequence);
  forget_rows(sequence);
  return KG_OK;
}

/* ---- adapters ---- */

static int32_t find_adapter(const kg_sequence *sequence, const kg_adapter *adapter)
{
  int32_t i = 0;
  while (i < sequence->n_adapters && sequence->adapters[i].adapter != adapter) i++;
  return i;
}

float kg_sequence_scale_of(const kg_sequence *sequence, const kg_adapter *adapter)
{
  const int32_t i = find_adapter(sequence, adapter);
  return i < sequence->n_adapters ? sequence->adapters[i].scale : 0;
}

static void set_scale(kg_sequence *sequence, kg_adapter *adapter, float scale)
{
  const int32_t i = find_adapter(sequence, adapter);
  kg_adapted *at = &sequence->adapters[i];
  if (scale != 0) {
    if (i == sequence->n_adapters) {
      kg_adapter_ref(adapter);
      sequence->n_adapters++;
    }
    *at = (kg_adapted){adapter, scale};
    return;
  }
  sequence->n_adapters--;
  memmove(at, at + 1, (size_t)(sequence->n_adapters - i) * sizeof *at);
  kg_adapter_unref(adapter);
}

int kg_sequence_adapt(kg_sequence *sequence, kg_adapter *adapter, float scale, kg_error *err)
{
  const int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  if (kg_adapter_plan(adapter) != kg_model_plan(sequence->model))
    return kg_fail(err, KG_ERR_ARGUMENT, "%s: was opened for another model", kg_adapter_path(adapter));
  if (!isfinite(scale)) return kg_fail(err, KG_ERR_ARGUMENT, "scale: %g is no finite number", (double)scale);
  if (scale == kg_sequence_scale_of(sequence, adapter)) return KG_OK;
  if (find_adapter(sequence, adapter) == KG_ADAPTERS_MAX)
    return kg_fail(err, KG_ERR_ARGUMENT, "a sequence has at most %d adapters", KG_ADAPTERS_MAX);
  if (sequence->is_private && sequence->n_evaluated)
    return kg_fail(err, KG_ERR_UNSUPPORTED,
                   "tokens that were evaluated under hooks or elsewhere cannot be evaluated again under an adapter");
  kg_sequence_drop_ahead(sequence);
  kg_draft_drop(sequence);
  forget_rows(sequence);
  sequence->logits_pos = sequence->banned_pos = -1;
  sequence->rows_serial = kg_model_next_serial(sequence->model);
  set_scale(sequence, adapter, scale);
  return KG_OK;
}

void kg_sequence_trim(kg_sequence *sequence)
{
  const kg_draft *draft = &sequence->draft;
  const int32_t n_drafted = draft->n_rows > draft->at ? draft->n_rows - draft->at : 0;
  const int32_t end = sequence->n_evaluated + n_drafted;
  kg_kv_truncate(kg_model_kv(sequence->model), &sequence->pages, end);
  kg_snapshots_cut(kg_model_states(sequence->model), &sequence->snapshots, end);
}

/* Are the sequence's rows what its ids make of them under its adapters, and those to come? */
static bool takes_part(kg_sequence *sequence)
{
  enum { DIGEST = (KG_SHA256_HEX - 1) / sizeof(int32_t), WORDS = DIGEST + 1 };
  int32_t words[KG_ADAPTERS_MAX * WORDS];
  if (sequence->is_private || sequence->is_apart || sequence->n_public != sequence->n_evaluated) return false;
  for (int32_t i = 0; i < sequence->n_adapters; i++) {
    const kg_adapted *adapted = &sequence->adapters[i];
    memcpy(words + i * WORDS, kg_adapter_digest(adapted->adapter), DIGEST * sizeof *words);
    memcpy(words + i * WORDS + DIGEST, &adapted->scale, sizeof adapted->scale);
  }
  return kg_kv_originate(kg_model_kv(sequence->model), &sequence->pages, words, (size_t)sequence->n_adapters * WORDS);
}

/* Rows [from, n_evaluated) came together. */
static void follow_prompt(kg_sequence *sequence, int32_t from)
{
  const bool is_prompt = sequence->n_evaluated - from > 1;
  if (is_prompt && !sequence->is_in_prompt) sequence->prompt[0] = from;
  if (is_prompt) sequence->prompt[1] = sequence->n_evaluated;
  sequence->is_in_prompt = is_prompt;
}

/* Let go of what no row to come sees, but for the places to come back to. */
static void forget_unseen(kg_sequence *sequence)
{
  const kg_family *family = sequence->family;
  const int32_t end = sequence->n_evaluated;
  const kg_kv_wanted wanted = {.from = end > KG_KV_SLACK ? end - KG_KV_SLACK : 0,
                               .points = {sequence->prompt, family->marked},
                               .n_points = {2, family->n_marks}};
  const bool is_less = sequence->is_in_prompt || sequence->n_unmarked != family->n_unmarked;
  if (sequence->is_private) return;
  sequence->n_unmarked = family->n_unmarked;
  kg_kv_forget_unseen(kg_model_kv(sequence->model), &sequence->pages, &wanted, is_less);
}

void kg_sequence_evaluated(kg_sequence *sequence, int32_t n_tokens)
{
  const bool is_public = takes_part(sequence);
  const int32_t from = sequence->n_evaluated;
  sequence->n_evaluated += n_tokens;
  if (sequence->n_made < sequence->n_evaluated) sequence->n_made = sequence->n_evaluated;
  sequence->n_tokens_evaluated += n_tokens;
  if (is_public) {
    sequence->n_public = sequence->n_evaluated;
    kg_kv_publish(kg_model_kv(sequence->model), &sequence->pages, &sequence->snapshots, sequence->tokens.ids,
                  sequence->n_public);
  }
  follow_prompt(sequence, from);
  forget_unseen(sequence);
  kg_snapshots_thin(kg_model_states(sequence->model), &sequence->snapshots, kg_sequence_pos(sequence),
                    sequence->snapshots_free);
}

/* The state that comes with rows [from, end) which were found. */
static void find_state(kg_sequence *sequence, int32_t from, int32_t end)
{
  kg_state_pool *pool = kg_model_states(sequence->model);
  if (!pool || end == from) return;
  const int32_t slot = kg_kv_state(kg_model_kv(sequence->model), &sequence->pages, end);
  kg_states_ref(pool, slot);
  kg_snapshots_put_take(pool, &sequence->snapshots, end, slot);
}

void kg_sequence_reuse(kg_sequence *sequence)
{
  const int32_t n = kg_sequence_pos(sequence), before = sequence->n_evaluated;
  if (!takes_part(sequence) || n - before < 2) return;
  int32_t n_known;
  const int32_t end =
      kg_kv_reuse(kg_model_kv(sequence->model), &sequence->pages, sequence->tokens.ids, before, n, &n_known);
  const int32_t n_reused = end - before;
  if (n_known > end) { /* others go other ways from there, and there may be more of them */
    sequence->prompt[0] = n_known;
    sequence->is_in_prompt = true;
  }
  sequence->n_evaluated = sequence->n_public = end;
  if (sequence->n_made < end) sequence->n_made = end;
  find_state(sequence, before, end);
  sequence->n_tokens_reused += n_reused;
  kg_model_count_reused(sequence->model, n_reused);
}

void kg_sequence_stay_apart(kg_sequence *sequence)
{
  sequence->is_apart = true;
}

int kg_sequence_evaluate(kg_sequence *sequence, kg_error *err)
{
  if (!sequence->tokens.n)
    return kg_fail(err, KG_ERR_ARGUMENT, "an empty sequence has no logits: feed it a token first");
  const bool is_there = !kg_sequence_pending(sequence);
  const int status = is_there ? kg_draft_take_logits(sequence, err) : kg_step(sequence->model, &sequence, 1, err);
  return status ? status : kg_sequence_ban(sequence, err);
}

int kg_sequence_logits(kg_sequence *sequence, kg_tensor **out, kg_error *err)
{
  const int64_t shape[1] = {kg_model_vocab_size(sequence->model)};
  const int status = kg_sequence_evaluate(sequence, err);
  return status ? status : kg_tensor_view(sequence->logits, 0, 1, shape, out, err);
}

int kg_sequence_draw(kg_sequence *sequence, kg_chain *chain, int32_t ahead, int32_t *id, kg_error *err)
{
  const kg_draw_item item = {sequence, chain};
  return kg_draw_items(sequence->model, &item, 1, ahead, NULL, 0, id, err);
}

/* ---- questions ---- */

int32_t kg_sequence_pos(const kg_sequence *sequence)
{
  return (int32_t)sequence->tokens.n;
}

const int32_t *kg_sequence_tokens(const kg_sequence *sequence)
{
  return sequence->tokens.ids;
}

uint64_t kg_sequence_seed(const kg_sequence *sequence)
{
  return sequence->seed;
}

int32_t kg_sequence_common(const kg_sequence *sequence, const kg_sequence *other)
{
  const size_t n = sequence->tokens.n < other->tokens.n ? sequence->tokens.n : other->tokens.n;
  size_t i = 0;
  while (i < n && sequence->tokens.ids[i] == other->tokens.ids[i]) i++;
  return (int32_t)i;
}

kg_model *kg_sequence_model(const kg_sequence *sequence)
{
  return sequence->model;
}

/* ---- random numbers ---- */

uint64_t kg_sequence_draws(const kg_sequence *sequence)
{
  return sequence->draw_pos == kg_sequence_pos(sequence) ? sequence->n_draws : 0;
}

void kg_sequence_set_draws(kg_sequence *sequence, uint64_t n_draws)
{
  sequence->draw_pos = kg_sequence_pos(sequence);
  sequence->n_draws = n_draws;
}

double kg_sequence_uniform(kg_sequence *sequence)
{
  const uint64_t draw = kg_sequence_draws(sequence);
  kg_sequence_set_draws(sequence, draw + 1);
  return kg_uniform(sequence->seed, (uint64_t)sequence->draw_pos, draw);
}
