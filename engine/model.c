#include "model.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "random.h"

enum { DEFAULT_CONTEXT = 4096, DEFAULT_CHUNK = 512, MAX_CHUNK = 16384, MAX_THREADS = 1024, PIECE = 64 };

struct kg_model {
  kg_plan *plan;
  kg_device device;
  const kg_backend *backend; /* the device's, once it is known */
  kg_executable *exe;
  kg_kv *kv;
  kg_state_pool *states;
  kg_kv_type kv_type;
  int32_t context, chunk;
  int32_t n_sequences;
  bool is_stepping;
  int64_t n_tokens_evaluated, n_steps, n_tokens_reused, n_tokens_dropped, n_steps_dropped;
  kg_progress progress;
  void *progress_user;
  kg_sequence *drafting;
  kg_scratch scratch;
  char digest[KG_SHA256_HEX]; /* empty: not computed yet */
};

/* ---- options ---- */

static int check_range(const char *name, int32_t value, int32_t max, kg_error *err)
{
  if (value >= 0 && value <= max) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%s: %d is outside 0 to %d", name, value, max);
}

static int choose_context(const kg_plan *plan, int32_t wanted, int32_t *out, kg_error *err)
{
  const int32_t of_file = kg_plan_context_length(plan);
  if (wanted > of_file)
    return kg_fail(err, KG_ERR_ARGUMENT, "ctx: %d is more than the %d positions that %s was made for", wanted, of_file,
                   kg_gguf_path(kg_plan_gguf(plan)));
  *out = wanted ? wanted : of_file < DEFAULT_CONTEXT ? of_file : DEFAULT_CONTEXT;
  return KG_OK;
}

static bool has_float32_matrices_only(const kg_plan *plan)
{
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++) {
    const kg_weight *weight = kg_plan_weight_at(plan, i);
    if (weight->rows > 1 && weight->type != KG_F32) return false;
  }
  return true;
}

static int choose_kv_type(const kg_plan *plan, const char *wanted, kg_kv_type *out, kg_error *err)
{
  if (!wanted || !strcmp(wanted, "auto"))
    *out = has_float32_matrices_only(plan) ? KG_KV_F32 : KG_KV_F16;
  else if (!strcmp(wanted, "f32"))
    *out = KG_KV_F32;
  else if (!strcmp(wanted, "f16"))
    *out = KG_KV_F16;
  else {
    char quoted[KG_QUOTE_MAX];
    return kg_fail(err, KG_ERR_ARGUMENT, "kv: %s is not one of auto, f16, f32",
                   kg_quote(quoted, wanted, strlen(wanted)));
  }
  return KG_OK;
}

/* ---- opening and closing ---- */

static void scratch_deinit(kg_scratch *scratch)
{
  kg_free(scratch->tokens);
  kg_free(scratch->positions);
  kg_free(scratch->spans);
  kg_free(scratch->wanted);
  kg_free(scratch->states);
  kg_free(scratch->traces);
  kg_free(scratch->items);
  kg_free(scratch->taps);
  kg_free(scratch->tapped);
  kg_free(scratch->draws);
  kg_free(scratch->missing);
}

static int scratch_init(kg_scratch *scratch, int32_t chunk, kg_error *err)
{
  const size_t n = (size_t)chunk;
  scratch->tokens = kg_alloc_array(n, sizeof *scratch->tokens);
  scratch->positions = kg_alloc_array(n, sizeof *scratch->positions);
  scratch->spans = kg_alloc_array(n, sizeof *scratch->spans);
  scratch->wanted = kg_alloc_array(n, sizeof *scratch->wanted);
  scratch->states = kg_alloc_array(n, sizeof *scratch->states);
  if (scratch->tokens && scratch->positions && scratch->spans && scratch->wanted && scratch->states) return KG_OK;
  return kg_fail_memory(err, n * sizeof *scratch->spans, "the step");
}

/* Everything but the plan, which the caller of kg_model_open_take keeps after a failure. */
static void release(kg_model *model)
{
  scratch_deinit(&model->scratch);
  kg_kv_free(model->kv);
  kg_states_free(model->states);
  if (model->backend) model->backend->release(model->exe);
  kg_free(model);
}

/* Where tokens look both ways a sequence goes through in one piece. */
static int32_t choose_chunk(const kg_plan *plan, int32_t chunk, int32_t context)
{
  if (chunk) return chunk;
  if (!kg_plan_is_bidirectional(plan)) return DEFAULT_CHUNK;
  return context < MAX_CHUNK ? context : MAX_CHUNK;
}

/* The prefix cache gets a state for so many positions that states take at most a quarter of what their pages do. */
static int32_t positions_of_state(const kg_model *model)
{
  const size_t state_bytes = (size_t)kg_plan_state_size(model->plan) * sizeof(float);
  size_t page_bytes = 0;
  for (int32_t g = 0; g < kg_plan_group_count(model->plan); g++)
    page_bytes += model->backend->page_bytes(model->exe, g);
  int32_t n = KG_PAGE;
  /* bounded: the bytes of 2^25 pages */
  while (n < model->context && page_bytes * (size_t)(n / KG_PAGE) < 4 * state_bytes) n *= 2;
  return n;
}

static int open_parts(kg_model *model, const kg_model_options *options, kg_error *err)
{
  const int32_t max_pages = options->pool ? (options->pool - 1) / KG_PAGE + 1 : INT32_MAX / KG_PAGE;
  kg_backend_options compile = {.n_threads = options->n_threads,
                                .variant = options->variant,
                                .progress = options->progress,
                                .progress_user = options->progress_user};
  int status = kg_device_find(options->device ? options->device : "auto", &model->device, err);
  if (status) return status;
  model->backend = model->device.backend;
  compile.device = model->device.index;
  status = choose_context(model->plan, options->context, &model->context, err);
  if (!status) status = choose_kv_type(model->plan, options->kv, &compile.kv_type, err);
  model->kv_type = compile.kv_type;
  model->chunk = compile.chunk = choose_chunk(model->plan, options->chunk, model->context);
  if (!status) status = scratch_init(&model->scratch, model->chunk, err);
  /* Reading what a shorter file lost is fatal. */
  if (!status) status = kg_gguf_check_unchanged(kg_plan_gguf(model->plan), err);
  if (!status) status = model->backend->compile(model->plan, &compile, &model->exe, err);
  const int32_t n_kept = options->prefix_cache ? options->prefix_cache : model->context;
  if (!status) status = kg_states_new(model->backend, model->exe, model->plan, &model->states, err);
  if (!status)
    status = kg_kv_new(model->plan, model->backend, model->exe, model->states, max_pages,
                       n_kept < 0 ? -1 : n_kept / KG_PAGE, &model->kv, err);
  if (!status && model->states && n_kept >= 0) kg_states_want_every(model->states, positions_of_state(model));
  return status;
}

int kg_model_open_take(kg_plan *plan, const kg_model_options *options, kg_model **out, kg_error *err)
{
  if (kg_plan_logits(plan) == KG_NONE)
    return kg_fail(err, KG_ERR_ARGUMENT, "the plan is not finished: no value was named as the logits");
  int status = check_range("threads", options->n_threads, MAX_THREADS, err);
  if (!status) status = check_range("ctx", options->context, INT32_MAX, err);
  if (!status) status = check_range("pool", options->pool, INT32_MAX, err);
  if (!status) status = check_range("chunk", options->chunk, MAX_CHUNK, err);
  if (status) return status;

  kg_model *model = kg_alloc_array(1, sizeof *model);
  if (!model) return kg_fail_memory(err, sizeof *model, "a model");
  model->plan = plan;
  status = open_parts(model, options, err);
  if (status)
    release(model);
  else
    *out = model;
  return status;
}

void kg_model_close(kg_model *model)
{
  if (!model) return;
  assert(!model->n_sequences);
  kg_plan *plan = model->plan; /* the executable may point into it until it is released */
  release(model);
  kg_plan_free(plan);
}

/* ---- questions ---- */

int32_t kg_model_vocab_size(const kg_model *model)
{
  return kg_plan_vocab_size(model->plan);
}

int32_t kg_model_context(const kg_model *model)
{
  return model->context;
}

void kg_model_get_stats(const kg_model *model, kg_model_stats *out)
{
  *out = (kg_model_stats){.device = model->backend->name,
                          .note = model->device.note,
                          .variant = "",
                          .kv = model->kv_type == KG_KV_F32 ? "f32" : "f16",
                          .expert_bytes = -1};
  model->backend->get_stats(model->exe, out);
  out->n_tokens_evaluated = model->n_tokens_evaluated;
  out->n_steps = model->n_steps;
  out->n_tokens_reused = model->n_tokens_reused;
  out->n_tokens_dropped = model->n_tokens_dropped;
  out->n_steps_dropped = model->n_steps_dropped;
}

const kg_plan *kg_model_plan(const kg_model *model)
{
  return model->plan;
}

const kg_backend *kg_model_backend(const kg_model *model)
{
  return model->backend;
}

kg_executable *kg_model_executable(const kg_model *model)
{
  return model->exe;
}

kg_kv *kg_model_kv(const kg_model *model)
{
  return model->kv;
}

kg_state_pool *kg_model_states(const kg_model *model)
{
  return model->states;
}

int32_t kg_model_chunk(const kg_model *model)
{
  return model->chunk;
}

int32_t kg_model_sequence_count(const kg_model *model)
{
  return model->n_sequences;
}

/* ---- tensors, the residual ---- */

int kg_model_tensor(kg_model *model, int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err)
{
  kg_buffer *buffer;
  int64_t count = 1;
  for (int i = 0; i < n_dims; i++)
    if (__builtin_mul_overflow(count, shape[i], &count) || count > INT64_MAX / 8)
      return kg_fail(err, KG_ERR_MEMORY, "out of memory: a tensor of %lld rows", (long long)shape[0]);
  int status = model->backend->buffer_new(model->exe, count, &buffer, err);
  if (status) return status;
  status = kg_tensor_view(buffer, 0, n_dims, shape, out, err);
  kg_buffer_unref(buffer); /* the tensor holds it now */
  return status;
}

int kg_model_unembed(kg_model *model, const kg_tensor *x, kg_tensor *logits, kg_error *err)
{
  const int32_t residual = kg_plan_residual(model->plan);
  char text[KG_SHAPE_MAX];
  if (residual == KG_NONE)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "this plan's logits are not made of one value behind its last attention");
  const int32_t width = kg_plan_value(model->plan, residual)->width, vocab = kg_model_vocab_size(model);
  const int64_t n_rows = kg_tensor_count(x) / width;
  if (x->n_dims > 2 || x->shape[x->n_dims - 1] != width)
    return kg_fail(err, KG_ERR_ARGUMENT, "rows of %d numbers are wanted, as %s has them, not a tensor of shape %s",
                   width, kg_plan_value(model->plan, residual)->name, kg_tensor_shape_text(x, text));
  if (x->buffer->ops != logits->buffer->ops)
    return kg_fail(err, KG_ERR_ARGUMENT, "the rows to unembed are not on the model's device");
  if (n_rows > INT32_MAX || kg_tensor_count(logits) / vocab != n_rows)
    return kg_fail(err, KG_ERR_ARGUMENT, "%lld rows of logits do not fit a tensor of shape %s", (long long)n_rows,
                   kg_tensor_shape_text(logits, text));
  return model->backend->unembed(model->exe, x->buffer, x->at, (int32_t)n_rows, logits->buffer, logits->at, err);
}

int kg_model_read_tensor(const kg_model *model, const kg_gguf_tensor *tensor, int64_t row, int64_t n_rows,
                         kg_buffer *out, kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)tensor->type);
  const int64_t width = tensor->dims[0];
  int64_t rows = 1;
  for (int i = 1; i < tensor->n_dims; i++) rows *= tensor->dims[i];
  if (row < 0 || n_rows < 0 || row > rows || n_rows > rows - row)
    return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: %lld rows from %lld of %lld", tensor->name, (long long)n_rows,
                   (long long)row, (long long)rows);
  if (!info->dequantize)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "tensor %s: type %s cannot be computed with", tensor->name, info->name);
  int status = kg_gguf_check_unchanged(kg_plan_gguf(model->plan), err);
  if (status) return status;
  float *numbers = kg_alloc_array((size_t)width, sizeof *numbers);
  if (!numbers) return kg_fail_memory(err, (size_t)width * sizeof *numbers, "a row of a tensor");
  const int64_t n_blocks = width / info->block_size;
  const size_t row_bytes = (size_t)n_blocks * (size_t)info->block_bytes;
  for (int64_t i = 0; i < n_rows && !status; i++) {
    info->dequantize((const char *)tensor->data + (size_t)(row + i) * row_bytes, n_blocks, numbers);
    status = out->ops->write(out, i * width, width, numbers, err);
  }
  kg_free(numbers);
  return status;
}

int kg_model_adapter(const kg_model *model, const kg_gguf *gguf, kg_adapter **out, kg_error *err)
{
  return kg_adapter_new(model->plan, gguf, out, err);
}

/* ---- damage on purpose ---- */

static void swap_pieces(char *a, char *b)
{
  char kept[PIECE];
  memcpy(kept, a, PIECE);
  memcpy(a, b, PIECE);
  memcpy(b, kept, PIECE);
}

/* Fisher-Yates over the whole pieces; a shorter rest at the end stays. */
static void permute_pieces(char *bytes, size_t n_bytes, uint64_t seed, int32_t weight)
{
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (size_t i = n_bytes / PIECE; i > 1; i--) {
    const uint32_t counter[4] = {(uint32_t)i, (uint32_t)((uint64_t)i >> 32), (uint32_t)weight, 0};
    uint32_t bits[4];
    kg_philox(key, counter, bits);
    const size_t other = (size_t)(((uint64_t)bits[0] << 32 | bits[1]) % i);
    if (other != i - 1) swap_pieces(bytes + (i - 1) * PIECE, bytes + other * PIECE);
  }
}

static int scramble_weight(kg_model *model, int32_t weight, uint64_t seed, char *bytes, kg_error *err)
{
  const size_t n_bytes = model->backend->weight_bytes(model->exe, weight);
  const int status = model->backend->weight_read(model->exe, weight, 0, n_bytes, bytes, err);
  if (status) return status;
  permute_pieces(bytes, n_bytes, seed, weight);
  return model->backend->weight_write(model->exe, weight, 0, n_bytes, bytes, err);
}

int kg_model_scramble(kg_model *model, const char *prefix, uint64_t seed, int32_t *n_weights, kg_error *err)
{
  int status = kg_model_check_idle(model, err);
  if (status) return status;
  const size_t length = strlen(prefix);
  size_t largest = 0;
  int32_t n_found = 0;
  for (int32_t i = 0; i < kg_plan_weight_count(model->plan); i++) {
    if (strncmp(kg_plan_weight_at(model->plan, i)->name, prefix, length)) continue;
    const size_t n_bytes = model->backend->weight_bytes(model->exe, i);
    largest = n_bytes > largest ? n_bytes : largest;
    n_found++;
  }
  if (!n_found) {
    char quoted[KG_QUOTE_MAX];
    return kg_fail(err, KG_ERR_ARGUMENT, "no weight's name starts with %s", kg_quote(quoted, prefix, length));
  }
  char *bytes = kg_alloc(largest);
  if (!bytes) return kg_fail_memory(err, largest, "the weight to scramble");
  for (int32_t i = 0; i < kg_plan_weight_count(model->plan) && !status; i++)
    if (!strncmp(kg_plan_weight_at(model->plan, i)->name, prefix, length))
      status = scramble_weight(model, i, seed, bytes, err);
  kg_free(bytes);
  kg_kv_forget(model->kv);
  if (!status) *n_weights = n_found;
  return status;
}

/* ---- for the step ---- */

void kg_model_set_progress(kg_model *model, kg_progress progress, void *user)
{
  model->progress = progress;
  model->progress_user = user;
}

int kg_model_progress(kg_model *model, const char *what, int64_t done, int64_t total, kg_error *err)
{
  if (!model->progress || !model->progress(model->progress_user, what, done, total)) return KG_OK;
  return kg_fail(err, KG_ERR_CANCELLED, "%s was cancelled after %lld of %lld tokens", what, (long long)done,
                 (long long)total);
}

int kg_model_digest(kg_model *model, char hex[KG_SHA256_HEX], kg_error *err)
{
  const int status = model->digest[0] ? KG_OK : kg_gguf_digest(kg_plan_gguf(model->plan), model->digest, err);
  if (!status) memcpy(hex, model->digest, sizeof model->digest);
  return status;
}

int64_t kg_model_next_serial(kg_model *model)
{
  return ++model->scratch.serial;
}

kg_scratch *kg_model_scratch(kg_model *model)
{
  return &model->scratch;
}

void kg_model_count(kg_model *model, int64_t n_tokens, int64_t n_steps)
{
  model->n_tokens_evaluated += n_tokens;
  model->n_steps += n_steps;
}

void kg_model_count_reused(kg_model *model, int64_t n_tokens)
{
  model->n_tokens_reused += n_tokens;
}

void kg_model_count_dropped(kg_model *model, int64_t n_tokens, int64_t n_steps)
{
  model->n_tokens_dropped += n_tokens;
  model->n_steps_dropped += n_steps;
}

kg_sequence **kg_model_drafting(kg_model *model)
{
  return &model->drafting;
}

void kg_model_sequence_opened(kg_model *model)
{
  model->n_sequences++;
}

void kg_model_sequence_closed(kg_model *model)
{
  model->n_sequences--;
}

bool kg_model_is_stepping(const kg_model *model)
{
  return model->is_stepping;
}

void kg_model_set_stepping(kg_model *model, bool stepping)
{
  model->is_stepping = stepping;
}

int kg_model_check_idle(const kg_model *model, kg_error *err)
{
  if (!model->is_stepping) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "the model is in the middle of a step: a progress callback, a hook or a point's "
                 "function may only look");
}
