/* taps.c - programs that are made on demand: those that stop at the values of taps or add adapters, and the way from
 * the residual to the logits. */
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "executable.h"

static void deinit(kg_tapped_program *tapped)
{
  kg_program_deinit(&tapped->program);
  kg_free(tapped->key);
  *tapped = (kg_tapped_program){.key = NULL};
}

void kg_cpu_taps_close(kg_executable *exe)
{
  for (int i = 0; i < KG_TAPPED_PROGRAMS; i++) deinit(&exe->tapped[i]);
  kg_free(exe->tapped_key);
  kg_free(exe->was_adapted);
  kg_free(exe->adapted);
  kg_program_deinit(&exe->unembedding);
  kg_free(exe->unembedding_arena);
}

/* A program in this place for exe->tapped_key. */
static int build(kg_executable *exe, kg_tapped_program *out, kg_error *err)
{
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan);
  kg_tapped_program made = {.key = kg_alloc_array(2 * n_values + 1, sizeof *made.key)};
  if (!made.key) return kg_fail_memory(err, 2 * n_values, "a program with taps");
  memcpy(made.key, exe->tapped_key, (2 * n_values + 1) * sizeof *made.key);
  kg_program_input input = {
      .traced = made.key[2 * n_values], .tapped = made.key, .adapted = made.key + n_values, .given = KG_NONE};
  int code = kg_cpu_program_build(exe, &input, &made.program, err);
  if (!code) code = kg_cpu_reserve(exe, &made.program, err);
  if (code) {
    deinit(&made);
    return code;
  }
  deinit(out);
  *out = made;
  return KG_OK;
}

bool kg_cpu_is_adapted(const kg_batch *batch)
{
  for (int32_t s = 0; s < batch->n_spans; s++)
    if (batch->spans[s].n_adapters) return true;
  return false;
}

/* Room for A x of any row, and what adapters are added to. */
static int prepare_adapters(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  int64_t stride = exe->adapted_stride;
  for (int32_t s = 0; s < batch->n_spans; s++) {
    const kg_span *span = &batch->spans[s];
    int64_t ranks = 0;
    for (int32_t i = 0; i < span->n_adapters; i++) {
      ranks += kg_adapter_rank(span->adapters[i].adapter);
      for (int32_t j = 0; j < kg_plan_op_count(exe->plan); j++) {
        const kg_op *op = kg_plan_op(exe->plan, j);
        if (kg_adapter_part_of(span->adapters[i].adapter, op)) exe->was_adapted[op->out] = true;
      }
    }
    if (ranks > stride) stride = ranks;
  }
  if (stride == exe->adapted_stride) return KG_OK;
  float *grown = kg_alloc_array((size_t)exe->pass_rows, (size_t)stride * sizeof *grown);
  if (!grown) return kg_fail_memory(err, (size_t)(exe->pass_rows * stride) * sizeof *grown, "adapters");
  kg_free(exe->adapted);
  exe->adapted = grown;
  exe->adapted_stride = stride;
  return KG_OK;
}

int kg_cpu_tapped_program(kg_executable *exe, const kg_batch *batch, const kg_program **out, kg_error *err)
{
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan), n_key = 2 * n_values + 1;
  memset(exe->tapped_key, 0, n_key * sizeof *exe->tapped_key);
  for (int32_t i = 0; i < batch->n_taps; i++) exe->tapped_key[batch->taps[i].value] = true;
  if (kg_cpu_is_adapted(batch)) {
    const int prepared = prepare_adapters(exe, batch, err);
    if (prepared) return prepared;
    memcpy(exe->tapped_key + n_values, exe->was_adapted, n_values * sizeof *exe->was_adapted);
  }
  exe->tapped_key[n_key - 1] = batch->n_traces > 0;
  kg_tapped_program *found = NULL, *oldest = &exe->tapped[0];
  for (int i = 0; i < KG_TAPPED_PROGRAMS; i++) {
    kg_tapped_program *t = &exe->tapped[i];
    if (t->key && !memcmp(t->key, exe->tapped_key, n_key * sizeof *t->key)) found = t;
    if (t->used < oldest->used) oldest = t;
  }
  const int code = found ? KG_OK : build(exe, oldest, err);
  if (code) return code;
  if (!found) found = oldest;
  found->used = ++exe->n_tapped_runs;
  *out = &found->program;
  return KG_OK;
}

/* The program behind the residual, made once. */
static int make_unembedding(kg_executable *exe, int32_t residual, kg_error *err)
{
  if (exe->unembedding_arena) return KG_OK;
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan);
  bool *tapped = kg_alloc_array(n_values, sizeof *tapped);
  if (!tapped) return kg_fail_memory(err, n_values, "a program with taps");
  tapped[residual] = true;
  kg_program_input input = {.tapped = tapped, .given = residual};
  kg_program program;
  int code = kg_cpu_program_build(exe, &input, &program, err);
  kg_free(tapped);
  if (code) return code;
  code = kg_cpu_reserve_workers(exe, &program, err);
  if (!code && !(exe->unembedding_arena = kg_alloc_aligned(program.arena_bytes, KG_ALIGNMENT)))
    code = kg_fail_memory(err, program.arena_bytes, "intermediate results");
  if (code)
    kg_program_deinit(&program);
  else
    exe->unembedding = program;
  return code;
}

int kg_cpu_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                   int64_t logits_at, kg_error *err)
{
  enum { MOST_ROWS = 64 };
  const int32_t residual = kg_plan_residual(exe->plan);
  const int64_t width = kg_plan_value(exe->plan, residual)->width, vocab = kg_plan_vocab_size(exe->plan);
  int code = make_unembedding(exe, residual, err);
  if (code) return code;
  const int32_t step = exe->unembedding.tail_rows < MOST_ROWS ? exe->unembedding.tail_rows : MOST_ROWS;
  for (int32_t row = 0; row < n_rows; row += step) {
    const int32_t n = n_rows - row < step ? n_rows - row : step;
    kg_wanted wanted[MOST_ROWS];
    for (int32_t i = 0; i < n; i++) wanted[i] = (kg_wanted){i, logits, logits_at + (row + i) * vocab};
    kg_cpu_run_unembedding(exe, (const float *)x->data + at + row * width, wanted, n);
  }
  return KG_OK;
}
