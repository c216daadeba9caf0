#include "sampler.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "draw.h"
#include "error.h"
#include "rank.h"
#include "vector.h"

enum {
  RANKED_FIRST = 64, /* few candidates hold most of the mass: first so many are ranked, ... */
  RANKED_MOST = 512, /* ... then so many, and then buckets are filled */
  BUCKET_SHIFT = 20, /* of a candidate's rank key: its sign, exponent and 3 bits of its mantissa */
  N_BUCKETS = 1 << (32 - BUCKET_SHIFT)
};

/* The candidates of one run are positions [0, n) of x; their ids ascend, so that ties by position are ties by id. */
struct kg_chain {
  int32_t n_refs;
  kg_stage *stages; /* bias_ids and bias_values are ours */
  size_t n_stages;
  kg_draw_program program; /* the same for devices; unless is_plain, they cannot run it */
  int32_t *bias_ids;       /* of the program */
  float *bias_values;
  bool is_plain;
  int64_t capacity; /* items in each of the next five */
  float *x;         /* logits of the candidates */
  int32_t *ids;     /* their ids, unless is_full */
  float *weights;   /* exp(x - max) */
  float *order;     /* typical: what to rank by */
  int32_t *counts;  /* by id, for the penalties; all zero between runs */
  uint64_t bucket_mass[N_BUCKETS];
  uint32_t bucket_count[N_BUCKETS];
  kg_rank *room;
  size_t n_room;
  int64_t n;
  float mass_scale; /* see kg_mass */
  bool is_full; /* every id is a candidate: position = id */
};

static const char *const stage_names[] = {"greedy", "temp", "top_k", "top_p", "min_p", "typical", "penalties", "bias"};

/* ---- making ---- */

/* Where a check failed: which stage. */
typedef struct place {
  size_t number; /* from 1 */
  kg_stage_kind kind;
} place;

static int check_number(place at, const char *field, double value, double min, double max, kg_error *err)
{
  if (value >= min && value <= max) return KG_OK; /* false for NaN */
  return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (%s): %s: %g is outside %g to %g", at.number, stage_names[at.kind],
                 field, value, min, max);
}

static int check_bias(place at, const kg_stage *stage, kg_error *err)
{
  for (int32_t i = 0; i < stage->n_bias; i++) {
    if (stage->bias_ids[i] < 0)
      return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (bias): id %d is negative", at.number, stage->bias_ids[i]);
    const float value = stage->bias_values[i];
    if (value != -INFINITY && !(value >= -1e6f && value <= 1e6f))
      return kg_fail(err, KG_ERR_ARGUMENT,
                     "stage %zu (bias): the value of id %d: %g is outside -1e6 to 1e6 and not -inf", at.number,
                     stage->bias_ids[i], (double)value);
  }
  return KG_OK;
}

static int check_stage(place at, const kg_stage *stage, kg_error *err)
{
  int status = KG_OK;
  switch (stage->kind) {
  case KG_STAGE_GREEDY:
  case KG_STAGE_TOP_K:
    return KG_OK;
  case KG_STAGE_TEMPERATURE:
    return stage->value == 0 ? KG_OK : check_number(at, "value", stage->value, 1e-6f, 1e6f, err);
  case KG_STAGE_TOP_P:
  case KG_STAGE_MIN_P:
  case KG_STAGE_TYPICAL:
    return check_number(at, "value", stage->value, 0, 1, err);
  case KG_STAGE_PENALTIES:
    status = check_number(at, "last", stage->last_n, -1, INT32_MAX, err);
    if (!status) status = check_number(at, "repeat", stage->repeat, 1e-3f, 1e3f, err);
    if (!status) status = check_number(at, "frequency", stage->frequency, -1e3, 1e3, err);
    if (!status) status = check_number(at, "presence", stage->presence, -1e3, 1e3, err);
    return status;
  case KG_STAGE_BIAS:
    return check_bias(at, stage, err);
  }
  return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu: kind %d is unknown", at.number, (int)stage->kind);
}

/* Replace the borrowed arrays of `stage` by copies. On failure they are NULL. */
static bool own_bias(kg_stage *stage)
{
  const size_t n = stage->kind == KG_STAGE_BIAS ? (size_t)stage->n_bias : 0;
  const int32_t *ids = stage->bias_ids;
  const float *values = stage->bias_values;
  stage->bias_ids = NULL;
  stage->bias_values = NULL;
  if (!n) return true;
  int32_t *own_ids = kg_alloc(n * sizeof *own_ids);
  float *own_values = kg_alloc(n * sizeof *own_values);
  if (!own_ids || !own_values) {
    kg_free(own_ids);
    kg_free(own_values);
    return false;
  }
  memcpy(own_ids, ids, n * sizeof *ids);
  memcpy(own_values, values, n * sizeof *values);
  stage->bias_ids = own_ids;
  stage->bias_values = own_values;
  return true;
}

/* ---- for devices ---- */

/* Biases of one stage by ascending id; false where an id comes twice: their sum depends on the order. */
static bool sort_biases(int32_t *ids, float *values, int32_t n, kg_rank *room)
{
  for (int32_t i = 0; i < n; i++) room[i] = (uint64_t)(uint32_t)ids[i] << 32 | (uint32_t)i;
  kg_rank_sort(room, room + n, (size_t)n); /* descending */
  float *in_order = (float *)(room + n);
  for (int32_t i = 0; i < n; i++) {
    const kg_rank item = room[n - 1 - i];
    ids[i] = (int32_t)(item >> 32);
    in_order[i] = values[(uint32_t)item];
    if (i && ids[i] == ids[i - 1]) return false;
  }
  if (n) memcpy(values, in_order, (size_t)n * sizeof *values);
  return true;
}

static bool is_elementwise(const kg_stage *stage)
{
  return stage->kind == KG_STAGE_PENALTIES || stage->kind == KG_STAGE_BIAS ||
         (stage->kind == KG_STAGE_TEMPERATURE && stage->value != 0);
}

static void write_program(kg_chain *chain)
{
  kg_draw_program *program = &chain->program;
  program->n_stages = (int32_t)chain->n_stages;
  program->max_bias_id = -1;
  program->bias_ids = chain->bias_ids;
  program->bias_values = chain->bias_values;
  for (size_t i = 0; i < chain->n_stages; i++) {
    const kg_stage *stage = &chain->stages[i];
    program->stages[i] = (kg_draw_stage){.kind = (int32_t)stage->kind, .value = stage->value, .k = stage->k,
                                         .last_n = stage->last_n, .repeat = stage->repeat, .bias = program->n_biases,
                                         .frequency = stage->frequency, .presence = stage->presence};
    if (stage->kind == KG_STAGE_PENALTIES && program->last_n >= 0)
      program->last_n = stage->last_n < 0 || stage->last_n > program->last_n ? stage->last_n : program->last_n;
    if (stage->kind == KG_STAGE_BIAS) {
      program->stages[i].n_bias = stage->n_bias;
      program->n_biases += stage->n_bias;
    }
  }
  while (program->n_prefix < program->n_stages && is_elementwise(&chain->stages[program->n_prefix])) program->n_prefix++;
}

static int make_program(kg_chain *chain, kg_error *err)
{
  size_t n = 0;
  for (size_t i = 0; i < chain->n_stages; i++)
    if (chain->stages[i].kind == KG_STAGE_BIAS) n += (size_t)chain->stages[i].n_bias;
  chain->is_plain = n <= INT32_MAX;
  if (!chain->is_plain) return KG_OK;
  chain->bias_ids = kg_alloc_array(n, sizeof *chain->bias_ids);
  chain->bias_values = kg_alloc_array(n, sizeof *chain->bias_values);
  kg_rank *room = kg_alloc_array(n, 2 * sizeof *room);
  if (!chain->bias_ids || !chain->bias_values || !room) {
    kg_free(room);
    return kg_fail_memory(err, n * 24, "the biases of a sampler chain");
  }
  write_program(chain);
  for (size_t i = 0; i < chain->n_stages; i++) {
    const kg_draw_stage *stage = &chain->program.stages[i];
    if (!stage->n_bias) continue;
    int32_t *ids = chain->bias_ids + stage->bias;
    float *values = chain->bias_values + stage->bias;
    memcpy(ids, chain->stages[i].bias_ids, (size_t)stage->n_bias * sizeof *ids);
    memcpy(values, chain->stages[i].bias_values, (size_t)stage->n_bias * sizeof *values);
    if (!sort_biases(ids, values, stage->n_bias, room)) chain->is_plain = false;
    const int32_t last = ids[stage->n_bias - 1];
    if (last > chain->program.max_bias_id) chain->program.max_bias_id = last;
  }
  kg_free(room);
  return KG_OK;
}

int kg_chain_new(const kg_stage *stages, size_t n, kg_chain **out, kg_error *err)
{
  if (n > KG_CHAIN_STAGES) return kg_fail(err, KG_ERR_ARGUMENT, "a chain of %zu stages is longer than %d", n, KG_CHAIN_STAGES);
  for (size_t i = 0; i < n; i++) {
    const int status = check_stage((place){i + 1, stages[i].kind}, &stages[i], err);
    if (status) return status;
  }
  kg_chain *chain = kg_alloc_array(1, sizeof *chain);
  kg_stage *own = kg_alloc_array(n, sizeof *own);
  if (!chain || !own) {
    kg_free(own);
    kg_free(chain);
    return kg_fail_memory(err, sizeof *chain, "a sampler chain");
  }
  chain->n_refs = 1;
  chain->stages = own;
  for (size_t i = 0; i < n; i++) {
    own[i] = stages[i];
    chain->n_stages = i + 1;
    if (own_bias(&own[i])) continue;
    kg_chain_free(chain);
    return kg_fail_memory(err, (size_t)stages[i].n_bias * 8, "the biases of a sampler chain");
  }
  const int status = make_program(chain, err);
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
  for (size_t i = 0; i < chain->n_stages; i++) {
    kg_free((void *)(uintptr_t)chain->stages[i].bias_ids);
    kg_free((void *)(uintptr_t)chain->stages[i].bias_values);
  }
  kg_free(chain->stages);
  kg_free(chain->bias_ids);
  kg_free(chain->bias_values);
  free_scratch(chain);
  kg_free(chain->room);
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

static int apply_penalties(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, const kg_sequence *sequence,
                           kg_error *err)
{
  if (!sequence) return KG_OK;
  const int32_t n_tokens = kg_sequence_pos(sequence);
  const int32_t first = kg_history_first(stage->last_n, n_tokens);
  const int32_t *tokens = kg_sequence_tokens(sequence);
  for (int32_t i = first; i < n_tokens; i++)
    if (tokens[i] < 0 || tokens[i] >= n_vocab)
      return kg_fail(err, KG_ERR_ARGUMENT, "penalties: token %d at position %d is outside the vocabulary of %lld",
                     tokens[i], i, (long long)n_vocab);
  for (int32_t i = first; i < n_tokens; i++) chain->counts[tokens[i]]++;
  for (int32_t i = first; i < n_tokens; i++) {
    const int32_t count = chain->counts[tokens[i]];
    if (!count) continue; /* done at its first occurrence */
    chain->counts[tokens[i]] = 0;
    const int64_t at = find_id(chain, tokens[i]);
    if (at >= 0)
      chain->x[at] = kg_penalized(chain->x[at], count, stage->repeat, stage->frequency, stage->presence);
  }
  return KG_OK;
}

static int apply_bias(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, kg_error *err)
{
  for (int32_t i = 0; i < stage->n_bias; i++)
    if (stage->bias_ids[i] >= n_vocab)
      return kg_fail(err, KG_ERR_ARGUMENT, "bias: id %d is outside the vocabulary of %lld", stage->bias_ids[i],
                     (long long)n_vocab);
  for (int32_t i = 0; i < stage->n_bias; i++) {
    const int64_t at = find_id(chain, stage->bias_ids[i]);
    if (at >= 0) chain->x[at] = kg_biased(chain->x[at], stage->bias_values[i]);
  }
  return KG_OK;
}

static int apply(kg_chain *chain, const kg_stage *stage, int64_t n_vocab, const kg_sequence *sequence, kg_error *err)
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
    return apply_penalties(chain, stage, n_vocab, sequence, err);
  case KG_STAGE_BIAS:
    return apply_bias(chain, stage, n_vocab, err);
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

/* Load the logits and apply the stages; afterwards `weights` belong to what is left. */
static int run(kg_chain *chain, const kg_tensor *logits, const kg_sequence *sequence, uint64_t *total, kg_error *err)
{
  int status = load(chain, logits, err);
  const int64_t n_vocab = chain->n;
  for (size_t i = 0; !status && i < chain->n_stages; i++)
    status = apply(chain, &chain->stages[i], n_vocab, sequence, err);
  return status ? status : weigh(chain, total, NULL, err);
}

static int pick_on_host(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err)
{
  uint64_t total;
  int status = run(chain, logits, sequence, &total, err);
  if (status) return status;
  double u = 0;
  if (total > kg_mass(1, chain->mass_scale)) {
    if (!sequence) return kg_fail(err, KG_ERR_ARGUMENT, "a draw needs a sequence");
    u = kg_sequence_uniform(sequence);
  }
  kg_rank drawn;
  status = find_goal(chain, chain->x, kg_goal_of_draw(u, total), &drawn, err);
  if (!status) *id = id_at(chain, kg_rank_index(drawn));
  return status;
}

/* ---- on devices ---- */

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

/* Count the number that was drawn. False: it has to be done on the host. */
static bool settle_draw(kg_drawn drawn, kg_sequence *sequence, int32_t *id)
{
  if (drawn.status < 0 || (drawn.status == KG_DRAWN && !sequence)) return false;
  if (drawn.status == KG_DRAWN) kg_sequence_set_draws(sequence, kg_sequence_draws(sequence) + 1);
  *id = drawn.id;
  return true;
}

int kg_chain_pick(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err)
{
  const kg_tensor_ops *ops = logits->buffer->ops;
  const int64_t n = kg_tensor_count(logits);
  kg_draw draw;
  if (ops->draw && logits->n_dims == 1 && kg_chain_plan_draw(chain, sequence, n, &draw)) {
    kg_drawn drawn;
    const int status = ops->draw(logits->buffer, logits->at, n, &draw, &drawn, err);
    if (status || settle_draw(drawn, sequence, id)) return status;
  }
  return pick_on_host(chain, logits, sequence, id, err);
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

int kg_chain_candidates(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *ids, float *probs,
                        int32_t capacity, int32_t *n, kg_error *err)
{
  uint64_t total;
  int status = run(chain, logits, sequence, &total, err);
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
