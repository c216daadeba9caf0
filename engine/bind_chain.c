/* bind_chain.c - kigo.Chain: a callable sampler made of tables that describe its stages. */
#include <string.h>

#include "bind.h"
#include "sampler.h"

/* ---- stage tables ---- */

/* Which fields a kind knows; the chain itself checks the ranges. */
typedef struct stage_kind {
  const char *name;
  int kind; /* -1: dist, which only says what happens anyway */
  const char *fields[5];
} stage_kind;

static const stage_kind stage_kinds[] = {
    {"greedy", KG_STAGE_GREEDY, {NULL}},
    {"temp", KG_STAGE_TEMPERATURE, {"value", NULL}},
    {"top_k", KG_STAGE_TOP_K, {"k", NULL}},
    {"top_p", KG_STAGE_TOP_P, {"value", NULL}},
    {"min_p", KG_STAGE_MIN_P, {"value", NULL}},
    {"typical", KG_STAGE_TYPICAL, {"value", NULL}},
    {"penalties", KG_STAGE_PENALTIES, {"last", "repeat", "frequency", "presence", NULL}},
    {"bias", KG_STAGE_BIAS, {"values", NULL}},
    {"dist", -1, {NULL}},
};

/* For messages: "stage 2 (top_k)". */
typedef struct place {
  lua_Integer number;
  const stage_kind *kind;
} place;

static const stage_kind *check_kind(lua_State *L, int index, lua_Integer number)
{
  if (!lua_istable(L, index)) luaL_error(L, "stage %I: table expected, got %s", number, luaL_typename(L, index));
  if (lua_getfield(L, index, "kind") != LUA_TSTRING)
    luaL_error(L, "stage %I: kind: string expected, got %s", number, luaL_typename(L, -1));
  const char *name = lua_tostring(L, -1);
  for (size_t i = 0; i < sizeof stage_kinds / sizeof stage_kinds[0]; i++) {
    if (strcmp(name, stage_kinds[i].name)) continue;
    lua_pop(L, 1);
    return &stage_kinds[i];
  }
  luaL_error(L, "stage %I: kind '%s' is unknown", number, name);
  return NULL;
}

static bool has_field(const stage_kind *kind, const char *name)
{
  for (int i = 0; kind->fields[i]; i++)
    if (!strcmp(name, kind->fields[i])) return true;
  return false;
}

static void refuse_unknown_fields(lua_State *L, int index, place at)
{
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING)
      luaL_error(L, "stage %I (%s): field '%s' is unknown", at.number, at.kind->name, luaL_tolstring(L, -2, NULL));
    const char *name = lua_tostring(L, -2);
    if (strcmp(name, "kind") && !has_field(at.kind, name))
      luaL_error(L, "stage %I (%s): field '%s' is unknown", at.number, at.kind->name, name);
  }
}

/* A number of the stage. Without a fallback (NULL) the field must be there. */
static double number_field(lua_State *L, int index, place at, const char *field, const double *fallback)
{
  const int type = lua_getfield(L, index, field);
  if (type != LUA_TNUMBER && !(type == LUA_TNIL && fallback))
    luaL_error(L, "stage %I (%s): %s: number expected, got %s", at.number, at.kind->name, field, luaL_typename(L, -1));
  const double value = type == LUA_TNIL ? *fallback : lua_tonumber(L, -1);
  lua_pop(L, 1);
  return value;
}

static int32_t integer_field(lua_State *L, int index, place at, const char *field, int32_t min, const double *fallback)
{
  const double value = number_field(L, index, at, field, fallback);
  if (!(value >= min && value <= INT32_MAX) || value != (double)(int32_t)value)
    luaL_error(L, "stage %I (%s): %s: %f is not an integer from %d to %d", at.number, at.kind->name, field, value,
               (int)min, INT32_MAX);
  return (int32_t)value;
}

/* values = {[id] = number}: arrays held by a userdata that stays on the stack until the chain is made. */
static void parse_bias(lua_State *L, int index, place at, kg_stage *stage)
{
  if (lua_getfield(L, index, "values") != LUA_TTABLE)
    luaL_error(L, "stage %I (bias): values: table expected, got %s", at.number, luaL_typename(L, -1));
  const int values = lua_gettop(L);
  size_t n = 0;
  for (lua_pushnil(L); lua_next(L, values); lua_pop(L, 1)) n++;
  if (n > INT32_MAX / 8) luaL_error(L, "stage %I (bias): values: %I are too many", at.number, (lua_Integer)n);
  int32_t *ids = lua_newuserdatauv(L, n * (sizeof *ids + sizeof(float)) + 1, 0);
  float *numbers = (float *)(ids + n);
  size_t i = 0;
  for (lua_pushnil(L); lua_next(L, values); lua_pop(L, 1), i++) {
    if (i == n) luaL_error(L, "stage %I (bias): values: a finalizer has changed them", at.number);
    if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) < 0 || lua_tointeger(L, -2) > INT32_MAX)
      luaL_error(L, "stage %I (bias): values: '%s' is not a token id", at.number, luaL_tolstring(L, -2, NULL));
    if (lua_type(L, -1) != LUA_TNUMBER)
      luaL_error(L, "stage %I (bias): values[%I]: number expected, got %s", at.number, lua_tointeger(L, -2),
                 luaL_typename(L, -1));
    ids[i] = (int32_t)lua_tointeger(L, -2);
    numbers[i] = (float)lua_tonumber(L, -1);
  }
  lua_remove(L, values);
  stage->bias_ids = ids;
  stage->bias_values = numbers;
  stage->n_bias = (int32_t)i;
}

static void parse_stage(lua_State *L, int index, place at, kg_stage *stage)
{
  static const double none = 0, one = 1, last = 64;
  refuse_unknown_fields(L, index, at);
  *stage = (kg_stage){.kind = (kg_stage_kind)at.kind->kind, .repeat = 1};
  if (has_field(at.kind, "value")) stage->value = (float)number_field(L, index, at, "value", NULL);
  if (has_field(at.kind, "k")) stage->k = integer_field(L, index, at, "k", 0, NULL);
  if (has_field(at.kind, "values")) parse_bias(L, index, at, stage);
  if (!has_field(at.kind, "repeat")) return;
  stage->last_n = integer_field(L, index, at, "last", -1, &last);
  stage->repeat = (float)number_field(L, index, at, "repeat", &one);
  stage->frequency = (float)number_field(L, index, at, "frequency", &none);
  stage->presence = (float)number_field(L, index, at, "presence", &none);
}

/* core.chain{stage, ...} -> Chain */
static int chain_new(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  const lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  if (n > 64) return luaL_error(L, "chain: %I stages are more than 64", n);
  kg_stage *stages = lua_newuserdatauv(L, (size_t)n * sizeof *stages + 1, 0);
  size_t n_stages = 0;
  for (lua_Integer i = 1; i <= n; i++) {
    luaL_checkstack(L, 8, "chain");
    lua_geti(L, 1, i);
    const int index = lua_gettop(L);
    const place at = {i, check_kind(L, index, i)};
    if (at.kind->kind >= 0) {
      parse_stage(L, index, at, &stages[n_stages++]);
    } else {
      refuse_unknown_fields(L, index, at);
      if (i < n) return luaL_error(L, "stage %I (dist): the draw must be the last stage", i);
    }
    lua_remove(L, index); /* but not the arrays that parse_bias left above it */
  }
  kg_error err;
  kg_handle *handle = kg_push_handle(L, KG_CLASS_CHAIN, 0);
  return kg_chain_new(stages, n_stages, (kg_chain **)&handle->object, &err) ? kg_push_error(L, &err) : 1;
}

/* ---- the handle ---- */

static kg_sequence *optional_sequence(lua_State *L, int index)
{
  return lua_isnoneornil(L, index) ? NULL : kg_check_sequence(L, index);
}

/* pick(logits, seq) -> id */
static int pick(lua_State *L)
{
  kg_chain *chain = kg_check_open(L, 1, KG_CLASS_CHAIN);
  int32_t id;
  kg_error err;
  if (kg_chain_pick(chain, kg_check_tensor(L, 2), optional_sequence(L, 3), &id, &err)) return kg_push_error(L, &err);
  lua_pushinteger(L, id);
  return 1;
}

/* core.pick_as_device(chain, logits, seq) -> id as the kernels of a device draw it, computed here; for tests */
static int pick_as_device(lua_State *L)
{
  kg_chain *chain = kg_check_open(L, 1, KG_CLASS_CHAIN);
  int32_t id;
  kg_error err;
  if (kg_chain_pick_as_device(chain, kg_check_tensor(L, 2), optional_sequence(L, 3), &id, &err))
    return kg_push_error(L, &err);
  lua_pushinteger(L, id);
  return 1;
}

/* pick:candidates(logits, seq) -> ids, probs: best first; seq may be nil, there is no history then */
static int candidates(lua_State *L)
{
  lua_settop(L, 3);
  kg_check_open(L, 1, KG_CLASS_CHAIN);
  const int64_t n_vocab = kg_tensor_count(kg_check_tensor(L, 2));
  const int32_t capacity = n_vocab < INT32_MAX ? (int32_t)n_vocab : INT32_MAX;
  int32_t *ids = lua_newuserdatauv(L, (size_t)capacity * (sizeof *ids + sizeof(float)) + 1, 0);
  float *probs = (float *)(ids + capacity);
  int32_t n;
  kg_error err;
  if (kg_chain_candidates(kg_check_open(L, 1, KG_CLASS_CHAIN), kg_check_tensor(L, 2), optional_sequence(L, 3), ids,
                          probs, capacity, &n, &err))
    return kg_push_error(L, &err);
  kg_push_ids(L, ids, (size_t)n);
  lua_createtable(L, n, 0);
  for (int32_t i = 0; i < n; i++) {
    lua_pushnumber(L, (lua_Number)probs[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 2;
}

/* A table that core.chain takes for this stage. */
static void push_stage(lua_State *L, const kg_stage *stage)
{
  const stage_kind *kind = stage_kinds;
  while (kind->kind != (int)stage->kind) kind++;
  lua_newtable(L);
  lua_pushstring(L, kind->name);
  lua_setfield(L, -2, "kind");
  if (has_field(kind, "value")) kg_set_number(L, "value", stage->value);
  if (has_field(kind, "k")) kg_set_integer(L, "k", stage->k);
  if (has_field(kind, "values")) {
    lua_newtable(L);
    for (int32_t i = 0; i < stage->n_bias; i++) {
      lua_pushnumber(L, (lua_Number)stage->bias_values[i]);
      lua_rawseti(L, -2, stage->bias_ids[i]);
    }
    lua_setfield(L, -2, "values");
  }
  if (!has_field(kind, "repeat")) return;
  kg_set_integer(L, "last", stage->last_n);
  kg_set_number(L, "repeat", stage->repeat);
  kg_set_number(L, "frequency", stage->frequency);
  kg_set_number(L, "presence", stage->presence);
}

static int read_stages(lua_State *L)
{
  size_t n;
  const kg_stage *stages = kg_chain_stages(kg_check_open(L, 1, KG_CLASS_CHAIN), &n);
  lua_newtable(L);
  for (size_t i = 0; i < n; i++) {
    push_stage(L, &stages[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* pick:stages() -> tables that make the same chain again */
static int stages_of(lua_State *L)
{
  kg_check_open(L, 1, KG_CLASS_CHAIN);
  lua_settop(L, 1);
  return kg_call_at_rest(L, read_stages);
}

static int close_chain(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_CHAIN);
  kg_chain_free(handle->object);
  handle->object = NULL;
  return 0;
}

static int to_string(lua_State *L)
{
  lua_pushstring(L, kg_check_handle(L, 1, KG_CLASS_CHAIN)->object ? KG_CLASS_CHAIN : KG_CLASS_CHAIN " (closed)");
  return 1;
}

void kg_bind_chain(lua_State *L)
{
  static const luaL_Reg methods[] = {
      {"candidates", candidates}, {"stages", stages_of}, {"close", close_chain}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__call", pick}, {"__gc", close_chain}, {"__close", close_chain}, {"__tostring", to_string}, {NULL, NULL}};
  kg_class(L, KG_CLASS_CHAIN, methods, metamethods);
  static const luaL_Reg functions[] = {{"chain", chain_new}, {"pick_as_device", pick_as_device}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
