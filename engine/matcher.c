#include "matcher.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"

enum { FORCED_MAX = 4096 };

/* What stands after a step. */
typedef struct step {
  size_t text_size;
  kg_set set;
  bool after_special, has_ended;
} step;

struct kg_matcher {
  kg_grammar *grammar;
  kg_tokenizer *tokenizer; /* NULL: bytes only */
  kg_masks *masks;         /* likewise */
  kg_automaton *automaton;
  const uint8_t *classes;
  kg_judge judge;
  kg_points points;    /* how texts are read: ASK where there are points, else PASS */
  uint32_t generation; /* of the automaton that the sets belong to */
  bool is_ready;       /* the sets are there */
  kg_bytes text;
  step *steps; /* [n_steps + 1]; the first is the start */
  size_t n_steps, capacity;
  uint64_t *possible, *sure; /* masks of our own; made where they are needed */
};

/* ---- reading ---- */

static int check_idle(const kg_grammar *grammar, kg_error *err)
{
  if (!grammar->is_judging) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "the grammar is in use: the function of a point must leave it alone");
}

static int ask_judge(const kg_matcher *m, uint32_t point, bool partial, size_t begin, size_t end, bool *answer,
                     kg_error *err)
{
  m->grammar->is_judging = true;
  const int status = m->judge.ask(m->judge.user, point, partial, m->text.data + begin, end - begin, answer, err);
  m->grammar->is_judging = false;
  return status;
}

static int ask(void *user, uint32_t point, size_t begin, size_t end, bool *answer, kg_error *err)
{
  return ask_judge(user, point, false, begin, end, answer, err);
}

static int ask_partial(void *user, uint32_t point, size_t begin, size_t end, bool *answer, kg_error *err)
{
  return ask_judge(user, point, true, begin, end, answer, err);
}

/* The set behind text[from, to), by `set`. Stops at KG_SET_DEAD. */
static int read(kg_matcher *m, kg_set set, size_t from, size_t to, kg_set *out, kg_error *err)
{
  int status = KG_OK;
  for (size_t i = from; i < to && set != KG_SET_DEAD && !status; i++) {
    const kg_asker asker = {ask, m, i + 1}; /* bounded: steps in memory */
    status =
        kg_automaton_step(m->automaton, set, m->classes[(unsigned char)m->text.data[i]], m->points, &asker, &set, err);
  }
  if (!status && set != KG_SET_DEAD && m->judge.asks_partial && kg_automaton_has_points(m->automaton, set)) {
    const kg_asker asker = {ask_partial, m, to};
    status = kg_automaton_ask_open(m->automaton, set, &asker, &set, err);
  }
  *out = set;
  return status;
}

/* All sets again, from the start. */
static int read_again(kg_matcher *m, kg_error *err)
{
  const kg_asker asker = {ask, m, 0};
  m->is_ready = false;
  m->generation = kg_automaton_generation(m->automaton);
  int status = kg_automaton_start(m->automaton, m->points, &asker, &m->steps[0].set, err);
  for (size_t i = 1; i <= m->n_steps && !status; i++) {
    status = read(m, m->steps[i - 1].set, m->steps[i - 1].text_size, m->steps[i].text_size, &m->steps[i].set, err);
    if (!status && m->steps[i].set == KG_SET_DEAD)
      status = kg_fail(err, KG_ERR_ARGUMENT, "a point's function has changed its mind about a text");
  }
  m->is_ready = !status;
  return status;
}

/* The sets are those of the automaton as it is. Where its memory is full, it forgets what we do not need. */
static int follow(kg_matcher *m, kg_error *err)
{
  int status = check_idle(m->grammar, err);
  if (status || (m->is_ready && m->generation == kg_automaton_generation(m->automaton))) return status;
  status = read_again(m, err);
  if (status != KG_ERR_FULL) return status;
  kg_automaton_reset(m->automaton);
  return read_again(m, err);
}

/* After KG_ERR_FULL: make room, once. Where the text takes most of it again, we would come back here for every few
 * bytes. */
static int make_room(kg_matcher *m, kg_error *err)
{
  const kg_budget *budget = &m->grammar->budget;
  kg_automaton_reset(m->automaton);
  const int status = follow(m, err);
  if (status || budget->used <= budget->limit / 2) return status;
  return kg_fail(err, KG_ERR_FULL, "the automaton of the grammar needs most of its %zu bytes for one text",
                 budget->limit);
}

#define WITH_ROOM(m, status, call, err)                                                                                \
  do {                                                                                                                 \
    (status) = (call);                                                                                                 \
    if ((status) == KG_ERR_FULL && !((status) = make_room(m, err))) (status) = (call);                                 \
  } while (0)

/* Append bytes to the text, and find the set behind them; the text is as before where that is KG_SET_DEAD. */
static int try_bytes(kg_matcher *m, const char *bytes, size_t n, kg_set *out, kg_error *err)
{
  const size_t before = m->text.size;
  size_t need;
  int status = follow(m, err);
  if (status) return status;
  if (!kg_add_size(before, n, &need) || need > UINT32_MAX ||
      !kg_grow((void **)&m->text.data, &m->text.capacity, need, 1))
    return kg_fail_memory(err, n, "the text of a match");
  if (n) memcpy(m->text.data + before, bytes, n);
  m->text.size = need;
  WITH_ROOM(m, status, read(m, m->steps[m->n_steps].set, before, need, out, err), err);
  if (status || *out == KG_SET_DEAD) m->text.size = before;
  return status;
}

static int add_step(kg_matcher *m, step made, kg_error *err)
{
  /* bounded: checked on this line */
  if (m->n_steps >= INT32_MAX - 1 || !kg_grow((void **)&m->steps, &m->capacity, m->n_steps + 2, sizeof *m->steps)) {
    m->text.size = m->steps[m->n_steps].text_size;
    return kg_fail_memory(err, m->n_steps, "the steps of a match");
  }
  m->steps[++m->n_steps] = made;
  return KG_OK;
}

int kg_matcher_accept_bytes(kg_matcher *m, const char *bytes, size_t n, bool *accepted, kg_error *err)
{
  kg_set set = KG_SET_DEAD;
  *accepted = false;
  if (m->steps[m->n_steps].has_ended) return KG_OK;
  int status = try_bytes(m, bytes, n, &set, err);
  if (status || set == KG_SET_DEAD) return status;
  status = add_step(m, (step){.text_size = m->text.size, .set = set}, err);
  *accepted = !status;
  return status;
}

/* What the token writes here; nothing for those that are never allowed. */
static kg_string text_of(const kg_matcher *m, int32_t id, bool *after_special)
{
  *after_special = m->steps[m->n_steps].after_special;
  const kg_string text = kg_tokenizer_piece(m->tokenizer, id, 0, after_special);
  return text.size <= KG_PIECE_MAX ? text : (kg_string){0};
}

static int check_id(const kg_matcher *m, int32_t id, kg_error *err)
{
  if (!m->tokenizer) return kg_fail(err, KG_ERR_ARGUMENT, "the matcher was made without a tokenizer");
  return kg_tokenizer_check_id(m->tokenizer, id, err);
}

/* The step that the token makes, where it fits; the text is longer by the token then. */
static int try_token(kg_matcher *m, int32_t id, step *out, bool *fits, kg_error *err)
{
  *out = m->steps[m->n_steps];
  *fits = out->has_ended; /* then it does, whatever it is */
  int status = check_id(m, id, err);
  if (status || *fits) return status;
  if (kg_tokenizer_is_end(m->tokenizer, id)) {
    out->has_ended = true;
    return kg_matcher_is_complete(m, fits, err);
  }
  const kg_string text = text_of(m, id, &out->after_special);
  if (!text.size) return KG_OK;
  status = try_bytes(m, text.data, text.size, &out->set, err);
  out->text_size = m->text.size;
  *fits = !status && out->set != KG_SET_DEAD;
  return status;
}

int kg_matcher_accept(kg_matcher *m, int32_t id, bool *accepted, kg_error *err)
{
  step made;
  int status = try_token(m, id, &made, accepted, err);
  if (!status && *accepted) status = add_step(m, made, err);
  if (status) *accepted = false;
  return status;
}

int kg_matcher_fits(kg_matcher *m, int32_t id, bool *fits, kg_error *err)
{
  step made;
  int status = check_idle(m->grammar, err);
  if (status) return status;
  status = try_token(m, id, &made, fits, err);
  m->text.size = m->steps[m->n_steps].text_size;
  return status;
}

int32_t kg_matcher_n_steps(const kg_matcher *m) { return (int32_t)m->n_steps; }

void kg_matcher_rewind(kg_matcher *m, int32_t n_steps)
{
  m->n_steps = (size_t)n_steps;
  m->text.size = m->steps[n_steps].text_size;
}

/* ---- questions ---- */

bool kg_matcher_has_ended(const kg_matcher *m) { return m->steps[m->n_steps].has_ended; }

kg_string kg_matcher_text(const kg_matcher *m) { return (kg_string){m->text.data, m->text.size}; }

int kg_matcher_is_complete(kg_matcher *m, bool *out, kg_error *err)
{
  const int status = follow(m, err);
  if (!status) *out = kg_automaton_is_complete(m->automaton, m->steps[m->n_steps].set);
  return status;
}

/* The set as masks know it: without texts. */
static int plain_set(kg_matcher *m, kg_set *out, kg_error *err)
{
  *out = m->steps[m->n_steps].set;
  return m->points == KG_POINTS_ASK ? kg_automaton_forget_texts(m->automaton, *out, out, err) : KG_OK;
}

/* How many different bytes may follow, and one of them. More than one counts as two. */
static int next_byte(kg_matcher *m, kg_set set, int *n, unsigned char *byte, kg_set *next, kg_error *err)
{
  const kg_regular *regular = m->grammar->regular;
  *n = 0;
  for (uint32_t c = 0; c < kg_regular_n_classes(regular) && *n < 2; c++) {
    kg_set behind;
    const int status = kg_automaton_step(m->automaton, set, c, KG_POINTS_PASS, NULL, &behind, err);
    if (status) return status;
    if (behind == KG_SET_DEAD) continue;
    *n += kg_regular_class_size(regular, c) > 1 ? 2 : 1; /* bounded: 2 x 256 */
    *byte = kg_regular_class_byte(regular, c);
    *next = behind;
  }
  return KG_OK;
}

static int is_over(kg_matcher *m, bool *out, kg_error *err)
{
  kg_set set, next;
  int n = 0;
  unsigned char byte;
  int status = plain_set(m, &set, err);
  if (!status) status = next_byte(m, set, &n, &byte, &next, err);
  *out = !n;
  return status;
}

int kg_matcher_is_over(kg_matcher *m, bool *out, kg_error *err)
{
  *out = true;
  if (m->steps[m->n_steps].has_ended) return KG_OK;
  int status = follow(m, err);
  if (!status) WITH_ROOM(m, status, is_over(m, out, err), err);
  return status;
}

/* ---- masks ---- */

static int get_mask(kg_matcher *m, kg_points points, uint64_t *out, kg_error *err)
{
  kg_set set;
  const step *last = &m->steps[m->n_steps];
  const size_t n_words = kg_masks_n_words(m->masks);
  int status = plain_set(m, &set, err);
  if (status) return status;
  if (last->after_special && m->tokenizer->space_prefix) return kg_masks_get_stripped(m->masks, set, points, out, err);
  const uint64_t *bits;
  status = kg_masks_get(m->masks, set, points, &bits, err);
  if (!status) memcpy(out, bits, n_words * sizeof *out); /* bounded: in memory */
  return status;
}

static bool make_words(kg_matcher *m, uint64_t **words)
{
  if (!*words) *words = kg_alloc_array(kg_masks_n_words(m->masks), sizeof **words);
  return *words != NULL;
}

static void allow_all(kg_matcher *m, uint64_t *bits)
{
  const size_t size = (size_t)m->tokenizer->vocab.size;
  memset(bits, 0xFF, kg_masks_n_words(m->masks) * sizeof *bits); /* bounded: in memory */
  if (size % 64) bits[size / 64] = kg_bit((size_t)size) - 1;
}

static void allow_ends(kg_matcher *m, uint64_t *bits)
{
  for (size_t i = 0; i < m->tokenizer->n_ends; i++) {
    const int32_t id = m->tokenizer->ends[i];
    kg_set_bit(bits, (size_t)id);
  }
}

size_t kg_matcher_n_words(const kg_matcher *m) { return m->masks ? kg_masks_n_words(m->masks) : 0; }

int kg_matcher_mask(kg_matcher *m, const uint64_t **possible, const uint64_t **sure, kg_error *err)
{
  if (!m->tokenizer) return kg_fail(err, KG_ERR_ARGUMENT, "the matcher was made without a tokenizer");
  const bool has_points = m->points == KG_POINTS_ASK;
  if (!make_words(m, &m->possible) || (has_points && !make_words(m, &m->sure)))
    return kg_fail_memory(err, kg_masks_n_words(m->masks) * 8, "a mask");
  *possible = m->possible;
  *sure = has_points ? m->sure : m->possible;
  if (m->steps[m->n_steps].has_ended) {
    allow_all(m, m->possible);
    if (has_points) allow_all(m, m->sure);
    return KG_OK;
  }
  int status = follow(m, err);
  if (!status) WITH_ROOM(m, status, get_mask(m, KG_POINTS_PASS, m->possible, err), err);
  if (!status && has_points) {
    memset(m->sure, 0, kg_masks_n_words(m->masks) * sizeof *m->sure); /* bounded: in memory */
    if (!m->judge.asks_partial) WITH_ROOM(m, status, get_mask(m, KG_POINTS_STOP, m->sure, err), err);
  }
  if (!status && kg_automaton_is_complete(m->automaton, m->steps[m->n_steps].set)) {
    allow_ends(m, m->possible);
    if (has_points) allow_ends(m, m->sure);
  }
  return status;
}

/* ---- judging ---- */

typedef struct candidate {
  float logit;
  int32_t id;
} candidate;

static bool is_better(candidate x, candidate y) { return x.logit > y.logit || (x.logit == y.logit && x.id < y.id); }

static void sift_down(candidate *heap, size_t n, size_t at)
{
  for (size_t child; (child = 2 * at + 1) < n; at = child) { /* bounded: by the vocabulary */
    if (child + 1 < n && is_better(heap[child + 1], heap[child])) child++; /* bounded: in memory */
    if (!is_better(heap[child], heap[at])) return;
    const candidate moved = heap[at];
    heap[at] = heap[child];
    heap[child] = moved;
  }
}

/* Take the uncertain tokens into `sure` that the judge allows, the likeliest first. */
static int judge_candidates(kg_matcher *m, candidate *heap, size_t n, size_t *n_allowed, kg_error *err)
{
  for (size_t i = n / 2; i-- > 0;) sift_down(heap, n, i);
  for (size_t n_judged = 0; n && (n_judged < KG_JUDGED_MAX || !*n_allowed); n_judged++) {
    const int32_t id = heap[0].id;
    bool fits;
    const int status = kg_matcher_fits(m, id, &fits, err);
    if (status) return status;
    if (fits) {
      kg_set_bit(m->sure, (size_t)id);
      ++*n_allowed;
    }
    heap[0] = heap[--n];
    sift_down(heap, n, 0);
  }
  return KG_OK;
}

static int judge(kg_matcher *m, const float *logits, size_t *n_allowed, kg_error *err)
{
  const size_t n_words = kg_masks_n_words(m->masks);
  size_t n = 0, capacity = 0;
  /* bounded: bits in memory */
  for (size_t w = 0; w < n_words; w++) capacity += (size_t)__builtin_popcountll(m->possible[w] & ~m->sure[w]);
  if (!capacity) return KG_OK;
  candidate *heap = kg_alloc_array(capacity, sizeof *heap);
  if (!heap) return kg_fail_memory(err, capacity * sizeof *heap, "candidates");
  for (size_t w = 0; w < n_words; w++)
    for (uint64_t left = m->possible[w] & ~m->sure[w]; left; left &= left - 1) {
      const int32_t id = (int32_t)(w * 64 + (size_t)__builtin_ctzll(left)); /* bounded: bits in memory */
      if (!isinf(logits[id]) && !isnan(logits[id])) heap[n++] = (candidate){logits[id], id};
    }
  const int status = judge_candidates(m, heap, n, n_allowed, err);
  kg_free(heap);
  return status;
}

/* ---- logits ---- */

typedef uint32_t lanes __attribute__((vector_size(32)));

/* Eight logits, of which those whose bits are set stay. */
static void ban_eight(unsigned char kept, float *logits)
{
  /* bounded: lanes are to wrap */
  const lanes each = {1, 2, 4, 8, 16, 32, 64, 128}, lowest = (lanes){0} + 0xFF800000u; /* -inf */
  lanes numbers;
  memcpy(&numbers, logits, sizeof numbers);
  const lanes stay = (lanes)((((lanes){0} + kept) & each) == each); /* bounded: lanes are to wrap */
  numbers = (numbers & stay) | (lowest & ~stay);
  memcpy(logits, &numbers, sizeof numbers);
}

/* Most words are all ones or all zeros. */
static void ban(const uint64_t *bits, size_t n_words, float *logits, size_t n)
{
  for (size_t w = 0; w * 64 < n; w++) { /* bounded: n + 63 */
    const uint64_t word = w < n_words ? bits[w] : 0;
    const size_t end = n - w * 64 < 64 ? n - w * 64 : 64; /* bounded: below n */
    float *at = logits + w * 64; /* bounded: an address */
    if (word == UINT64_MAX) continue;
    if (!word) {
      for (size_t i = 0; i < end; i++) at[i] = -INFINITY;
      continue;
    }
    if (end == 64) {
      for (size_t i = 0; i < 8; i++) ban_eight((unsigned char)(word >> 8 * i), at + 8 * i); /* bounded: 8 x 8 */
      continue;
    }
    for (size_t i = 0; i < end; i++) at[i] = word >> i & 1 ? at[i] : -INFINITY;
  }
}

int kg_matcher_mask_logits(kg_matcher *m, float *logits, size_t n, size_t *n_allowed, kg_error *err)
{
  const uint64_t *possible, *sure;
  int status = kg_matcher_mask(m, &possible, &sure, err);
  if (status) return status;
  if (n < (size_t)m->tokenizer->vocab.size)
    return kg_fail(err, KG_ERR_ARGUMENT, "%zu logits for a vocabulary of %d", n, m->tokenizer->vocab.size);
  const size_t n_words = kg_masks_n_words(m->masks);
  *n_allowed = 0;
  for (size_t w = 0; w < n_words; w++) *n_allowed += (size_t)__builtin_popcountll(sure[w]); /* bounded: in memory */
  if (possible != sure) status = judge(m, logits, n_allowed, err);
  if (!status) ban(sure, n_words, logits, n);
  return status;
}

int kg_matcher_count(kg_matcher *m, size_t *n_allowed, kg_error *err)
{
  const uint64_t *possible, *sure;
  const int status = kg_matcher_mask(m, &possible, &sure, err);
  *n_allowed = 0;
  /* bounded: bits in memory */
  for (size_t w = 0; w < kg_matcher_n_words(m) && !status; w++) *n_allowed += (size_t)__builtin_popcountll(possible[w]);
  return status;
}

int kg_matcher_mask_buffer(kg_matcher *m, kg_buffer *logits, int64_t at, int64_t n, size_t *n_allowed, kg_error *err)
{
  if (logits->ops == &kg_host_tensor_ops)
    return kg_matcher_mask_logits(m, (float *)logits->data + at, (size_t)n, n_allowed, err);
  float *host = kg_alloc_array((size_t)n, sizeof *host);
  if (!host) return kg_fail_memory(err, (size_t)n * sizeof *host, "logits");
  int status = logits->ops->read(logits, at, n, host, err);
  if (!status) status = kg_matcher_mask_logits(m, host, (size_t)n, n_allowed, err);
  if (!status) status = logits->ops->write(logits, at, n, host, err);
  kg_free(host);
  return status;
}

/* ---- what is forced ---- */

static int force(kg_matcher *m, size_t max, kg_bytes *out, kg_error *err)
{
  kg_set set = m->steps[m->n_steps].set;
  for (size_t n_more = 0; n_more < max; n_more++) {
    int n;
    unsigned char byte;
    kg_set next;
    if (kg_automaton_is_complete(m->automaton, set)) break;
    const int status = next_byte(m, set, &n, &byte, &next, err);
    if (status) return status;
    if (n != 1) break;
    if (!kg_grow((void **)&out->data, &out->capacity, out->size + 1, 1)) return kg_fail_memory(err, out->size, "text");
    out->data[out->size++] = (char)byte;
    set = next;
  }
  return KG_OK;
}

/* Bytes that must follow whatever comes: appended to `out`, at most `max`. Nothing where points are open. */
static int forced_bytes(kg_matcher *m, size_t max, kg_bytes *out, kg_error *err)
{
  const size_t before = out->size;
  if (m->points == KG_POINTS_ASK || m->steps[m->n_steps].has_ended) return KG_OK;
  int status = follow(m, err);
  if (status) return status;
  WITH_ROOM(m, status, (out->size = before, force(m, max, out, err)), err);
  return status;
}

/* Is there a token that begins like these bytes, is longer, and fits here? */
static int may_be_longer(kg_matcher *m, kg_string tail, bool *out, kg_error *err)
{
  const kg_piece_tree *pieces = &m->tokenizer->pieces->all;
  uint32_t at = 0, end = pieces->n_nodes;
  *out = false;
  for (size_t i = 0; i < tail.size; i++) {
    while (at < end && pieces->nodes[at].byte != (uint8_t)tail.data[i]) at = pieces->nodes[at].skip;
    if (at >= end) return KG_OK;
    end = pieces->nodes[at++].skip; /* its children */
  }
  const uint64_t *possible, *sure;
  const int status = at < end ? kg_matcher_mask(m, &possible, &sure, err) : KG_OK;
  for (; at < end && !status && !*out; at++) {
    const int32_t id = pieces->nodes[at].id;
    *out = id >= 0 && kg_has_bit(possible, (size_t)id);
  }
  return status;
}

/* Take the canonical tokens of the bytes as long as they fit and no other token might stand over their ends. `out` gets
 * those before the first boundary from which on the rest might be the beginning of something longer. */
static int take_forced(kg_matcher *m, const kg_tokens *ids, kg_string bytes, kg_tokens *out, kg_error *err)
{
  size_t at = 0, n = 0;
  int status = KG_OK;
  const int32_t n_steps = kg_matcher_n_steps(m);
  while (n < ids->n && !status) {
    bool may, fits = false;
    status = may_be_longer(m, (kg_string){bytes.data + at, bytes.size - at}, &may, err);
    if (status || may) break;
    status = kg_matcher_accept(m, ids->ids[n], &fits, err);
    if (status || !fits) break;
    at = m->text.size - m->steps[n_steps].text_size;
    n++;
  }
  kg_matcher_rewind(m, n_steps);
  if (status) return status;
  if (!kg_grow((void **)&out->ids, &out->capacity, out->n + n, sizeof *out->ids)) return kg_fail_memory(err, n, "ids");
  if (n) memcpy(out->ids + out->n, ids->ids, n * sizeof *out->ids); /* bounded: in memory: grown above */
  out->n += n; /* bounded: as it was grown */
  return KG_OK;
}

int kg_matcher_forced(kg_matcher *m, kg_tokens *out, kg_error *err)
{
  kg_bytes bytes = {0};
  kg_tokens ids = {0};
  if (!m->tokenizer) return kg_fail(err, KG_ERR_ARGUMENT, "the matcher was made without a tokenizer");
  int status = forced_bytes(m, FORCED_MAX, &bytes, err);
  const kg_segment segment = {bytes.data, bytes.size, false};
  if (!status && bytes.size) status = kg_tokenizer_encode(m->tokenizer, &segment, 1, 0, &ids, err);
  if (!status && ids.n) status = take_forced(m, &ids, (kg_string){bytes.data, bytes.size}, out, err);
  kg_bytes_deinit(&bytes);
  kg_tokens_deinit(&ids);
  return status;
}

/* ---- making ---- */

static void keep_judge(kg_matcher *m, const kg_judge *judge)
{
  m->judge = *judge;
  if (judge->ref) judge->ref(judge->user);
}

const kg_judge *kg_matcher_judge(const kg_matcher *m) { return &m->judge; }

bool kg_matcher_is_judging(const kg_matcher *m) { return m->grammar->is_judging; }

kg_grammar *kg_matcher_grammar(const kg_matcher *m) { return m->grammar; }

int kg_matcher_new(kg_grammar *grammar, kg_tokenizer *tokenizer, const kg_judge *judge, kg_matcher **out, kg_error *err)
{
  int status = check_idle(grammar, err);
  if (status) return status;
  if (grammar->n_points && !judge)
    return kg_fail(err, KG_ERR_ARGUMENT, "the grammar has points, and nobody to decide at them");
  kg_matcher *m = kg_alloc_array(1, sizeof *m);
  if (!m) return kg_fail_memory(err, sizeof *m, "a matcher");
  m->grammar = kg_grammar_ref(grammar);
  m->classes = kg_regular_classes(grammar->regular);
  if (judge && grammar->n_points) keep_judge(m, judge);
  m->points = grammar->n_points ? KG_POINTS_ASK : KG_POINTS_PASS;
  status = kg_grammar_automaton(grammar, &m->automaton, err);
  if (!status && tokenizer) {
    m->tokenizer = kg_tokenizer_ref(tokenizer);
    status = kg_grammar_masks(grammar, tokenizer, &m->masks, err);
  }
  if (!status && !kg_grow((void **)&m->steps, &m->capacity, 16, sizeof *m->steps))
    status = kg_fail_memory(err, 16, "a matcher");
  if (!status) {
    m->steps[0] = (step){0};
    status = follow(m, err);
  }
  if (status)
    kg_matcher_free(m);
  else
    *out = m;
  return status;
}

int kg_matcher_copy(const kg_matcher *from, kg_matcher **out, kg_error *err)
{
  const int status = check_idle(from->grammar, err);
  if (status) return status;
  kg_matcher *m = kg_alloc_array(1, sizeof *m);
  if (!m) return kg_fail_memory(err, sizeof *m, "a matcher");
  *m = *from;
  m->grammar = kg_grammar_ref(from->grammar);
  keep_judge(m, &from->judge);
  m->tokenizer = from->tokenizer ? kg_tokenizer_ref(from->tokenizer) : NULL;
  m->possible = m->sure = NULL;
  m->capacity = from->n_steps + 1; /* bounded: steps in memory */
  m->steps = kg_alloc_array(m->capacity, sizeof *m->steps);
  m->text = (kg_bytes){.data = kg_alloc(from->text.size), .size = from->text.size, .capacity = from->text.size};
  if (!m->steps || !m->text.data) {
    kg_matcher_free(m);
    return kg_fail_memory(err, from->text.size, "a matcher");
  }
  memcpy(m->steps, from->steps, m->capacity * sizeof *m->steps); /* bounded: in memory */
  if (from->text.size) memcpy(m->text.data, from->text.data, from->text.size);
  *out = m;
  return KG_OK;
}

void kg_matcher_free(kg_matcher *m)
{
  if (!m) return;
  kg_grammar_free(m->grammar);
  if (m->judge.unref) m->judge.unref(m->judge.user);
  kg_tokenizer_free(m->tokenizer);
  kg_bytes_deinit(&m->text);
  kg_free(m->steps);
  kg_free(m->possible);
  kg_free(m->sure);
  kg_free(m);
}

void kg_matcher_begin_text(kg_matcher *m, bool after_special) { m->steps[0].after_special = after_special; }
