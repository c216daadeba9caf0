/* cuda.c - the backend "cuda": compiling a plan for a GPU, and the interface of backend.h and plugin.h. */
#include <stdio.h>
#include <string.h>

#include "executable.h"
#include "vector_ops.h"

static void cuda_release(kg_executable *exe)
{
  if (!exe) return;
  if (exe->stream) {
    (void)kg_stream_use(exe->stream, NULL);
    (void)kg_stream_wait(exe->stream, "closing", NULL);
  }
  kg_gpu_forget_graphs(exe);
  kg_gpu_timer_deinit(&exe->timer);
  kg_gpu_cache_close(exe);
  kg_gpu_adapters_close(exe);
  kg_gpu_slabs_close(exe);
  kg_program_deinit(&exe->fused);
  kg_program_deinit(&exe->traced);
  if (exe->meta_read) (void)cudaEventDestroy(exe->meta_read);
  (void)cudaFree(exe->weight_block);
  (void)cudaFree(exe->arena);
  (void)cudaFree(exe->unembedding_arena);
  (void)cudaFree(exe->planes);
  (void)cudaFree(exe->row_max);
  (void)cudaFree(exe->meta);
  (void)cudaFreeHost(exe->meta_host);
  (void)cudaGetLastError();
  kg_stream_unref(exe->stream);
  kg_free(exe->states);
  kg_free(exe->weights);
  kg_free(exe->half_up);
  kg_free(exe);
}

/* ---- compiling ---- */

static int copy_freqs(const kg_executable *exe, kg_program *program, kg_error *err)
{
  size_t n = 0;
  for (size_t i = 0; i < program->n_rotations; i++) n += (size_t)program->rotations[i].params->n_dims / 2;
  void *freqs;
  int code = kg_cuda_alloc(n * sizeof(float), "rotations", &freqs, err);
  if (code) return code;
  float *at = program->freqs = freqs;
  for (size_t i = 0; i < program->n_rotations && !code; i++) {
    kg_rotation_place *r = &program->rotations[i];
    const size_t count = (size_t)r->params->n_dims / 2;
    r->freqs = at;
    at += count;
    code = kg_cuda_check(cudaMemcpyAsync(r->freqs, r->params->inverse_freqs, count * sizeof(float),
                                         cudaMemcpyHostToDevice, exe->stream->handle),
                         "rotations", err);
  }
  return code ? code : kg_stream_wait(exe->stream, "rotations", err);
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
static size_t place(size_t *end, size_t n_bytes)
{
  const size_t at = *end;
  *end = (at + n_bytes + 255) / 256 * 256;
  return at;
}

/* Behind the values: what experts and products of each head need, as the widest operation does. */
static size_t lay_out_experts(const kg_executable *exe, size_t at, kg_moe_scratch *m)
{
  size_t n_used = 0, hidden = 0, width = 0, each = 0;
  for (int32_t i = 0; i < kg_plan_op_count(exe->plan); i++) {
    const kg_op *op = kg_plan_op(exe->plan, i);
    if (op->kind == KG_OP_LINEAR_EACH) each = max_size(each, (size_t)exe->weights[op->w[0]].m.n_blocks);
    if (op->kind != KG_OP_MOE) continue;
    n_used = max_size(n_used, (size_t)op->u.moe.n_used);
    hidden = max_size(hidden, (size_t)exe->weights[op->w[0]].m.rows);
    width = max_size(width, (size_t)exe->weights[op->w[2]].m.rows);
  }
  const size_t rows = !n_used ? 0 : max_size(KG_MOE_ROWS, n_used), each_rows = each ? KG_EACH_ROWS : 0;
  m->experts = place(&at, rows * 4);
  m->weights = place(&at, rows * 4);
  m->gate = place(&at, rows * hidden * 4);
  m->up = place(&at, rows * hidden * 4);
  m->half = place(&at, max_size(rows * ((hidden + 31) / 32), each_rows * each) * KG_BLOCK_COLS * 2);
  m->half_scale = place(&at, max_size(rows, each_rows) * 4);
  m->down = place(&at, rows * width * 4);
  m->order = place(&at, max_size(rows, each_rows) * 4);
  m->groups = place(&at, (max_size(rows, each_rows) / KG_LINEAR_FEW + KG_PLAN_MAX_EXPERTS) * sizeof(kg_linear_group));
  return at;
}

/* Values, scratch of products and attention, experts. */
static int grow_arena(kg_executable *exe, size_t values, size_t scratch_floats, kg_error *err)
{
  if (exe->arena && values <= exe->values_bytes && scratch_floats <= exe->scratch_floats) return KG_OK;
  kg_moe_scratch moe;
  size_t begin = 0;
  values = max_size(values, exe->values_bytes);
  scratch_floats = max_size(scratch_floats, exe->scratch_floats);
  (void)place(&begin, values);
  const size_t scratch = place(&begin, scratch_floats * sizeof(float));
  void *arena;
  const int code = kg_cuda_alloc(lay_out_experts(exe, begin, &moe), "intermediate results", &arena, err);
  if (code) return code;
  kg_gpu_forget_graphs(exe);
  (void)cudaFree(exe->arena);
  exe->arena = arena;
  exe->scratch = (float *)(exe->arena + scratch);
  exe->moe = moe;
  exe->values_bytes = values;
  exe->scratch_floats = scratch_floats;
  return KG_OK;
}

static int grow_maxima(kg_executable *exe, int32_t n_slots, kg_error *err)
{
  if (exe->row_max && n_slots <= exe->n_max_slots) return KG_OK;
  void *maxima;
  const int code = kg_cuda_alloc(((size_t)n_slots + 1) * KG_LINEAR_FEW * sizeof(float), "row maxima", &maxima, err);
  if (code) return code;
  kg_gpu_forget_graphs(exe);
  (void)cudaFree(exe->row_max);
  exe->row_max = maxima;
  exe->n_max_slots = n_slots;
  return KG_OK;
}

int kg_gpu_reserve(kg_executable *exe, kg_program *const *programs, size_t n, kg_error *err)
{
  size_t values = 0, scratch_floats = 0;
  int32_t n_slots = 0;
  int code = KG_OK;
  for (size_t i = 0; i < n && !code; i++) {
    const kg_program *p = programs[i];
    values = max_size(values, p->arena_bytes);
    scratch_floats = max_size(scratch_floats, p->scratch_floats);
    if (p->n_max_slots > n_slots) n_slots = p->n_max_slots;
    code = copy_freqs(exe, programs[i], err);
  }
  if (!code) code = grow_arena(exe, values, scratch_floats, err);
  return code ? code : grow_maxima(exe, n_slots, err);
}

static int allocate(kg_executable *exe, kg_error *err)
{
  kg_program *const programs[] = {&exe->fused, &exe->traced};
  const int code = kg_gpu_reserve(exe, programs, 2, err);
  return code
             ? code
             : kg_cuda_check(cudaEventCreateWithFlags(&exe->meta_read, cudaEventDisableTiming), "making an event", err);
}

static int name_device(kg_executable *exe, kg_error *err)
{
  struct cudaDeviceProp properties;
  const int code = kg_cuda_check(cudaGetDeviceProperties(&properties, exe->stream->device), "asking the device", err);
  if (!code)
    snprintf(exe->variant, sizeof exe->variant, "%.80s, sm_%d%d", properties.name, properties.major, properties.minor);
  return code;
}

/* Planes of a product of each head, one after the other, again and again; behind them those of the next product. */
static int copy_planes(kg_executable *exe, kg_error *err)
{
  const size_t n_bytes = KG_EACH_ROWS * sizeof(int32_t);
  int32_t *table = NULL;
  size_t n = 0;
  for (int32_t i = 0; i < kg_plan_op_count(exe->plan); i++) n += kg_plan_op(exe->plan, i)->kind == KG_OP_LINEAR_EACH;
  if (!n) return KG_OK;
  void *planes = NULL;
  int code = kg_cuda_alloc(n * n_bytes, "the planes of heads", &planes, err);
  exe->planes = planes;
  if (!code && !(table = kg_alloc(n_bytes))) code = kg_fail_memory(err, n_bytes, "the planes of heads");
  int32_t *at = exe->planes;
  for (int32_t i = 0; i < kg_plan_op_count(exe->plan) && !code; i++) {
    const kg_op *op = kg_plan_op(exe->plan, i);
    if (op->kind != KG_OP_LINEAR_EACH) continue;
    kg_cuda_weight *w = &exe->weights[op->w[0]];
    for (int32_t row = 0; row < KG_EACH_ROWS; row++) table[row] = row % w->m.planes;
    w->planes = at;
    at += KG_EACH_ROWS;
    code = kg_cuda_check(cudaMemcpyAsync(w->planes, table, n_bytes, cudaMemcpyHostToDevice, exe->stream->handle),
                         "the planes of heads", err);
    const int waited = kg_stream_wait(exe->stream, "the planes of heads", code ? NULL : err);
    if (!code) code = waited;
  }
  kg_free(table);
  return code;
}

static int cuda_compile(const kg_plan *plan, const kg_backend_options *options, kg_executable **out, kg_error *err)
{
  if (kg_plan_logits(plan) == KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "the plan is not finished");
  kg_executable *exe = kg_alloc_array(1, sizeof *exe);
  if (!exe) return kg_fail_memory(err, sizeof *exe, "the cuda backend");
  exe->plan = plan;
  exe->chunk = options->chunk;
  const bool whole = kg_plan_is_bidirectional(plan); /* a sequence is not cut */
  exe->pass_rows = whole || options->chunk < KG_PASS_ROWS ? options->chunk : KG_PASS_ROWS;
  exe->state_floats = (size_t)kg_plan_state_size(plan);
  exe->half = options->kv_type == KG_KV_F16;
  int code = kg_stream_new(options->device, &exe->stream, err);
  if (!code) exe->stream->row_floats = kg_plan_vocab_size(plan);
  if (!code) code = name_device(exe, err);
  if (!code) code = kg_gpu_cache_open(exe, err);
  if (!code) code = kg_gpu_weights_open(exe, err);
  if (!code) code = kg_gpu_bounds_open(exe, err);
  if (!code) code = kg_program_build(exe, false, NULL, &exe->fused, err);
  if (!code) code = kg_program_build(exe, true, NULL, &exe->traced, err);
  if (!code) code = allocate(exe, err);
  if (!code) code = copy_planes(exe, err);
  if (!code) code = kg_gpu_weights_pack(exe, options, err); /* late: everything before it is quick to fail */
  if (!code) code = kg_gpu_bounds_find(exe, KG_NONE, err);
  if (code) {
    cuda_release(exe);
    return code;
  }
  *out = exe;
  return KG_OK;
}

/* ---- running ---- */

static int check_batch(const kg_executable *exe, const kg_batch *batch, int32_t n_ahead, kg_error *err)
{
  int code = kg_batch_check(exe->plan, batch, exe->chunk, exe->n_pages, n_ahead, err);
  if (!code) code = kg_batch_check_states(exe->plan, batch, exe->n_states, err);
  for (int32_t i = 0; i < batch->n_wanted && !code; i++)
    code = kg_cuda_buffer_check(batch->wanted[i].buffer, batch->wanted[i].at, kg_plan_vocab_size(exe->plan), "logits",
                                err);
  for (int32_t i = 0; i < batch->n_traces && !code; i++) {
    const kg_trace *trace = &batch->traces[i];
    const kg_value *value = kg_plan_value(exe->plan, trace->value);
    code = kg_cuda_buffer_check(trace->buffer, trace->at, (int64_t)batch->n_rows * value->width, value->name, err);
  }
  return code;
}

static int cuda_run(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  const int code = check_batch(exe, batch, 0, err);
  return code ? code : kg_gpu_run(exe, batch, err);
}

static int cuda_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                        int64_t logits_at, kg_error *err)
{
  const int64_t width = kg_plan_value(exe->plan, kg_plan_residual(exe->plan))->width,
                vocab = kg_plan_vocab_size(exe->plan);
  int code = kg_cuda_buffer_check(x, at, n_rows * width, "the residual", err);
  if (!code) code = kg_cuda_buffer_check(logits, logits_at, n_rows * vocab, "logits", err);
  return code ? code : kg_gpu_unembed(exe, x, at, n_rows, logits, logits_at, err);
}

static int cuda_profile(kg_executable *exe, const kg_batch *batch, kg_profile *out, kg_error *err)
{
  const int code = check_batch(exe, batch, 0, err);
  return code ? code : kg_gpu_profile(exe, batch, out, err);
}

static int cuda_run_ahead(kg_executable *exe, const kg_batch *batch, const kg_run_ahead *ahead, kg_error *err)
{
  if (batch->n_rows > KG_AHEAD_ROWS || batch->n_spans != batch->n_rows || batch->n_wanted != batch->n_rows ||
      batch->n_traces || batch->n_taps || ahead->n_draws < 1 || ahead->n_draws > INT32_MAX / KG_AHEAD_ROWS)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d draws ahead for %d rows of %d spans", ahead->n_draws, batch->n_rows,
                   batch->n_spans);
  const int code = check_batch(exe, batch, ahead->n_draws - 1, err);
  if (code) return code;
  return kg_gpu_run_ahead(exe, batch, ahead, err);
}

/* ---- looking into weights ---- */

static size_t cuda_weight_bytes(const kg_executable *exe, int32_t weight) { return exe->weights[weight].n_bytes; }

static int check_range(const kg_executable *exe, int32_t weight, size_t at, size_t n, kg_error *err)
{
  if (weight < 0 || weight >= exe->n_weights)
    return kg_fail(err, KG_ERR_ARGUMENT, "weight %d of %d", weight, exe->n_weights);
  const size_t n_bytes = exe->weights[weight].n_bytes;
  if (at <= n_bytes && n <= n_bytes - at) return kg_stream_use(exe->stream, err);
  return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: %zu bytes at %zu of %zu", kg_plan_weight_at(exe->plan, weight)->name,
                 n, at, n_bytes);
}

static int cuda_weight_read(const kg_executable *exe, int32_t weight, size_t at, size_t n, void *out, kg_error *err)
{
  int code = check_range(exe, weight, at, n, err);
  if (code || !n) return code;
  code = kg_cuda_check(
      cudaMemcpyAsync(out, exe->weights[weight].data + at, n, cudaMemcpyDeviceToHost, exe->stream->handle),
      "reading weights", err);
  return code ? code : kg_stream_wait(exe->stream, "reading weights", err);
}

static int cuda_weight_write(kg_executable *exe, int32_t weight, size_t at, size_t n, const void *in, kg_error *err)
{
  int code = check_range(exe, weight, at, n, err);
  if (code || !n) return code;
  code =
      kg_cuda_check(cudaMemcpyAsync(exe->weights[weight].data + at, in, n, cudaMemcpyHostToDevice, exe->stream->handle),
                    "writing weights", err);
  const int waited = kg_stream_wait(exe->stream, "writing weights", code ? NULL : err);
  if (code || waited) return code ? code : waited;
  kg_gpu_forget_graphs(exe);
  code = kg_gpu_vector_measure(exe, weight, err);
  return code ? code : kg_gpu_bounds_find(exe, weight, err);
}

static int cuda_buffer_new(kg_executable *exe, int64_t n_floats, kg_buffer **out, kg_error *err)
{
  kg_buffer *buffer;
  int code = kg_cuda_buffer_new(exe->stream, n_floats, &buffer, err);
  if (code) return code;
  code = kg_cuda_check(cudaMemsetAsync(buffer->data, 0, (size_t)n_floats * sizeof(float), exe->stream->handle),
                       "clearing a tensor", err);
  if (code)
    buffer->release(buffer);
  else
    *out = buffer;
  return code;
}

static const kg_backend cuda_backend;

static void cuda_get_stats(const kg_executable *exe, kg_model_stats *out)
{
  out->device = cuda_backend.name;
  out->variant = exe->variant;
  out->weight_bytes = exe->weight_bytes;
  out->kv_bytes = 0;
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) out->kv_bytes += (size_t)exe->n_pages[g] * exe->page_bytes[g];
  out->n_threads = 0;
  out->n_timed = exe->n_timed;
  out->timed_s = exe->timed_s;
}

static const kg_backend cuda_backend = {.name = "cuda",
                                        .compile = cuda_compile,
                                        .release = cuda_release,
                                        .run = cuda_run,
                                        .unembed = cuda_unembed,
                                        .run_ahead = cuda_run_ahead,
                                        .wait_ahead = kg_gpu_wait_ahead,
                                        .kv_reserve = kg_gpu_cache_reserve,
                                        .kv_copy = kg_gpu_cache_copy,
                                        .page_bytes = kg_gpu_page_bytes,
                                        .state_reserve = kg_gpu_state_reserve,
                                        .state_copy = kg_gpu_state_copy,
                                        .state_read = kg_gpu_state_read,
                                        .state_write = kg_gpu_state_write,
                                        .kv_type = kg_gpu_cache_type,
                                        .kv_read = kg_gpu_cache_read,
                                        .kv_write = kg_gpu_cache_write,
                                        .weight_bytes = cuda_weight_bytes,
                                        .weight_read = cuda_weight_read,
                                        .weight_write = cuda_weight_write,
                                        .buffer_new = cuda_buffer_new,
                                        .get_stats = cuda_get_stats,
                                        .device_info = kg_gpu_device_info,
                                        .device_rates = kg_gpu_device_rates,
                                        .set_timing = kg_gpu_set_timing,
                                        .weight_forms = kg_gpu_weight_forms,
                                        .weight_unpack = kg_gpu_weight_unpack,
                                        .profile = cuda_profile};

/* ---- the plug-in ---- */

static int probe(int32_t index, kg_error *err)
{
  int n = 0, major = 0, driver = 0;
  if (!cudaDriverGetVersion(&driver) && !driver) return kg_fail(err, KG_ERR_DEVICE, "there is no NVIDIA driver");
  int code = kg_cuda_check(cudaGetDeviceCount(&n), "looking for devices", err);
  if (code) return KG_ERR_DEVICE;
  if (index < 0 || index >= n) return kg_fail(err, KG_ERR_DEVICE, "there is no device cuda:%d, there are %d", index, n);
  code =
      kg_cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "asking the device", err);
  if (!code && major < 8)
    return kg_fail(err, KG_ERR_DEVICE, "device cuda:%d is older than compute capability 8.0", index);
  if (!code) code = kg_cuda_check(cudaSetDevice(index), "choosing the device", err);
  return code ? code : kg_cuda_probe_kernels(err);
}

KG_API const kg_plugin *kg_plugin_open(const kg_plugin_host *host);

const kg_plugin *kg_plugin_open(const kg_plugin_host *host)
{
  static const kg_plugin plugin = {KG_PLUGIN_ABI, KG_PAGE, &cuda_backend, probe};
  kg_host_set(host);
  return &plugin;
}
