/* How a step is cut: every run takes rows in this order until it is full - sequences with one token left (decoding,
 * so that nobody waits for another's long prompt), then the others, each as many rows as fit, both in item order. The
 * numbers do not depend on it (backend.h); who is done when a step is cancelled does. A sequence's draft (draft.h)
 * comes behind its tokens, as further rows of the same span. */
#include "step.h"

#include <assert.h>

#include "ahead.h"
#include "alloc.h"
#include "draft.h"
#include "error.h"
#include "hook.h"

/* One step and the run that it is filling. */
typedef struct step {
  kg_model *model;
  const kg_backend *backend;
  kg_executable *exe;
  kg_scratch *scratch;
  const kg_step_item *items;
  size_t n_items;
  const kg_step_trace *traces;
  size_t n_traces;
  int64_t n_total, n_done; /* rows of tokens that are on timelines */
  int64_t n_left;          /* rows, drafts and all */
  kg_batch run;
  kg_error failure; /* of the first hook that failed */
} step;

/* What a tap of the run is for. */
typedef struct tapped {
  step *step;
  const kg_hook *hook;
  int32_t value;
} tapped;

/* ---- before the first run ---- */

static int check_room(const kg_buffer *buffer, int64_t at, int64_t rows, int64_t width, kg_error *err)
{
  if (at >= 0 && at <= buffer->n && rows <= (buffer->n - at) / width) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "a buffer of %lld numbers has no room for %lld rows of %lld from number %lld on",
                 (long long)buffer->n, (long long)rows, (long long)width, (long long)at);
}

static int prepare_traces(step *s, kg_error *err)
{
  kg_scratch *scratch = s->scratch;
  const kg_plan *plan = kg_model_plan(s->model);
  for (size_t i = 0; i < s->n_traces; i++) {
    const kg_step_trace *trace = &s->traces[i];
    if (trace->value < 0 || trace->value >= kg_plan_value_count(plan))
      return kg_fail(err, KG_ERR_ARGUMENT, "trace %zu: there is no value %d", i, trace->value);
    const int status = check_room(trace->buffer, trace->at, s->n_total, kg_plan_value(plan, trace->value)->width, err);
    if (status) return status;
  }
  if (kg_grow((void **)&scratch->traces, &scratch->traces_capacity, s->n_traces, sizeof *scratch->traces)) return KG_OK;
  return kg_fail_memory(err, s->n_traces * sizeof *scratch->traces, "the traces");
}

/* Where tokens look both ways a sequence is one piece: all of it stands in one run. */
static bool is_one_piece(const step *s) { return kg_plan_is_bidirectional(kg_model_plan(s->model)); }

/* Rows of the item that this step is to evaluate. */
static int32_t rows_of(const step *s, const kg_step_item *item)
{
  const int32_t pending = kg_sequence_pending(item->sequence);
  return !is_one_piece(s) && item->most && item->most < pending ? item->most : pending;
}

static bool wants_all(const kg_step_item *item, int32_t pos) { return item->all_logits && pos >= item->from; }

/* Where in item->all_logits those behind position pos go. */
static int64_t place_of(const step *s, const kg_step_item *item, int32_t pos)
{
  return item->at + (int64_t)(pos - item->from) * kg_model_vocab_size(s->model);
}

/* Find sequences that do not belong or come twice. */
static int admit(const step *s, size_t i, int64_t serial, kg_error *err)
{
  kg_sequence *sequence = s->items[i].sequence;
  if (sequence->model != s->model)
    return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the step belongs to another model", i);
  if (sequence->step.serial == serial)
    return kg_fail(err, KG_ERR_ARGUMENT, "sequence %zu of the step is in it twice", i);
  return KG_OK;
}

/* Can what the item wants of its n_rows rows, which end at `end`, be done? */
static int check_wishes(const step *s, size_t i, int32_t n_rows, int32_t end, kg_error *err)
{
  const kg_step_item *item = &s->items[i];
  if (!n_rows) return KG_OK;
  if (item->all_logits && item->all_logits->ops != item->sequence->logits->ops)
    return kg_fail(err, KG_ERR_ARGUMENT, "the rows for the logits of sequence %zu are on another device", i);
  if (is_one_piece(s) && n_rows > kg_model_chunk(s->model))
    return kg_fail(err, KG_ERR_FULL, "%d tokens that look both ways must fit one pass of %d: load with a larger chunk",
                   n_rows, kg_model_chunk(s->model));
  if (!wants_all(item, end - 1)) return KG_OK;
  return check_room(item->all_logits, item->at, end - item->from, kg_model_vocab_size(s->model), err);
}

/* Number the rows of an item and make room for what it wants. */
static int prepare_item(step *s, size_t i, int64_t serial, kg_error *err)
{
  const kg_step_item *item = &s->items[i];
  kg_sequence *sequence = item->sequence;
  if (kg_sequence_pending(sequence)) kg_sequence_interrupt(sequence); /* it computes what is asked for, here and now */
  if (kg_sequence_pending(sequence) && !item->all_logits && !s->n_traces) kg_sequence_reuse(sequence);
  const int32_t pending = kg_sequence_pending(sequence), n_rows = rows_of(s, item);
  sequence->step.serial = serial;
  sequence->step.pos = kg_sequence_pos(sequence) - pending;
  sequence->step.next = sequence->step.pos;
  sequence->step.row = s->n_total;
  sequence->step.n_rows = 0;
  sequence->step.is_over = false;
  sequence->step.end = sequence->step.pos + n_rows;
  s->n_total += n_rows;
  int status = pending ? kg_sequence_ensure_logits(sequence, err) : kg_draft_take_logits(sequence, err);
  if (!status && pending) kg_sequence_go_back(sequence, sequence->step.pos);
  if (!status) status = check_wishes(s, i, n_rows, sequence->step.end, err);
  if (pending && (n_rows < pending || item->all_logits || s->n_traces || sequence->hooks || is_one_piece(s)))
    kg_draft_drop(sequence);
  else if (pending)
    sequence->step.end += kg_draft_begin(sequence);
  s->n_left += sequence->step.end - sequence->step.pos;
  return status;
}

static int prepare(step *s, kg_error *err)
{
  const int64_t serial = ++s->scratch->serial;
  for (size_t i = 0; i < s->n_items; i++) {
    int status = admit(s, i, serial, err);
    if (!status) status = prepare_item(s, i, serial, err);
    if (status) return status;
  }
  return prepare_traces(s, err);
}

/* ---- filling a run ---- */

static void want(step *s, int32_t row, kg_buffer *buffer, int64_t at)
{
  s->scratch->wanted[s->run.n_wanted++] = (kg_wanted){row, buffer, at};
}

/* Rows [row0, row0 + n) of the run are the positions of `item` from pos on. */
static void want_logits(step *s, const kg_step_item *item, int32_t row0, int32_t pos, int32_t n)
{
  kg_sequence *sequence = item->sequence;
  const int32_t end = kg_sequence_pos(sequence);
  for (int32_t i = 0; i < n; i++)
    if (wants_all(item, pos + i))
      want(s, row0 + i, item->all_logits, place_of(s, item, pos + i));
    else if (pos + i + 1 == end)
      want(s, row0 + i, sequence->logits, 0);
    else if (pos + i >= end)
      want(s, row0 + i, sequence->draft.logits, kg_draft_logits_at(sequence, pos + i));
}

/* ---- hooks ---- */

static void call_hook(void *user, int32_t pos, int32_t n_rows, kg_buffer *rows)
{
  const tapped *t = user;
  const kg_value *value = kg_plan_value(kg_model_plan(t->step->model), t->value);
  const kg_tensor view = {.buffer = rows, .n_dims = 2, .shape = {n_rows, value->width}};
  kg_sequence *sequence = t->hook->sequence;
  kg_error err = {.code = KG_OK};
  if (sequence->step.is_over) return;
  const int status = t->hook->call(t->hook->user, t->value, pos, &view, &err);
  if (!status) return;
  sequence->step.is_over = true;
  err.code = status;
  if (!t->step->failure.code) t->step->failure = err;
}

/* Rows [row0, row0 + n) of the run are the positions of this sequence from pos on. */
static int add_taps(step *s, const kg_sequence *sequence, int32_t row0, int32_t pos, int32_t n, kg_error *err)
{
  kg_scratch *scratch = s->scratch;
  for (const kg_hook *hook = sequence->hooks; hook; hook = hook->next) {
    const int32_t last = kg_sequence_pos(sequence) - 1, from = hook->from < last ? hook->from : last;
    const int32_t n_before = from > pos ? from - pos : 0;
    if (n_before >= n) continue;
    const size_t there = (size_t)s->run.n_taps;
    if (!kg_grow((void **)&scratch->taps, &scratch->taps_capacity, there + hook->n_values, sizeof *scratch->taps) ||
        !kg_grow(&scratch->tapped, &scratch->tapped_capacity, there + hook->n_values, sizeof(tapped)))
      return kg_fail_memory(err, hook->n_values * sizeof(tapped), "hooks");
    for (size_t i = 0; i < hook->n_values; i++) {
      ((tapped *)scratch->tapped)[there + i] = (tapped){s, hook, hook->values[i]};
      scratch->taps[there + i] = (kg_tap){.value = hook->values[i], .row = row0 + n_before, .n_rows = n - n_before,
                                         .call = call_hook};
    }
    s->run.n_taps += (int32_t)hook->n_values;
  }
  return KG_OK;
}

/* The run is full: its taps stay where they are. */
static void place_taps(step *s)
{
  s->run.taps = s->scratch->taps;
  for (int32_t i = 0; i < s->run.n_taps; i++) s->scratch->taps[i].user = (tapped *)s->scratch->tapped + i;
}

/* ---- states ---- */

static void drop_states(const step *s, const kg_sequence *sequence)
{
  const kg_span *span = &s->scratch->spans[sequence->step.span];
  for (int32_t i = 0; i < span->n_states; i++) kg_states_drop(kg_model_states(s->model), span->states[i].slot);
}

/* The state that the span goes on with, and slots for those that it leaves: without the last one nothing can follow,
 * the others are taken where there is memory. */
static int add_states(step *s, const kg_sequence *sequence, kg_span *span, kg_error *err)
{
  kg_state_pool *pool = kg_model_states(s->model);
  if (!pool) return KG_OK;
  kg_state_out *outs = s->scratch->states + span->row; /* at most one for each row */
  span->state = kg_snapshots_slot(&sequence->snapshots, span->pos);
  span->states = outs;
  const int32_t end = kg_sequence_pos(sequence);
  for (int32_t i = 1; i <= span->n_rows; i++) {
    const bool is_last = i == span->n_rows;
    if (!is_last && !kg_states_wants(pool, span->pos + i, end, sequence->snapshots_free)) continue;
    const int status = kg_states_take(pool, &outs[span->n_states].slot, is_last ? err : NULL);
    if (!status) outs[span->n_states++].n_rows = i;
    if (!status || !is_last) continue;
    for (int32_t j = 0; j < span->n_states; j++) kg_states_drop(pool, outs[j].slot);
    return status;
  }
  return KG_OK;
}

/* The run left them. */
static void keep_states(const step *s, kg_sequence *sequence)
{
  kg_state_pool *pool = kg_model_states(s->model);
  const kg_span *span = &s->scratch->spans[sequence->step.span];
  if (!pool) return;
  for (int32_t i = 0; i < span->n_states; i++)
    kg_snapshots_put_take(pool, &sequence->snapshots, span->pos + span->states[i].n_rows, span->states[i].slot);
}

static int add_span(step *s, const kg_step_item *item, int32_t n, kg_error *err)
{
  kg_sequence *sequence = item->sequence;
  const int32_t row0 = s->run.n_rows, pos = sequence->step.next;
  int status = add_taps(s, sequence, row0, pos, n, err);
  if (!status) status = kg_kv_reserve(kg_model_kv(s->model), &sequence->pages, pos, pos + n, err);
  if (status) return status;
  for (int32_t i = 0; i < n; i++) {
    const bool is_drafted = pos + i >= kg_sequence_pos(sequence);
    s->scratch->tokens[row0 + i] = is_drafted ? kg_draft_id(sequence, pos + i) : sequence->tokens.ids[pos + i];
    s->scratch->positions[row0 + i] = pos + i;
  }
  kg_span *span = &s->scratch->spans[s->run.n_spans];
  *span = (kg_span){.row = row0,
                    .n_rows = n,
                    .pos = pos,
                    .pages = sequence->pages.ids,
                    .n_adapters = sequence->n_adapters,
                    .adapters = sequence->adapters};
  status = add_states(s, sequence, span, err);
  if (status) {
    kg_sequence_trim(sequence);
    return status;
  }
  sequence->step.span = s->run.n_spans++;
  s->run.n_rows += n;
  sequence->step.n_rows = n;
  want_logits(s, item, row0, pos, n);
  return KG_OK;
}

/* Those who decode go first. Traced rows of one run must be consecutive in the step: such a run takes its items in
 * order. */
static bool is_turn(const step *s, const kg_sequence *sequence, bool decoding)
{
  if (sequence->step.end == sequence->step.next) return false;
  return (kg_sequence_pending(sequence) <= 1 && !s->n_traces) == decoding;
}

static int fill_run(step *s, kg_error *err)
{
  const int32_t chunk = kg_model_chunk(s->model);
  for (int decoding = 1; decoding >= 0; decoding--)
    for (size_t i = 0; i < s->n_items && s->run.n_rows < chunk; i++) {
      const kg_sequence *sequence = s->items[i].sequence;
      const int32_t n_left = sequence->step.end - sequence->step.next, room = chunk - s->run.n_rows;
      if (!is_turn(s, sequence, decoding)) continue;
      if (is_one_piece(s) && n_left > room) {
        if (s->n_traces) return KG_OK; /* none may overtake it */
        continue;
      }
      const int status = add_span(s, &s->items[i], n_left < room ? n_left : room, err);
      if (status) return status;
    }
  return KG_OK;
}

/* Drafts give way to timelines, in the step and beside it. */
static void drop_drafts(step *s)
{
  kg_draft_drop_all(s->model);
  for (size_t i = 0; i < s->n_items; i++) {
    kg_sequence *sequence = s->items[i].sequence;
    const int32_t pos = kg_sequence_pos(sequence), next = sequence->step.next, end = next > pos ? next : pos;
    if (sequence->step.end <= pos) continue;
    s->n_left -= sequence->step.end - end;
    sequence->step.end = end;
    kg_draft_drop(sequence);
  }
}

/* The first row of the run belongs to the first item that has rows in it. */
static void place_traces(step *s)
{
  const kg_sequence *sequence = NULL;
  for (size_t i = 0; i < s->n_items && !sequence; i++)
    if (s->items[i].sequence->step.n_rows) sequence = s->items[i].sequence;
  const int64_t row = sequence->step.row + s->run.positions[0] - sequence->step.pos;
  for (size_t i = 0; i < s->n_traces; i++) {
    s->scratch->traces[i] = s->traces[i];
    s->scratch->traces[i].at += row * kg_plan_value(kg_model_plan(s->model), s->traces[i].value)->width;
  }
}

/* ---- running it ---- */

/* The rows of this item are in the cache now. */
static int settle(step *s, const kg_step_item *item, kg_error *err)
{
  kg_sequence *sequence = item->sequence;
  const int32_t end = kg_sequence_pos(sequence), first = sequence->step.next;
  const int32_t done = first + sequence->step.n_rows, n_tokens = (done < end ? done : end) - first;
  const bool is_last = first < end && done >= end;
  int status = KG_OK;
  if (is_last && wants_all(item, end - 1)) /* a row goes to one place only: the sequence's own copy is made here */
    status = sequence->logits->ops->copy(sequence->logits, 0, item->all_logits, place_of(s, item, end - 1),
                                         kg_model_vocab_size(s->model), err);
  if (!status && is_last) {
    sequence->logits_pos = end;
    sequence->banned_pos = -1;
  }
  sequence->step.next = done;
  s->n_left -= sequence->step.n_rows;
  keep_states(s, sequence);
  if (n_tokens > 0) {
    s->n_done += n_tokens;
    kg_model_count(s->model, n_tokens, 0);
    kg_sequence_evaluated(sequence, n_tokens);
  }
  kg_draft_settle(sequence, done);
  return status;
}

/* Give back the pages that were reserved for rows that were not computed, or not to their end. */
static void give_up(step *s, kg_sequence *sequence)
{
  if (sequence->step.n_rows) {
    drop_states(s, sequence);
    kg_sequence_trim(sequence);
  }
  sequence->step.n_rows = 0;
}

/* The run did not take place. */
static void abandon(step *s)
{
  for (size_t i = 0; i < s->n_items; i++) give_up(s, s->items[i].sequence);
}

/* A hook of it failed: the step goes on without it. It has no draft, as all that are hooked. */
static void leave_out(step *s, kg_sequence *sequence)
{
  const int32_t n_rows = sequence->step.end - sequence->step.next;
  s->n_left -= n_rows;
  s->n_total -= n_rows;
  sequence->step.end = sequence->step.next;
  give_up(s, sequence);
}

static void begin_run(step *s)
{
  const kg_scratch *scratch = s->scratch;
  s->run = (kg_batch){.tokens = scratch->tokens,
                      .positions = scratch->positions,
                      .spans = scratch->spans,
                      .wanted = scratch->wanted,
                      .n_traces = (int32_t)s->n_traces,
                      .traces = scratch->traces};
}

static bool has_drafts(const step *s)
{
  return s->n_left > s->n_total - s->n_done || *kg_model_drafting(s->model);
}

static int run_once(step *s, kg_error *err)
{
  begin_run(s);
  int status = fill_run(s, err);
  if ((status == KG_ERR_FULL || status == KG_ERR_MEMORY) && has_drafts(s)) { /* for the timelines it may do */
    abandon(s);
    drop_drafts(s);
    if (!s->n_left) return KG_OK;
    begin_run(s);
    status = fill_run(s, err);
  }
  if (!status && s->n_traces) place_traces(s);
  place_taps(s);
  if (!status) status = s->backend->run(s->exe, &s->run, err);
  if (status) {
    abandon(s);
    return status;
  }
  for (size_t i = 0; i < s->n_items; i++) {
    kg_sequence *sequence = s->items[i].sequence;
    if (!sequence->step.n_rows) continue;
    if (sequence->step.is_over) {
      leave_out(s, sequence);
      continue;
    }
    const int copied = settle(s, &s->items[i], status ? NULL : err);
    if (!status) status = copied;
    sequence->step.n_rows = 0;
  }
  kg_model_count(s->model, 0, 1);
  return status;
}

static int run_all(step *s, kg_error *err)
{
  int status = prepare(s, err);
  const bool is_prefill = s->n_total > (int64_t)s->n_items; /* plain decoding makes no reports */
  if (!status && is_prefill) status = kg_model_progress(s->model, "prefill", 0, s->n_total, err);
  while (!status && s->n_left) {
    status = run_once(s, err);
    if (!status && is_prefill) status = kg_model_progress(s->model, "prefill", s->n_done, s->n_total, err);
  }
  if (status || !s->failure.code) return status;
  return kg_fail(err, s->failure.code, "%s", s->failure.message);
}

int kg_step_items(kg_model *model, const kg_step_item *items, size_t n, const kg_step_trace *traces, size_t n_traces,
                  kg_error *err)
{
  step s = {.model = model,
            .backend = kg_model_backend(model),
            .exe = kg_model_executable(model),
            .scratch = kg_model_scratch(model),
            .items = items,
            .n_items = n,
            .traces = traces,
            .n_traces = n_traces};
  int status = kg_model_check_idle(model, err);
  if (status) return status;
  kg_model_set_stepping(model, true);
  status = run_all(&s, err);
  kg_model_set_stepping(model, false);
  return status;
}

static int profile_run(step *s, kg_profile *out, kg_error *err)
{
  int status = prepare(s, err);
  begin_run(s);
  if (!status) status = fill_run(s, err);
  if (!status && s->run.n_rows < s->n_left)
    status = kg_fail(err, KG_ERR_ARGUMENT, "%lld tokens do not fit one run of %d", (long long)s->n_left,
                     kg_model_chunk(s->model));
  if (!status) status = s->backend->profile(s->exe, &s->run, out, err);
  abandon(s);
  return status;
}

int kg_step_profile(kg_model *model, const kg_step_item *items, size_t n, kg_profile *out, kg_error *err)
{
  step s = {.model = model,
            .backend = kg_model_backend(model),
            .exe = kg_model_executable(model),
            .scratch = kg_model_scratch(model),
            .items = items,
            .n_items = n};
  int status = kg_model_check_idle(model, err);
  if (status) return status;
  if (!s.backend->profile)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "the backend %s has no profile of stages", s.backend->name);
  kg_model_set_stepping(model, true);
  status = profile_run(&s, out, err);
  kg_model_set_stepping(model, false);
  return status;
}

int kg_step(kg_model *model, kg_sequence *const *sequences, size_t n, kg_error *err)
{
  kg_scratch *scratch = kg_model_scratch(model);
  const int status = kg_model_check_idle(model, err); /* the running step reads the scratch */
  if (status) return status;
  if (!kg_grow(&scratch->items, &scratch->items_capacity, n, sizeof(kg_step_item)))
    return kg_fail_memory(err, n * sizeof(kg_step_item), "the step");
  kg_step_item *items = scratch->items;
  for (size_t i = 0; i < n; i++) items[i] = (kg_step_item){.sequence = sequences[i]};
  return kg_step_items(model, items, n, NULL, 0, err);
}
