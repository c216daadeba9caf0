#include "plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

/* Open addressing from a name to an index; the names belong to the tables that the indices point into. */
typedef struct name_map {
  int32_t *slots;  /* index + 1; 0: free */
  size_t n_slots;  /* a power of two, at least twice the names */
} name_map;

struct kg_plan {
  kg_gguf *gguf;
  kg_op *ops;
  size_t n_ops, ops_capacity;
  kg_value *values;
  size_t n_values, values_capacity;
  kg_weight *weights;
  size_t n_weights, weights_capacity;
  int32_t *layers; /* op of each attention */
  size_t n_layers, layers_capacity;
  int32_t windows[KG_PAGE_GROUPS], n_groups;
  int32_t tail;       /* behind the last operation that needs more than its row */
  int64_t state_size; /* floats */
  name_map value_map, weight_map;
  int32_t logits;
  int32_t context_length, n_tokens;
  bool has_head;
};

/* ---- names ---- */

static uint64_t hash_name(const char *name)
{
  uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
  for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u; /* bounded: a hash, which may wrap */
  return h ^ (h >> 32);
}

static const char *value_name(const kg_plan *plan, int32_t index)
{
  return plan->values[index].name;
}

static const char *weight_name(const kg_plan *plan, int32_t index)
{
  return plan->weights[index].name;
}

typedef const char *(*name_of)(const kg_plan *plan, int32_t index);

static int32_t map_find(const kg_plan *plan, const name_map *map, name_of name_at, const char *name)
{
  if (!map->n_slots) return KG_NONE;
  for (size_t i = hash_name(name) & (map->n_slots - 1); map->slots[i]; i = (i + 1) & (map->n_slots - 1))
    if (!strcmp(name_at(plan, map->slots[i] - 1), name)) return map->slots[i] - 1;
  return KG_NONE;
}

/* The caller made room and knows that the name is not there. */
static void map_put(name_map *map, const char *name, int32_t index)
{
  size_t i = hash_name(name) & (map->n_slots - 1);
  while (map->slots[i]) i = (i + 1) & (map->n_slots - 1); /* bounded: wraps by the mask */
  map->slots[i] = index + 1; /* bounded: index < KG_PLAN_MAX_OPS */
}

/* A map of the first n names with room for one more. */
static bool map_reserve(const kg_plan *plan, name_map *map, name_of name_at, size_t n)
{
  if ((n + 1) * 2 <= map->n_slots) return true; /* bounded: n <= KG_PLAN_MAX_OPS */
  name_map bigger = {.n_slots = map->n_slots ? map->n_slots * 2 : 64}; /* bounded: n <= KG_PLAN_MAX_OPS */
  bigger.slots = kg_alloc_array(bigger.n_slots, sizeof *bigger.slots);
  if (!bigger.slots) return false;
  for (size_t i = 0; i < n; i++) map_put(&bigger, name_at(plan, (int32_t)i), (int32_t)i);
  kg_free(map->slots);
  *map = bigger;
  return true;
}

/* ---- life ---- */

int kg_plan_new(kg_gguf *gguf, kg_plan **out, kg_error *err)
{
  kg_plan *plan = kg_alloc_array(1, sizeof *plan);
  if (!plan) return kg_fail_memory(err, sizeof *plan, "a plan");
  plan->gguf = kg_gguf_share(gguf);
  plan->logits = KG_NONE;
  *out = plan;
  return KG_OK;
}

void kg_plan_free(kg_plan *plan)
{
  if (!plan) return;
  for (size_t i = 0; i < plan->n_ops; i++)
    if (plan->ops[i].kind == KG_OP_ROPE) kg_free((void *)(uintptr_t)plan->ops[i].u.rope.inverse_freqs);
  for (size_t i = 0; i < plan->n_values; i++) kg_free((void *)(uintptr_t)plan->values[i].name);
  for (size_t i = 0; i < plan->n_weights; i++) kg_free((void *)(uintptr_t)plan->weights[i].parts);
  kg_free(plan->ops);
  kg_free(plan->values);
  kg_free(plan->weights);
  kg_free(plan->layers);
  kg_free(plan->value_map.slots);
  kg_free(plan->weight_map.slots);
  kg_gguf_close(plan->gguf);
  kg_free(plan);
}

/* ---- weights ---- */

/* "[64, 256]" or "[64, 256, 8]" as in the file; 0 stands for any number. */
static const char *shape_text(char buffer[80], int64_t cols, int64_t rows, int64_t planes)
{
  const int64_t dims[] = {cols, rows, planes};
  const int n = planes > 1 ? 3 : rows != 1 ? 2 : 1;
  size_t used = 0;
  for (int i = 0; i < n; i++) {
    /* bounded: three numbers of 20 digits and separators: 66 bytes */
    used += (size_t)snprintf(buffer + used, 80 - used, "%s", i ? ", " : "[");
    if (dims[i])
      used += (size_t)snprintf(buffer + used, 80 - used, "%lld", (long long)dims[i]); /* bounded: as above */
    else
      used += (size_t)snprintf(buffer + used, 80 - used, "any"); /* bounded: as above */
  }
  snprintf(buffer + used, 80 - used, "]");
  return buffer;
}

static int check_shape(const kg_weight *w, int64_t cols, int64_t rows, int64_t planes, kg_error *err)
{
  if ((!cols || w->cols == cols) && (!rows || w->rows == rows) && (!planes || w->planes == planes)) return KG_OK;
  char there[80], wanted[80];
  return kg_fail(err, KG_ERR_FORMAT, "tensor %s: shape %s, wanted %s", w->name,
                 shape_text(there, w->cols, w->rows, w->planes), shape_text(wanted, cols, rows, planes));
}

/* Describe a tensor of the file as a weight, or say why it cannot be one. */
static int describe(const kg_gguf_tensor *t, kg_weight *w, kg_error *err)
{
  const kg_type_info *info = kg_type_find(t->type);
  if (!info || !kg_type_is_computable(t->type))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "tensor %s: type %s cannot be computed with", t->name,
                   info ? info->name : "unknown");
  if (t->n_dims > 3 && t->dims[3] != 1)
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: %d dimensions, at most 3 wanted", t->name, t->n_dims);
  *w = (kg_weight){.name = t->name, .type = t->type, .cols = t->dims[0], .rows = t->n_dims > 1 ? t->dims[1] : 1,
                   .planes = t->n_dims > 2 ? t->dims[2] : 1, .data = t->data, .n_bytes = t->n_bytes};
  if (w->cols < 1 || w->cols > KG_PLAN_MAX_WIDTH || w->rows < 1 || w->rows > KG_PLAN_MAX_WIDTH || w->planes < 1 ||
      w->planes > KG_PLAN_MAX_EXPERTS) {
    char there[80];
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: shape %s is outside [1 to %d, 1 to %d, 1 to %d]", t->name,
                   shape_text(there, w->cols, w->rows, w->planes), KG_PLAN_MAX_WIDTH, KG_PLAN_MAX_WIDTH,
                   KG_PLAN_MAX_EXPERTS);
  }
  size_t n_bytes;
  /* bounded: checked above: 2^58 at most */
  if (w->cols % info->block_size || !kg_type_bytes(info, (uint64_t)(w->cols * w->rows * w->planes), &n_bytes) ||
      n_bytes != t->n_bytes)
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: %zu bytes do not hold its shape in type %s", t->name, t->n_bytes,
                   info->name);
  return KG_OK;
}

static int find_tensor(const kg_plan *plan, const char *name, kg_weight *out, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  const kg_gguf_tensor *tensor = kg_gguf_tensor_find(plan->gguf, name);
  if (tensor) return describe(tensor, out, err);
  return kg_fail(err, KG_ERR_FORMAT, "tensor %s is not in the file", kg_quote(quoted, name, strlen(name)));
}

static int append_weight(kg_plan *plan, const kg_weight *w, int32_t *out, kg_error *err)
{
  if (plan->n_weights >= KG_PLAN_MAX_OPS)
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: more than %d tensors in a plan", w->name, KG_PLAN_MAX_OPS);
  if (!kg_grow((void **)&plan->weights, &plan->weights_capacity, plan->n_weights + 1, sizeof *w) ||
      !map_reserve(plan, &plan->weight_map, weight_name, plan->n_weights))
    return kg_fail_memory(err, sizeof *w, "a plan's tensors");
  *out = (int32_t)plan->n_weights;
  map_put(&plan->weight_map, w->name, *out);
  plan->weights[plan->n_weights++] = *w;
  return KG_OK;
}

int kg_plan_weight(kg_plan *plan, const char *name, int64_t cols, int64_t rows, int64_t planes, int32_t *out,
                   kg_error *err)
{
  if (plan->logits != KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "tensor %.200s: the plan is finished", name);
  const int32_t found = map_find(plan, &plan->weight_map, weight_name, name);
  if (found != KG_NONE) {
    const int code = check_shape(&plan->weights[found], cols, rows, planes, err);
    if (!code) *out = found;
    return code;
  }
  kg_weight w;
  int code = find_tensor(plan, name, &w, err);
  if (!code) code = check_shape(&w, cols, rows, planes, err);
  return code ? code : append_weight(plan, &w, out, err);
}

/* The n matrices as one weight; what fails leaves *stack without parts. */
static int stack_tensors(const kg_plan *plan, const char *const *names, int32_t n, kg_weight *stack, kg_error *err)
{
  int code = find_tensor(plan, names[0], stack, err);
  if (code) return code;
  const void **parts = kg_alloc_array((size_t)n, sizeof *parts);
  if (!parts) return kg_fail_memory(err, (size_t)n * sizeof *parts, "a plan's tensors");
  for (int32_t i = 0; i < n && !code; i++) {
    kg_weight w;
    code = find_tensor(plan, names[i], &w, err);
    if (!code) code = check_shape(&w, stack->cols, stack->rows, 1, err);
    if (!code && w.type != stack->type)
      code = kg_fail(err, KG_ERR_UNSUPPORTED, "tensors %s and %s of one weight have two types", names[0], names[i]);
    if (!code) parts[i] = w.data;
  }
  size_t n_bytes;
  if (!code && !kg_mul_size(stack->n_bytes, (size_t)n, &n_bytes))
    code = kg_fail(err, KG_ERR_FORMAT, "tensor %s: its size in bytes overflows", stack->name);
  if (code) {
    kg_free(parts);
    return code;
  }
  stack->planes = n;
  stack->n_bytes = n_bytes;
  stack->data = NULL;
  stack->parts = parts;
  return KG_OK;
}

int kg_plan_weight_stack(kg_plan *plan, const char *const *names, int32_t n, int32_t *out, kg_error *err)
{
  if (plan->logits != KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "tensor %.200s: the plan is finished", names[0]);
  if (n < 2 || n > KG_PLAN_MAX_EXPERTS)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d tensors for one weight, 2 to %d wanted", n, KG_PLAN_MAX_EXPERTS);
  if (map_find(plan, &plan->weight_map, weight_name, names[0]) != KG_NONE)
    return kg_fail(err, KG_ERR_ARGUMENT, "tensor %.200s is in the plan already", names[0]);
  kg_weight w;
  int code = stack_tensors(plan, names, n, &w, err);
  if (code) return code;
  code = append_weight(plan, &w, out, err);
  if (code) kg_free((void *)(uintptr_t)w.parts);
  return code;
}

bool kg_plan_has_weight(const kg_plan *plan, const char *name)
{
  return kg_gguf_tensor_find(plan->gguf, name) != NULL;
}

/* The weight behind an id, or NULL and the error. */
static const kg_weight *get_weight(const kg_plan *plan, const char *name, const char *role, int32_t id, kg_error *err)
{
  if (id >= 0 && (size_t)id < plan->n_weights) return &plan->weights[id];
  kg_fail(err, KG_ERR_ARGUMENT, "%s: %s: %d is no weight of this plan (it has %zu)", name, role, id,
          plan->n_weights);
  return NULL;
}

/* Check that a weight has the shape that the operation `name` wants of it; 0 = any. `reason` is the value (or the
 * weight) that the wish comes from. */
static int fit_weight(const kg_plan *plan, const char *name, const char *role, int32_t id, int64_t cols, int64_t rows,
                      int64_t planes, const char *reason, kg_error *err)
{
  const kg_weight *w = get_weight(plan, name, role, id, err);
  if (!w) return KG_ERR_ARGUMENT;
  if ((!cols || w->cols == cols) && (!rows || w->rows == rows) && (!planes || w->planes == planes)) return KG_OK;
  char there[80], wanted[80];
  return kg_fail(err, KG_ERR_FORMAT, "tensor %s: shape %s, but as %s of %s it must be %s to fit %s", w->name,
                 shape_text(there, w->cols, w->rows, w->planes), role, name, shape_text(wanted, cols, rows, planes),
                 reason);
}

static int fit_optional(const kg_plan *plan, const char *name, const char *role, int32_t id, int64_t cols,
                        int64_t rows, const char *reason, kg_error *err)
{
  return id == KG_NONE ? KG_OK : fit_weight(plan, name, role, id, cols, rows, 1, reason, err);
}

/* ---- appending ---- */

/* The checks that every operation begins with: its name is good and free, and the plan takes operations. */
static int check_open(const kg_plan *plan, const char *name, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  const size_t length = name ? strlen(name) : 0;
  if (!length || length > KG_PLAN_MAX_NAME)
    return kg_fail(err, KG_ERR_ARGUMENT, "value name %s: 1 to %d bytes wanted",
                   kg_quote(quoted, name ? name : "", length), KG_PLAN_MAX_NAME);
  if (plan->logits != KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "%s: the plan is finished", name);
  if (kg_plan_value_find(plan, name) != KG_NONE)
    return kg_fail(err, KG_ERR_ARGUMENT, "value name %s is taken", kg_quote(quoted, name, length));
  if (plan->n_ops >= KG_PLAN_MAX_OPS)
    return kg_fail(err, KG_ERR_FORMAT, "%s: more than %d operations", name, KG_PLAN_MAX_OPS);
  return KG_OK;
}

static int check_value(const kg_plan *plan, const char *name, const char *role, int32_t id, kg_error *err)
{
  if (id >= 0 && (size_t)id < plan->n_values) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%s: %s: %d is no value of this plan (it has %zu)", name, role, id,
                 plan->n_values);
}

static int check_number(const char *name, const char *field, double value, double min, double max, kg_error *err)
{
  if (value >= min && value <= max) return KG_OK; /* false for NaN */
  return kg_fail(err, KG_ERR_FORMAT, "%s: %s = %g is outside %g to %g", name, field, value, min, max);
}

/* Width of a value that was checked before. */
static int32_t width_of(const kg_plan *plan, int32_t value)
{
  return plan->values[value].width;
}

static int check_width(const kg_plan *plan, const char *name, int32_t value, int64_t wanted, const char *reason,
                       kg_error *err)
{
  if (width_of(plan, value) == wanted) return KG_OK;
  return kg_fail(err, KG_ERR_FORMAT, "%s: value %s has width %d, but %lld wanted: %s", name, value_name(plan, value),
                 width_of(plan, value), (long long)wanted, reason);
}

/* Append a checked operation and its value. On failure nothing has changed. */
static int append(kg_plan *plan, const char *name, const kg_op *op, int64_t width, int32_t *out, kg_error *err)
{
  const int code = check_number(name, "width", (double)width, 1, KG_PLAN_MAX_WIDTH, err);
  if (code) return code;
  char *copy = kg_copy_bytes(name, strlen(name));
  if (!copy || !kg_grow((void **)&plan->ops, &plan->ops_capacity, plan->n_ops + 1, sizeof *op) ||
      !kg_grow((void **)&plan->values, &plan->values_capacity, plan->n_values + 1, sizeof *plan->values) ||
      !map_reserve(plan, &plan->value_map, value_name, plan->n_values)) {
    kg_free(copy);
    return kg_fail_memory(err, sizeof *op, "a plan's operations");
  }
  const int32_t index = (int32_t)plan->n_ops, value = (int32_t)plan->n_values;
  plan->ops[plan->n_ops] = *op;
  plan->ops[plan->n_ops++].out = value;
  plan->values[plan->n_values++] =
      (kg_value){.name = copy, .width = (int32_t)width, .producer = index, .last_use = index};
  map_put(&plan->value_map, copy, value);
  for (int i = 0; i < KG_OP_INPUTS; i++)
    if (op->in[i] != KG_NONE) plan->values[op->in[i]].last_use = index;
  *out = value;
  return KG_OK;
}

static kg_op new_op(kg_op_kind kind, int32_t in0, int32_t in1, int32_t in2)
{
  kg_op op = {.kind = kind, .out = KG_NONE, .in = {in0, in1, in2}};
  for (int i = 0; i < KG_OP_WEIGHTS; i++) op.w[i] = KG_NONE;
  return op;
}

/* ---- the operations ---- */

int kg_plan_embed(kg_plan *plan, const char *name, int32_t table, int32_t positions, int32_t types, int32_t *out,
                  kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = fit_weight(plan, name, "table", table, 0, 0, 1, "a value", err);
  if (code) return code;
  const kg_weight *w = &plan->weights[table];
  code = fit_optional(plan, name, "positions", positions, w->cols, 0, w->name, err);
  if (!code) code = fit_optional(plan, name, "types", types, w->cols, 0, w->name, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_EMBED, KG_NONE, KG_NONE, KG_NONE);
  op.w[0] = table;
  op.w[1] = positions;
  op.w[2] = types;
  return append(plan, name, &op, w->cols, out, err);
}

int kg_plan_norm(kg_plan *plan, const char *name, int32_t x, int32_t scale, int32_t bias, const kg_norm_params *params,
                 int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_number(name, "epsilon", params->epsilon, 0, 1, err);
  if (!code) code = check_number(name, "groups", params->groups, 1, KG_PLAN_MAX_WIDTH, err);
  if (code) return code;
  const int32_t width = width_of(plan, x);
  if (width % params->groups)
    return kg_fail(err, KG_ERR_FORMAT, "%s: value %s of width %d has no %d equal groups", name, value_name(plan, x),
                   width, params->groups);
  const int32_t part = width / params->groups;
  code = fit_weight(plan, name, "scale", scale, part, 0, 1, value_name(plan, x), err);
  if (code) return code;
  const int64_t rows = plan->weights[scale].rows == 1 ? 1 : params->groups;
  code = fit_weight(plan, name, "scale", scale, part, rows, 1, value_name(plan, x), err);
  if (!code) code = fit_optional(plan, name, "bias", bias, part, rows, value_name(plan, x), err);
  if (code) return code;
  kg_op op = new_op(KG_OP_NORM, x, KG_NONE, KG_NONE);
  op.w[0] = scale;
  op.w[1] = bias;
  op.u.norm = *params;
  return append(plan, name, &op, width, out, err);
}

int kg_plan_linear(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t bias, int32_t *out,
                   kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = fit_weight(plan, name, "weight", weight, width_of(plan, x), 0, 1, value_name(plan, x), err);
  if (code) return code;
  const kg_weight *w = &plan->weights[weight];
  code = fit_optional(plan, name, "bias", bias, w->rows, 1, w->name, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_LINEAR, x, KG_NONE, KG_NONE);
  op.w[0] = weight;
  op.w[1] = bias;
  return append(plan, name, &op, w->rows, out, err);
}

int kg_plan_linear_each(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (code) return code;
  const kg_weight *w = get_weight(plan, name, "weight", weight, err);
  if (!w) return KG_ERR_ARGUMENT;
  const int32_t width = width_of(plan, x);
  if (width % w->planes)
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: %lld planes, but value %s of width %d has no so many equal parts",
                   w->name, (long long)w->planes, value_name(plan, x), width);
  code = fit_weight(plan, name, "weight", weight, width / w->planes, 0, w->planes, value_name(plan, x), err);
  if (code) return code;
  kg_op op = new_op(KG_OP_LINEAR_EACH, x, KG_NONE, KG_NONE);
  op.w[0] = weight;
  return append(plan, name, &op, w->rows * w->planes, out, err); /* bounded: of KG_PLAN_MAX_* each */
}

/* Heads and channels are bounded by the width that they must fill. */
static int check_heads(const kg_plan *plan, const char *name, int32_t value, const char *field, int32_t n_heads,
                       const char *size_field, int32_t head_dim, kg_error *err)
{
  int code = check_number(name, field, n_heads, 1, KG_PLAN_MAX_WIDTH, err);
  if (!code) code = check_number(name, size_field, head_dim, 1, KG_PLAN_MAX_WIDTH, err);
  if (code) return code;
  char reason[96];
  snprintf(reason, sizeof reason, "%s = %d times %s = %d", field, n_heads, size_field, head_dim);
  return check_width(plan, name, value, (int64_t)n_heads * head_dim, reason, err); /* bounded: two of 32 bits */
}

double kg_rope_magnitude(const kg_rope_params *params, int32_t position)
{
  if (params->growth <= 0) return params->magnitude;
  const int32_t lengths = position / params->growth_length;
  return params->magnitude * (1 + (double)params->growth * log1p(lengths)); /* bounded: floating point */
}

int kg_plan_rope(kg_plan *plan, const char *name, int32_t x, const kg_rope_params *params, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_heads(plan, name, x, "heads", params->n_heads, "head_dim", params->head_dim, err);
  if (!code) code = check_number(name, "dims", params->n_dims, 2, params->head_dim, err);
  if (!code) code = check_number(name, "magnitude", params->magnitude, 1e-6, 1e6, err);
  if (!code) code = check_number(name, "growth", params->growth, 0, 1e3, err);
  if (!code && params->growth > 0) code = check_number(name, "growth_length", params->growth_length, 1, INT32_MAX, err);
  if (code) return code;
  if (params->style != KG_ROPE_HALVES && params->style != KG_ROPE_PAIRS)
    return kg_fail(err, KG_ERR_ARGUMENT, "%s: style = %d is no rope style", name, (int)params->style);
  if (params->n_dims % 2) return kg_fail(err, KG_ERR_FORMAT, "%s: dims = %d is not even", name, params->n_dims);
  const int32_t n_freqs = params->n_dims / 2;
  for (int32_t i = 0; i < n_freqs; i++) {
    code = check_number(name, "inverse_freqs", params->inverse_freqs[i], -1e6, 1e6, err);
    if (code) return code;
  }
  const size_t n_bytes = (size_t)n_freqs * sizeof(float); /* bounded: half of head_dim at most */
  float *freqs = kg_alloc(n_bytes);
  if (!freqs) return kg_fail_memory(err, n_bytes, "rope frequencies");
  memcpy(freqs, params->inverse_freqs, n_bytes);
  kg_op op = new_op(KG_OP_ROPE, x, KG_NONE, KG_NONE);
  op.u.rope = *params;
  op.u.rope.inverse_freqs = freqs;
  code = append(plan, name, &op, width_of(plan, x), out, err);
  if (code) kg_free(freqs);
  return code;
}

int kg_plan_attention(kg_plan *plan, const char *name, int32_t q, int32_t k, int32_t v, int32_t sinks,
                      const kg_attention_params *params, int32_t *out, kg_error *err)
{
  const kg_attention_params *p = params;
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "q", q, err);
  if (!code) code = check_value(plan, name, "k", k, err);
  if (!code && v != KG_NONE) code = check_value(plan, name, "v", v, err);
  if (!code) code = check_heads(plan, name, q, "heads", p->n_heads, "head_dim", p->head_dim, err);
  if (!code) code = check_heads(plan, name, k, "kv_heads", p->n_kv_heads, "head_dim", p->head_dim, err);
  if (!code && v != KG_NONE)
    code = check_heads(plan, name, v, "kv_heads", p->n_kv_heads, "value_dim", p->value_dim, err);
  const int32_t most = v == KG_NONE ? p->head_dim : KG_PLAN_MAX_WIDTH; /* channels of values */
  if (!code) code = check_number(name, "value_dim", p->value_dim, 1, most, err);
  if (!code) code = check_number(name, "scale", p->scale, 1e-9, 1e6, err);
  if (!code) code = check_number(name, "softcap", p->softcap, 0, 1e9, err);
  if (!code) code = check_number(name, "window", p->window, 0, KG_PLAN_MAX_CONTEXT, err);
  if (!code) code = fit_optional(plan, name, "sinks", sinks, p->n_heads, 1, value_name(plan, q), err);
  if (code) return code;
  if (p->n_heads % p->n_kv_heads)
    return kg_fail(err, KG_ERR_FORMAT, "%s: heads = %d is not a multiple of kv_heads = %d", name, p->n_heads,
                   p->n_kv_heads);
  if (p->is_bidirectional && p->window)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: a window of %d in attention that looks both ways", name, p->window);
  if (p->is_bidirectional && plan->state_size)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: attention that looks both ways beside recurrent operations", name);
  if (plan->n_layers && p->is_bidirectional != kg_plan_is_bidirectional(plan))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: attention that looks both ways beside attention that does not", name);
  if (plan->n_layers >= KG_PLAN_MAX_LAYERS)
    return kg_fail(err, KG_ERR_FORMAT, "%s: more than %d attention layers", name, KG_PLAN_MAX_LAYERS);
  if (!kg_grow((void **)&plan->layers, &plan->layers_capacity, plan->n_layers + 1, sizeof *plan->layers))
    return kg_fail_memory(err, sizeof *plan->layers, "a plan's layers");
  kg_op op = new_op(KG_OP_ATTENTION, q, k, v);
  op.w[0] = sinks;
  op.u.attention = *p;
  op.u.attention.layer = (int32_t)plan->n_layers;
  op.u.attention.values_in_keys = v == KG_NONE;
  code = append(plan, name, &op, (int64_t)p->n_heads * p->value_dim, out, err); /* bounded: two of 32 bits */
  if (code) return code;
  plan->layers[plan->n_layers++] = (int32_t)plan->n_ops - 1;
  plan->tail = (int32_t)plan->n_ops;
  return KG_OK;
}

static int check_act(const char *name, const kg_act *act, bool gated, kg_error *err)
{
  if ((int)act->kind < KG_ACT_SILU || act->kind > KG_ACT_SWIGLU_CLAMPED)
    return kg_fail(err, KG_ERR_ARGUMENT, "%s: %d is no activation", name, (int)act->kind);
  if (act->kind != KG_ACT_SWIGLU_CLAMPED) return KG_OK;
  if (!gated) return kg_fail(err, KG_ERR_ARGUMENT, "%s: swiglu_clamped needs a gate and an up value", name);
  const int code = check_number(name, "limit", act->limit, 1e-6, 1e9, err);
  return code ? code : check_number(name, "alpha", act->alpha, 1e-6, 1e6, err);
}

int kg_plan_glu(kg_plan *plan, const char *name, int32_t gate, int32_t up, const kg_act *act, int32_t *out,
                kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "gate", gate, err);
  if (!code) code = check_value(plan, name, "up", up, err);
  if (!code) code = check_act(name, act, true, err);
  if (!code) code = check_width(plan, name, up, width_of(plan, gate), value_name(plan, gate), err);
  if (code) return code;
  kg_op op = new_op(KG_OP_GLU, gate, up, KG_NONE);
  op.u.act = *act;
  return append(plan, name, &op, width_of(plan, gate), out, err);
}

int kg_plan_act(kg_plan *plan, const char *name, int32_t x, const kg_act *act, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_act(name, act, false, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_ACT, x, KG_NONE, KG_NONE);
  op.u.act = *act;
  return append(plan, name, &op, width_of(plan, x), out, err);
}

static int check_moe_params(const char *name, const kg_moe_params *p, kg_error *err)
{
  if ((int)p->gate < KG_MOE_SOFTMAX || p->gate > KG_MOE_SIGMOID)
    return kg_fail(err, KG_ERR_ARGUMENT, "%s: %d is no way to weigh experts", name, (int)p->gate);
  int code = check_number(name, "experts", p->n_experts, 1, KG_PLAN_MAX_EXPERTS, err);
  if (!code) code = check_number(name, "used", p->n_used, 1, p->n_experts, err);
  if (!code) code = check_number(name, "scale", p->scale, -1e6, 1e6, err);
  if (!code) code = check_number(name, "groups", p->n_groups, 1, p->n_experts, err);
  if (!code) code = check_number(name, "groups_used", p->n_groups_used, 1, p->n_groups, err);
  if (code) return code;
  const int32_t in_group = p->n_experts / p->n_groups;
  if (p->n_experts % p->n_groups)
    return kg_fail(err, KG_ERR_FORMAT, "%s: experts = %d have no %d equal groups", name, p->n_experts, p->n_groups);
  code = check_number(name, "group_top", p->group_top, 1, in_group < 2 ? in_group : 2, err);
  if (!code) code = check_number(name, "used", p->n_used, 1, p->n_groups_used * in_group, err); /* bounded: n_experts */
  return code ? code : check_act(name, &p->act, true, err);
}

int kg_plan_moe(kg_plan *plan, const char *name, int32_t x, int32_t router, const int32_t weights[KG_OP_WEIGHTS],
                const kg_moe_params *params, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_value(plan, name, "router", router, err);
  if (!code) code = check_moe_params(name, params, err);
  if (!code) code = check_width(plan, name, router, params->n_experts, "one logit per expert", err);
  if (code) return code;
  const int64_t width = width_of(plan, x), n = params->n_experts;
  code = fit_weight(plan, name, "gate", weights[0], width, 0, n, value_name(plan, x), err);
  if (code) return code;
  const kg_weight *gate = &plan->weights[weights[0]];
  code = fit_weight(plan, name, "up", weights[1], width, gate->rows, n, gate->name, err);
  if (!code) code = fit_weight(plan, name, "down", weights[2], gate->rows, 0, n, gate->name, err);
  if (code) return code;
  const kg_weight *down = &plan->weights[weights[2]];
  code = fit_optional(plan, name, "gate_bias", weights[3], gate->rows, n, gate->name, err);
  if (!code) code = fit_optional(plan, name, "up_bias", weights[4], gate->rows, n, gate->name, err);
  if (!code) code = fit_optional(plan, name, "down_bias", weights[5], down->rows, n, down->name, err);
  if (!code) code = fit_optional(plan, name, "choice_bias", weights[6], n, 1, "one number per expert", err);
  if (code) return code;
  kg_op op = new_op(KG_OP_MOE, x, router, KG_NONE);
  memcpy(op.w, weights, sizeof op.w);
  op.u.moe = *params;
  return append(plan, name, &op, down->rows, out, err);
}

int kg_plan_add(kg_plan *plan, const char *name, int32_t a, int32_t b, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "a", a, err);
  if (!code) code = check_value(plan, name, "b", b, err);
  if (!code) code = check_width(plan, name, b, width_of(plan, a), value_name(plan, a), err);
  if (code) return code;
  const kg_op op = new_op(KG_OP_ADD, a, b, KG_NONE);
  return append(plan, name, &op, width_of(plan, a), out, err);
}

int kg_plan_scale(kg_plan *plan, const char *name, int32_t x, float factor, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_number(name, "factor", factor, -1e9, 1e9, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_SCALE, x, KG_NONE, KG_NONE);
  op.u.scale = factor;
  return append(plan, name, &op, width_of(plan, x), out, err);
}

int kg_plan_softcap(kg_plan *plan, const char *name, int32_t x, float cap, int32_t *out, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_number(name, "cap", cap, 1e-6, 1e9, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_SOFTCAP, x, KG_NONE, KG_NONE);
  op.u.scale = cap;
  return append(plan, name, &op, width_of(plan, x), out, err);
}

/* A value is cut into equal parts. */
static int check_groups(const kg_plan *plan, const char *name, int32_t value, int32_t groups, kg_error *err)
{
  const int code = check_number(name, "groups", groups, 1, KG_PLAN_MAX_WIDTH, err);
  if (code || width_of(plan, value) % groups == 0) return code;
  return kg_fail(err, KG_ERR_FORMAT, "%s: value %s of width %d has no %d equal groups", name, value_name(plan, value),
                 width_of(plan, value), groups);
}

int kg_plan_slice(kg_plan *plan, const char *name, int32_t x, const kg_slice_params *params, int32_t *out,
                  kg_error *err)
{
  const int32_t first = params->first, width = params->width;
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (!code) code = check_groups(plan, name, x, params->groups, err);
  if (code) return code;
  const int32_t part = width_of(plan, x) / params->groups;
  const long long end = (long long)first + width; /* bounded: two of 32 bits */
  if (first < 0 || width < 1 || end > part)
    return kg_fail(err, KG_ERR_FORMAT, "%s: columns %d to %lld are outside %s %s of width %d", name, first, end,
                   params->groups > 1 ? "a group of value" : "value", value_name(plan, x), part);
  kg_op op = new_op(KG_OP_SLICE, x, KG_NONE, KG_NONE);
  op.u.slice = *params;
  return append(plan, name, &op, (int64_t)params->groups * width, out, err); /* bounded: two of 32 bits */
}

int kg_plan_concat(kg_plan *plan, const char *name, int32_t a, int32_t b, const kg_concat_params *params, int32_t *out,
                   kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "a", a, err);
  if (!code) code = check_value(plan, name, "b", b, err);
  if (!code) code = check_groups(plan, name, a, params->groups, err);
  if (!code && !params->is_shared) code = check_groups(plan, name, b, params->groups, err);
  if (code) return code;
  kg_op op = new_op(KG_OP_CONCAT, a, b, KG_NONE);
  op.u.concat = *params;
  const int64_t times = params->is_shared ? params->groups : 1;
  return append(plan, name, &op, width_of(plan, a) + times * width_of(plan, b), out, err); /* bounded: 2^49 */
}

/* Append a checked recurrent operation that keeps n_floats; their place in the state goes to *state_at of it. */
static int append_recurrent(kg_plan *plan, const char *name, kg_op *op, int64_t n_floats, int64_t *state_at,
                            int64_t width, int32_t *out, kg_error *err)
{
  if (kg_plan_is_bidirectional(plan))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: a recurrent operation beside attention that looks both ways", name);
  if (n_floats > KG_PLAN_MAX_STATE - plan->state_size)
    return kg_fail(err, KG_ERR_FORMAT, "%s: %lld floats of state beside %lld are more than %d", name,
                   (long long)n_floats, (long long)plan->state_size, KG_PLAN_MAX_STATE);
  *state_at = plan->state_size;
  const int code = append(plan, name, op, width, out, err);
  if (code) return code;
  plan->state_size += n_floats; /* bounded: checked above */
  plan->tail = (int32_t)plan->n_ops;
  return KG_OK;
}

int kg_plan_conv(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t bias, bool is_gated, int32_t *out,
                 kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "x", x, err);
  if (code) return code;
  const int32_t parts = is_gated ? 3 : 1, width = width_of(plan, x) / parts;
  code = check_groups(plan, name, x, parts, err);
  if (!code) code = fit_weight(plan, name, "weight", weight, 0, width, 1, value_name(plan, x), err);
  if (code) return code;
  const kg_weight *w = &plan->weights[weight];
  if (w->cols < 2 || w->cols > KG_PLAN_MAX_TAPS)
    return kg_fail(err, KG_ERR_FORMAT, "tensor %s: a convolution over %lld positions, 2 to %d wanted", w->name,
                   (long long)w->cols, KG_PLAN_MAX_TAPS);
  code = fit_optional(plan, name, "bias", bias, width, 1, value_name(plan, x), err);
  if (code) return code;
  kg_op op = new_op(KG_OP_CONV, x, KG_NONE, KG_NONE);
  op.w[0] = weight;
  op.w[1] = bias;
  op.u.conv.taps = (int32_t)w->cols;
  op.u.conv.is_gated = is_gated;
  const int64_t n_floats = (w->cols - 1) * width; /* bounded: of KG_PLAN_MAX_* each */
  return append_recurrent(plan, name, &op, n_floats, &op.u.conv.state_at, width, out, err);
}

int kg_plan_rename(kg_plan *plan, int32_t value, const char *name, kg_error *err)
{
  int code = check_open(plan, name, err);
  if (!code) code = check_value(plan, name, "value", value, err);
  if (code) return code;
  /* A map without the old name: all names again, which is cheap for the few dozen renames of a plan and needs no
   * tombstones. */
  char *copy = kg_copy_bytes(name, strlen(name));
  name_map map = {.n_slots = plan->value_map.n_slots};
  map.slots = kg_alloc_array(map.n_slots, sizeof *map.slots);
  if (!copy || !map.slots) {
    kg_free(copy);
    kg_free(map.slots);
    return kg_fail_memory(err, map.n_slots * sizeof *map.slots, "a plan's names");
  }
  kg_free((void *)(uintptr_t)plan->values[value].name);
  plan->values[value].name = copy;
  kg_free(plan->value_map.slots);
  plan->value_map = map;
  for (size_t i = 0; i < plan->n_values; i++) map_put(&plan->value_map, plan->values[i].name, (int32_t)i);
  return KG_OK;
}

/* Every token id has an embedding, every position below the context a position row. Without a head the tables say how
 * many ids there are. */
static int check_tables(const kg_plan *plan, int32_t logits, int32_t context_length, bool has_head, int32_t *n_tokens,
                        kg_error *err)
{
  *n_tokens = has_head ? width_of(plan, logits) : INT32_MAX;
  for (size_t i = 0; i < plan->n_ops; i++) {
    const kg_op *op = &plan->ops[i];
    if (op->kind != KG_OP_EMBED) continue;
    const kg_weight *table = &plan->weights[op->w[0]];
    if (has_head && table->rows < width_of(plan, logits))
      return kg_fail(err, KG_ERR_FORMAT, "tensor %s: %lld rows for the %d tokens of %s", table->name,
                     (long long)table->rows, width_of(plan, logits), value_name(plan, logits));
    if (table->rows < *n_tokens) *n_tokens = (int32_t)table->rows;
    if (op->w[1] == KG_NONE) continue;
    const kg_weight *positions = &plan->weights[op->w[1]];
    if (positions->rows < context_length)
      return kg_fail(err, KG_ERR_FORMAT, "tensor %s: %lld rows for a context length of %d", positions->name,
                     (long long)positions->rows, context_length);
  }
  return KG_OK;
}

/* 0 for a window that no position lies behind. */
static int32_t window_of(const kg_plan *plan, size_t layer)
{
  const int32_t window = plan->ops[plan->layers[layer]].u.attention.window;
  return window < plan->context_length ? window : 0;
}

static int32_t group_of(kg_plan *plan, int32_t window)
{
  int32_t group = 0;
  while (group < plan->n_groups && plan->windows[group] != window) group++;
  if (group == KG_PAGE_GROUPS) {
    group--;
    if (plan->windows[group] < window) plan->windows[group] = window;
  } else if (group == plan->n_groups)
    plan->windows[plan->n_groups++] = window;
  return group;
}

static void group_layers(kg_plan *plan)
{
  bool all_have_windows = plan->n_layers > 0;
  for (size_t i = 0; i < plan->n_layers; i++) all_have_windows = all_have_windows && window_of(plan, i);
  if (!all_have_windows) group_of(plan, 0);
  for (size_t i = 0; i < plan->n_layers; i++)
    plan->ops[plan->layers[i]].u.attention.group = group_of(plan, window_of(plan, i));
}

int kg_plan_finish(kg_plan *plan, int32_t logits, int32_t context_length, bool has_head, kg_error *err)
{
  if (plan->logits != KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "finish: the plan is finished");
  int32_t n_tokens = 0;
  int code = check_value(plan, "finish", "logits", logits, err);
  if (!code) code = check_number("finish", "context_length", context_length, 1, KG_PLAN_MAX_CONTEXT, err);
  if (!code) code = check_tables(plan, logits, context_length, has_head, &n_tokens, err);
  if (code) return code;
  plan->logits = logits;
  plan->has_head = has_head;
  plan->n_tokens = n_tokens;
  plan->context_length = context_length;
  plan->values[logits].last_use = (int32_t)plan->n_ops;
  group_layers(plan);
  return KG_OK;
}

/* ---- reading ---- */

const kg_gguf *kg_plan_gguf(const kg_plan *plan)
{
  return plan->gguf;
}

int32_t kg_plan_op_count(const kg_plan *plan)
{
  return (int32_t)plan->n_ops;
}

const kg_op *kg_plan_op(const kg_plan *plan, int32_t index)
{
  return &plan->ops[index];
}

int32_t kg_plan_value_count(const kg_plan *plan)
{
  return (int32_t)plan->n_values;
}

const kg_value *kg_plan_value(const kg_plan *plan, int32_t index)
{
  return &plan->values[index];
}

int32_t kg_plan_value_find(const kg_plan *plan, const char *name)
{
  return map_find(plan, &plan->value_map, value_name, name);
}

int32_t kg_plan_weight_count(const kg_plan *plan)
{
  return (int32_t)plan->n_weights;
}

const kg_weight *kg_plan_weight_at(const kg_plan *plan, int32_t index)
{
  return &plan->weights[index];
}

int32_t kg_plan_logits(const kg_plan *plan)
{
  return plan->logits;
}

bool kg_plan_has_head(const kg_plan *plan)
{
  return plan->has_head;
}

int32_t kg_plan_token_count(const kg_plan *plan)
{
  return plan->n_tokens;
}

bool kg_plan_is_bidirectional(const kg_plan *plan)
{
  return plan->n_layers && kg_plan_layer(plan, 0)->u.attention.is_bidirectional;
}

int32_t kg_plan_vocab_size(const kg_plan *plan)
{
  return plan->logits == KG_NONE ? 0 : width_of(plan, plan->logits);
}

int32_t kg_plan_context_length(const kg_plan *plan)
{
  return plan->context_length;
}

int32_t kg_plan_layer_count(const kg_plan *plan)
{
  return (int32_t)plan->n_layers;
}

int32_t kg_plan_group_count(const kg_plan *plan)
{
  return plan->n_groups;
}

int32_t kg_plan_group_window(const kg_plan *plan, int32_t group)
{
  return plan->windows[group];
}

int64_t kg_plan_group_flops(const kg_plan *plan, int32_t group)
{
  int64_t n = 0;
  for (int32_t layer = 0; layer < (int32_t)plan->n_layers; layer++) {
    const kg_attention_params *p = &kg_plan_layer(plan, layer)->u.attention;
    if (p->group != group) continue;
    n += 2 * (int64_t)p->n_heads * ((int64_t)p->head_dim + p->value_dim); /* bounded: layers times widths */
  }
  return n;
}

const kg_op *kg_plan_layer(const kg_plan *plan, int32_t layer)
{
  return &plan->ops[plan->layers[layer]];
}

int64_t kg_plan_state_size(const kg_plan *plan)
{
  return plan->state_size;
}

int32_t kg_plan_tail(const kg_plan *plan)
{
  return plan->tail;
}

/* The operation that makes this value, if it reads one value only, row by row; else NULL. */
static const kg_op *single_op(const kg_plan *plan, int32_t value)
{
  const kg_op *op = &plan->ops[plan->values[value].producer];
  switch (op->kind) {
  case KG_OP_NORM:
  case KG_OP_LINEAR:
  case KG_OP_ACT:
  case KG_OP_SCALE:
  case KG_OP_SOFTCAP:
  case KG_OP_SLICE: return op;
  default: return NULL;
  }
}

int32_t kg_plan_hidden(const kg_plan *plan)
{
  if (plan->logits == KG_NONE || !plan->has_head) return plan->logits;
  for (const kg_op *op = single_op(plan, plan->logits); op; op = single_op(plan, op->in[0])) {
    if (op->kind != KG_OP_LINEAR) continue;
    return plan->values[op->in[0]].producer >= kg_plan_tail(plan) ? op->in[0] : KG_NONE;
  }
  return KG_NONE;
}

int32_t kg_plan_residual(const kg_plan *plan)
{
  const int32_t hidden = kg_plan_hidden(plan);
  if (hidden == KG_NONE || !plan->has_head) return KG_NONE;
  for (const kg_op *op = single_op(plan, hidden); op; op = single_op(plan, op->in[0]))
    if (op->kind == KG_OP_NORM) return plan->values[op->in[0]].producer >= kg_plan_tail(plan) ? op->in[0] : KG_NONE;
  return hidden;
}

const char *kg_op_name(kg_op_kind kind)
{
  static const char *const names[] = {"embed", "norm", "linear", "linear_each", "rope",  "attention", "glu", "act",
                                      "moe",   "add",  "scale",  "softcap",     "slice", "concat",    "conv"};
  return (size_t)kind < sizeof names / sizeof names[0] ? names[kind] : "unknown";
}
