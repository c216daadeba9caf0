/* bind_tensor.c - kigo.Tensor: whole-tensor methods for Lua. Names with a trailing underscore work in place and return
 * the tensor itself. Ids are 0-based. */
#include <math.h>
#include <string.h>

#include "bind.h"
#include "draw.h"
#include "tensor.h"
#include "vector.h"

enum {
  FEW = 256, /* ids that the stack holds */
  TABLE_MAX = 65536,
  GARBAGE_MIN = 8 << 20,   /* below it, dropped tensors are not worth a collection */
  GARBAGE_MAX = 256 << 20, /* above it, they always are */
  GARBAGE_FACTOR = 16      /* between, where they are this many times Lua's own memory */
};

kg_tensor **kg_push_tensor(lua_State *L)
{
  return (kg_tensor **)&kg_push_handle(L, KG_CLASS_TENSOR, 0)->object;
}

kg_tensor *kg_check_tensor(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_TENSOR);
}

/* ---- helpers ---- */

void kg_count_garbage(lua_State *L, int64_t n_floats, int64_t most)
{
  static const char keys[2] = {0};
  const void *key = &keys[most > 0];
  lua_rawgetp(L, LUA_REGISTRYINDEX, key);
  lua_Integer n_bytes = lua_tointeger(L, -1) + (lua_Integer)n_floats * (lua_Integer)sizeof(float);
  lua_pop(L, 1);
  const lua_Integer lua_bytes = (lua_Integer)lua_gc(L, LUA_GCCOUNT) * 1024;
  const bool is_much = n_bytes > GARBAGE_MAX || (n_bytes > GARBAGE_MIN && n_bytes > GARBAGE_FACTOR * lua_bytes);
  if (most > 0 ? n_bytes > most : is_much) {
    lua_gc(L, LUA_GCCOLLECT);
    n_bytes = 0;
  }
  lua_pushinteger(L, n_bytes);
  lua_rawsetp(L, LUA_REGISTRYINDEX, key);
}

static const char *shape_text(const kg_tensor *tensor, char text[KG_SHAPE_MAX])
{
  return kg_tensor_shape_text(tensor, text);
}

/* A tensor of one dimension, for what has no meaning on more. */
static kg_tensor *check_vector(lua_State *L, const char *method)
{
  kg_tensor *tensor = kg_check_tensor(L, 1);
  char text[KG_SHAPE_MAX];
  if (tensor->n_dims != 1)
    kg_error_at(L, "%s: one row expected, got a tensor of shape %s", method, shape_text(tensor, text));
  return tensor;
}

static bool is_tensor(lua_State *L, int index)
{
  return luaL_testudata(L, index, KG_CLASS_TENSOR) != NULL;
}

/* Raise, or return the tensor at index 1: the end of the methods that work in place. */
static int finish_in_place(lua_State *L, int status, const kg_error *err)
{
  if (status) return kg_push_error(L, err);
  lua_settop(L, 1);
  return 1;
}

/* ---- making tensors ---- */

/* Follow the first elements of a nested table down to a number: its shape. */
static int table_shape(lua_State *L, int index, int64_t shape[KG_TENSOR_DIMS])
{
  int n_dims = 0;
  lua_pushvalue(L, index);
  while (lua_istable(L, -1)) {
    if (n_dims == KG_TENSOR_DIMS) kg_error_at(L, "tensor: tables are nested deeper than %d", KG_TENSOR_DIMS);
    shape[n_dims++] = (int64_t)lua_rawlen(L, -1);
    lua_rawgeti(L, -1, 1);
    lua_remove(L, -2);
  }
  lua_pop(L, 1);
  return n_dims;
}

/* Store the numbers of the table on top of the stack, whose shape must be shape[0..n_dims). */
static float *store_table(lua_State *L, const int64_t *shape, int n_dims, float *out)
{
  luaL_checkstack(L, 4, "tensor");
  if (!lua_istable(L, -1)) kg_error_at(L, "tensor: row expected, got %s", luaL_typename(L, -1));
  if ((int64_t)lua_rawlen(L, -1) != shape[0])
    kg_error_at(L, "tensor: a row has %I elements, the first one has %I", (lua_Integer)lua_rawlen(L, -1),
               (lua_Integer)shape[0]);
  for (int64_t i = 0; i < shape[0]; i++) {
    lua_rawgeti(L, -1, (lua_Integer)i + 1);
    if (n_dims > 1)
      out = store_table(L, shape + 1, n_dims - 1, out);
    else if (lua_type(L, -1) == LUA_TNUMBER)
      *out++ = (float)lua_tonumber(L, -1);
    else
      kg_error_at(L, "tensor: element %I: number expected, got %s", (lua_Integer)i + 1, luaL_typename(L, -1));
    lua_pop(L, 1);
  }
  return out;
}

/* core.tensor({numbers}) or core.tensor({{...}, {...}}) -> Tensor */
static int tensor_new(lua_State *L)
{
  kg_check_type(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  int64_t shape[KG_TENSOR_DIMS];
  kg_error err;
  const int n_dims = table_shape(L, 1, shape);
  kg_tensor **slot = kg_push_tensor(L);
  if (kg_tensor_new(n_dims, shape, slot, &err)) return kg_push_error(L, &err);
  lua_pushvalue(L, 1);
  store_table(L, shape, n_dims, (*slot)->buffer->data); /* a new tensor is on the host */
  lua_pop(L, 1);
  kg_count_garbage(L, kg_tensor_count(*slot), 0);
  return 1;
}

/* core.zeros(n, m...) -> Tensor */
static int zeros(lua_State *L)
{
  const int n_dims = lua_gettop(L);
  luaL_argcheck(L, n_dims >= 1 && n_dims <= KG_TENSOR_DIMS, 1, "1 to 4 sizes expected");
  int64_t shape[KG_TENSOR_DIMS], count = 1;
  for (int i = 0; i < n_dims; i++) {
    shape[i] = kg_check_int(L, i + 1, "size", 0, INT32_MAX);
    if (__builtin_mul_overflow(count, shape[i], &count) || count > INT64_MAX / 16)
      return kg_error_at(L, "zeros: the product of the sizes is too large");
  }
  kg_count_garbage(L, count, 0);
  kg_error err;
  return kg_tensor_new(n_dims, shape, kg_push_tensor(L), &err) ? kg_push_error(L, &err) : 1;
}

/* A closed handle for a tensor of the size of the one at index 1. */
static kg_tensor **push_like(lua_State *L)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const kg_buffer *buffer = tensor->buffer;
  kg_count_garbage(L, kg_tensor_count(tensor), buffer->ops->dropped_max ? buffer->ops->dropped_max(buffer) : 0);
  return kg_push_tensor(L);
}

/* t:clone() -> Tensor */
static int clone(lua_State *L)
{
  kg_error err;
  kg_tensor **made = push_like(L);
  return kg_tensor_like(kg_check_tensor(L, 1), true, made, &err) ? kg_push_error(L, &err) : 1;
}

static int push_softmax(lua_State *L, bool log_wanted)
{
  kg_error err;
  kg_tensor **made = push_like(L);
  return kg_tensor_softmax(kg_check_tensor(L, 1), log_wanted, made, &err) ? kg_push_error(L, &err) : 1;
}

/* t:softmax(), t:log_softmax() -> new Tensor; over the last dimension */
static int softmax(lua_State *L)
{
  return push_softmax(L, false);
}

static int log_softmax(lua_State *L)
{
  return push_softmax(L, true);
}

static int push_row(lua_State *L, int64_t i)
{
  kg_error err;
  kg_tensor **made = kg_push_tensor(L);
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const int64_t width = tensor->shape[0] ? kg_tensor_count(tensor) / tensor->shape[0] : 0;
  const int status =
      kg_tensor_view(tensor->buffer, tensor->at + i * width, tensor->n_dims - 1, tensor->shape + 1, made, &err);
  return status ? kg_push_error(L, &err) : 1;
}

static int64_t check_index(lua_State *L, const kg_tensor *tensor)
{
  if (!tensor->shape[0]) kg_error_at(L, "index: the tensor is empty");
  return kg_check_int(L, 2, "index", 0, tensor->shape[0] - 1);
}

/* t:row(i) -> Tensor, a view of the same numbers */
static int row(lua_State *L)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  if (tensor->n_dims < 2) return kg_error_at(L, "row: a tensor of one dimension has no rows");
  return push_row(L, check_index(L, tensor));
}

/* t:rows(first, count) -> Tensor, a view of these rows */
static int rows(lua_State *L)
{
  kg_error err;
  int64_t dims[KG_TENSOR_DIMS];
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  if (tensor->n_dims < 2) return kg_error_at(L, "rows: a tensor of one dimension has no rows");
  const int64_t first = kg_check_int(L, 2, "first", 0, tensor->shape[0]);
  const int64_t count = kg_check_int(L, 3, "count", 0, tensor->shape[0] - first);
  kg_tensor **made = kg_push_tensor(L);
  tensor = kg_check_tensor(L, 1);
  memcpy(dims, tensor->shape, sizeof dims);
  const int64_t at = tensor->at + (dims[0] ? kg_tensor_count(tensor) / dims[0] * first : 0);
  dims[0] = count;
  return kg_tensor_view(tensor->buffer, at, tensor->n_dims, dims, made, &err) ? kg_push_error(L, &err) : 1;
}

/* ---- looking ---- */

/* t:shape() -> n, m, ... */
static int shape(lua_State *L)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  for (int i = 0; i < tensor->n_dims; i++) lua_pushinteger(L, tensor->shape[i]);
  return tensor->n_dims;
}

/* Ask now, or, where company asks at the same time (kg_push_company), when all have: then the answer is known. */
static int look(lua_State *L, kg_look_kind kind, int64_t k, lua_KFunction ask, lua_KContext context)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const kg_look question = {kind, tensor->buffer, tensor->at, kg_tensor_count(tensor), k};
  const kg_tensor_ops *ops = tensor->buffer->ops;
  if (ops->look && !ops->knows(&question) && kg_push_company(L)) {
    lua_pushinteger(L, kind);
    lua_pushvalue(L, 1);
    lua_pushinteger(L, k);
    lua_callk(L, 3, 0, context, ask);
  }
  return ask(L, LUA_OK, context);
}

static int ask_best(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  const bool is_row = kg_check_tensor(L, 1)->n_dims == 1;
  lua_settop(L, 1);
  if (!is_row) lua_newtable(L);
  if (!is_row) lua_newtable(L);
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const int64_t width = tensor->shape[tensor->n_dims - 1], n_rows = width ? kg_tensor_count(tensor) / width : 1;
  for (int64_t row = 0; row < n_rows; row++) {
    kg_error err;
    int64_t index;
    float value;
    if (tensor->buffer->ops->argmax(tensor->buffer, tensor->at + row * width, width, &index, &value, &err))
      return kg_push_error(L, &err);
    lua_pushinteger(L, index);
    if (!is_row) lua_rawseti(L, 2, row + 1);
    lua_pushnumber(L, (lua_Number)value);
    if (!is_row) lua_rawseti(L, 3, row + 1);
  }
  return 2;
}

/* t:argmax() -> id, value; of rows: a list of ids and one of values */
static int argmax(lua_State *L)
{
  if (kg_check_tensor(L, 1)->n_dims > 1) return ask_best(L, LUA_OK, 0);
  return look(L, KG_LOOK_BEST, 0, ask_best, 0);
}

static int64_t check_count(lua_State *L)
{
  const int64_t k = kg_check_int(L, 2, "k", 0, INT32_MAX), n = check_vector(L, "topk")->shape[0];
  return k < n ? k : n;
}

static int ask_top(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  const int64_t k = check_count(L);
  int32_t few[2 * FEW], *ids = k <= FEW ? few : lua_newuserdatauv(L, (size_t)k * 2 * sizeof *ids, 0);
  float *values = (float *)(ids + k);
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  kg_error err;
  if (tensor->buffer->ops->topk(tensor->buffer, tensor->at, tensor->shape[0], k, ids, values, &err))
    return kg_push_error(L, &err);
  kg_push_ids(L, ids, (size_t)k);
  lua_createtable(L, (int)k, 0);
  for (int64_t i = 0; i < k; i++) {
    lua_pushnumber(L, (lua_Number)values[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 2;
}

/* t:topk(k) -> ids, values, best first; all of them when k is larger than the tensor */
static int topk(lua_State *L) { return look(L, KG_LOOK_TOP, check_count(L), ask_top, 0); }

static int ask_entropy(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  const kg_tensor *tensor = check_vector(L, "entropy");
  double nats;
  kg_error err;
  if (tensor->buffer->ops->entropy(tensor->buffer, tensor->at, tensor->shape[0], &nats, &err))
    return kg_push_error(L, &err);
  lua_pushnumber(L, nats);
  return 1;
}

/* t:entropy() -> nats, of a row of probabilities */
static int entropy(lua_State *L)
{
  check_vector(L, "entropy");
  return look(L, KG_LOOK_REDUCE, 0, ask_entropy, 0);
}

typedef enum reduction { SUM, MIN, MAX } reduction;

static int ask_reduction(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  const reduction wanted = (reduction)context;
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  double sum = 0;
  float min = 0, max = 0;
  kg_error err;
  if (tensor->buffer->ops->reduce(tensor->buffer, tensor->at, kg_tensor_count(tensor), wanted == SUM ? &sum : NULL,
                                  wanted == MIN ? &min : NULL, wanted == MAX ? &max : NULL, &err))
    return kg_push_error(L, &err);
  lua_pushnumber(L, wanted == SUM ? sum : wanted == MIN ? (lua_Number)min : (lua_Number)max);
  return 1;
}

/* t:sum(), t:min(), t:max() -> number, over all elements */
static int tensor_sum(lua_State *L) { return look(L, KG_LOOK_REDUCE, 0, ask_reduction, SUM); }

static int tensor_min(lua_State *L) { return look(L, KG_LOOK_REDUCE, 0, ask_reduction, MIN); }

static int tensor_max(lua_State *L) { return look(L, KG_LOOK_REDUCE, 0, ask_reduction, MAX); }

/* Push the numbers of shape[0..n_dims) as nested tables. */
static const float *push_table(lua_State *L, const int64_t *dims, int n_dims, const float *x)
{
  luaL_checkstack(L, 3, "totable");
  lua_createtable(L, (int)dims[0], 0);
  for (int64_t i = 0; i < dims[0]; i++) {
    if (n_dims > 1)
      x = push_table(L, dims + 1, n_dims - 1, x);
    else
      lua_pushnumber(L, (lua_Number)*x++);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return x;
}

/* t:totable() -> numbers, nested as the shape says; small tensors only, loops over large ones belong in C */
static int totable(lua_State *L)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const int64_t n = kg_tensor_count(tensor);
  for (int i = 0; i < tensor->n_dims; i++)
    if (n > TABLE_MAX || tensor->shape[i] > TABLE_MAX)
      return kg_error_at(L, "totable: a tensor of %I numbers is above the limit of %d: use whole-tensor methods",
                        (lua_Integer)n, TABLE_MAX);
  float *numbers = lua_newuserdatauv(L, (size_t)n * sizeof *numbers + 1, 0);
  kg_error err;
  int64_t dims[KG_TENSOR_DIMS];
  tensor = kg_check_tensor(L, 1);
  const int n_dims = tensor->n_dims;
  memcpy(dims, tensor->shape, sizeof dims);
  if (kg_tensor_read(tensor, 0, n, numbers, &err)) return kg_push_error(L, &err);
  push_table(L, dims, n_dims, numbers);
  return 1;
}

/* t:bytes() -> raw little-endian float32 */
static int bytes(lua_State *L)
{
  const int64_t n = kg_tensor_count(kg_check_tensor(L, 1));
  luaL_Buffer buffer;
  kg_error err;
  float *out = (float *)luaL_buffinitsize(L, &buffer, (size_t)n * sizeof *out);
  if (kg_tensor_read(kg_check_tensor(L, 1), 0, n, out, &err)) return kg_push_error(L, &err);
  luaL_pushresultsize(&buffer, (size_t)n * sizeof *out);
  return 1;
}

/* ---- changing, in place ---- */

/* The operand at index 2: of the same shape, or one row that is used for every row. Sets how often it fits. */
static const kg_tensor *check_operand(lua_State *L, const kg_tensor *tensor, const char *method, int64_t *n_times)
{
  const kg_tensor *operand = kg_check_tensor(L, 2);
  bool same = operand->n_dims == tensor->n_dims;
  for (int i = 0; same && i < tensor->n_dims; i++) same = operand->shape[i] == tensor->shape[i];
  const int64_t width = tensor->shape[tensor->n_dims - 1];
  char text[KG_SHAPE_MAX], operand_text[KG_SHAPE_MAX];
  if (!same && (operand->n_dims != 1 || operand->shape[0] != width))
    kg_error_at(L, "%s: a tensor of shape %s does not fit one of shape %s", method, shape_text(operand, operand_text),
               shape_text(tensor, text));
  if (operand->buffer->ops != tensor->buffer->ops) kg_error_at(L, "%s: the tensors are on two devices", method);
  const int64_t n = kg_tensor_count(operand);
  *n_times = n ? kg_tensor_count(tensor) / n : 0;
  return operand;
}

/* Are there numbers of an operand that change before all that want them have read them? */
static bool changes_early(const kg_tensor *tensor, const kg_tensor *operand, int64_t n_times)
{
  const int64_t n = kg_tensor_count(operand), end = tensor->at + kg_tensor_count(tensor);
  if (operand->buffer != tensor->buffer || operand->at >= end || operand->at + n <= tensor->at) return false;
  return operand->at != tensor->at || n_times > 1;
}

/* x *= operand, or x += factor * operand; also where the operand is a part of x, it counts as it was before. */
static int combine(lua_State *L, const char *method, bool multiplies, float factor, kg_error *err)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  int64_t n_times;
  const kg_tensor *operand = check_operand(L, tensor, method, &n_times);
  kg_tensor *copy = NULL;
  int status = changes_early(tensor, operand, n_times) ? kg_tensor_like(operand, true, &copy, err) : KG_OK;
  if (copy) operand = copy;
  kg_buffer *x = tensor->buffer, *o = operand->buffer;
  const int64_t n = kg_tensor_count(operand);
  for (int64_t i = 0; !status && i < n_times; i++)
    status = multiplies ? x->ops->mul(x, tensor->at + i * n, o, operand->at, n, err)
                        : x->ops->add(x, tensor->at + i * n, o, operand->at, n, factor, err);
  kg_tensor_free(copy);
  return status;
}

/* t:mul_(number | tensor) */
static int mul_in_place(lua_State *L)
{
  kg_tensor *tensor = kg_check_tensor(L, 1);
  kg_error err;
  int status;
  if (is_tensor(L, 2)) {
    status = combine(L, "mul_", true, 1, &err);
  } else {
    const float factor = (float)kg_check_number(L, 2);
    status = tensor->buffer->ops->affine(tensor->buffer, tensor->at, kg_tensor_count(tensor), factor, 0, &err);
  }
  return finish_in_place(L, status, &err);
}

/* t:add_(number | tensor, factor): adds factor (1 unless given) times the operand */
static int add_in_place(lua_State *L)
{
  kg_tensor *tensor = kg_check_tensor(L, 1);
  kg_buffer *buffer = tensor->buffer;
  const float factor = (float)luaL_optnumber(L, 3, 1);
  kg_error err;
  int status;
  if (is_tensor(L, 2)) {
    status = combine(L, "add_", false, factor, &err);
  } else {
    const float offset = (float)kg_check_number(L, 2) * factor;
    status = buffer->ops->affine(buffer, tensor->at, kg_tensor_count(tensor), 1, offset, &err);
  }
  return finish_in_place(L, status, &err);
}

/* t:fill_(value), t:fill_(value, ids) */
static int fill_in_place(lua_State *L)
{
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const float value = (float)kg_check_number(L, 2);
  kg_error err;
  int status;
  if (lua_isnoneornil(L, 3)) {
    status = tensor->buffer->ops->fill(tensor->buffer, tensor->at, kg_tensor_count(tensor), value, &err);
  } else {
    check_vector(L, "fill_");
    size_t n;
    const int32_t *ids = kg_check_ids(L, 3, &n);
    tensor = kg_check_tensor(L, 1);
    status = tensor->buffer->ops->fill_at(tensor->buffer, tensor->at, tensor->shape[0], ids, (int64_t)n, value, &err);
  }
  return finish_in_place(L, status, &err);
}

/* ---- the handle ---- */

/* t[id] of one row is its number, of more a view of row id; other keys are methods */
static int get(lua_State *L)
{
  kg_check_handle(L, 1, KG_CLASS_TENSOR);
  if (lua_type(L, 2) != LUA_TNUMBER) {
    lua_pushvalue(L, 2);
    lua_rawget(L, lua_upvalueindex(1));
    return 1;
  }
  const kg_tensor *tensor = kg_check_tensor(L, 1);
  const int64_t i = check_index(L, tensor);
  if (tensor->n_dims > 1) return push_row(L, i);
  float value;
  kg_error err;
  if (kg_tensor_read(tensor, i, 1, &value, &err)) return kg_raise(L, &err);
  lua_pushnumber(L, (lua_Number)value);
  return 1;
}

/* t[id] = number */
static int set(lua_State *L)
{
  kg_tensor *tensor = kg_check_tensor(L, 1);
  const int64_t i = check_index(L, tensor);
  if (tensor->n_dims > 1) return kg_error_at(L, "a row cannot be assigned: use t[%I]:fill_ or add_", (lua_Integer)i);
  const float value = (float)kg_check_number(L, 3);
  kg_error err;
  if (tensor->buffer->ops->write(tensor->buffer, tensor->at + i, 1, &value, &err)) return kg_raise(L, &err);
  return 0;
}

static int length(lua_State *L)
{
  lua_pushinteger(L, kg_check_tensor(L, 1)->shape[0]);
  return 1;
}

static int close_tensor(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_TENSOR);
  kg_tensor_free(handle->object);
  handle->object = NULL;
  return 0;
}

static int to_string(lua_State *L)
{
  const kg_tensor *tensor = kg_check_handle(L, 1, KG_CLASS_TENSOR)->object;
  char text[KG_SHAPE_MAX];
  lua_pushfstring(L, KG_CLASS_TENSOR " %s", tensor ? shape_text(tensor, text) : "(closed)");
  return 1;
}

/* core.look{{kind, tensor, k}, ...}: find the answers to what company asks, together; what goes wrong is told to those
 * who ask again */
static int look_together(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  const size_t n = (size_t)lua_rawlen(L, 1);
  kg_look *looks = lua_newuserdatauv(L, n * sizeof *looks + 1, 0);
  const kg_tensor_ops *ops = NULL;
  size_t n_looks = 0;
  for (size_t i = 1; i <= n; i++) {
    lua_rawgeti(L, 1, (lua_Integer)i);
    lua_rawgeti(L, -1, 1);
    lua_rawgeti(L, -2, 2);
    lua_rawgeti(L, -3, 3);
    const kg_tensor *tensor =
        kg_check_handle(L, -2, KG_CLASS_TENSOR)->object; /* stays open: nothing is made from here on */
    if (tensor && tensor->buffer->ops->look && (!ops || tensor->buffer->ops == ops)) {
      ops = tensor->buffer->ops;
      looks[n_looks++] = (kg_look){(kg_look_kind)lua_tointeger(L, -3), tensor->buffer, tensor->at,
                                   kg_tensor_count(tensor), lua_tointeger(L, -1)};
    }
    lua_pop(L, 4);
  }
  kg_error err;
  if (n_looks) (void)ops->look(looks, n_looks, &err);
  return 0;
}

/* core.vector_digest(variant, bytes of float32) -> what the loops of that variant make of the numbers, as bytes; nil
 * where the processor does not run it. For tests: all variants must agree to the bit. */
static int vector_digest(lua_State *L)
{
  size_t n_bytes;
  const kg_vector *vector = kg_vector_find(kg_check_string(L, 1));
  const char *source = kg_check_lstring(L, 2, &n_bytes);
  if (!vector) return 0;
  const int64_t n = (int64_t)(n_bytes / sizeof(float));
  float *x = lua_newuserdatauv(L, 3 * n_bytes + 1, 0), *y = x + n, *z = y + n;
  memcpy(x, source, (size_t)n * sizeof *x);
  double sums[5] = {0};
  const float max = vector->max(x, n), min = vector->min(x, n);
  sums[0] = vector->sum(x, n);
  sums[1] = vector->exp_sum(x, n, max, y);
  uint64_t masses[5] = {0};
  if (!vector->count_nan(x, n) && max < INFINITY && max > -INFINITY) {
    float least;
    masses[0] = vector->weigh(x, n, max, kg_mass_scale(n), z, &masses[1]);
    masses[2] = (uint64_t)vector->count_finite(x, n, &least);
    const double range = (double)max - (double)least;
    if (range > 0) masses[3] = vector->spread(x, n, max, kg_spread_scale(range, n), &masses[4]);
  }
  vector->entropy_sums(y, n, &sums[2], &sums[3]);
  sums[4] = (double)(vector->find(x, n, min) + vector->find_above(x, n, (float)sums[0] / (float)(n + 1)) +
                     vector->count_nan(x, n));
  vector->fill(z, n, 0.25f);
  vector->add(z, x, n, 1.75f);
  vector->mul(z, x, n);
  vector->affine(z, n, 0.3f, -0.7f);
  vector->affine(z, n, 1.1f, 0);
  vector->divide(z, n, 3);
  luaL_Buffer digest;
  luaL_buffinit(L, &digest);
  luaL_addlstring(&digest, (const char *)&max, sizeof max);
  luaL_addlstring(&digest, (const char *)&min, sizeof min);
  luaL_addlstring(&digest, (const char *)sums, sizeof sums);
  luaL_addlstring(&digest, (const char *)masses, sizeof masses);
  luaL_addlstring(&digest, (const char *)y, 2 * (size_t)n * sizeof *y);
  luaL_pushresult(&digest);
  return 1;
}

void kg_bind_tensor(lua_State *L)
{
  static const luaL_Reg methods[] = {{"shape", shape},     {"argmax", argmax},           {"topk", topk},
                                     {"softmax", softmax}, {"log_softmax", log_softmax}, {"entropy", entropy},
                                     {"sum", tensor_sum},  {"min", tensor_min},          {"max", tensor_max},
                                     {"mul_", mul_in_place}, {"add_", add_in_place},     {"fill_", fill_in_place},
                                     {"clone", clone},     {"totable", totable},         {"row", row},
                                     {"rows", rows},       {"bytes", bytes},             {"close", close_tensor},
                                     {NULL, NULL}};
  static const luaL_Reg metamethods[] = {{"__index", get},          {"__newindex", set},         {"__len", length},
                                         {"__gc", close_tensor},    {"__close", close_tensor},
                                         {"__tostring", to_string}, {NULL, NULL}};
  kg_class(L, KG_CLASS_TENSOR, methods, metamethods);
  static const luaL_Reg functions[] = {{"tensor", tensor_new},           {"zeros", zeros},
                                       {"vector_digest", vector_digest}, {"look", look_together},
                                       {"set_company", kg_set_company},  {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
