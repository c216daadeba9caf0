/* bind_inside.c - looking into a model: hooks (kigo.Hook), the way from the residual to the logits, weights as tensors.
 * A hook stands among the keys of its sequence's table of hooks until it is closed or the sequence goes, whoever else
 * still knows it; it knows its sequence and its function by user values. */
#include "bind.h"

#include <string.h>

#include "error.h"
#include "hook.h"
#include "step.h"

#define CLASS_HOOK "kigo.Hook"

enum { SEQUENCE = 1, FUNCTION, N_USER_VALUES = FUNCTION };

typedef struct hook_box {
  kg_handle handle;
  void *model; /* the userdata */
} hook_box;

/* ---- calling ---- */

/* Registry key of the weak table from hook_box to its userdata. */
static const char hooks_key = 0;

typedef struct hook_call {
  hook_box *box;
  int32_t pos;
  const kg_tensor *rows;
  const char *name;
} hook_call;

/* f(x, seq, pos, name) */
static int call_function(lua_State *L)
{
  const hook_call *call = lua_touserdata(L, 1);
  kg_error err;
  lua_settop(L, 0);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &hooks_key);
  lua_rawgetp(L, 1, call->box);
  lua_getiuservalue(L, 2, FUNCTION);
  const kg_tensor *rows = call->rows;
  if (kg_tensor_view(rows->buffer, rows->at, rows->n_dims, rows->shape, kg_push_tensor(L), &err))
    return kg_raise(L, &err);
  lua_getiuservalue(L, 2, SEQUENCE);
  lua_pushinteger(L, call->pos);
  lua_pushstring(L, call->name);
  lua_call(L, 4, 0);
  return 0;
}

static int on_hook(void *user, int32_t value, int32_t pos, const kg_tensor *rows, kg_error *err)
{
  hook_box *box = user;
  const kg_hook *hook = box->handle.object;
  const kg_plan *plan = kg_model_plan(kg_sequence_model(hook->sequence));
  hook_call call = {.box = box, .pos = pos, .rows = rows, .name = kg_plan_value(plan, value)->name};
  if (kg_call_in_step(box->model, call_function, &call)) return KG_OK;
  return kg_fail(err, KG_ERR_CANCELLED, "a hook of %s failed", call.name);
}

/* ---- making and closing ---- */

static int32_t *check_values(lua_State *L, int index, const kg_plan *plan, size_t *n)
{
  luaL_checktype(L, index, LUA_TTABLE);
  *n = (size_t)lua_rawlen(L, index);
  int32_t *values = lua_newuserdatauv(L, *n * sizeof *values + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    if (lua_rawgeti(L, index, (lua_Integer)i + 1) != LUA_TSTRING) luaL_error(L, "names: strings expected");
    values[i] = kg_plan_value_find(plan, lua_tostring(L, -1));
    if (values[i] == KG_NONE) luaL_error(L, "the model has no value \"%s\"", lua_tostring(L, -1));
    lua_pop(L, 1);
  }
  return values;
}

/* Make the hook on top of the stack one of the sequence at index 1, and findable. */
static void keep_hook(lua_State *L, const hook_box *box)
{
  const int hook = lua_gettop(L);
  if (lua_getiuservalue(L, 1, KG_SEQUENCE_HOOKS) == LUA_TNIL) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, 1, KG_SEQUENCE_HOOKS);
    lua_replace(L, hook + 1);
  }
  lua_pushvalue(L, hook);
  lua_pushboolean(L, 1);
  lua_rawset(L, hook + 1);
  lua_rawgetp(L, LUA_REGISTRYINDEX, &hooks_key);
  lua_pushvalue(L, hook);
  lua_rawsetp(L, -2, box);
  lua_settop(L, hook);
}

/* seq:hook(names, f) -> Hook, or nil, message, code: f(x, seq, pos, name) in every step of the sequence, for the rows
 * of these values; x [rows, width] may be changed in place, and kept. lua/kigo/sequence.lua takes patterns for names. */
static int hook_sequence(lua_State *L)
{
  kg_check_sequence(L, 1);
  luaL_checktype(L, 3, LUA_TFUNCTION);
  lua_settop(L, 3);
  size_t n;
  const int32_t *values = check_values(L, 2, kg_model_plan(kg_sequence_model(kg_check_sequence(L, 1))), &n);
  hook_box *box = lua_newuserdatauv(L, sizeof *box, N_USER_VALUES);
  *box = (hook_box){.model = NULL};
  luaL_setmetatable(L, CLASS_HOOK);
  lua_getfield(L, 1, "model");
  box->model = lua_touserdata(L, -1); /* alive as long as the sequence */
  lua_pop(L, 1);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, SEQUENCE);
  lua_pushvalue(L, 3);
  lua_setiuservalue(L, -2, FUNCTION);
  keep_hook(L, box);
  kg_hook *hook = NULL;
  kg_error err;
  if (kg_sequence_hook(kg_check_sequence(L, 1), values, n, on_hook, box, &hook, &err)) return kg_push_error(L, &err);
  box->handle.object = hook;
  return 1;
}

static int collect_hook(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, CLASS_HOOK);
  kg_hook_free(handle->object);
  handle->object = NULL;
  return 0;
}

/* hook:close(): steps from now on go without it */
static int close_hook(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, CLASS_HOOK);
  const kg_hook *hook = handle->object;
  if (hook && hook->sequence && kg_model_is_stepping(kg_sequence_model(hook->sequence)))
    return luaL_error(L, "%s cannot be closed in the middle of a step", CLASS_HOOK);
  lua_getiuservalue(L, 1, SEQUENCE);
  if (!lua_isnil(L, -1) && lua_getiuservalue(L, -1, KG_SEQUENCE_HOOKS) == LUA_TTABLE) {
    lua_pushvalue(L, 1);
    lua_pushnil(L);
    lua_rawset(L, -3);
  }
  for (int i = SEQUENCE; i <= FUNCTION; i++) {
    lua_pushnil(L);
    lua_setiuservalue(L, 1, i);
  }
  return collect_hook(L);
}

static int hook_to_string(lua_State *L)
{
  const kg_hook *hook = kg_check_handle(L, 1, CLASS_HOOK)->object;
  if (!hook)
    lua_pushliteral(L, CLASS_HOOK " (closed)");
  else if (!hook->sequence)
    lua_pushliteral(L, CLASS_HOOK " (of a closed sequence)");
  else
    lua_pushfstring(L, "%s (%d values from %s on)", CLASS_HOOK, (int)hook->n_values,
                    kg_plan_value(kg_model_plan(kg_sequence_model(hook->sequence)), hook->values[0])->name);
  return 1;
}

/* ---- residual and weights ---- */

static kg_model *check_model(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_MODEL);
}

/* Push a zeroed tensor on the model's device. */
static int push_on_device(lua_State *L, kg_model *model, int n_dims, const int64_t *dims, kg_tensor **out, kg_error *err)
{
  kg_tensor **slot = kg_push_tensor(L);
  kg_buffer *buffer = NULL;
  int64_t count = 1;
  for (int i = 0; i < n_dims; i++)
    if (__builtin_mul_overflow(count, dims[i], &count) || count > INT64_MAX / 8)
      return kg_fail(err, KG_ERR_MEMORY, "out of memory: %lld rows", (long long)dims[0]);
  kg_count_garbage(L, count);
  int status = kg_model_backend(model)->buffer_new(kg_model_executable(model), count, &buffer, err);
  if (!status) status = kg_tensor_view(buffer, 0, n_dims, dims, slot, err);
  kg_buffer_unref(buffer); /* the tensor holds it now */
  if (!status) *out = *slot;
  return status;
}

static const kg_tensor_ops *ops_of(kg_model *model, kg_error *err)
{
  kg_buffer *buffer;
  if (kg_model_backend(model)->buffer_new(kg_model_executable(model), 1, &buffer, err)) return NULL;
  const kg_tensor_ops *ops = buffer->ops;
  kg_buffer_unref(buffer);
  return ops;
}

/* model:unembed(x) -> logits [vocab] of a row, [rows, vocab] of rows, or nil, message, code: the model's last norm and
 * its head, as a pass applies them */
static int unembed(lua_State *L)
{
  kg_error err;
  kg_model *model = check_model(L, 1);
  const kg_tensor *x = kg_check_tensor(L, 2);
  const kg_tensor_ops *ops = ops_of(model, &err);
  if (!ops) return kg_push_error(L, &err);
  if (x->buffer->ops != ops) return luaL_error(L, "unembed: the tensor is not on the model's device: x:to(model)");
  const int64_t vocab = kg_model_vocab_size(model), dims[2] = {x->shape[0], vocab};
  kg_tensor *logits = NULL;
  const bool is_row = x->n_dims == 1;
  int status = push_on_device(L, model, is_row ? 1 : 2, is_row ? &vocab : dims, &logits, &err);
  if (!status) status = kg_model_unembed(check_model(L, 1), kg_check_tensor(L, 2), logits, &err);
  return status ? kg_push_error(L, &err) : 1;
}

/* tensor:to(model) -> a copy on the model's device; tensor:to() -> on the host */
static int tensor_to(lua_State *L)
{
  kg_error err;
  int64_t dims[KG_TENSOR_DIMS];
  lua_settop(L, 2);
  const kg_tensor *from = kg_check_tensor(L, 1);
  const int n_dims = from->n_dims;
  const int64_t count = kg_tensor_count(from);
  memcpy(dims, from->shape, sizeof dims);
  kg_tensor *to = NULL;
  int status = KG_OK;
  if (lua_isnil(L, 2)) {
    kg_count_garbage(L, count);
    kg_tensor **slot = kg_push_tensor(L);
    status = kg_tensor_new(n_dims, dims, slot, &err);
    to = *slot;
  } else
    status = push_on_device(L, check_model(L, 2), n_dims, dims, &to, &err);
  if (status) return kg_push_error(L, &err);
  status = kg_tensor_transfer(to, kg_check_tensor(L, 1), &err);
  return status ? kg_push_error(L, &err) : 1;
}

/* model:tensor(name, first = 0, count = all) -> Tensor on the model's device, or nil, message, code: numbers of the
 * model's file, dequantized; of a matrix rows [first, first + count), counted over all planes */
static int model_tensor(lua_State *L)
{
  kg_error err;
  kg_model *model = check_model(L, 1);
  const kg_gguf *gguf = kg_plan_gguf(kg_model_plan(model));
  const char *name = luaL_checkstring(L, 2);
  const kg_gguf_tensor *source = kg_gguf_tensor_find(gguf, name);
  if (!source) return luaL_error(L, "the model's file has no tensor \"%s\"", name);
  lua_settop(L, 4);
  const bool is_whole = lua_isnil(L, 3) && lua_isnil(L, 4);
  int64_t dims[KG_TENSOR_DIMS], n_rows = 1;
  for (int i = 0; i < source->n_dims; i++) dims[i] = source->dims[source->n_dims - 1 - i];
  for (int i = 1; i < source->n_dims; i++) n_rows *= source->dims[i]; /* they are in the file: no overflow */
  if (!is_whole && source->n_dims == 1) return luaL_error(L, "tensor %s has one row", name);
  const int64_t first = lua_isnil(L, 3) ? 0 : kg_check_int(L, 3, "first", 0, n_rows);
  const int64_t count = lua_isnil(L, 4) ? n_rows - first : kg_check_int(L, 4, "count", 0, n_rows - first);
  const int64_t some[2] = {count, source->dims[0]};
  kg_tensor *made = NULL;
  int status = push_on_device(L, model, is_whole ? source->n_dims : 2, is_whole ? dims : some, &made, &err);
  if (!status) status = kg_model_read_tensor(check_model(L, 1), source, first, count, made->buffer, &err);
  return status ? kg_push_error(L, &err) : 1;
}

static int push_name(lua_State *L, const kg_plan *plan, int32_t value)
{
  if (value == KG_NONE)
    lua_pushnil(L);
  else
    lua_pushstring(L, kg_plan_value(plan, value)->name);
  return 1;
}

/* model:residual() -> name of the value that model:unembed takes, and of the same behind the last norm; nil where the
 * plan has none */
static int residual(lua_State *L)
{
  const kg_plan *plan = kg_model_plan(check_model(L, 1));
  push_name(L, plan, kg_plan_residual(plan));
  push_name(L, plan, kg_plan_hidden(plan));
  return 2;
}

/* model:zeros(n, m...) -> Tensor on the model's device */
static int model_zeros(lua_State *L)
{
  kg_error err;
  const int n_dims = lua_gettop(L) - 1;
  luaL_argcheck(L, n_dims >= 1 && n_dims <= KG_TENSOR_DIMS, 2, "1 to 4 sizes expected");
  int64_t dims[KG_TENSOR_DIMS];
  for (int i = 0; i < n_dims; i++) dims[i] = kg_check_int(L, i + 2, "size", 0, INT32_MAX);
  kg_tensor *made;
  return push_on_device(L, check_model(L, 1), n_dims, dims, &made, &err) ? kg_push_error(L, &err) : 1;
}

/* model:trace_rows(sequences, name) -> Tensor [rows, width], or nil, message, code: a value of all tokens that the
 * sequences wait for, sequence after sequence, in shared passes */
static int trace_rows(lua_State *L)
{
  kg_error err;
  check_model(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 3);
  const lua_Unsigned n = lua_rawlen(L, 2);
  if (n > INT32_MAX / 16) return luaL_error(L, "sequences: %I are too many", (lua_Integer)n);
  luaL_checkstack(L, (int)n + 8, "too many sequences");
  kg_step_item *items = lua_newuserdatauv(L, (size_t)n * sizeof *items + 1, 0);
  int64_t n_rows = 0;
  for (lua_Unsigned i = 0; i < n; i++) { /* they stay on the stack: a progress function may empty the table */
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    items[i] = (kg_step_item){.sequence = kg_check_sequence(L, -1)};
    n_rows += kg_sequence_pending(items[i].sequence);
  }
  kg_model *model = check_model(L, 1);
  const kg_plan *plan = kg_model_plan(model);
  kg_step_trace trace = {.value = kg_plan_value_find(plan, luaL_checkstring(L, 3))};
  if (trace.value == KG_NONE) return luaL_error(L, "the model has no value \"%s\"", lua_tostring(L, 3));
  const int64_t dims[2] = {n_rows, kg_plan_value(plan, trace.value)->width};
  kg_tensor *rows = NULL;
  int status = push_on_device(L, model, 2, dims, &rows, &err);
  if (status) return kg_push_error(L, &err);
  trace.buffer = rows->buffer;
  kg_begin_step(L, 1);
  status = kg_step_items(check_model(L, 1), items, (size_t)n, &trace, 1, &err);
  kg_end_step(L, 1);
  return status ? kg_push_error(L, &err) : 1;
}

static void add_methods(lua_State *L, const char *class, const luaL_Reg *methods)
{
  luaL_getsubtable(L, LUA_REGISTRYINDEX, "kigo.classes");
  lua_getfield(L, -1, class);
  luaL_setfuncs(L, methods, 0);
  lua_pop(L, 2);
}

/* After the classes that it adds to. */
void kg_bind_inside(lua_State *L)
{
  static const luaL_Reg methods[] = {{"close", close_hook}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__gc", collect_hook}, {"__close", close_hook}, {"__tostring", hook_to_string}, {NULL, NULL}};
  static const luaL_Reg of_sequences[] = {{"hook", hook_sequence}, {NULL, NULL}};
  static const luaL_Reg of_models[] = {
      {"unembed", unembed}, {"tensor", model_tensor}, {"residual", residual},
      {"zeros", model_zeros}, {"trace_rows", trace_rows}, {NULL, NULL}};
  static const luaL_Reg of_tensors[] = {{"to", tensor_to}, {NULL, NULL}};
  kg_class(L, CLASS_HOOK, methods, metamethods);
  add_methods(L, "Sequence", of_sequences);
  add_methods(L, "Model", of_models);
  add_methods(L, "Tensor", of_tensors);
  lua_newtable(L);
  lua_newtable(L);
  lua_pushliteral(L, "v");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &hooks_key);
}
