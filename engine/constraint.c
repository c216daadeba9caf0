#include "constraint.h"

#include <math.h>
#include <string.h>

#include "ahead.h"
#include "alloc.h"
#include "bytes.h"
#include "error.h"
#include "grammar_file.h"

/* A token that completes the text which is waited for, and writes more behind it. */
typedef struct overshoot {
  int32_t id;
  uint32_t tail; /* where that begins in what it writes */
} overshoot;

typedef struct overshoots {
  overshoot *items;
  size_t n, capacity;
  bool is_known;
} overshoots;

typedef struct constraint {
  kg_companion base;
  kg_matcher *matcher;
  kg_tokenizer *tokenizer; /* one reference */
  kg_bytes after;
  uint32_t *fallbacks; /* [after.size + 1]: the longest beginning of `after` that those many bytes of it end with */
  overshoots *found;   /* [after.size], by how much of it has been seen; NULL until they are needed */
  int32_t within;
  /* Per token of waiting, how much of `after` has been seen behind it; the first is the start. */
  uint32_t *seen;
  size_t n_waited, capacity;
  bool has_started;   /* with the last of those tokens, or from the start */
  bool has_tail;      /* that one wrote more, which is the matcher's first step */
  bool after_special; /* behind the last token of waiting */
  uint8_t *specials;  /* likewise, per token */
  size_t specials_capacity;
} constraint;

/* ---- waiting ---- */

static uint32_t seen_behind(const constraint *c, uint32_t seen, unsigned char byte)
{
  while (seen && (unsigned char)c->after.data[seen] != byte) seen = c->fallbacks[seen];
  return (unsigned char)c->after.data[seen] == byte ? seen + 1 : 0; /* bounded: the text that is waited for */
}

/* How much is seen behind the text; *end is where the text that is waited for was complete, or the text's size. */
static uint32_t look_for(const constraint *c, uint32_t seen, kg_string text, size_t *end)
{
  size_t i = 0;
  while (i < text.size && seen < c->after.size) seen = seen_behind(c, seen, (unsigned char)text.data[i++]);
  *end = i;
  return seen;
}

static void find_fallbacks(constraint *c)
{
  c->fallbacks[0] = 0;
  if (c->after.size) c->fallbacks[1] = 0;
  for (uint32_t i = 1; i < c->after.size; i++)
    /* bounded: size + 1 of them */
    c->fallbacks[i + 1] = seen_behind(c, c->fallbacks[i], (unsigned char)c->after.data[i]);
}

static kg_string spelled(const constraint *c, int32_t id, bool *after_special)
{
  return kg_tokenizer_piece(c->tokenizer, id, KG_DECODE_CONTROL, after_special);
}

/* Are waiting tokens at their limit, so that only `after` may come? */
static bool is_late(const constraint *c) { return c->within >= 0 && c->n_waited >= (size_t)c->within; }

/* Does the text go on with `after` where it stopped? As far as it reaches. */
static bool goes_on(const constraint *c, uint32_t seen, kg_string text)
{
  const size_t n = text.size < c->after.size - seen ? text.size : c->after.size - seen;
  return n && !memcmp(c->after.data + seen, text.data, n);
}

/* ---- feeding ---- */

static int refuse(const constraint *c, int32_t id, int32_t pos, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  bool after_special = false;
  const kg_string text = spelled(c, id, &after_special);
  return kg_fail(err, KG_ERR_ARGUMENT, "token %d (%s) at position %d does not follow the constraint", id,
                 kg_quote(quoted, text.data, text.size), pos);
}

/* The text that was waited for is complete; text is what the same token writes behind it. */
static int start(constraint *c, kg_string text, bool *fits, kg_error *err)
{
  *fits = true;
  kg_matcher_begin_text(c->matcher, c->after_special && !text.size);
  if (!text.size) return KG_OK;
  return kg_matcher_accept_bytes(c->matcher, text.data, text.size, fits, err);
}

static int wait_on(constraint *c, int32_t id, bool *fits, kg_error *err)
{
  bool after_special = c->specials[c->n_waited];
  size_t end;
  const uint32_t before = c->seen[c->n_waited];
  const kg_string text = spelled(c, id, &after_special);
  *fits = !kg_tokenizer_is_end(c->tokenizer, id) && (!is_late(c) || goes_on(c, before, text));
  if (!*fits) return KG_OK;
  /* bounded: positions of a timeline: 2^31 */
  if (!kg_grow((void **)&c->seen, &c->capacity, c->n_waited + 2, sizeof *c->seen) ||
      !kg_grow((void **)&c->specials, &c->specials_capacity, c->n_waited + 2, 1)) /* bounded: as above */
    return kg_fail_memory(err, c->n_waited, "a constraint");
  const uint32_t seen = look_for(c, before, text, &end);
  const bool is_there = seen == c->after.size;
  if (is_there) {
    c->after_special = after_special;
    const int status = start(c, (kg_string){text.data + end, text.size - end}, fits, err);
    if (status || !*fits) return status;
    c->has_started = true;
    c->has_tail = end < text.size;
  }
  c->n_waited++;
  c->seen[c->n_waited] = seen;
  c->specials[c->n_waited] = after_special;
  return KG_OK;
}

static size_t count(const constraint *c)
{
  /* bounded: positions of a timeline */
  return c->n_waited + (c->has_started ? (size_t)kg_matcher_n_steps(c->matcher) - c->has_tail : 0);
}

static void go_back(constraint *c, size_t n)
{
  const size_t first = c->has_tail; /* the matcher's step of the token that completed the text */
  if (c->has_started && n >= c->n_waited) {
    kg_matcher_rewind(c->matcher, (int32_t)(first + n - c->n_waited)); /* bounded: positions of a timeline */
    return;
  }
  if (c->has_started) kg_matcher_rewind(c->matcher, 0);
  c->has_started = c->has_tail = false;
  c->n_waited = n;
}

static void rewind_to(kg_companion *companion, int32_t pos)
{
  constraint *c = (constraint *)companion;
  const size_t n = (size_t)(pos - companion->from);
  if (n < count(c)) go_back(c, n);
}

static int feed(kg_companion *companion, int32_t pos, const int32_t *ids, size_t n, kg_error *err)
{
  constraint *c = (constraint *)companion;
  const size_t before = count(c);
  for (size_t i = 0; i < n; i++) {
    bool fits = false;
    int status;
    if (ids[i] >= c->tokenizer->vocab.size)
      status = KG_OK; /* models may have more ids than their tokenizers */
    else
      status = c->has_started ? kg_matcher_accept(c->matcher, ids[i], &fits, err) : wait_on(c, ids[i], &fits, err);
    if (!status && fits) continue;
    go_back(c, before);
    if (status) return status;
    /* bounded: positions of a timeline */
    if (ids[i] < c->tokenizer->vocab.size) return refuse(c, ids[i], pos + (int32_t)i, err);
    return kg_fail(err, KG_ERR_ARGUMENT, "token %d at position %d has no text and does not follow the constraint",
                   ids[i], pos + (int32_t)i); /* bounded: positions of a timeline */
  }
  return KG_OK;
}

/* ---- making and copying ---- */

static void release(kg_companion *companion)
{
  constraint *c = (constraint *)companion;
  kg_matcher_free(c->matcher);
  kg_tokenizer_free(c->tokenizer);
  for (size_t i = 0; c->found && i < c->after.size; i++) kg_free(c->found[i].items);
  kg_free(c->found);
  kg_free(c->fallbacks);
  kg_free(c->seen);
  kg_free(c->specials);
  kg_bytes_deinit(&c->after);
  kg_free(c);
}

/* All but the matcher. */
static int create(kg_tokenizer *tokenizer, kg_string after, int32_t within, size_t n_waited, constraint **out,
                  kg_error *err)
{
  constraint *c = kg_alloc_array(1, sizeof *c);
  if (!c) return kg_fail_memory(err, sizeof *c, "a constraint");
  c->base.ops = &kg_constraint_companion;
  c->tokenizer = kg_tokenizer_ref(tokenizer);
  c->within = within;
  c->n_waited = n_waited;
  c->after = (kg_bytes){.data = kg_copy_bytes(after.data ? after.data : "", after.size), .size = after.size};
  c->fallbacks = kg_alloc_array(after.size + 1, sizeof *c->fallbacks); /* bounded: in memory */
  const bool has_room = kg_grow((void **)&c->seen, &c->capacity, n_waited + 1, sizeof *c->seen) &&
                        kg_grow((void **)&c->specials, &c->specials_capacity, n_waited + 1, 1);
  if (!c->after.data || !c->fallbacks || !has_room) {
    release(&c->base);
    return kg_fail_memory(err, after.size, "a constraint");
  }
  find_fallbacks(c);
  c->seen[0] = 0;
  *out = c;
  return KG_OK;
}

static int copy(const kg_companion *companion, kg_companion **out, kg_error *err)
{
  const constraint *from = (const constraint *)companion;
  constraint *c;
  const kg_string after = {from->after.data, from->after.size};
  int status = create(from->tokenizer, after, from->within, from->n_waited, &c, err);
  if (status) return status;
  memcpy(c->seen, from->seen, (from->n_waited + 1) * sizeof *c->seen); /* bounded: in memory */
  memcpy(c->specials, from->specials, from->n_waited + 1); /* bounded: in memory */
  c->has_started = from->has_started;
  c->has_tail = from->has_tail;
  c->after_special = from->after_special;
  status = kg_matcher_copy(from->matcher, &c->matcher, err);
  if (status)
    release(&c->base);
  else
    *out = &c->base;
  return status;
}

static void swap(kg_companion *companion, kg_companion *other)
{
  constraint *x = (constraint *)companion, *y = (constraint *)other, kept = *x;
  const kg_companion base = x->base;
  *x = *y;
  *y = kept;
  y->base = x->base;
  x->base = base;
}

/* ---- in files ---- */

/* What stands before `after` and the grammar; what was matched follows from the tokens. */
typedef struct saved {
  uint32_t after_size;
  int32_t within;
  uint32_t after_special; /* where it began */
} saved;

static int save(const kg_companion *companion, kg_bytes *out, kg_error *err)
{
  const constraint *c = (const constraint *)companion;
  if (kg_matcher_grammar(c->matcher)->n_points)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "the constraint has points, which are functions and cannot be saved");
  const saved head = {(uint32_t)c->after.size, c->within, c->specials[0]};
  int status = kg_bytes_append(out, &head, sizeof head, err);
  if (!status) status = kg_bytes_append(out, c->after.data, c->after.size, err);
  return status ? status : kg_grammar_save(kg_matcher_grammar(c->matcher), out, err);
}

static int begin(const kg_companion_source *source, const saved *head, kg_string after, kg_grammar *grammar,
                 constraint **out, kg_error *err)
{
  int status = create(source->tokenizer, after, head->within, 0, out, err);
  if (status) return status;
  constraint *c = *out;
  c->has_started = !after.size;
  c->specials[0] = head->after_special != 0;
  c->base.from = source->from;
  status = kg_matcher_new(grammar, source->tokenizer, NULL, &c->matcher, err);
  if (!status && c->has_started) kg_matcher_begin_text(c->matcher, c->specials[0]);
  if (!status)
    /* bounded: an address */
    status = feed(&c->base, source->from, source->ids + source->from, (size_t)(source->n_ids - source->from), err);
  if (status) release(&c->base);
  return status;
}

static int load(const kg_companion_source *source, kg_companion **out, kg_error *err)
{
  saved head;
  kg_string bytes = source->bytes, after;
  kg_grammar *grammar;
  constraint *c;
  if (!source->tokenizer) return kg_fail(err, KG_ERR_UNSUPPORTED, "a constraint, and the model has no tokenizer here");
  if (!kg_take_into(&bytes, &head, sizeof head)) return kg_fail(err, KG_ERR_FORMAT, "a saved constraint is malformed");
  after = (kg_string){kg_take(&bytes, head.after_size), head.after_size};
  if (!after.data) return kg_fail(err, KG_ERR_FORMAT, "a saved constraint is malformed");
  int status = kg_grammar_load(bytes, &grammar, err);
  if (status) return status;
  status = begin(source, &head, after, grammar, &c, err);
  kg_grammar_free(grammar); /* the matcher has it */
  if (!status) *out = &c->base;
  return status == KG_ERR_ARGUMENT ? kg_fail(err, KG_ERR_FORMAT, "a saved constraint does not fit its tokens") : status;
}

const kg_companion_ops kg_constraint_companion = {.name = "constraint",
                                                  .feed = feed,
                                                  .rewind = rewind_to,
                                                  .copy = copy,
                                                  .swap = swap,
                                                  .free = release,
                                                  .save = save,
                                                  .load = load};

static constraint *find(const kg_sequence *sequence)
{
  return (constraint *)kg_sequence_find_companion(sequence, &kg_constraint_companion, NULL);
}

/* Is text behind the sequence's last token at a start, as the tokenizer sees it? */
static bool is_after_special(const kg_sequence *sequence, const kg_tokenizer *tokenizer)
{
  const int32_t pos = kg_sequence_pos(sequence), last = pos ? kg_sequence_tokens(sequence)[pos - 1] : -1;
  bool after_special = true;
  if (last >= 0 && last < tokenizer->vocab.size) kg_tokenizer_piece(tokenizer, last, 0, &after_special);
  return after_special;
}

static int make(const kg_sequence *sequence, kg_grammar *grammar, kg_tokenizer *tokenizer,
                const kg_constraint_options *options, constraint **out, kg_error *err)
{
  if (options->after.size >= UINT32_MAX)
    return kg_fail(err, KG_ERR_ARGUMENT, "after: %zu bytes are too many", options->after.size);
  int status = create(tokenizer, options->after, options->within, 0, out, err);
  if (status) return status;
  constraint *c = *out;
  status = kg_matcher_new(grammar, tokenizer, options->judge, &c->matcher, err);
  if (status) {
    release(&c->base);
    return status;
  }
  c->has_started = !c->after.size;
  c->specials[0] = is_after_special(sequence, tokenizer);
  if (c->has_started) kg_matcher_begin_text(c->matcher, c->specials[0]);
  return KG_OK;
}

int kg_sequence_constrain(kg_sequence *sequence, kg_grammar *grammar, kg_tokenizer *tokenizer,
                          const kg_constraint_options *options, kg_error *err)
{
  constraint *made = NULL, *there = find(sequence);
  int status = kg_model_check_idle(sequence->model, err);
  if (!status && grammar) status = make(sequence, grammar, tokenizer, options, &made, err);
  if (status) return status;
  if (there) kg_sequence_detach(sequence, &there->base, NULL); /* it is idle */
  if (made) kg_sequence_attach_take(sequence, &made->base, NULL);
  kg_sequence_drop_ahead(sequence);
  if (sequence->banned_pos >= 0)
    sequence->logits_pos = sequence->banned_pos = -1; /* those that were banned may return */
  return KG_OK;
}

bool kg_sequence_is_constrained(const kg_sequence *sequence) { return find(sequence) != NULL; }

kg_matcher *kg_sequence_matcher(const kg_sequence *sequence)
{
  const constraint *c = find(sequence);
  return c && c->has_started ? c->matcher : NULL;
}

bool kg_sequence_is_waiting(const kg_sequence *sequence)
{
  const constraint *c = find(sequence);
  return c && !c->has_started;
}

const kg_judge *kg_sequence_judge(const kg_sequence *sequence)
{
  const constraint *c = find(sequence);
  return c ? kg_matcher_judge(c->matcher) : NULL;
}

/* ---- banning ---- */

static int add_overshoot(overshoots *list, int32_t id, size_t tail, kg_error *err)
{
  if (!kg_grow((void **)&list->items, &list->capacity, list->n + 1, sizeof *list->items))
    return kg_fail_memory(err, list->n, "a constraint");
  list->items[list->n++] = (overshoot){id, (uint32_t)tail};
  return KG_OK;
}

/* The tokens that complete the text and write more, where so much of it has been seen. Found once: by then all tokens
 * are looked at, and few are left. */
static int find_overshoots(constraint *c, uint32_t seen, const overshoots **out, kg_error *err)
{
  if (!c->found && !(c->found = kg_alloc_array(c->after.size, sizeof *c->found)))
    return kg_fail_memory(err, c->after.size * sizeof *c->found, "a constraint");
  overshoots *list = &c->found[seen];
  *out = list;
  if (list->is_known) return KG_OK;
  list->n = 0;
  for (int32_t id = 0; id < c->tokenizer->vocab.size; id++) {
    bool after_special = false;
    size_t end;
    const kg_string text = spelled(c, id, &after_special);
    if (look_for(c, seen, text, &end) != c->after.size || end == text.size) continue;
    const int status = add_overshoot(list, id, end, err);
    if (status) return status;
  }
  list->is_known = true;
  return KG_OK;
}

/* Would the grammar begin with this? */
static int begins_with(constraint *c, kg_string text, bool *fits, kg_error *err)
{
  const int status = kg_matcher_accept_bytes(c->matcher, text.data, text.size, fits, err);
  if (!status && *fits) kg_matcher_rewind(c->matcher, 0);
  return status;
}

/* Everything but end tokens, and tokens that overshoot to what the grammar does not begin with. */
static int ban_waiting(constraint *c, float *logits, size_t n, kg_error *err)
{
  const size_t size = (size_t)c->tokenizer->vocab.size;
  const overshoots *list = NULL;
  int status = find_overshoots(c, c->seen[c->n_waited], &list, err);
  if (status) return status;
  for (size_t i = 0; i < list->n && !status; i++) {
    bool after_special = false, fits;
    const kg_string text = spelled(c, list->items[i].id, &after_special);
    status = begins_with(c, (kg_string){text.data + list->items[i].tail, text.size - list->items[i].tail}, &fits, err);
    if (!status && !fits) logits[list->items[i].id] = -INFINITY;
  }
  if (status) return status;
  for (size_t i = 0; i < c->tokenizer->n_ends; i++) logits[c->tokenizer->ends[i]] = -INFINITY;
  for (size_t id = size; id < n; id++) logits[id] = -INFINITY;
  return KG_OK;
}

/* Everything but what goes on with the text that was waited for too long. */
static int ban_late(constraint *c, float *logits, size_t n, kg_error *err)
{
  const uint32_t seen = c->seen[c->n_waited];
  for (size_t id = 0; id < n; id++) {
    bool after_special = c->specials[c->n_waited], fits = false;
    const bool is_known = id < (size_t)c->tokenizer->vocab.size;
    const kg_string text = is_known ? spelled(c, (int32_t)id, &after_special) : (kg_string){0};
    const size_t rest = c->after.size - seen;
    if (is_known && !kg_tokenizer_is_end(c->tokenizer, (int32_t)id)) fits = goes_on(c, seen, text);
    if (fits && text.size > rest) {
      const int status = begins_with(c, (kg_string){text.data + rest, text.size - rest}, &fits, err);
      if (status) return status;
    }
    if (!fits) logits[id] = -INFINITY;
  }
  return KG_OK;
}

static bool has_any(const float *logits, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (logits[i] != -INFINITY) return true;
  return false;
}

/* On the host; *n_allowed is 0 where nothing is left. */
static int ban(constraint *c, float *logits, size_t n, size_t *n_allowed, kg_error *err)
{
  if (c->has_started) return kg_matcher_mask_logits(c->matcher, logits, n, n_allowed, err);
  const int status = is_late(c) ? ban_late(c, logits, n, err) : ban_waiting(c, logits, n, err);
  *n_allowed = has_any(logits, n);
  return status;
}

static int ban_in_buffer(constraint *c, kg_buffer *logits, int64_t n, size_t *n_allowed, kg_error *err)
{
  if (logits->ops == &kg_host_tensor_ops) return ban(c, logits->data, (size_t)n, n_allowed, err);
  float *host = kg_alloc_array((size_t)n, sizeof *host);
  if (!host) return kg_fail_memory(err, (size_t)n * sizeof *host, "logits");
  int status = logits->ops->read(logits, 0, n, host, err);
  if (!status) status = ban(c, host, (size_t)n, n_allowed, err);
  if (!status) status = logits->ops->write(logits, 0, n, host, err);
  kg_free(host);
  return status;
}

static int fail_dead_end(const constraint *c, int32_t pos, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  const kg_string text = kg_matcher_text(c->matcher);
  const size_t shown = text.size < 60 ? text.size : 60;
  return kg_fail(err, KG_ERR_NUMERIC,
                 "a dead end at position %d: no token of the vocabulary follows the constraint behind %s", pos,
                 kg_quote(quoted, text.data + text.size - shown, shown));
}

int kg_sequence_ban(kg_sequence *sequence, kg_error *err)
{
  const int32_t pos = kg_sequence_pos(sequence);
  constraint *c = find(sequence);
  if (!c || sequence->banned_pos == pos) return KG_OK;
  size_t n_allowed = 0;
  const int status = ban_in_buffer(c, sequence->logits, kg_model_vocab_size(sequence->model), &n_allowed, err);
  if (status) return status;
  if (n_allowed) {
    sequence->banned_pos = pos;
    return KG_OK;
  }
  sequence->logits_pos = -1; /* nothing is left in them: without the constraint they are wanted again */
  return fail_dead_end(c, pos, err);
}
