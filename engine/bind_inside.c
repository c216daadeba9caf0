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

/* The values of the names at index 2, of the sequence at index 1; their ids in userdata that is left on the stack. */
static int32_t *check_values(lua_State *L, size_t *n)
{
  kg_check_type(L, 2, LUA_TTABLE);
  *n = (size_t)lua_rawlen(L, 2);
  int32_t *values = lua_newuserdatauv(L, *n * sizeof *values + 1, 0);
  const kg_plan *plan = kg_model_plan(kg_sequence_model(kg_check_sequence(L, 1)));
  for (size_t i = 0; i < *n; i++) {
    if (lua_rawgeti(L, 2, (lua_Integer)i + 1) != LUA_TSTRING) kg_error_at(L, "names: strings expected");
    values[i] = kg_plan_value_find(plan, lua_tostring(L, -1));
    if (values[i] == KG_NONE) kg_error_at(L, "the model has no value \"%s\"", lua_tostring(L, -1));
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
 * of these values; x [rows, width] may be changed in place, and kept. lua/kigo/sequence.lua takes patterns, too. */
static int hook_sequence(lua_State *L)
{
  kg_check_sequence(L, 1);
  kg_check_type(L, 3, LUA_TFUNCTION);
  lua_settop(L, 3);
  size_t n;
  const int32_t *values = check_values(L, &n);
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
    return kg_error_at(L, "%s cannot be closed in the middle of a step", CLASS_HOOK);
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

static int push_text(lua_State *L)
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

static int hook_to_string(lua_State *L)
{
  kg_check_handle(L, 1, CLASS_HOOK);
  return kg_call_at_rest(L, push_text);
}

/* ---- residual and weights ---- */

static kg_model *check_model(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_MODEL);
}

/* model:unembed(x) -> logits [vocab] of a row, [rows, vocab] of rows, or nil, message, code: the model's last norm and
 * its head, as a pass applies them */
static int unembed(lua_State *L)
{
  kg_error err;
  const int64_t vocab = kg_model_vocab_size(check_model(L, 1));
  const kg_tensor *x = kg_check_tensor(L, 2);
  const bool is_row = x->n_dims == 1;
  const int64_t dims[2] = {x->shape[0], vocab};
  if (!is_row) kg_count_garbage(L, x->shape[0] * vocab, 0); /* no more than a pass would hold */
  kg_tensor **logits = kg_push_tensor(L);
  kg_model *model = check_model(L, 1);
  x = kg_check_tensor(L, 2);
  int status = kg_model_tensor(model, is_row ? 1 : 2, is_row ? &vocab : dims, logits, &err);
  if (!status) status = kg_model_unembed(model, x, *logits, &err);
  return status ? kg_push_error(L, &err) : 1;
}

/* tensor:to(model) -> a copy on the model's device; tensor:to() -> on the host */
static int tensor_to(lua_State *L)
{
  kg_error err;
  lua_settop(L, 2);
  kg_count_garbage(L, kg_tensor_count(kg_check_tensor(L, 1)), 0);
  kg_tensor **made = kg_push_tensor(L);
  const kg_tensor *from = kg_check_tensor(L, 1);
  int status = lua_isnil(L, 2) ? kg_tensor_new(from->n_dims, from->shape, made, &err)
                               : kg_model_tensor(check_model(L, 2), from->n_dims, from->shape, made, &err);
  if (!status) status = kg_tensor_transfer(*made, from, &err);
  return status ? kg_push_error(L, &err) : 1;
}

/* The tensor of the model's file that is named at index 2. */
static const kg_gguf_tensor *check_weight(lua_State *L)
{
  const char *name = kg_check_string(L, 2);
  const kg_gguf_tensor *tensor = kg_gguf_tensor_find(kg_plan_gguf(kg_model_plan(check_model(L, 1))), name);
  if (!tensor) kg_error_at(L, "the model's file has no tensor \"%s\"", name);
  return tensor;
}

/* model:tensor(name, first = 0, count = all) -> Tensor on the model's device, or nil, message, code: numbers of the
 * model's file, dequantized; of a matrix rows [first, first + count), counted over all planes */
static int model_tensor(lua_State *L)
{
  kg_error err;
  lua_settop(L, 4);
  const kg_gguf_tensor *source = check_weight(L);
  const bool is_whole = lua_isnil(L, 3) && lua_isnil(L, 4);
  const int n_dims = is_whole ? source->n_dims : 2;
  int64_t dims[KG_TENSOR_DIMS], n_rows = 1;
  for (int i = 0; i < source->n_dims; i++) dims[i] = source->dims[source->n_dims - 1 - i];
  for (int i = 1; i < source->n_dims; i++) n_rows *= source->dims[i]; /* they are in the file: no overflow */
  if (!is_whole && source->n_dims == 1) return kg_error_at(L, "tensor %s has one row", source->name);
  const int64_t first = lua_isnil(L, 3) ? 0 : kg_check_int(L, 3, "first", 0, n_rows);
  const int64_t count = lua_isnil(L, 4) ? n_rows - first : kg_check_int(L, 4, "count", 0, n_rows - first);
  if (!is_whole) {
    dims[0] = count;
    dims[1] = source->dims[0];
  }
  kg_count_garbage(L, count * source->dims[0], 0);
  kg_tensor **made = kg_push_tensor(L);
  source = check_weight(L);
  int status = kg_model_tensor(check_model(L, 1), n_dims, dims, made, &err);
  if (!status) status = kg_model_read_tensor(check_model(L, 1), source, first, count, (*made)->buffer, &err);
  return status ? kg_push_error(L, &err) : 1;
}

static void push_name(lua_State *L, const kg_plan *plan, int32_t value)
{
  if (value == KG_NONE)
    lua_pushnil(L);
  else
    lua_pushstring(L, kg_plan_value(plan, value)->name);
}

static int push_residual(lua_State *L)
{
  const kg_plan *plan = kg_model_plan(check_model(L, 1));
  push_name(L, plan, kg_plan_residual(plan));
  push_name(L, plan, kg_plan_hidden(plan));
  return 2;
}

/* model:residual() -> name of the value that model:unembed takes, and of the same behind the last norm; nil where the
 * plan has none */
static int residual(lua_State *L)
{
  check_model(L, 1);
  return kg_call_at_rest(L, push_residual);
}

/* model:zeros(n, m...) -> Tensor on the model's device */
static int model_zeros(lua_State *L)
{
  kg_error err;
  const int n_dims = lua_gettop(L) - 1;
  luaL_argcheck(L, n_dims >= 1 && n_dims <= KG_TENSOR_DIMS, 2, "1 to 4 sizes expected");
  int64_t dims[KG_TENSOR_DIMS], count = 1;
  for (int i = 0; i < n_dims; i++) {
    dims[i] = kg_check_int(L, i + 2, "size", 0, INT32_MAX);
    if (__builtin_mul_overflow(count, dims[i], &count) || count > INT64_MAX / 16)
      return kg_error_at(L, "zeros: the product of the sizes is too large");
  }
  kg_count_garbage(L, count, 0);
  kg_tensor **made = kg_push_tensor(L);
  return kg_model_tensor(check_model(L, 1), n_dims, dims, made, &err) ? kg_push_error(L, &err) : 1;
}

/* The plan's last value comes without tracing, which is slower: rows of the items one after the other to the buffer. */
static void want_all_logits(const kg_model *model, kg_step_item *items, size_t n, kg_buffer *buffer)
{
  int64_t at = 0;
  for (size_t i = 0; i < n; i++) {
    const int32_t pending = kg_sequence_pending(items[i].sequence);
    items[i].all_logits = buffer;
    items[i].from = kg_sequence_pos(items[i].sequence) - pending;
    items[i].at = at * kg_model_vocab_size(model); /* bounded: it has room for them */
    at += pending;
  }
}

/* model:trace_rows(sequences, name) -> Tensor [rows, width], or nil, message, code: a value of all tokens that the
 * sequences wait for, sequence after sequence, in shared passes */
static int trace_rows(lua_State *L)
{
  kg_error err;
  check_model(L, 1);
  kg_check_type(L, 2, LUA_TTABLE);
  lua_settop(L, 3);
  const char *name = kg_check_string(L, 3);
  const lua_Unsigned n = lua_rawlen(L, 2);
  if (n > INT32_MAX / 16) return kg_error_at(L, "sequences: %I are too many", (lua_Integer)n);
  luaL_checkstack(L, (int)n + 16, "too many sequences");
  kg_tensor **made = kg_push_tensor(L);
  kg_step_item *items = lua_newuserdatauv(L, (size_t)n * sizeof *items + 1, 0);
  int64_t n_rows = 0;
  for (lua_Unsigned i = 0; i < n; i++) { /* they stay on the stack: a progress function may empty the table */
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    items[i] = (kg_step_item){.sequence = kg_check_sequence(L, -1)};
    n_rows += kg_sequence_pending(items[i].sequence);
  }
  kg_model *model = check_model(L, 1);
  kg_step_trace trace = {.value = kg_plan_value_find(kg_model_plan(model), name)};
  if (trace.value == KG_NONE) return kg_error_at(L, "the model has no value \"%s\"", name);
  const int64_t dims[2] = {n_rows, kg_plan_value(kg_model_plan(model), trace.value)->width};
  int status = kg_model_tensor(model, 2, dims, made, &err);
  if (status) return kg_push_error(L, &err);
  trace.buffer = (*made)->buffer;
  const bool is_last = trace.value == kg_plan_logits(kg_model_plan(model));
  if (is_last) want_all_logits(model, items, (size_t)n, trace.buffer);
  kg_begin_step(L, 1);
  status = kg_step_items(model, items, (size_t)n, &trace, !is_last, &err);
  kg_end_step(L, 1);
  if (status) return kg_push_error(L, &err);
  lua_pushvalue(L, 4); /* the tensor, below items and sequences */
  return 1;
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
  kg_extend_class(L, KG_CLASS_SEQUENCE, of_sequences);
  kg_extend_class(L, KG_CLASS_MODEL, of_models);
  kg_extend_class(L, KG_CLASS_TENSOR, of_tensors);
  lua_newtable(L);
  lua_newtable(L);
  lua_pushliteral(L, "v");
  lua_setfield(L, -2, "__mode");
  lua_setmetatable(L, -2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &hooks_key);
}
