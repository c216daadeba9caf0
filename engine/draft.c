#include "draft.h"

#include <string.h>

#include "ahead.h"
#include "alloc.h"
#include "companion.h"
#include "error.h"

_Static_assert(KG_SNAPSHOTS_REGULAR + KG_DRAFT_MAX < KG_SNAPSHOTS_MAX, "a draft takes no snapshot's place");

/* ---- what is expected ---- */

int kg_sequence_expect(kg_sequence *sequence, const int32_t *ids, size_t n, kg_error *err)
{
  const int32_t vocab = kg_plan_token_count(kg_model_plan(sequence->model));
  const int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  for (size_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      return kg_fail(err, KG_ERR_ARGUMENT, "draft: id %d, number %zu, is outside the vocabulary's 0 to %d", ids[i],
                     i + 1, vocab - 1);
  kg_draft *draft = &sequence->draft;
  int32_t n_kept = n < KG_DRAFT_MAX ? (int32_t)n : KG_DRAFT_MAX;
  if (kg_plan_is_bidirectional(kg_model_plan(sequence->model))) n_kept = 0; /* rows before it would see the draft */
  if (!draft->ids && n_kept) {
    draft->ids = kg_alloc_array(KG_DRAFT_MAX, sizeof *draft->ids);
    if (!draft->ids) return kg_fail_memory(err, KG_DRAFT_MAX * sizeof *draft->ids, "a draft");
  }
  if (kg_draft_holds_logits(sequence)) { /* the rows go, and with them the last token's */
    const int taken = kg_draft_take_logits(sequence, err);
    if (taken) return taken;
  }
  if (n_kept) kg_sequence_drop_ahead(sequence);
  kg_draft_drop(sequence);
  if (n_kept) memcpy(draft->ids, ids, (size_t)n_kept * sizeof *ids);
  draft->n = n_kept;
  return KG_OK;
}

static void join_list(kg_sequence *sequence)
{
  kg_draft *draft = &sequence->draft;
  if (draft->link) return;
  draft->link = kg_model_drafting(sequence->model);
  draft->next = *draft->link;
  if (draft->next) draft->next->draft.link = &draft->next;
  *draft->link = sequence;
}

static void leave_list(kg_sequence *sequence)
{
  kg_draft *draft = &sequence->draft;
  if (!draft->link) return;
  *draft->link = draft->next;
  if (draft->next) draft->next->draft.link = draft->link;
  draft->link = NULL;
}

/* Rows that the timeline did not reach are gone. */
static void drop_rows(kg_sequence *sequence)
{
  kg_draft *draft = &sequence->draft;
  leave_list(sequence);
  if (draft->n_rows > draft->at) kg_model_count_dropped(sequence->model, draft->n_rows - draft->at, 0);
  draft->n_rows = 0;
  kg_sequence_trim(sequence);
}

void kg_draft_drop(kg_sequence *sequence)
{
  if (!sequence->draft.n) return;
  drop_rows(sequence);
  sequence->draft.n = sequence->draft.at = 0;
}

void kg_draft_deinit(kg_sequence *sequence)
{
  kg_draft_drop(sequence);
  kg_free(sequence->draft.ids);
  kg_buffer_unref(sequence->draft.logits);
}

/* ---- in a step ---- */

static bool make_room(kg_sequence *sequence, int32_t n)
{
  kg_model *model = sequence->model;
  const int64_t vocab = kg_model_vocab_size(model);
  kg_buffer **logits = &sequence->draft.logits, *grown = NULL;
  if (*logits && (*logits)->n >= n * vocab) return true;
  if (kg_model_backend(model)->buffer_new(kg_model_executable(model), n * vocab, &grown, NULL)) return false;
  kg_buffer_unref(*logits);
  *logits = grown;
  return true;
}

int32_t kg_draft_begin(kg_sequence *sequence)
{
  kg_draft *draft = &sequence->draft;
  if (!draft->n) return 0;
  if (draft->n_rows) drop_rows(sequence);
  draft->n -= draft->at;
  memmove(draft->ids, draft->ids + draft->at, (size_t)draft->n * sizeof *draft->ids);
  draft->at = 0;
  const int32_t pos = kg_sequence_pos(sequence), room = kg_model_context(sequence->model) - pos;
  if (draft->n > room) draft->n = room;
  draft->n = (int32_t)kg_companions_would_feed(sequence->companions, pos, draft->ids, (size_t)draft->n);
  if (!make_room(sequence, draft->n)) draft->n = 0;
  return draft->n;
}

int32_t kg_draft_id(const kg_sequence *sequence, int32_t pos)
{
  return sequence->draft.ids[pos - kg_sequence_pos(sequence)];
}

int64_t kg_draft_logits_at(const kg_sequence *sequence, int32_t pos)
{
  return (int64_t)(pos - kg_sequence_pos(sequence)) * kg_model_vocab_size(sequence->model);
}

void kg_draft_settle(kg_sequence *sequence, int32_t end)
{
  const int32_t n_rows = end - kg_sequence_pos(sequence);
  if (n_rows <= 0) return;
  sequence->n_drafted += n_rows - sequence->draft.n_rows;
  sequence->draft.n_rows = n_rows;
  join_list(sequence);
}

void kg_draft_drop_all(kg_model *model)
{
  kg_sequence *sequence;
  while ((sequence = *kg_model_drafting(model))) {
    kg_draft_take_logits(sequence, NULL); /* else they are computed again */
    kg_draft_drop(sequence);
  }
}

/* ---- where the timeline goes ---- */

void kg_draft_follow(kg_sequence *sequence, size_t n)
{
  kg_draft *draft = &sequence->draft;
  if (!draft->n) return;
  const int32_t *fed = sequence->tokens.ids + (sequence->tokens.n - n);
  if (n > (size_t)(draft->n - draft->at) || memcmp(fed, draft->ids + draft->at, n * sizeof *fed) != 0) {
    kg_draft_drop(sequence);
    return;
  }
  const int32_t before = draft->at < draft->n_rows ? draft->at : draft->n_rows;
  draft->at += (int32_t)n;
  const int32_t n_reached = (draft->at < draft->n_rows ? draft->at : draft->n_rows) - before;
  if (!n_reached) return;
  sequence->n_accepted += n_reached;
  kg_model_count(sequence->model, n_reached, 0);
  kg_sequence_evaluated(sequence, n_reached);
}

bool kg_draft_is_open(const kg_sequence *sequence)
{
  return sequence->draft.n > sequence->draft.at;
}

bool kg_draft_holds_logits(const kg_sequence *sequence)
{
  const kg_draft *draft = &sequence->draft;
  return draft->at && draft->at <= draft->n_rows && sequence->logits_pos != kg_sequence_pos(sequence);
}

int kg_draft_copy_logits(const kg_sequence *sequence, kg_buffer *to, kg_error *err)
{
  const int64_t vocab = kg_model_vocab_size(sequence->model);
  const kg_buffer *rows = sequence->draft.logits;
  return rows->ops->copy(to, 0, rows, (sequence->draft.at - 1) * vocab, vocab, err);
}

int kg_draft_take_logits(kg_sequence *sequence, kg_error *err)
{
  if (!kg_draft_holds_logits(sequence)) return KG_OK;
  int status = kg_sequence_ensure_logits(sequence, err);
  if (!status) status = kg_draft_copy_logits(sequence, sequence->logits, err);
  if (status) return status;
  sequence->logits_pos = kg_sequence_pos(sequence);
  sequence->banned_pos = -1;
  return status;
}

/* ---- looking things up ---- */

/* Tokens before `end` that equal the last ones, from there backwards; at most `most`. */
static int32_t common_suffix(const int32_t *ids, int32_t n, int32_t end, int32_t most)
{
  int32_t length = 0;
  while (length < most && length < end && ids[end - 1 - length] == ids[n - 1 - length]) length++;
  return length;
}

int32_t kg_sequence_lookup(const kg_sequence *sequence, int32_t longest, int32_t shortest, int32_t most,
                           const int32_t **ids)
{
  const int32_t n = kg_sequence_pos(sequence);
  const int32_t *tokens = kg_sequence_tokens(sequence);
  int32_t best = shortest - 1, at = 0;
  for (int32_t end = n - 1; end > 0 && best < longest; end--) {
    const int32_t length = common_suffix(tokens, n, end, longest);
    if (length <= best) continue;
    best = length;
    at = end;
  }
  if (!at) return 0;
  *ids = tokens + at;
  return n - at < most ? n - at : most;
}
