#include "stage.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"

static const char *const names[] = {"greedy", "temp",        "top_k", "top_p",    "min_p", "typical", "penalties",
                                    "bias",   "top_n_sigma", "xtc",   "dynatemp", "dry",   "mirostat"};

const char *kg_stage_name(kg_stage_kind kind) { return names[kind]; }

/* ---- checks ---- */

/* Where a check failed: which stage. */
typedef struct place {
  size_t number; /* from 1 */
  kg_stage_kind kind;
} place;

static int check_number(place at, const char *field, double value, double min, double max, kg_error *err)
{
  if (value >= min && value <= max) return KG_OK; /* false for NaN */
  return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (%s): %s: %g is outside %g to %g", at.number, names[at.kind], field,
                 value, min, max);
}

static int check_bias_id(place at, int32_t id, kg_error *err)
{
  return id >= 0 ? KG_OK : kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (bias): id %d is negative", at.number, id);
}

static int check_bias_value(place at, int32_t id, float value, kg_error *err)
{
  if (value == -INFINITY || (value >= -1e6f && value <= 1e6f)) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (bias): the value of id %d: %g is outside -1e6 to 1e6 and not -inf",
                 at.number, id, (double)value);
}

static int check_bias(place at, const kg_stage *stage, kg_error *err)
{
  int status = KG_OK;
  for (int32_t i = 0; i < stage->n_bias && !status; i++) {
    status = check_bias_id(at, stage->bias_ids[i], err);
    if (!status) status = check_bias_value(at, stage->bias_ids[i], stage->bias_values[i], err);
  }
  for (int32_t p = 0; p < stage->n_phrases && !status; p++) {
    const kg_phrase *phrase = &stage->phrases[p];
    if (phrase->n < 2)
      return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (bias): a phrase of %d ids is none", at.number, phrase->n);
    for (int32_t i = 0; i < phrase->n && !status; i++) status = check_bias_id(at, phrase->ids[i], err);
    if (!status) status = check_bias_value(at, phrase->ids[phrase->n - 1], phrase->value, err);
  }
  return status;
}

static int check_penalties(place at, const kg_stage *stage, kg_error *err)
{
  int status = check_number(at, "last", stage->last_n, -1, INT32_MAX, err);
  if (!status) status = check_number(at, "repeat", stage->repeat, 1e-3f, 1e3f, err);
  if (!status) status = check_number(at, "frequency", stage->frequency, -1e3, 1e3, err);
  if (!status) status = check_number(at, "presence", stage->presence, -1e3, 1e3, err);
  return status;
}

static int check_dynamic_temperature(place at, const kg_stage *stage, kg_error *err)
{
  int status = check_number(at, "low", stage->low, 0, 1e6, err);
  if (!status) status = check_number(at, "high", stage->high, stage->low, 1e6, err);
  if (!status) status = check_number(at, "exponent", stage->exponent, 0, 1e3, err);
  return status;
}

static int check_dry(place at, const kg_stage *stage, kg_error *err)
{
  int status = check_number(at, "multiplier", stage->multiplier, 0, 1e6, err);
  if (!status) status = check_number(at, "base", stage->base, 1, 1e3, err);
  if (!status) status = check_number(at, "allowed", stage->allowed, 1, INT32_MAX, err);
  if (!status) status = check_number(at, "last", stage->last_n, -1, INT32_MAX, err);
  if (!status && stage->n_breakers && !stage->tokenizer)
    return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (dry): breakers are texts: they want a tokenizer", at.number);
  if (!status) status = check_number(at, "number of breakers", stage->n_breakers, 0, KG_DRY_BREAKERS, err);
  for (int32_t i = 0; i < stage->n_breakers && !status; i++)
    status = check_number(at, "size of a breaker", (double)stage->breakers[i].size, 1, KG_DRY_BREAKER_SIZE, err);
  return status;
}

static int check_stage(place at, const kg_stage *stage, bool is_last, kg_error *err)
{
  int status = KG_OK;
  switch (stage->kind) {
  case KG_STAGE_GREEDY:
  case KG_STAGE_TOP_K:
    return KG_OK;
  case KG_STAGE_TEMPERATURE:
    return stage->value == 0 ? KG_OK : check_number(at, "value", stage->value, KG_TEMPERATURE_MIN, 1e6f, err);
  case KG_STAGE_TOP_P:
  case KG_STAGE_MIN_P:
  case KG_STAGE_TYPICAL:
    return check_number(at, "value", stage->value, 0, 1, err);
  case KG_STAGE_PENALTIES:
    return check_penalties(at, stage, err);
  case KG_STAGE_BIAS:
    return check_bias(at, stage, err);
  case KG_STAGE_TOP_N_SIGMA:
    return check_number(at, "value", stage->value, 0, 1e3, err);
  case KG_STAGE_XTC:
    status = check_number(at, "probability", stage->probability, 0, 1, err);
    return status ? status : check_number(at, "threshold", stage->threshold, 0, 1, err);
  case KG_STAGE_DYNAMIC_TEMPERATURE:
    return check_dynamic_temperature(at, stage, err);
  case KG_STAGE_DRY:
    return check_dry(at, stage, err);
  case KG_STAGE_MIROSTAT:
    status = check_number(at, "tau", stage->tau, 0, 1e3, err);
    if (!status) status = check_number(at, "eta", stage->eta, 0, 10, err);
    if (!status && !is_last)
      return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu (mirostat): it must be the last: it counts what is drawn",
                     at.number);
    return status;
  }
  return kg_fail(err, KG_ERR_ARGUMENT, "stage %zu: kind %d is unknown", at.number, (int)stage->kind);
}

int kg_stages_check(const kg_stage *stages, size_t n, kg_error *err)
{
  if (n > KG_CHAIN_STAGES)
    return kg_fail(err, KG_ERR_ARGUMENT, "a chain of %zu stages is longer than %d", n, KG_CHAIN_STAGES);
  int status = KG_OK;
  for (size_t i = 0; i < n && !status; i++)
    status = check_stage((place){i + 1, stages[i].kind}, &stages[i], i + 1 == n, err);
  return status;
}

/* ---- copies ---- */

/* Memory of one copied stage, in one block: what it points to. */
static void *copy_block(const void *data, size_t n_bytes)
{
  void *copy = kg_alloc(n_bytes);
  if (copy && n_bytes) memcpy(copy, data, n_bytes);
  return copy;
}

/* Phrases, and behind them their ids. */
static const kg_phrase *copy_phrases(const kg_phrase *phrases, size_t n)
{
  size_t n_ids = 0;
  for (size_t i = 0; i < n; i++)
    if (!kg_add_size(n_ids, (size_t)phrases[i].n, &n_ids)) return NULL;
  kg_phrase *copies = kg_alloc_array(n + (n_ids * sizeof(int32_t)) / sizeof *copies + 1,
                                     sizeof *copies); /* bounded: ids that there are */
  int32_t *ids = copies ? (int32_t *)(copies + n) : NULL;
  for (size_t i = 0; copies && i < n; i++) {
    copies[i] = (kg_phrase){ids, phrases[i].n, phrases[i].value};
    memcpy(ids, phrases[i].ids, (size_t)phrases[i].n * sizeof *ids);
    ids += phrases[i].n;
  }
  return copies;
}

/* Texts, and behind them their bytes. */
static const kg_string *copy_texts(const kg_string *texts, size_t n)
{
  size_t n_bytes = 0;
  for (size_t i = 0; i < n; i++)
    if (!kg_add_size(n_bytes, texts[i].size, &n_bytes)) return NULL;
  kg_string *copies =
      kg_alloc_array(n + n_bytes / sizeof *copies + 1, sizeof *copies); /* bounded: bytes that there are */
  char *bytes = copies ? (char *)(copies + n) : NULL;
  for (size_t i = 0; copies && i < n; i++) {
    if (texts[i].size) memcpy(bytes, texts[i].data, texts[i].size);
    copies[i] = (kg_string){bytes, texts[i].size};
    bytes += texts[i].size; /* bounded: up to their sum */
  }
  return copies;
}

/* Replace what the stage borrows by copies; on failure some are NULL. */
static bool own(kg_stage *stage)
{
  const kg_stage given = *stage;
  stage->bias_ids = NULL;
  stage->bias_values = NULL;
  stage->phrases = NULL;
  stage->breakers = NULL;
  stage->tokenizer = NULL;
  if (stage->kind == KG_STAGE_BIAS) {
    stage->bias_ids = copy_block(given.bias_ids, (size_t)given.n_bias * sizeof *given.bias_ids);
    stage->bias_values = copy_block(given.bias_values, (size_t)given.n_bias * sizeof *given.bias_values);
    stage->phrases = copy_phrases(given.phrases, (size_t)given.n_phrases);
    return stage->bias_ids && stage->bias_values && stage->phrases;
  }
  if (stage->kind != KG_STAGE_DRY) return true;
  if (given.tokenizer) stage->tokenizer = kg_tokenizer_ref(given.tokenizer);
  stage->breakers = copy_texts(given.breakers, (size_t)given.n_breakers);
  return stage->breakers != NULL;
}

int kg_stages_copy(const kg_stage *stages, size_t n, kg_stage **out, kg_error *err)
{
  kg_stage *copies = kg_alloc_array(n, sizeof *copies);
  if (!copies) return kg_fail_memory(err, n * sizeof *copies, "a sampler chain");
  for (size_t i = 0; i < n; i++) {
    copies[i] = stages[i];
    if (own(&copies[i])) continue;
    kg_stages_free(copies, i + 1);
    return kg_fail_memory(err, (size_t)stages[i].n_bias * 8, "the stages of a sampler chain");
  }
  *out = copies;
  return KG_OK;
}

static void free_const(const void *block) { kg_free((void *)(uintptr_t)block); }

void kg_stages_free(kg_stage *stages, size_t n)
{
  for (size_t i = 0; stages && i < n; i++) {
    free_const(stages[i].bias_ids);
    free_const(stages[i].bias_values);
    free_const(stages[i].phrases);
    free_const(stages[i].breakers);
    kg_tokenizer_free(stages[i].tokenizer);
  }
  kg_free(stages);
}

/* ---- for devices ---- */

/* The arrays of a program while they are filled. */
typedef struct arrays {
  int32_t *bias_ids;
  float *bias_values;
  kg_draw_phrase *phrases;
  int32_t *phrase_ids;
  kg_rank *room; /* [2 * biases] */
} arrays;

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

static void look_back(kg_draw_program *program, int32_t last_n)
{
  if (program->last_n >= 0 && (last_n < 0 || last_n > program->last_n)) program->last_n = last_n;
}

static void note_bias_id(kg_draw_program *program, int32_t id)
{
  if (id > program->max_bias_id) program->max_bias_id = id;
}

/* Append a stage's biases and phrases; false where the order of sums would matter. */
static bool write_bias(kg_draw_program *program, kg_draw_stage *out, const kg_stage *stage, const arrays *a)
{
  int32_t *ids = a->bias_ids + program->n_biases;
  float *values = a->bias_values + program->n_biases;
  if (stage->n_bias) memcpy(ids, stage->bias_ids, (size_t)stage->n_bias * sizeof *ids);
  if (stage->n_bias) memcpy(values, stage->bias_values, (size_t)stage->n_bias * sizeof *values);
  if (!sort_biases(ids, values, stage->n_bias, a->room)) return false;
  out->bias = program->n_biases;
  out->n_bias = stage->n_bias;
  program->n_biases += stage->n_bias;
  if (stage->n_bias) note_bias_id(program, ids[stage->n_bias - 1]);
  out->phrase = program->n_phrases;
  out->n_phrases = stage->n_phrases;
  for (int32_t p = 0; p < stage->n_phrases; p++) {
    const kg_phrase *phrase = &stage->phrases[p];
    const int32_t n = phrase->n - 1, id = phrase->ids[n];
    a->phrases[program->n_phrases++] = (kg_draw_phrase){program->n_phrase_ids, n, id, phrase->value};
    memcpy(a->phrase_ids + program->n_phrase_ids, phrase->ids, (size_t)n * sizeof *phrase->ids);
    program->n_phrase_ids += n;
    note_bias_id(program, id);
    look_back(program, n);
  }
  return true;
}

static bool write_stage(kg_draw_program *program, const kg_stage *stage, const arrays *a)
{
  kg_draw_stage *out = &program->stages[program->n_stages++];
  *out = (kg_draw_stage){.kind = (int32_t)stage->kind,
                         .value = stage->value,
                         .k = stage->k,
                         .last_n = stage->last_n,
                         .repeat = stage->repeat,
                         .frequency = stage->frequency,
                         .presence = stage->presence,
                         .threshold = stage->threshold,
                         .high = stage->high,
                         .exponent = stage->exponent};
  switch (stage->kind) {
  case KG_STAGE_XTC:
    out->value = stage->probability;
    return true;
  case KG_STAGE_DYNAMIC_TEMPERATURE:
    out->value = stage->low;
    return true;
  case KG_STAGE_PENALTIES:
    look_back(program, stage->last_n);
    return true;
  case KG_STAGE_BIAS:
    return write_bias(program, out, stage, a);
  case KG_STAGE_DRY:
  case KG_STAGE_MIROSTAT:
    return false;
  default:
    return true;
  }
}

static bool count(const kg_stage *stages, size_t n, size_t *n_biases, size_t *n_phrases, size_t *n_ids)
{
  *n_biases = *n_phrases = *n_ids = 0;
  for (size_t i = 0; i < n; i++) {
    if (stages[i].kind != KG_STAGE_BIAS) continue;
    *n_biases += (size_t)stages[i].n_bias; /* bounded: 64 stages of 2^31 */
    *n_phrases += (size_t)stages[i].n_phrases;
    for (int32_t p = 0; p < stages[i].n_phrases; p++) *n_ids += (size_t)stages[i].phrases[p].n;
  }
  return *n_biases <= INT32_MAX && *n_phrases <= INT32_MAX && *n_ids <= INT32_MAX;
}

int kg_draw_program_init(kg_draw_program *program, const kg_stage *stages, size_t n, bool *is_plain, kg_error *err)
{
  size_t n_biases, n_phrases, n_ids;
  program->max_bias_id = -1;
  *is_plain = count(stages, n, &n_biases, &n_phrases, &n_ids);
  if (!*is_plain) return KG_OK;
  const arrays a = {kg_alloc_array(n_biases, sizeof *a.bias_ids), kg_alloc_array(n_biases, sizeof *a.bias_values),
                    kg_alloc_array(n_phrases, sizeof *a.phrases), kg_alloc_array(n_ids, sizeof *a.phrase_ids),
                    kg_alloc_array(n_biases, 2 * sizeof *a.room)};
  program->bias_ids = a.bias_ids;
  program->bias_values = a.bias_values;
  program->phrases = a.phrases;
  program->phrase_ids = a.phrase_ids;
  if (!a.bias_ids || !a.bias_values || !a.phrases || !a.phrase_ids || !a.room) {
    kg_free(a.room);
    return kg_fail_memory(err, n_biases * 24 + n_phrases * 16,
                          "the biases of a sampler chain"); /* bounded: INT32_MAX each */
  }
  for (size_t i = 0; i < n && *is_plain; i++) *is_plain = write_stage(program, &stages[i], &a);
  while (program->n_prefix < program->n_stages && is_elementwise(&stages[program->n_prefix])) program->n_prefix++;
  kg_free(a.room);
  return KG_OK;
}

void kg_draw_program_deinit(kg_draw_program *program)
{
  free_const(program->bias_ids);
  free_const(program->bias_values);
  free_const(program->phrases);
  free_const(program->phrase_ids);
}
