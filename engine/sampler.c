#include "sampler.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "draw.h"
#include "error.h"
#include "mirostat.h"
#include "rank.h"
#include "vector.h"

#define LN2 0.69314718f

enum {
  RANKED_FIRST = 64, /* few candidates hold most of the mass: first so many are ranked, ... */
  RANKED_MOST = 512, /* ... then so many, and then buckets are filled */
  BUCKET_SHIFT = 20, /* of a candidate's rank key: its sign, exponent and 3 bits of its mantissa */
  N_BUCKETS = 1 << (32 - BUCKET_SHIFT)
};

/* The candidates of one run are positions [0, n) of x; their ids ascend, so that ties by position are ties by id. */
struct kg_chain {
  int32_t n_refs;
  kg_stage *stages;
  size_t n_stages;
  kg_draw_program program; /* the same for devices; unless is_plain, they cannot run it */
  bool is_plain;
  int64_t capacity; /* items in each of the next five */
  float *x;         /* logits of the candidates */
  int32_t *ids;     /* their ids, unless is_full */
  float *weights;   /* exp(x - max) */
  float *order;     /* typical: what to rank by */
  int32_t *counts;  /* by id, for penalties and DRY; all zero between runs */
  uint64_t bucket_mass[N_BUCKETS];
  uint32_t bucket_count[N_BUCKETS];
  kg_rank *room;
  size_t n_room;
  int32_t *lengths; /* DRY: of matches */
  size_t n_lengths;
  const kg_sequence *sequence; /* of a run; NULL: there is no history, and no random numbers */
  uint64_t n_drawn;            /* random numbers of a run */
  float surprise;              /* mirostat: of the best logit */
  int64_t n;
  float mass_scale; /* see kg_mass */
  bool is_full;     /* every id is a candidate: position = id */
};

/* ---- making ---- */

int kg_chain_new(const kg_stage *stages, size_t n, kg_chain **out, kg_error *err)
{
  int status = kg_stages_check(stages, n, err);
  if (status) return status;
  kg_chain *chain = kg_alloc_array(1, sizeof *chain);
  if (!chain) return kg_fail_memory(err, sizeof *chain, "a sampler chain");
  chain->n_refs = 1;
  status = kg_stages_copy(stages, n, &chain->stages, err);
  if (!status) {
    chain->n_stages = n;
    status = kg_draw_program_init(&chain->program, chain->stages, n, &chain->is_plain, err);
  }
  if (status)
    kg_chain_free(chain);
  else
    *out = chain;
  return status;
}

static void free_scratch(kg_chain *chain)
{
  kg_free(chain->x);
  kg_free(chain->ids);
  kg_free(chain->weights);
  kg_free(chain->order);
  kg_free(chain->counts);
  chain->x = chain->weights = chain->order = NULL;
  chain->ids = chain->counts = NULL;
  chain->capacity = 0;
}

const kg_stage *kg_chain_stages(const kg_chain *chain, size_t *n)
{
  *n = chain->n_stages;
  return chain->stages;
}

kg_chain *kg_chain_ref(kg_chain *chain)
{
  chain->n_refs++;
  return chain;
}

void kg_chain_free(kg_chain *chain)
{
  if (!chain || --chain->n_refs) return;
  kg_stages_free(chain->stages, chain->n_stages);
  kg_draw_program_deinit(&chain->program);
  free_scratch(chain);
  kg_free(chain->room);
  kg_free(chain->lengths);
  kg_free(chain);
}

/* Scratch for a vocabulary of n: made when the chain is first used, kept until it meets a larger one. */
static int make_scratch(kg_chain *chain, int64_t n, kg_error *err)
{
  if (n <= chain->capacity) return KG_OK;
  free_scratch(chain);
  const size_t n_bytes = (size_t)n * sizeof(float);
  chain->x = kg_alloc_aligned(n_bytes, 64);
  chain->ids = kg_alloc_aligned(n_bytes, 64);
  chain->weights = kg_alloc_aligned(n_bytes, 64);
  chain->order = kg_alloc_aligned(n_bytes, 64);
  chain->counts = kg_alloc_array((size_t)n, sizeof *chain->counts);
  if (!chain->x || !chain->ids || !chain->weights || !chain->order || !chain->counts) {
    free_scratch(chain);
    return kg_fail_memory(err, 5 * n_bytes, "the scratch of a sampler chain");
  }
  chain->capacity = n;
  return KG_OK;
}

/* ---- the candidates ---- */

static int32_t id_at(const kg_chain *chain, int64_t position)
{
  return chain->is_full ? (int32_t)position : chain->ids[position];
}

/* Where the id is among the candidates, or -1. */
static int64_t find_id(const kg_chain *chain, int32_t id)
{
  if (chain->is_full) return id;
  int64_t low = 0, high = chain->n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (chain->ids[middle] < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low < chain->n && chain->ids[low] == id ? low : -1;
}

/* Copy a candidate down to position `to`: the step of every filter. Positions ascend, so nothing unread is lost. */
static void move_down(kg_chain *chain, int64_t to, int64_t from)
{
  chain->ids[to] = id_at(chain, from);
  chain->x[to] = chain->x[from];
}

static void keep_first(kg_chain *chain, int64_t n)
{
  chain->n = n;
  chain->is_full = false;
}

/* Keep the candidates with at least this logit. */
static void keep_from(kg_chain *chain, float least)
{
  const kg_vector *vector = kg_vector_get();
  const float below = nextafterf(least, -INFINITY);
  int64_t n_kept = 0;
  for (int64_t at = 0; at < chain->n;) {
    at += vector->find_above(chain->x + at, chain->n - at, below);
    const int64_t end = at + KG_VECTOR_BLOCK < chain->n ? at + KG_VECTOR_BLOCK : chain->n;
    for (; at < end; at++)
      if (chain->x[at] >= least) move_down(chain, n_kept++, at);
  }
  keep_first(chain, n_kept);
}

/* Keep the candidates that rank by `by` at least as high as `last`. */
static void keep_down_to(kg_chain *chain, const float *by, kg_rank last)
{
  const kg_vector *vector = kg_vector_get();
  const float below = nextafterf(by[kg_rank_index(last)], -INFINITY);
  int64_t n_kept = 0;
  for (int64_t at = 0; at < chain->n;) {
    at += vector->find_above(by + at, chain->n - at, below); /* skips blocks; what it finds is looked at exactly */
    const int64_t end = at + KG_VECTOR_BLOCK < chain->n ? at + KG_VECTOR_BLOCK : chain->n;
    for (; at < end; at++) {
      const bool is_kept = kg_rank_make(by[at], (uint32_t)at) >= last;
      move_down(chain, n_kept, at); /* what is not kept is overwritten by the next: no branch that nobody can predict */
      n_kept += is_kept;
    }
  }
  keep_first(chain, n_kept);
}

static int make_room(kg_chain *chain, size_t n_room, kg_error *err)
{
  void *room = chain->room;
  if (!kg_grow(&room, &chain->n_room, n_room, sizeof *chain->room))
    return kg_fail_memory(err, n_room * sizeof *chain->room, "ranking candidates");
  chain->room = room;
  return KG_OK;
}

/* The k best positions of `by`, into chain->room. */
static int rank_top(kg_chain *chain, const float *by, int64_t k, kg_error *err)
{
  const int status = make_room(chain, kg_rank_room(chain->n, k), err);
  if (!status) kg_rank_top(by, chain->n, k, chain->room);
  return status;
}

/* Walk down room[0..n), which follows on candidates of `mass`, to the first one at which the sum reaches the goal. */
static bool walk(const kg_chain *chain, int64_t n, uint64_t mass, uint64_t goal, kg_rank *last)
{
  for (int64_t i = 0; i < n; i++) {
    mass += kg_mass(chain->weights[kg_rank_index(chain->room[i])], chain->mass_scale);
    if (mass < goal) continue;
    *last = chain->room[i];
    return true;
  }
  return false;
}

static uint32_t bucket_of(float by) { return kg_rank_key(by) >> BUCKET_SHIFT; }

/* For flat distributions, where ranking would mean to sort most of the vocabulary: sum the weights in buckets of like
 * values, and rank only the bucket in which the goal lies. */
static int walk_buckets(kg_chain *chain, const float *by, uint64_t goal, kg_rank *last, kg_error *err)
{
  memset(chain->bucket_mass, 0, sizeof chain->bucket_mass);
  memset(chain->bucket_count, 0, sizeof chain->bucket_count);
  for (int64_t i = 0; i < chain->n; i++) {
    chain->bucket_mass[bucket_of(by[i])] += kg_mass(chain->weights[i], chain->mass_scale);
    chain->bucket_count[bucket_of(by[i])]++;
  }
  uint64_t before = 0;
  uint32_t bucket = N_BUCKETS - 1;
  for (; bucket && before + chain->bucket_mass[bucket] < goal; bucket--) before += chain->bucket_mass[bucket];
  const size_t n_in = chain->bucket_count[bucket];
  const int status = make_room(chain, 2 * n_in, err);
  if (status) return status;
  kg_rank *next = chain->room;
  for (int64_t i = 0; i < chain->n; i++)
    if (bucket_of(by[i]) == bucket) *next++ = kg_rank_make(by[i], (uint32_t)i);
  kg_rank_sort(chain->room, chain->room + n_in, n_in);
  walk(chain, (int64_t)n_in, before, goal, last);
  return KG_OK;
}

/* The last candidate, in the order of `by`, of the shortest run whose mass reaches the goal, which is at most that of
 * all candidates. */
static int find_goal(kg_chain *chain, const float *by, uint64_t goal, kg_rank *last, kg_error *err)
{
  for (int64_t k = RANKED_FIRST; k <= RANKED_MOST; k *= RANKED_MOST / RANKED_FIRST) {
    const int64_t n_ranked = k < chain->n ? k : chain->n;
    const int status = rank_top(chain, by, n_ranked, err);
    if (status || walk(chain, n_ranked, 0, goal, last) || n_ranked == chain->n) return status;
  }
  return walk_buckets(chain, by, goal, last, err);
}

static int best_logit(const kg_chain *chain, float *max, kg_error *err)
{
  *max = kg_vector_get()->max(chain->x, chain->n);
  if (*max == -INFINITY) return kg_fail(err, KG_ERR_NUMERIC, "nothing is left to draw from: every logit is -inf");
  if (*max == INFINITY) return kg_fail(err, KG_ERR_NUMERIC, "the stages made a logit overflow to inf");
  return KG_OK;
}

/* Fill weights with exp(x - max); *total is their mass, *mean (unless NULL) the mean of x - max. */
static int weigh(kg_chain *chain, uint64_t *total, float *mean, kg_error *err)
{
  float max;
  const int status = best_logit(chain, &max, err);
  if (status) return status;
  uint64_t moment;
  *total = kg_vector_get()->weigh(chain->x, chain->n, max, chain->mass_scale, chain->weights, mean ? &moment : NULL);
  if (mean) *mean = kg_mean_of(moment, *total);
  return KG_OK;
}

/* ---- stages ---- */

static int keep_best(kg_chain *chain, kg_error *err)
{
  float max;
  const int status = best_logit(chain, &max, err);
  if (status) return status;
  move_down(chain, 0, kg_vector_get()->find(chain->x, chain->n, max));
  keep_first(chain, 1);
  return KG_OK;
}

static int keep_top_k(kg_chain *chain, int32_t k, kg_error *err)
{
  if (k <= 0 || k >= chain->n) return KG_OK;
  const int status = rank_top(chain, chain->x, k, err);
  if (!status) keep_down_to(chain, chain->x, chain->room[k - 1]);
  return status;
}

static int keep_top_p(kg_chain *chain, float p, kg_error *err)
{
  if (p == 1) return KG_OK;
  uint64_t total;
  kg_rank last;
  int status = weigh(chain, &total, NULL, err);
  if (!status) status = find_goal(chain, chain->x, kg_goal_of_share(p, total), &last, err);
  if (!status) keep_down_to(chain, chain->x, last);
  return status;
}

static int keep_min_p(kg_chain *chain, float p, kg_error *err)
{
  float max;
  const int status = best_logit(chain, &max, err);
  if (status || p == 0) return status;
  /* First roughly, by the logit, which skips whole blocks; then by the definition. */
  const float cut = (float)((double)max + log((double)p) - 1e-3 - fabs((double)max) * 1e-6);
  const kg_vector *vector = kg_vector_get();
  int64_t n_kept = 0;
  for (int64_t at = 0; at < chain->n;) {
    at += vector->find_above(chain->x + at, chain->n - at, cut);
    const int64_t end = at + KG_VECTOR_BLOCK < chain->n ? at + KG_VECTOR_BLOCK : chain->n;
    for (; at < end; at++)
      if (chain->x[at] > cut) move_down(chain, n_kept++, at);
  }
  keep_first(chain, n_kept);
  vector->weigh(chain->x, n_kept, max, chain->mass_scale, chain->weights, NULL);
  n_kept = 0;
  for (int64_t i = 0; i < chain->n; i++)
    if (chain->weights[i] >= p) move_down(chain, n_kept++, i);
  keep_first(chain, n_kept);
  return KG_OK;
}

static int keep_typical(kg_chain *chain, float p, kg_error *err)
{
  if (p == 1) return KG_OK;
  float max, mean;
  uint64_t total;
  kg_rank last;
  int status = best_logit(chain, &max, err);
  if (!status) status = weigh(chain, &total, &mean, err);
  if (status) return status;
  /* With d = x - max: -log(p) = log(total) - d and the entropy is log(total) - mean, so they differ by |d - mean|. */
  for (int64_t i = 0; i < chain->n; i++) chain->order[i] = kg_typicality(chain->x[i], max, mean);
  status = find_goal(chain, chain->order, kg_goal_of_share(p, total), &last, err);
  if (!status) keep_down_to(chain, chain->order, last);
  return status;
}

static int keep_top_n_sigma(kg_chain *chain, float value, int64_t n_vocab, kg_error *err)
{
  float max, min;
  const int status = best_logit(chain, &max, err);
  if (status || value == 0) return status;
  const int64_t n = kg_vector_get()->count_finite(chain->x, chain->n, &min);
  const double range = (double)max - (double)min;
  if (range == 0) return KG_OK;
  const double scale = kg_spread_scale(range, n_vocab);
  uint64_t squares;
  const uint64_t sum = kg_vector_get()->spread(chain->x, chain->n, max, scale, &squares);
  keep_from(chain, kg_sigma_cut(value, max, sum, squares, n, scale));
  return KG_OK;
}

/* The next random number of this run. It counts on the sequence when the run has come to an end. */
static int next_uniform(kg_chain *chain, double *u, kg_error *err)
{
  const kg_sequence *sequence = chain->sequence;
  if (!sequence) return kg_fail(err, KG_ERR_ARGUMENT, "a draw needs a sequence");
  *u = kg_uniform(kg_sequence_seed(sequence), (uint64_t)kg_sequence_pos(sequence),
                  kg_sequence_draws(sequence) + chain->n_drawn++);
  return KG_OK;
}

/* Look at those whose mass may reach the goal: a worse one than `worst` so far is noted, or, in a second round, those
 * above it are dropped. */
static void look_at_top(kg_chain *chain, uint64_t goal, bool drops, kg_rank *worst)
{
  const kg_vector *vector = kg_vector_get();
  /* Masses are rounded, and this is a hair less than the least weight that becomes the goal. */
  const float enough = (float)(((double)goal - 0.5) / (double)chain->mass_scale) * 0.999f;
  for (int64_t at = 0; at < chain->n;) {
    at += vector->find_above(chain->weights + at, chain->n - at, enough);
    const int64_t end = at + KG_VECTOR_BLOCK < chain->n ? at + KG_VECTOR_BLOCK : chain->n;
    for (; at < end; at++) {
      const kg_rank rank = kg_rank_make(chain->x[at], (uint32_t)at);
      if (drops && rank > *worst) chain->x[at] = -INFINITY;
      if (!drops && rank < *worst && kg_mass(chain->weights[at], chain->mass_scale) >= goal) *worst = rank;
    }
  }
}

static int drop_top_choices(kg_chain *chain, const kg_stage *stage, kg_error *err)
{
  float max;
  double u = 0;
  uint64_t total;
  int status = best_logit(chain, &max, err);
  if (status || !kg_xtc_may_drop(stage->probability, stage->threshold)) return status;
  if (stage->probability < 1) status = next_uniform(chain, &u, err);
  if (status || u >= (double)stage->probability) return status;
  status = weigh(chain, &total, NULL, err);
  if (status) return status;
  kg_rank worst = UINT64_MAX;
  const uint64_t goal = kg_goal_of_share(stage->threshold, total);
  look_at_top(chain, goal, false, &worst);
  if (worst < UINT64_MAX) look_at_top(chain, goal, true, &worst);
  return KG_OK;
}

/* Divide by a temperature that the entropy sets. */
static int divide_by_entropy(kg_chain *chain, const kg_stage *stage, kg_error *err)
{
  float mean, min;
  uint64_t total;
  const int status = weigh(chain, &total, &mean, err);
  if (status) return status;
  const int64_t n = kg_vector_get()->count_finite(chain->x, chain->n, &min);
  const float value =
      kg_dynamic_temperature(stage->low, stage->high, stage->exponent, total, mean, n, chain->mass_scale);
  if (value < KG_TEMPERATURE_MIN) return keep_best(chain, err);
  if (value != 1) kg_vector_get()->divide(chain->x, chain->n, value);
  return KG_OK;
}

/* -log2(p) <= mu, where log(p) = x - max - log(total). */
static int keep_expected(kg_chain *chain, const kg_stage *stage, kg_error *err)
{
  float max;
  uint64_t total;
  int status = best_logit(chain, &max, err);
  if (!status) status = weigh(chain, &total, NULL, err);
  if (status) return status;
  const float log_total = kg_draw_log((float)total / chain->mass_scale);
  const float mu = kg_mirostat_mu(chain->sequence, stage->tau, stage->eta);
  chain->surprise = log_total * (1 / LN2);
  keep_from(chain, fminf(max, max + (log_total - mu * LN2)));
  return KG_OK;
}

/* ---- stages that look at the history ---- */

/* The last last_n tokens (-1: all) of the timeline, which must be in the vocabulary. */
static int history(const kg_chain *chain, const kg_stage *stage, int64_t n_vocab, const int32_t **tokens, int32_t *n,
                   kg_error *err)
{
  *n = 0;
  if (!chain->sequence) return KG_OK;
  const int32_t n_tokens = kg_sequence_pos(chain->sequence), first = kg_history_first(stage->last_n, n_tokens);
  const int32_t *all = kg_sequence_tokens(chain->sequence);
  for (int32_t i = first; i < n_tokens; i++)
    if (all[i] < 0 || all[i] >= n_vocab)
      return kg_fail(err, KG_ERR_ARGUMENT, "%s: token %d at position %d is outside the vocabulary of %lld",
                     kg_stage_name(stage->kind), all[i], i, (long long)n_vocab);
  *n = n_tokens - first;
  if (*n) *tokens = all + first;
  return KG_OK;
}

static int apply_penalties(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, kg_error *err)
{
  const int32_t *tokens;
  int32_t n;
  const int status = history(chain, stage, n_vocab, &tokens, &n, err);
  if (status) return status;
  for (int32_t i = 0; i < n; i++) chain->counts[tokens[i]]++;
  for (int32_t i = 0; i < n; i++) {
    const int32_t count = chain->counts[tokens[i]];
    if (!count) continue; /* done at its first occurrence */
    chain->counts[tokens[i]] = 0;
    const int64_t at = find_id(chain, tokens[i]);
    if (at >= 0) chain->x[at] = kg_penalized(chain->x[at], count, stage->repeat, stage->frequency, stage->presence);
  }
  return KG_OK;
}

/* The longest match before each token that came next, by id, from its place at tokens[n - i]. */
static void subtract_matches(kg_chain *chain, const kg_stage *stage, const kg_breakers *breakers, const int32_t *tokens,
                             int32_t n, int32_t tail)
{
  for (int32_t i = 1; i < n; i++) {
    const int32_t length = chain->lengths[i] < tail ? chain->lengths[i] : tail;
    int32_t *longest = &chain->counts[tokens[n - i]];
    if (length >= stage->allowed && length > *longest) *longest = length;
  }
  for (int32_t i = 1; i < n; i++) {
    const int32_t id = tokens[n - i], longest = chain->counts[id];
    chain->counts[id] = 0;
    const int64_t at = longest && !kg_dry_is_breaker(breakers, id) ? find_id(chain, id) : -1;
    if (at >= 0) chain->x[at] -= kg_dry_penalty(stage->multiplier, stage->base, longest - stage->allowed);
  }
}

static int apply_dry(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, kg_error *err)
{
  const kg_breakers breakers = {stage->tokenizer, stage->breakers, stage->n_breakers};
  const int32_t *tokens;
  int32_t n, longest = 0;
  const int status = history(chain, stage, n_vocab, &tokens, &n, err);
  if (status || n < 2) return status;
  if (!kg_grow((void **)&chain->lengths, &chain->n_lengths, (size_t)n, sizeof *chain->lengths))
    return kg_fail_memory(err, (size_t)n * sizeof *chain->lengths, "finding repetitions");
  kg_dry_match(tokens, n, chain->lengths);
  for (int32_t i = 1; i < n; i++) longest = chain->lengths[i] > longest ? chain->lengths[i] : longest;
  if (longest < stage->allowed) return KG_OK;
  const int32_t tail = kg_dry_tail(&breakers, tokens, n, longest);
  if (tail >= stage->allowed) subtract_matches(chain, stage, &breakers, tokens, n, tail);
  return KG_OK;
}

static int add_bias(kg_chain *chain, int32_t id, float value, int64_t n_vocab, kg_error *err)
{
  if (id >= n_vocab)
    return kg_fail(err, KG_ERR_ARGUMENT, "bias: id %d is outside the vocabulary of %lld", id, (long long)n_vocab);
  const int64_t at = find_id(chain, id);
  if (at >= 0) chain->x[at] = kg_biased(chain->x[at], value);
  return KG_OK;
}

/* Does the timeline end with all ids of the phrase but the last? */
static bool is_begun(const kg_chain *chain, const kg_phrase *phrase)
{
  const int32_t n = phrase->n - 1, pos = chain->sequence ? kg_sequence_pos(chain->sequence) : 0;
  return n <= pos &&
         !memcmp(kg_sequence_tokens(chain->sequence) + pos - n, phrase->ids, (size_t)n * sizeof *phrase->ids);
}

static int apply_bias(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, kg_error *err)
{
  int status = KG_OK;
  for (int32_t i = 0; i < stage->n_bias && !status; i++)
    status = add_bias(chain, stage->bias_ids[i], stage->bias_values[i], n_vocab, err);
  for (int32_t p = 0; p < stage->n_phrases && !status; p++) {
    const kg_phrase *phrase = &stage->phrases[p];
    if (is_begun(chain, phrase)) status = add_bias(chain, phrase->ids[phrase->n - 1], phrase->value, n_vocab, err);
  }
  return status;
}

static int apply(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, kg_error *err)
{
  switch (stage->kind) {
  case KG_STAGE_GREEDY:
    return keep_best(chain, err);
  case KG_STAGE_TEMPERATURE:
    if (stage->value == 0) return keep_best(chain, err);
    if (stage->value != 1) kg_vector_get()->divide(chain->x, chain->n, stage->value);
    return KG_OK;
  case KG_STAGE_TOP_K:
    return keep_top_k(chain, stage->k, err);
  case KG_STAGE_TOP_P:
    return keep_top_p(chain, stage->value, err);
  case KG_STAGE_MIN_P:
    return keep_min_p(chain, stage->value, err);
  case KG_STAGE_TYPICAL:
    return keep_typical(chain, stage->value, err);
  case KG_STAGE_PENALTIES:
    return apply_penalties(chain, stage, n_vocab, err);
  case KG_STAGE_BIAS:
    return apply_bias(chain, stage, n_vocab, err);
  case KG_STAGE_TOP_N_SIGMA:
    return keep_top_n_sigma(chain, stage->value, n_vocab, err);
  case KG_STAGE_XTC:
    return drop_top_choices(chain, stage, err);
  case KG_STAGE_DYNAMIC_TEMPERATURE:
    return divide_by_entropy(chain, stage, err);
  case KG_STAGE_DRY:
    return apply_dry(chain, stage, n_vocab, err);
  case KG_STAGE_MIROSTAT:
    return keep_expected(chain, stage, err);
  }
  return kg_fail(err, KG_ERR_ARGUMENT, "stage kind %d is unknown", (int)stage->kind);
}

/* ---- a run ---- */

/* Logits of +inf: they alone remain, equal. */
static void prefer_infinite(float *x, int64_t n)
{
  for (int64_t i = 0; i < n; i++) x[i] = x[i] == INFINITY ? 0 : -INFINITY;
}

/* Start with every id as a candidate. */
static int load(kg_chain *chain, const kg_tensor *logits, kg_error *err)
{
  const int64_t n = kg_tensor_count(logits);
  if (logits->n_dims != 1 || n < 1 || n > INT32_MAX) {
    char text[KG_SHAPE_MAX];
    return kg_fail(err, KG_ERR_ARGUMENT, "logits: one row expected, got a tensor of shape %s",
                   kg_tensor_shape_text(logits, text));
  }
  int status = make_scratch(chain, n, err);
  if (!status) status = kg_tensor_read(logits, 0, n, chain->x, err);
  if (status) return status;
  const int64_t n_nan = kg_vector_get()->count_nan(chain->x, n);
  if (n_nan) return kg_fail(err, KG_ERR_NUMERIC, "%lld of %lld logits are NaN", (long long)n_nan, (long long)n);
  if (kg_vector_get()->max(chain->x, n) == INFINITY) prefer_infinite(chain->x, n);
  chain->n = n;
  chain->mass_scale = kg_mass_scale(n);
  chain->is_full = true;
  return KG_OK;
}

/* Load the logits and apply the stages. The sequence is looked at only. */
static int run(kg_chain *chain, const kg_tensor *logits, const kg_sequence *sequence, kg_error *err)
{
  int status = load(chain, logits, err);
  const int64_t n_vocab = chain->n;
  chain->sequence = sequence;
  chain->n_drawn = 0;
  for (size_t i = 0; !status && i < chain->n_stages; i++) status = apply(chain, &chain->stages[i], n_vocab, err);
  return status;
}

static void count_draws(kg_sequence *sequence, uint64_t n)
{
  if (n) kg_sequence_set_draws(sequence, kg_sequence_draws(sequence) + n);
}

/* Mirostat, the last stage, goes on when this id is fed. */
static int note_drawn(kg_chain *chain, kg_sequence *sequence, int64_t at, kg_error *err)
{
  const kg_stage *last = chain->n_stages ? &chain->stages[chain->n_stages - 1] : NULL;
  if (!last || last->kind != KG_STAGE_MIROSTAT || !sequence) return KG_OK;
  const float max = kg_vector_get()->max(chain->x, chain->n),
              surprise = chain->surprise + (max - chain->x[at]) * (1 / LN2);
  return kg_mirostat_note(sequence, last->tau, last->eta, id_at(chain, at), surprise, err);
}

static int pick_on_host(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err)
{
  uint64_t total;
  double u = 0;
  kg_rank drawn;
  int status = run(chain, logits, sequence, err);
  if (!status) status = weigh(chain, &total, NULL, err);
  if (!status && total > kg_mass(1, chain->mass_scale)) status = next_uniform(chain, &u, err);
  if (!status) status = find_goal(chain, chain->x, kg_goal_of_draw(u, total), &drawn, err);
  if (!status) status = note_drawn(chain, sequence, kg_rank_index(drawn), err);
  if (status) return status;
  *id = id_at(chain, kg_rank_index(drawn));
  count_draws(sequence, chain->n_drawn);
  return KG_OK;
}

static int apply_on_host(kg_chain *chain, kg_tensor *logits, kg_sequence *sequence, kg_error *err)
{
  int status = run(chain, logits, sequence, err);
  if (status) return status;
  const int64_t n = kg_tensor_count(logits);
  float *out = chain->order;
  if (chain->is_full)
    out = chain->x;
  else {
    kg_vector_get()->fill(out, n, -INFINITY);
    for (int64_t i = 0; i < chain->n; i++) out[chain->ids[i]] = chain->x[i];
  }
  status = logits->buffer->ops->write(logits->buffer, logits->at, n, out, err);
  if (!status) count_draws(sequence, chain->n_drawn);
  return status;
}

/* ---- on devices ---- */

bool kg_chain_is_plain(const kg_chain *chain) { return chain->is_plain; }

bool kg_chain_plan_draw(const kg_chain *chain, const kg_sequence *sequence, int64_t n_vocab, kg_draw *out)
{
  if (!chain->is_plain || chain->program.max_bias_id >= n_vocab) return false;
  *out = (kg_draw){.program = &chain->program};
  if (!sequence) return true;
  out->seed = kg_sequence_seed(sequence);
  out->n_draws = kg_sequence_draws(sequence);
  out->pos = kg_sequence_pos(sequence);
  const int32_t first = kg_history_first(chain->program.last_n, out->pos);
  if (!chain->program.last_n) return true;
  out->n_history = out->pos - first;
  out->history = kg_sequence_tokens(sequence) + first;
  for (int32_t i = 0; i < out->n_history; i++)
    if (out->history[i] < 0 || out->history[i] >= n_vocab) return false;
  return true;
}

/* Count the numbers that were drawn. False: it has to be done on the host. */
static bool settle(kg_drawn drawn, kg_sequence *sequence)
{
  if (drawn.status < 0 || (drawn.status && !sequence)) return false;
  count_draws(sequence, (uint64_t)drawn.status);
  return true;
}

static bool settle_draw(kg_drawn drawn, kg_sequence *sequence, int32_t *id)
{
  if (!settle(drawn, sequence)) return false;
  *id = drawn.id;
  return true;
}

/* Stages that want random numbers change the logits before anybody can say that there is no sequence to count them. */
static bool may_apply(const kg_chain *chain, const kg_sequence *sequence)
{
  for (size_t i = 0; i < chain->n_stages && !sequence; i++)
    if (chain->stages[i].kind == KG_STAGE_XTC) return false;
  return true;
}

/* A use that devices can make of the chain; false: it is the host's. */
static bool plan_use(const kg_chain *chain, const kg_tensor *logits, const kg_sequence *sequence, bool applies,
                     kg_draw_use *use)
{
  const int64_t n = kg_tensor_count(logits);
  if (!logits->buffer->ops->draw || logits->n_dims != 1 || (applies && !may_apply(chain, sequence))) return false;
  *use = (kg_draw_use){.buffer = logits->buffer, .at = logits->at, .n = n, .applies = applies};
  return kg_chain_plan_draw(chain, sequence, n, &use->draw);
}

int kg_chain_apply(kg_chain *chain, kg_tensor *logits, kg_sequence *sequence, kg_error *err)
{
  kg_draw_use use;
  if (plan_use(chain, logits, sequence, true, &use)) {
    const int status = logits->buffer->ops->draw(&use, 1, err);
    if (status || settle(use.drawn, sequence)) return status;
  }
  return apply_on_host(chain, logits, sequence, err);
}

int kg_chain_pick(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err)
{
  kg_draw_use use;
  if (plan_use(chain, logits, sequence, false, &use)) {
    const int status = logits->buffer->ops->draw(&use, 1, err);
    if (status || settle_draw(use.drawn, sequence, id)) return status;
  }
  return pick_on_host(chain, logits, sequence, id, err);
}

/* Is there an earlier one of the same sequence, whose random numbers come first, or of the same numbers? */
static bool comes_second(const kg_chain_use *uses, size_t i)
{
  for (size_t j = 0; j < i; j++)
    if (uses[j].sequence == uses[i].sequence || uses[j].logits->buffer == uses[i].logits->buffer) return true;
  return false;
}

int kg_chain_use_together(kg_chain_use *uses, size_t n, kg_error *err)
{
  kg_draw_use *planned = kg_alloc_array(n, sizeof *planned);
  size_t *origin = kg_alloc_array(n, sizeof *origin), n_planned = 0;
  const kg_tensor_ops *ops = NULL;
  int status = planned && origin ? KG_OK : kg_fail_memory(err, n * sizeof *planned, "draws");
  for (size_t i = 0; i < n && !status; i++) {
    kg_chain_use *use = &uses[i];
    use->is_done = false;
    if (comes_second(uses, i) || (ops && use->logits->buffer->ops != ops) ||
        !plan_use(use->chain, use->logits, use->sequence, use->applies, &planned[n_planned]))
      continue;
    ops = use->logits->buffer->ops;
    origin[n_planned++] = i;
  }
  if (n_planned && !status) status = ops->draw(planned, n_planned, err);
  for (size_t i = 0; i < n_planned && !status; i++) {
    kg_chain_use *use = &uses[origin[i]];
    use->is_done = settle_draw(planned[i].drawn, use->sequence, &use->id);
  }
  kg_free(planned);
  kg_free(origin);
  return status;
}

int kg_chain_pick_as_device(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err)
{
  kg_draw draw;
  kg_drawn drawn = {0, KG_DRAW_FAILED};
  int status = load(chain, logits, err); /* for its checks, and for memory to read them to */
  if (!status) status = kg_tensor_read(logits, 0, chain->n, chain->x, err);
  if (!status && kg_chain_plan_draw(chain, sequence, chain->n, &draw))
    status = kg_draw_alone(&draw, chain->x, (int32_t)chain->n, &drawn, err);
  if (status || settle_draw(drawn, sequence, id)) return status;
  return kg_fail(err, KG_ERR_UNSUPPORTED, "left to the chain on the host");
}

int kg_chain_apply_as_device(kg_chain *chain, kg_tensor *logits, kg_sequence *sequence, kg_error *err)
{
  kg_draw draw;
  kg_drawn applied = {0, KG_DRAW_FAILED};
  int status = load(chain, logits, err);
  const int64_t n = chain->n;
  if (!status) status = kg_tensor_read(logits, 0, n, chain->x, err);
  if (!status && may_apply(chain, sequence) && kg_chain_plan_draw(chain, sequence, n, &draw))
    status = kg_draw_apply_alone(&draw, chain->x, (int32_t)n, &applied, err);
  if (!status && !settle(applied, sequence)) status = kg_fail(err, KG_ERR_UNSUPPORTED, "left to the chain on the host");
  return status ? status : logits->buffer->ops->write(logits->buffer, logits->at, n, chain->x, err);
}

int kg_chain_candidates(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *ids, float *probs,
                        int32_t capacity, int32_t *n, kg_error *err)
{
  uint64_t total;
  int status = run(chain, logits, sequence, err);
  if (!status) status = weigh(chain, &total, NULL, err);
  if (status) return status;
  int32_t n_left = 0;
  for (int64_t i = 0; i < chain->n; i++) n_left += chain->x[i] != -INFINITY;
  const int32_t n_written = capacity < n_left ? capacity : n_left;
  status = rank_top(chain, chain->x, n_written, err);
  if (status) return status;
  for (int32_t i = 0; i < n_written; i++) {
    const int32_t position = kg_rank_index(chain->room[i]);
    ids[i] = id_at(chain, position);
    probs[i] = (float)((double)chain->weights[position] * (double)chain->mass_scale / (double)total);
  }
  *n = n_left;
  return KG_OK;
}
