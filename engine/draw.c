/* draw.c - the chain as blocks of threads run it, with a single thread: the twin of kernels/sample.cu. */
#include "draw_block.h"

#include "alloc.h"
#include "error.h"

static void penalize(const kg_draw *draw, const kg_draw_stage *stage, float *x, int32_t n_vocab)
{
  const int32_t first = kg_history_first(stage->last_n, draw->n_history);
  for (int32_t i = first; i < draw->n_history; i++) {
    const int32_t id = draw->history[i];
    int32_t count = 0;
    bool is_first = id < n_vocab;
    for (int32_t j = first; j < draw->n_history; j++) {
      count += draw->history[j] == id;
      is_first = is_first && !(j < i && draw->history[j] == id);
    }
    if (is_first) x[id] = kg_penalized(x[id], count, stage->repeat, stage->frequency, stage->presence);
  }
}

static void add_bias(const kg_draw *draw, const kg_draw_stage *stage, float *x)
{
  const kg_draw_program *program = draw->program;
  for (int32_t b = stage->bias; b < stage->bias + stage->n_bias; b++)
    x[program->bias_ids[b]] = kg_biased(x[program->bias_ids[b]], program->bias_values[b]);
  for (int32_t p = stage->phrase; p < stage->phrase + stage->n_phrases; p++) {
    const kg_draw_phrase *phrase = &program->phrases[p];
    if (kg_phrase_applies(phrase, program->phrase_ids, draw->history, draw->n_history))
      x[phrase->id] = kg_biased(x[phrase->id], phrase->value);
  }
}

static void prepare(const kg_draw *draw, const float *logits, int32_t n_vocab, kg_draw_row *row)
{
  const kg_draw_program *program = draw->program;
  for (int32_t i = 0; i < n_vocab; i++) {
    row->x[i] = logits[i];
    row->n_nan += !(logits[i] < INFINITY);
  }
  for (int32_t i = 0; i < program->n_prefix; i++) {
    const kg_draw_stage *stage = &program->stages[i];
    if (stage->kind == KG_STAGE_PENALTIES)
      penalize(draw, stage, row->x, n_vocab);
    else if (stage->kind == KG_STAGE_BIAS)
      add_bias(draw, stage, row->x);
    else if (stage->value != 1)
      for (int32_t j = 0; j < n_vocab; j++) row->x[j] /= stage->value;
  }
}

/* The best of each group, and of all. */
static float group(const float *x, int32_t n_vocab, kg_rank *best)
{
  const int32_t size = kg_draw_group(n_vocab);
  kg_rank best_of_all = 0;
  for (int32_t g = 0; g < kg_draw_group_count(n_vocab); g++) {
    best[g] = 0;
    for (int32_t i = g * size; i < n_vocab && i < (g + 1) * size; i++) {
      const kg_rank rank = kg_rank_make(x[i], (uint32_t)i);
      if (rank > best[g]) best[g] = rank;
    }
    if (best[g] > best_of_all) best_of_all = best[g];
  }
  return kg_rank_value(best_of_all);
}

static void sift(const kg_draw_program *program, float max, int32_t n_vocab, kg_draw_row *row)
{
  const kg_draw_sift kind = kg_draw_sift_of(program);
  if (!(max > -INFINITY && max < INFINITY)) return;
  for (int32_t i = 0; i < n_vocab && kind; i++) {
    const float weight = kg_draw_weight(row->x[i] - max);
    if (kind == KG_SIFT_WEIGH) row->mass[kg_draw_bucket(row->x[i], max)] += kg_mass(weight, kg_mass_scale(n_vocab));
    if (kg_draw_sifts_mean(program)) row->moment += kg_draw_moment_of(row->x[i] - max, kg_mass_scale(n_vocab));
    if (kind != KG_SIFT_MIN_P || weight < program->stages[program->n_prefix].value) continue;
    const uint32_t at = row->n_list++;
    if (at >= KG_DRAW_LIST) continue;
    row->list_x[0][at] = row->x[i];
    row->list_ids[0][at] = i;
  }
}

/* Draw, or write what the stages leave to `applied`. */
static int run(const kg_draw *draw, const float *logits, int32_t n_vocab, float *applied, kg_drawn *out, kg_error *err)
{
  if (n_vocab < 1 || n_vocab > KG_DRAW_VOCAB_MAX || draw->program->max_bias_id >= n_vocab) {
    *out = (kg_drawn){0, KG_DRAW_FAILED};
    return KG_OK;
  }
  float *x = kg_alloc_array((size_t)n_vocab + 2 * KG_DRAW_LIST, sizeof *x);
  int32_t *ids = kg_alloc_array(2 * KG_DRAW_LIST, sizeof *ids);
  kg_rank *best = kg_alloc_array(KG_DRAW_GROUPS, sizeof *best);
  kg_draw_shared *shared = kg_alloc(sizeof *shared);
  uint64_t *mass = kg_alloc_array(KG_DRAW_BUCKETS, sizeof *mass);
  int code = KG_OK;
  if (x && ids && best && shared && mass) {
    kg_draw_row row = {.x = x,
                       .best = best,
                       .list_x = {x + n_vocab, x + n_vocab + KG_DRAW_LIST},
                       .list_ids = {ids, ids + KG_DRAW_LIST},
                       .mass = mass};
    prepare(draw, logits, n_vocab, &row);
    sift(draw->program, group(row.x, n_vocab, best), n_vocab, &row);
    *out = applied ? kg_draw_apply_block(draw, &row, n_vocab, shared, applied)
                   : kg_draw_block(draw, &row, n_vocab, shared);
  } else
    code = kg_fail_memory(err, ((size_t)n_vocab + 4 * KG_DRAW_LIST) * sizeof *x, "a draw");
  kg_free(x);
  kg_free(ids);
  kg_free(best);
  kg_free(shared);
  kg_free(mass);
  return code;
}

int kg_draw_alone(const kg_draw *draw, const float *logits, int32_t n_vocab, kg_drawn *out, kg_error *err)
{
  return run(draw, logits, n_vocab, NULL, out, err);
}

int kg_draw_apply_alone(const kg_draw *draw, float *logits, int32_t n_vocab, kg_drawn *out, kg_error *err)
{
  return run(draw, logits, n_vocab, logits, out, err);
}
