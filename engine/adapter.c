#include "adapter.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

struct kg_adapter {
  const kg_plan *plan;
  char *path;
  int32_t n_refs;
  double alpha;
  kg_adapter_part *parts; /* [n_weights] of the plan */
  int32_t n_weights, n_parts, most_rank;
  size_t n_bytes;
  char digest[KG_SHA256_HEX];
  kg_adapter_copy *copies;
};

/* What the plan does with a weight. */
typedef enum use { USE_NONE, USE_LINEAR, USE_TABLE, USE_EXPERTS, USE_OTHER } use;

enum { ENDING = 7, MAX_NAME = 128 }; /* ".lora_a"; a tensor's name with it and its NUL */

static int fail_tensor(const kg_adapter *adapter, int code, const char *name, const char *what, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, code, "%s: tensor %s: %s", adapter->path, kg_quote(quoted, name, strlen(name)), what);
}

/* ---- metadata ---- */

static int check_string(const kg_gguf *gguf, const char *key, const char *wanted, int code, kg_error *err)
{
  kg_string value;
  const int status = kg_gguf_get_string(gguf, key, &value, err);
  if (status) return status;
  if (value.size == strlen(wanted) && !memcmp(value.data, wanted, value.size)) return KG_OK;
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, code, "%s: %s is %s, not %s", kg_gguf_path(gguf), key, kg_quote(quoted, value.data, value.size),
                 wanted);
}

static int read_metadata(kg_adapter *adapter, const kg_gguf *gguf, kg_error *err)
{
  static const char key[] = "adapter.lora.alpha", tokens[] = "adapter.alora.invocation_tokens";
  kg_string family;
  if (!kg_gguf_find(gguf, "general.type"))
    return kg_fail(err, KG_ERR_FORMAT, "%s: general.type is missing: this is no adapter", adapter->path);
  int status = check_string(gguf, "general.type", "adapter", KG_ERR_FORMAT, err);
  if (!status) status = check_string(gguf, "adapter.type", "lora", KG_ERR_UNSUPPORTED, err);
  if (!status) status = kg_gguf_get_string(kg_plan_gguf(adapter->plan), "general.architecture", &family, err);
  if (status) return status;
  char *wanted = kg_copy_bytes(family.data, family.size);
  if (!wanted) return kg_fail_memory(err, family.size, "an adapter");
  status = check_string(gguf, "general.architecture", wanted, KG_ERR_UNSUPPORTED, err);
  kg_free(wanted);
  if (status) return status;
  if (kg_gguf_find(gguf, tokens))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: %s: adapters that begin at some tokens are not known here",
                   adapter->path, tokens);
  const kg_gguf_entry *alpha = kg_gguf_find(gguf, key);
  if (!alpha || alpha->is_array || (alpha->type != KG_GGUF_F32 && alpha->type != KG_GGUF_F64))
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s is missing, or no number", adapter->path, key);
  adapter->alpha = kg_gguf_entry_double(alpha, 0);
  if (isfinite((float)adapter->alpha)) return KG_OK;
  return kg_fail(err, KG_ERR_FORMAT, "%s: %s is %g", adapter->path, key, adapter->alpha);
}

/* ---- tensors ---- */

static use use_of(const kg_plan *plan, int32_t weight)
{
  use found = USE_NONE;
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    const kg_op *op = kg_plan_op(plan, i);
    for (int j = 0; j < KG_OP_WEIGHTS; j++) {
      if (op->w[j] != weight) continue;
      if (op->kind == KG_OP_EMBED && !j) return USE_TABLE; /* the head may read it too */
      const use here = j >= kg_op_matrices(op->kind) ? USE_OTHER
                       : op->kind == KG_OP_LINEAR    ? USE_LINEAR
                       : op->kind == KG_OP_MOE       ? USE_EXPERTS
                                                     : USE_OTHER;
      found = found == USE_NONE || found == here ? here : USE_OTHER; /* all of its products, or none */
    }
  }
  return found;
}

static int32_t find_weight(const kg_plan *plan, const char *name, size_t size)
{
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++) {
    const char *known = kg_plan_weight_at(plan, i)->name;
    if (!strncmp(known, name, size) && !known[size]) return i;
  }
  return KG_NONE;
}

static int check_shape(const kg_adapter *adapter, const kg_gguf_tensor *tensor, int64_t cols, int64_t rows,
                       kg_error *err)
{
  if (tensor->n_dims <= 2 && tensor->dims[0] == cols && tensor->dims[1] == rows) return KG_OK;
  return kg_fail(err, KG_ERR_FORMAT, "%s: tensor %s: %lld x %lld numbers in %d dimensions, %lld x %lld wanted",
                 adapter->path, tensor->name, (long long)tensor->dims[0], (long long)tensor->dims[1], tensor->n_dims,
                 (long long)cols, (long long)rows);
}

/* All numbers of a tensor, in its own order. */
static int read_floats(const kg_adapter *adapter, const kg_gguf_tensor *tensor, float **out, kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)tensor->type);
  const int64_t n = tensor->dims[0] * tensor->dims[1]; /* bounded: a shape that was checked, 2^12 x 2^24 at most */
  size_t n_bytes;
  if (!kg_type_is_computable(tensor->type))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: tensor %s: type %s cannot be computed with", adapter->path,
                   tensor->name, info->name);
  if (!kg_mul_size((size_t)n, sizeof(float), &n_bytes)) n_bytes = SIZE_MAX;
  float *numbers = kg_alloc(n_bytes);
  if (!numbers) return kg_fail_memory(err, n_bytes, tensor->name);
  info->dequantize(tensor->data, n / info->block_size, numbers);
  for (int64_t i = 0; i < n; i++) {
    if (isfinite(numbers[i])) continue;
    kg_free(numbers);
    return kg_fail(err, KG_ERR_FORMAT, "%s: tensor %s: number %lld is not finite", adapter->path, tensor->name,
                   (long long)i);
  }
  *out = numbers;
  return KG_OK;
}

/* [rows][cols] to [cols][rows]. */
static int transpose(const float *in, int64_t rows, int64_t cols, float **out, kg_error *err)
{
  const size_t n_bytes = (size_t)rows * (size_t)cols * sizeof *in; /* bounded: there is one of this size */
  float *numbers = kg_alloc(n_bytes);
  if (!numbers) return kg_fail_memory(err, n_bytes, "an adapter");
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) numbers[c * rows + r] = in[r * cols + c]; /* bounded: both are in memory */
  *out = numbers;
  return KG_OK;
}

/* Both halves of a part, the second one transposed, to its `a` and `b`. */
static int read_halves(const kg_adapter *adapter, const kg_gguf_tensor *a, const kg_gguf_tensor *b,
                       kg_adapter_part *part, kg_error *err)
{
  float *down = NULL, *up = NULL, *columns = NULL;
  int status = read_floats(adapter, a, &down, err);
  if (!status) status = read_floats(adapter, b, &up, err);
  if (!status) status = transpose(up, part->rows, part->rank, &columns, err);
  kg_free(up);
  if (status) {
    kg_free(down);
    return status;
  }
  part->a = down;
  part->b = columns;
  return KG_OK;
}

static int read_part(kg_adapter *adapter, int32_t weight, const kg_gguf_tensor *a, const kg_gguf_tensor *b,
                     kg_error *err)
{
  const kg_weight *w = kg_plan_weight_at(adapter->plan, weight);
  const use what = use_of(adapter->plan, weight);
  if (what == USE_EXPERTS)
    return fail_tensor(adapter, KG_ERR_UNSUPPORTED, a->name, "adapters of experts are not known here", err);
  if (what != USE_LINEAR && what != USE_TABLE)
    return fail_tensor(adapter, KG_ERR_UNSUPPORTED, a->name, "it is no matrix that can be adapted here", err);
  const bool is_table = what == USE_TABLE;
  const int64_t rank = b->dims[0], inputs = is_table ? w->rows : w->cols, outputs = is_table ? w->cols : w->rows;
  if (rank < 1 || rank > KG_ADAPTER_MAX_RANK)
    return kg_fail(err, KG_ERR_FORMAT, "%s: tensor %s: rank %lld is outside 1 to %d", adapter->path, b->name,
                   (long long)rank, KG_ADAPTER_MAX_RANK);
  int status = check_shape(adapter, b, rank, outputs, err);
  if (!status)
    status = is_table ? check_shape(adapter, a, rank, inputs, err) : check_shape(adapter, a, inputs, rank, err);
  kg_adapter_part part = {.rank = (int32_t)rank,
                          .is_table = is_table,
                          .cols = (int32_t)inputs,
                          .rows = (int32_t)outputs,
                          .factor = adapter->alpha != 0 ? (float)(adapter->alpha / (double)rank) : 1};
  if (!status) status = read_halves(adapter, a, b, &part, err);
  if (status) return status;
  adapter->parts[weight] = part;
  adapter->n_bytes += (size_t)(rank * (inputs + outputs)) * sizeof(float); /* bounded: both are in memory */
  adapter->n_parts++;
  if (part.rank > adapter->most_rank) adapter->most_rank = part.rank;
  return KG_OK;
}

/* NAME.lora_a with its NAME.lora_b; the latter is looked for from the former, and must have it. */
static int read_tensor(kg_adapter *adapter, const kg_gguf *gguf, const kg_gguf_tensor *tensor, kg_error *err)
{
  const size_t size = strlen(tensor->name);
  char other[MAX_NAME];
  const char *ending = size > ENDING ? &tensor->name[size - ENDING] : "";
  const bool is_a = !strcmp(ending, ".lora_a");
  if (size >= MAX_NAME || (!is_a && strcmp(ending, ".lora_b")))
    return fail_tensor(adapter, KG_ERR_FORMAT, tensor->name, "an adapter has NAME.lora_a and NAME.lora_b only", err);
  memcpy(other, tensor->name, size + 1); /* bounded: below MAX_NAME */
  other[size - 1] = is_a ? 'b' : 'a';
  const kg_gguf_tensor *half = kg_gguf_tensor_find(gguf, other);
  if (!half) return fail_tensor(adapter, KG_ERR_FORMAT, tensor->name, "its other half is not in the file", err);
  const int32_t weight = find_weight(adapter->plan, tensor->name, size - ENDING);
  if (weight == KG_NONE) return fail_tensor(adapter, KG_ERR_FORMAT, tensor->name, "the model has no such matrix", err);
  return is_a ? read_part(adapter, weight, tensor, half, err) : KG_OK;
}

/* ---- life ---- */

static void release(kg_adapter *adapter)
{
  for (kg_adapter_copy *copy = adapter->copies, *next; copy; copy = next) {
    next = copy->next;
    copy->drop(copy);
  }
  for (int32_t i = 0; adapter->parts && i < adapter->n_weights; i++) {
    kg_free((void *)adapter->parts[i].a);
    kg_free((void *)adapter->parts[i].b);
  }
  kg_free(adapter->parts);
  kg_free(adapter->path);
  kg_free(adapter);
}

int kg_adapter_new(const kg_plan *plan, const kg_gguf *gguf, kg_adapter **out, kg_error *err)
{
  const char *path = kg_gguf_path(gguf);
  kg_adapter *adapter = kg_alloc_array(1, sizeof *adapter);
  if (!adapter) return kg_fail_memory(err, sizeof *adapter, "an adapter");
  const size_t n_weights = (size_t)kg_plan_weight_count(plan);
  adapter->plan = plan;
  adapter->n_refs = 1;
  adapter->n_weights = (int32_t)n_weights;
  adapter->path = kg_copy_bytes(path, strlen(path));
  adapter->parts = kg_alloc_array(n_weights, sizeof *adapter->parts);
  int status = KG_OK;
  if (!adapter->path || !adapter->parts)
    status = kg_fail_memory(err, n_weights * sizeof *adapter->parts, "an adapter");
  if (!status) status = read_metadata(adapter, gguf, err);
  /* It looks whether the file was changed, too: reading what a shorter one lost is fatal. */
  if (!status) status = kg_gguf_digest(gguf, adapter->digest, err);
  for (size_t i = 0; i < kg_gguf_tensor_count(gguf) && !status; i++)
    status = read_tensor(adapter, gguf, kg_gguf_tensor_at(gguf, i), err);
  if (!status && !adapter->n_parts) status = kg_fail(err, KG_ERR_FORMAT, "%s: the adapter has no tensors", path);
  if (status)
    release(adapter);
  else
    *out = adapter;
  return status;
}

kg_adapter *kg_adapter_ref(kg_adapter *adapter)
{
  adapter->n_refs++;
  return adapter;
}

void kg_adapter_unref(kg_adapter *adapter)
{
  if (adapter && !--adapter->n_refs) release(adapter);
}

/* ---- questions ---- */

const kg_plan *kg_adapter_plan(const kg_adapter *adapter)
{
  return adapter->plan;
}

const char *kg_adapter_path(const kg_adapter *adapter)
{
  return adapter->path;
}

const char *kg_adapter_name(const kg_adapter *adapter)
{
  const char *slash = strrchr(adapter->path, '/');
  return slash ? slash + 1 : adapter->path; /* bounded: its NUL at the latest */
}

const char *kg_adapter_digest(const kg_adapter *adapter)
{
  return adapter->digest;
}

double kg_adapter_alpha(const kg_adapter *adapter)
{
  return adapter->alpha;
}

int32_t kg_adapter_rank(const kg_adapter *adapter)
{
  return adapter->most_rank;
}

int32_t kg_adapter_part_count(const kg_adapter *adapter)
{
  return adapter->n_parts;
}

size_t kg_adapter_bytes(const kg_adapter *adapter)
{
  return adapter->n_bytes;
}

const kg_adapter_part *kg_adapter_part_of(const kg_adapter *adapter, const kg_op *op)
{
  if (op->kind != KG_OP_LINEAR && op->kind != KG_OP_EMBED) return NULL;
  const kg_adapter_part *part = &adapter->parts[op->w[0]];
  return part->rank && part->is_table == (op->kind == KG_OP_EMBED) ? part : NULL;
}

/* ---- copies ---- */

void kg_adapter_attach(kg_adapter *adapter, kg_adapter_copy *copy)
{
  copy->next = adapter->copies;
  adapter->copies = copy;
}

void kg_adapter_detach(kg_adapter *adapter, kg_adapter_copy *copy)
{
  kg_adapter_copy **at = &adapter->copies;
  while (*at && *at != copy) at = &(*at)->next;
  if (*at) *at = copy->next;
}
