/* bind_evidence.c - methods of kigo.Model that ask its device and the driver. */
#include "bind.h"

#include "alloc.h"
#include "evidence.h"
#include "step.h"

static kg_model *check_model(lua_State *L) { return kg_check_open(L, 1, KG_CLASS_MODEL); }

/* Unknown bytes are absent. */
static void set_bytes(lua_State *L, const char *field, int64_t value)
{
  if (value != KG_UNKNOWN) kg_set_integer(L, field, value);
}

/* model:device_info() -> { index, total, in_use, managed_in_use, process_in_use, note, most_bytes_per_s }, or nil,
 * message, code */
static int device_info(lua_State *L)
{
  kg_device_info info;
  kg_error err;
  if (kg_model_device_info(check_model(L), &info, &err)) return kg_push_error(L, &err);
  lua_newtable(L);
  kg_set_integer(L, "index", info.index);
  kg_set_integer(L, "total", info.total);
  kg_set_integer(L, "in_use", info.in_use);
  set_bytes(L, "managed_in_use", info.managed_in_use);
  set_bytes(L, "process_in_use", info.process_in_use);
  kg_set_string(L, "note", info.note);
  kg_set_number(L, "most_bytes_per_s", info.most_bytes_per_s);
  return 1;
}

/* model:device_rates() -> { copy_bytes_per_s, tensor_flops, tensor_note }, or nil, message, code */
static int device_rates(lua_State *L)
{
  kg_device_rates rates;
  kg_error err;
  if (kg_model_device_rates(check_model(L), &rates, &err)) return kg_push_error(L, &err);
  lua_newtable(L);
  kg_set_number(L, "copy_bytes_per_s", rates.copy_bytes_per_s);
  kg_set_number(L, "tensor_flops", rates.tensor_flops);
  kg_set_string(L, "tensor_note", rates.tensor_note);
  return 1;
}

/* model:set_timing(on) -> true, or nil, message, code */
static int set_timing(lua_State *L)
{
  kg_error err;
  if (kg_model_set_timing(check_model(L), lua_toboolean(L, 2), &err)) return kg_push_error(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

static void set_sum(lua_State *L, const char *field, uint64_t sum)
{
  char hex[17];
  for (int i = 0; i < 16; i++) hex[i] = "0123456789abcdef"[sum >> (60 - 4 * i) & 15];
  hex[16] = 0;
  kg_set_string(L, field, hex);
}

/* model:check_weights() -> { n_weights, n_bytes, device_sum, file_sum, differs = name or nil }, or nil, message, code
 */
static int check_weights(lua_State *L)
{
  kg_weights_check check;
  kg_error err;
  kg_model *model = check_model(L);
  if (kg_model_check_weights(model, &check, &err)) return kg_push_error(L, &err);
  const char *differs = check.differs == KG_NONE ? NULL : kg_plan_weight_at(kg_model_plan(model), check.differs)->name;
  lua_pushstring(L, differs); /* nil for none; now, as making values may run finalizers */
  lua_newtable(L);
  lua_insert(L, -2);
  lua_setfield(L, -2, "differs");
  kg_set_integer(L, "n_weights", check.n_weights);
  kg_set_integer(L, "n_bytes", check.n_bytes);
  set_sum(L, "device_sum", check.device_sum);
  set_sum(L, "file_sum", check.file_sum);
  return 1;
}

/* model:profile(sequences) -> { { name, count, bytes, expert_bytes, seconds }, ... }, or nil, message, code. What the
 * sequences' pending tokens would take, stage by stage; they stay pending. */
static int profile(lua_State *L)
{
  kg_model *model = check_model(L);
  kg_check_type(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  const lua_Integer n = (lua_Integer)lua_rawlen(L, 2);
  if (n > INT32_MAX / 16) return kg_error_at(L, "sequences: %I are too many", n);
  kg_step_item *items = lua_newuserdatauv(L, (size_t)n * sizeof *items + 1, 0);
  kg_profile *out = lua_newuserdatauv(L, sizeof *out, 0);
  luaL_checkstack(L, (int)n + 8, "too many sequences");
  for (lua_Integer i = 0; i < n; i++) { /* they stay on the stack */
    lua_rawgeti(L, 2, i + 1);
    items[i] = (kg_step_item){.sequence = kg_check_sequence(L, -1)};
  }
  kg_error err;
  if (kg_step_profile(model, items, (size_t)n, out, &err)) return kg_push_error(L, &err);
  lua_createtable(L, out->n, 0);
  for (int32_t i = 0; i < out->n; i++) {
    lua_newtable(L);
    kg_set_string(L, "name", out->stages[i].name);
    kg_set_integer(L, "count", out->stages[i].count);
    kg_set_number(L, "bytes", out->stages[i].bytes);
    kg_set_number(L, "expert_bytes", out->stages[i].expert_bytes);
    kg_set_number(L, "seconds", out->stages[i].seconds);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* model:flip_weight(name, at, mask) -> true, or nil, message, code: damage one byte of a packed weight, for tests */
static int flip_weight(lua_State *L)
{
  kg_error err;
  const char *name = kg_check_string(L, 2);
  const size_t at = (size_t)kg_check_int(L, 3, "at", 0, INT64_MAX);
  const unsigned char mask = (unsigned char)kg_check_int(L, 4, "mask", 0, 255);
  if (kg_model_flip_weight(check_model(L), name, at, mask, &err)) return kg_push_error(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* After kg_bind_model: the class is there. */
void kg_bind_evidence(lua_State *L)
{
  static const luaL_Reg methods[] = {{"device_info", device_info},
                                     {"device_rates", device_rates},
                                     {"set_timing", set_timing},
                                     {"check_weights", check_weights},
                                     {"profile", profile},
                                     {"flip_weight", flip_weight},
                                     {NULL, NULL}};
  kg_extend_class(L, KG_CLASS_MODEL, methods);
}
