/* cpu.c - the backend "cpu": compiling a plan (weights.c, program.c), its memory, and the interface of backend.h. */
#include <string.h>

#include "alloc.h"
#include "backend.h"
#include "error.h"
#include "executable.h"

/* ---- states ---- */

static int cpu_state_reserve(kg_executable *exe, int32_t n_slots, kg_error *err)
{
  return kg_host_states_reserve(&exe->states, n_slots, err);
}

static int cpu_state_copy(kg_executable *exe, int32_t to, int32_t from, kg_error *err)
{
  return kg_host_states_copy(&exe->states, to, from, err);
}

static int cpu_state_read(kg_executable *exe, int32_t slot, float *out, kg_error *err)
{
  return kg_host_states_read(&exe->states, slot, out, err);
}

static int cpu_state_write(kg_executable *exe, int32_t slot, const float *in, kg_error *err)
{
  return kg_host_states_write(&exe->states, slot, in, err);
}

/* ---- life ---- */

static void cpu_release(kg_executable *exe)
{
  if (!exe) return;
  kg_pool_free(exe->pool);
  kg_program_deinit(&exe->fused);
  kg_program_deinit(&exe->traced);
  kg_cpu_taps_close(exe);
  kg_cpu_cache_close(exe);
  kg_host_states_deinit(&exe->states);
  kg_free(exe->state_outs);
  kg_free(exe->weights);
  kg_free(exe->weight_block);
  kg_free(exe->arena);
  kg_free(exe->angles);
  kg_free(exe->angle_offsets);
  kg_free(exe->worker_memory);
  kg_free(exe->identity);
  kg_free(exe->tail_source);
  kg_free(exe->tail_wanted);
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) kg_free(exe->row_page[g]);
  kg_free(exe->row_slot);
  kg_free(exe->row_last);
  kg_free(exe->row_span);
  kg_free(exe->blocks);
  kg_free(exe->spans);
  kg_free(exe->wanted);
  kg_free(exe->traces);
  kg_free(exe->taps);
  kg_free(exe->trace_of);
  kg_free(exe);
}

/* ---- compiling ---- */

/* The vector functions for the instruction set of the kernels. */
static const kg_vector_ops *vector_ops_for(const kg_kernels *kernels)
{
#if defined(__x86_64__)
  if (!strncmp(kernels->name, "avx512", 6)) return &kg_vector_ops_avx512;
  if (!strncmp(kernels->name, "avx", 3)) return &kg_vector_ops_avx2;
#endif
  (void)kernels;
  return &kg_vector_ops_generic;
}

int kg_cpu_program_build(kg_executable *exe, kg_program_input *input, kg_program *out, kg_error *err)
{
  const kg_packed **weights = kg_alloc_array((size_t)exe->n_weights, sizeof *weights);
  if (!weights) return kg_fail_memory(err, (size_t)exe->n_weights * sizeof *weights, "the table of weights");
  for (int32_t i = 0; i < exe->n_weights; i++)
    if (exe->weights[i].is_matrix) weights[i] = &exe->weights[i].packed;
  input->plan = exe->plan;
  input->kernels = exe->kernels;
  input->weights = weights;
  input->max_rows = exe->pass_rows;
  const int code = kg_program_build(input, out, err);
  kg_free(weights);
  return code;
}

static int build_programs(kg_executable *exe, kg_error *err)
{
  kg_program_input fused = {.given = KG_NONE}, traced = {.traced = true, .given = KG_NONE};
  const int code = kg_cpu_program_build(exe, &fused, &exe->fused, err);
  return code ? code : kg_cpu_program_build(exe, &traced, &exe->traced, err);
}

static size_t padded_bytes(size_t n) { return (n + KG_ALIGNMENT - 1) / KG_ALIGNMENT * KG_ALIGNMENT; }

/* Two rows of the widest matrix: a learned position, or the two terms of a row. */
static size_t spare_bytes(const kg_executable *exe)
{
  int64_t width = 0;
  for (int32_t i = 0; i < exe->n_weights; i++)
    if (exe->weights[i].is_matrix && exe->weights[i].packed.cols > width) width = exe->weights[i].packed.cols;
  return 2 * (size_t)kg_padded(width) * sizeof(float);
}

/* Bytes that one worker needs beside that: rows of a stage, or attention, or tiles of products and of the head. */
static size_t worker_bytes(const kg_executable *exe, const kg_program *program)
{
  size_t most = program->local_bytes;
  for (int32_t i = 0; i < kg_plan_layer_count(exe->plan); i++) {
    const kg_attention_params *a = &kg_plan_layer(exe->plan, i)->u.attention;
    const size_t bytes = (size_t)kg_attention_scratch(a->head_dim, a->value_dim, a->values_in_keys) * sizeof(float);
    if (bytes > most) most = bytes;
  }
  const size_t tiles = KG_TILE_FLOATS + (size_t)exe->fused.tail_rows * KG_HEAD_GROUPS * KG_GROUP;
  if (tiles * sizeof(float) > most) most = tiles * sizeof(float);
  return padded_bytes(most);
}

static size_t lay_out_angles(kg_executable *exe)
{
  size_t floats = 0;
  for (size_t r = 0; r < exe->fused.n_rotations; r++) {
    exe->angle_offsets[r] = floats;
    floats += (size_t)exe->pass_rows * 2 * (size_t)exe->fused.rotations[r]->n_dims;
  }
  return floats;
}

/* Between runs neither arena nor workers' memory hold anything. */
static int grow_memory(unsigned char **memory, size_t *size, size_t needed, size_t copies, kg_error *err)
{
  if (*memory && needed <= *size) return KG_OK;
  unsigned char *grown = kg_alloc_aligned(copies * needed, KG_ALIGNMENT);
  if (!grown) return kg_fail_memory(err, copies * needed, "intermediate results");
  kg_free(*memory);
  *memory = grown;
  *size = needed;
  return KG_OK;
}

int kg_cpu_reserve_workers(kg_executable *exe, const kg_program *program, kg_error *err)
{
  const size_t n_bytes = worker_bytes(exe, program) + exe->spare_bytes;
  return grow_memory(&exe->worker_memory, &exe->worker_bytes, n_bytes, (size_t)kg_pool_size(exe->pool), err);
}

int kg_cpu_reserve(kg_executable *exe, const kg_program *program, kg_error *err)
{
  const int code = grow_memory(&exe->arena, &exe->arena_bytes, program->arena_bytes, 1, err);
  return code ? code : kg_cpu_reserve_workers(exe, program, err);
}

static int allocate(kg_executable *exe, kg_error *err)
{
  const size_t rows = (size_t)exe->pass_rows, n_values = (size_t)kg_plan_value_count(exe->plan);
  exe->spare_bytes = spare_bytes(exe);
  int code = kg_cpu_reserve(exe, &exe->fused, err);
  if (!code) code = kg_cpu_reserve(exe, &exe->traced, err);
  if (code) return code;
  exe->angle_offsets = kg_alloc_array(exe->fused.n_rotations, sizeof *exe->angle_offsets);
  exe->identity = kg_alloc_array(rows, sizeof *exe->identity);
  exe->tail_source = kg_alloc_array(rows, sizeof *exe->tail_source);
  exe->tail_wanted = kg_alloc_array(rows, sizeof *exe->tail_wanted);
  bool has_row_pages = true;
  for (int32_t g = 0; g < kg_plan_group_count(exe->plan); g++) {
    exe->row_page[g] = kg_alloc_array(rows, sizeof *exe->row_page[g]);
    has_row_pages = has_row_pages && exe->row_page[g];
  }
  exe->row_slot = kg_alloc_array(rows, sizeof *exe->row_slot);
  exe->row_last = kg_alloc_array(rows, sizeof *exe->row_last);
  exe->blocks = kg_alloc_array(rows, sizeof *exe->blocks);
  exe->spans = kg_alloc_array(rows, sizeof *exe->spans);
  exe->wanted = kg_alloc_array(rows, sizeof *exe->wanted);
  exe->traces = kg_alloc_array(n_values, sizeof *exe->traces);
  exe->trace_of = kg_alloc_array(n_values, sizeof *exe->trace_of);
  if (exe->angle_offsets) exe->angles = kg_alloc_aligned(lay_out_angles(exe) * sizeof *exe->angles, KG_ALIGNMENT);
  exe->tapped_key = kg_alloc_array(2 * n_values + 1, sizeof *exe->tapped_key);
  exe->was_adapted = kg_alloc_array(n_values, sizeof *exe->was_adapted);
  exe->row_span = kg_alloc_array(rows, sizeof *exe->row_span);
  if (!exe->angles || !exe->tapped_key || !exe->was_adapted || !exe->row_span || !exe->identity || !exe->tail_source ||
      !exe->tail_wanted || !has_row_pages || !exe->row_slot || !exe->row_last || !exe->blocks || !exe->spans ||
      !exe->wanted || !exe->traces || !exe->trace_of)
    return kg_fail_memory(err, n_values * sizeof *exe->traces, "the rows of a pass");
  for (int32_t i = 0; i < exe->pass_rows; i++) exe->identity[i] = i;
  return KG_OK;
}

static int cpu_compile(const kg_plan *plan, const kg_backend_options *options, kg_executable **out, kg_error *err)
{
  if (kg_plan_logits(plan) == KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "the plan is not finished");
  kg_executable *exe = kg_alloc_array(1, sizeof *exe);
  if (!exe) return kg_fail_memory(err, sizeof *exe, "the cpu backend");
  exe->plan = plan;
  exe->chunk = options->chunk;
  exe->states.n_floats = (size_t)kg_plan_state_size(plan);
  const bool whole = kg_plan_is_bidirectional(plan); /* a sequence is not cut */
  exe->pass_rows = whole || options->chunk < KG_PASS_ROWS ? options->chunk : KG_PASS_ROWS;
  exe->half = options->kv_type == KG_KV_F16;
  int code = kg_kernels_find(options->variant, &exe->kernels, err);
  if (!code) code = kg_pool_new(options->n_threads, &exe->pool, err);
  if (!code) code = kg_cpu_weights_open(exe, err);
  if (!code) code = build_programs(exe, err);
  if (!code) code = kg_cpu_cache_open(exe, err);
  if (!code) code = allocate(exe, err);
  if (!code) code = kg_cpu_weights_pack(exe, options, err); /* last: everything before it is quick to fail */
  if (code) {
    cpu_release(exe);
    return code;
  }
  kg_gguf_release_all_pages(kg_plan_gguf(plan));
  exe->vector = vector_ops_for(exe->kernels);
  *out = exe;
  return KG_OK;
}

/* ---- running ---- */

static int check_buffer(const kg_buffer *buffer, int64_t at, int64_t n, const char *what, kg_error *err)
{
  if (buffer->ops == &kg_host_tensor_ops && at >= 0 && n <= buffer->n && at <= buffer->n - n) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%s: %lld floats at %lld do not fit a host buffer of %lld", what, (long long)n,
                 (long long)at, (long long)buffer->n);
}

/* The states that part [first, first + own->n_rows) of a span finds and leaves, to exe->state_outs from *n on. What
 * follows finds its state where the whole span leaves its last. */
static void part_states(kg_executable *exe, const kg_span *span, int32_t first, kg_span *own, size_t *n)
{
  const int32_t end = first + own->n_rows, slot = span->states[span->n_states - 1].slot;
  own->state = first ? slot : span->state;
  own->states = exe->state_outs + *n;
  own->n_states = 0;
  for (int32_t i = 0; i < span->n_states; i++)
    if (span->states[i].n_rows > first && span->states[i].n_rows <= end)
      exe->state_outs[*n + (size_t)own->n_states++] = (kg_state_out){span->states[i].n_rows - first, span->states[i].slot};
  if (end < span->n_rows) exe->state_outs[*n + (size_t)own->n_states++] = (kg_state_out){own->n_rows, slot};
  *n += (size_t)own->n_states;
}

/* Rows [row0, row1) of a batch as a batch of their own, in the executable's arrays. */
static kg_batch part_of(kg_executable *exe, const kg_batch *batch, int32_t row0, int32_t row1)
{
  kg_batch part = {.n_rows = row1 - row0,
                   .tokens = batch->tokens + row0,
                   .positions = batch->positions + row0,
                   .spans = exe->spans,
                   .wanted = exe->wanted,
                   .n_traces = batch->n_traces,
                   .traces = exe->traces,
                   .taps = exe->taps};
  size_t n_states = 0;
  for (int32_t s = 0; s < batch->n_spans; s++) {
    const kg_span *span = &batch->spans[s];
    const int32_t first = span->row > row0 ? span->row : row0;
    const int32_t end = span->row + span->n_rows < row1 ? span->row + span->n_rows : row1;
    if (first >= end) continue;
    kg_span *own = &exe->spans[part.n_spans++];
    *own = *span;
    own->row = first - row0;
    own->n_rows = end - first;
    own->pos = span->pos + first - span->row;
    if (exe->states.n_floats) part_states(exe, span, first - span->row, own, &n_states);
  }
  for (int32_t i = 0; i < batch->n_wanted; i++) {
    if (batch->wanted[i].row < row0 || batch->wanted[i].row >= row1) continue;
    exe->wanted[part.n_wanted] = batch->wanted[i];
    exe->wanted[part.n_wanted++].row -= row0;
  }
  for (int32_t i = 0; i < batch->n_traces; i++) {
    exe->traces[i] = batch->traces[i];
    exe->traces[i].at += (int64_t)row0 * kg_plan_value(exe->plan, batch->traces[i].value)->width;
  }
  for (int32_t i = 0; i < batch->n_taps; i++) {
    const kg_tap *tap = &batch->taps[i];
    const int32_t first = tap->row > row0 ? tap->row : row0;
    const int32_t end = tap->row + tap->n_rows < row1 ? tap->row + tap->n_rows : row1;
    if (first >= end) continue;
    exe->taps[part.n_taps] = *tap;
    exe->taps[part.n_taps].row = first - row0;
    exe->taps[part.n_taps++].n_rows = end - first;
  }
  return part;
}

/* Parts one after the other: the later rows find the keys and values of the earlier ones in the cache. */
static int run_parts(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  const kg_program *program = batch->n_traces ? &exe->traced : &exe->fused;
  const bool is_fused = !batch->n_taps && !kg_cpu_is_adapted(batch);
  int code = is_fused ? KG_OK : kg_cpu_tapped_program(exe, batch, &program, err);
  for (int32_t row = 0; row < batch->n_rows && !code; row += exe->pass_rows) {
    const int32_t end = batch->n_rows - row < exe->pass_rows ? batch->n_rows : row + exe->pass_rows;
    const kg_batch part = part_of(exe, batch, row, end);
    code = kg_cpu_run(exe, program, &part, err);
  }
  return code;
}

/* Before the first part runs. Parts of few rows spread splits over the threads: the last one, or all. */
static int reserve_splits(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  const int32_t n_last = (batch->n_rows - 1) % exe->pass_rows + 1; /* rows of the last part */
  const bool all_small = exe->pass_rows <= KG_SPLIT_ROWS;
  const int32_t first = all_small ? 0 : batch->n_rows - n_last;
  const int32_t n_rows = all_small && batch->n_rows > exe->pass_rows ? exe->pass_rows : n_last;
  if (n_rows > KG_SPLIT_ROWS) return KG_OK;
  int32_t end = 0;
  for (int32_t i = 0; i < batch->n_spans; i++) {
    const kg_span *span = &batch->spans[i];
    if (span->row + span->n_rows > first && span->pos + span->n_rows > end) end = span->pos + span->n_rows;
  }
  return end ? kg_cpu_reserve_splits(exe, n_rows, end, err) : KG_OK;
}

static int cpu_run(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  int code = kg_batch_check(exe->plan, batch, exe->chunk, exe->n_pages, 0, err);
  if (!code) code = kg_batch_check_states(exe->plan, batch, exe->states.n, err);
  if (code) return code;
  if (!kg_pool_is_here(exe->pool))
    return kg_fail(err, KG_ERR_DEVICE, "the model's threads stayed in the parent process: load it after the fork");
  const int64_t n_rows = batch->n_rows, vocab = kg_plan_vocab_size(exe->plan);
  if (batch->n_traces > kg_plan_value_count(exe->plan))
    return kg_fail(err, KG_ERR_ARGUMENT, "%d traces of %d values", batch->n_traces, kg_plan_value_count(exe->plan));
  for (int32_t i = 0; i < batch->n_wanted && !code; i++)
    code = check_buffer(batch->wanted[i].buffer, batch->wanted[i].at, vocab, "logits", err);
  for (int32_t i = 0; i < batch->n_traces && !code; i++) {
    const kg_trace *trace = &batch->traces[i];
    const kg_value *value = kg_plan_value(exe->plan, trace->value);
    code = check_buffer(trace->buffer, trace->at, n_rows * value->width, value->name, err);
  }
  if (!code && !kg_grow((void **)&exe->taps, &exe->taps_capacity, (size_t)batch->n_taps, sizeof *exe->taps))
    code = kg_fail_memory(err, (size_t)batch->n_taps * sizeof *exe->taps, "taps");
  size_t n_states = 0; /* of a part: at most its rows, and one where it ends */
  for (int32_t s = 0; s < batch->n_spans && exe->states.n_floats; s++) n_states += (size_t)batch->spans[s].n_states + 1;
  if (!code && !kg_grow((void **)&exe->state_outs, &exe->state_outs_capacity, n_states, sizeof *exe->state_outs))
    code = kg_fail_memory(err, n_states * sizeof *exe->state_outs, "states");
  if (!code) code = reserve_splits(exe, batch, err);
  return code ? code : run_parts(exe, batch, err);
}

static int cpu_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                       int64_t logits_at, kg_error *err)
{
  const int64_t width = kg_plan_value(exe->plan, kg_plan_residual(exe->plan))->width;
  int code = check_buffer(x, at, n_rows * width, "the residual", err);
  if (!code) code = check_buffer(logits, logits_at, n_rows * (int64_t)kg_plan_vocab_size(exe->plan), "logits", err);
  if (code) return code;
  if (!kg_pool_is_here(exe->pool))
    return kg_fail(err, KG_ERR_DEVICE, "the model's threads stayed in the parent process: load it after the fork");
  return kg_cpu_unembed(exe, x, at, n_rows, logits, logits_at, err);
}

/* ---- looking into weights ---- */

static size_t cpu_weight_bytes(const kg_executable *exe, int32_t weight) { return exe->weights[weight].n_bytes; }

static int check_range(const kg_executable *exe, int32_t weight, size_t at, size_t n, kg_error *err)
{
  if (weight < 0 || weight >= exe->n_weights)
    return kg_fail(err, KG_ERR_ARGUMENT, "weight %d of %d", weight, exe->n_weights);
  const size_t n_bytes = exe->weights[weight].n_bytes;
  if (at <= n_bytes && n <= n_bytes - at) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: %zu bytes at %zu of %zu", kg_plan_weight_at(exe->plan, weight)->name,
                 n, at, n_bytes);
}

static int cpu_weight_read(const kg_executable *exe, int32_t weight, size_t at, size_t n, void *out, kg_error *err)
{
  const int code = check_range(exe, weight, at, n, err);
  if (!code && n) memcpy(out, exe->weights[weight].data + at, n);
  return code;
}

static int cpu_weight_write(kg_executable *exe, int32_t weight, size_t at, size_t n, const void *in, kg_error *err)
{
  const int code = check_range(exe, weight, at, n, err);
  if (!code && n) memcpy(exe->weights[weight].data + at, in, n);
  return code;
}

static int cpu_buffer_new(kg_executable *exe, int64_t n_floats, kg_buffer **out, kg_error *err)
{
  (void)exe;
  return kg_host_buffer_new(n_floats, out, err);
}

static void cpu_get_stats(const kg_executable *exe, kg_model_stats *out)
{
  out->device = kg_backend_cpu.name;
  out->variant = exe->kernels->name;
  out->weight_bytes = exe->weight_bytes;
  out->kv_bytes = 0;
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) out->kv_bytes += (size_t)exe->n_pages[g] * exe->page_bytes[g];
  out->n_threads = kg_pool_size(exe->pool);
  out->expert_bytes = atomic_load_explicit(&exe->expert_bytes, memory_order_relaxed);
}

const kg_backend kg_backend_cpu = {.name = "cpu",
                                   .compile = cpu_compile,
                                   .release = cpu_release,
                                   .run = cpu_run,
                                   .unembed = cpu_unembed,
                                   .kv_reserve = kg_cpu_cache_reserve,
                                   .kv_copy = kg_cpu_cache_copy,
                                   .page_bytes = kg_cpu_page_bytes,
                                   .state_reserve = cpu_state_reserve,
                                   .state_copy = cpu_state_copy,
                                   .state_read = cpu_state_read,
                                   .state_write = cpu_state_write,
                                   .kv_type = kg_cpu_cache_type,
                                   .kv_read = kg_cpu_cache_read,
                                   .kv_write = kg_cpu_cache_write,
                                   .weight_bytes = cpu_weight_bytes,
                                   .weight_read = cpu_weight_read,
                                   .weight_write = cpu_weight_write,
                                   .buffer_new = cpu_buffer_new,
                                   .get_stats = cpu_get_stats};
