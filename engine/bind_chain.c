/* bind_chain.c - kigo.Chain: a callable sampler made of tables that describe its stages. */
#include <math.h>
#include <string.h>

#include "bind.h"
#include "sampler.h"

/* ---- stage tables ---- */

/* Which fields a kind knows; the chain itself checks the ranges. */
typedef struct stage_kind {
  int kind; /* -1: dist, which only says what happens anyway */
  const char *name;
  const char *fields[7];
} stage_kind;

static const stage_kind stage_kinds[] = {
    {KG_STAGE_GREEDY, "greedy", {NULL}},
    {KG_STAGE_TEMPERATURE, "temp", {"value", NULL}},
    {KG_STAGE_TOP_K, "top_k", {"k", NULL}},
    {KG_STAGE_TOP_P, "top_p", {"value", NULL}},
    {KG_STAGE_MIN_P, "min_p", {"value", NULL}},
    {KG_STAGE_TYPICAL, "typical", {"value", NULL}},
    {KG_STAGE_PENALTIES, "penalties", {"last", "repeat", "frequency", "presence", NULL}},
    {KG_STAGE_BIAS, "bias", {"values", "phrases", NULL}},
    {KG_STAGE_TOP_N_SIGMA, "top_n_sigma", {"value", NULL}},
    {KG_STAGE_XTC, "xtc", {"probability", "threshold", NULL}},
    {KG_STAGE_DYNAMIC_TEMPERATURE, "dynatemp", {"low", "high", "exponent", NULL}},
    {KG_STAGE_DRY, "dry", {"multiplier", "base", "allowed", "last", "breakers", "tokenizer", NULL}},
    {KG_STAGE_MIROSTAT, "mirostat", {"tau", "eta", NULL}},
    {-1, "dist", {NULL}},
};

/* Fields that are numbers, and where they stand in a kg_stage. */
typedef struct number_field {
  const char *name;
  size_t at;
  double fallback; /* NaN: it must be there */
} number_field;

static const number_field float_fields[] = {
    {"value", offsetof(kg_stage, value), NAN},
    {"repeat", offsetof(kg_stage, repeat), 1},
    {"frequency", offsetof(kg_stage, frequency), 0},
    {"presence", offsetof(kg_stage, presence), 0},
    {"probability", offsetof(kg_stage, probability), NAN},
    {"threshold", offsetof(kg_stage, threshold), 0.1},
    {"low", offsetof(kg_stage, low), NAN},
    {"high", offsetof(kg_stage, high), NAN},
    {"exponent", offsetof(kg_stage, exponent), 1},
    {"multiplier", offsetof(kg_stage, multiplier), NAN},
    {"base", offsetof(kg_stage, base), 1.75},
    {"tau", offsetof(kg_stage, tau), NAN},
    {"eta", offsetof(kg_stage, eta), 0.1},
};

static const number_field integer_fields[] = {{"k", offsetof(kg_stage, k), NAN},
                                              {"last", offsetof(kg_stage, last_n), 64},
                                              {"allowed", offsetof(kg_stage, allowed), 2}};

enum {
  N_FLOATS = sizeof float_fields / sizeof *float_fields,
  N_INTEGERS = sizeof integer_fields / sizeof *integer_fields
};

/* For messages: "stage 2 (top_k)". */
typedef struct place {
  lua_Integer number;
  const stage_kind *kind;
} place;

static const stage_kind *check_kind(lua_State *L, int index, lua_Integer number)
{
  if (!lua_istable(L, index)) kg_error_at(L, "stage %I: table expected, got %s", number, luaL_typename(L, index));
  if (lua_getfield(L, index, "kind") != LUA_TSTRING)
    kg_error_at(L, "stage %I: kind: string expected, got %s", number, luaL_typename(L, -1));
  const char *name = lua_tostring(L, -1);
  for (size_t i = 0; i < sizeof stage_kinds / sizeof stage_kinds[0]; i++) {
    if (strcmp(name, stage_kinds[i].name)) continue;
    lua_pop(L, 1);
    return &stage_kinds[i];
  }
  kg_error_at(L, "stage %I: kind '%s' is unknown", number, name);
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
      kg_error_at(L, "stage %I (%s): field '%s' is unknown", at.number, at.kind->name, luaL_tolstring(L, -2, NULL));
    const char *name = lua_tostring(L, -2);
    if (strcmp(name, "kind") && !has_field(at.kind, name))
      kg_error_at(L, "stage %I (%s): field '%s' is unknown", at.number, at.kind->name, name);
  }
}

/* A number of the stage, or the fallback. */
static double read_number(lua_State *L, int index, place at, const char *field, double fallback)
{
  const int type = lua_getfield(L, index, field);
  if (type != LUA_TNUMBER && (type != LUA_TNIL || isnan(fallback)))
    kg_error_at(L, "stage %I (%s): %s: number expected, got %s", at.number, at.kind->name, field, luaL_typename(L, -1));
  const double value = type == LUA_TNIL ? fallback : lua_tonumber(L, -1);
  lua_pop(L, 1);
  return value;
}

static int32_t read_integer(lua_State *L, int index, place at, const char *field, double fallback)
{
  const double value = read_number(L, index, at, field, fallback);
  const int32_t min = strcmp(field, "last") ? 0 : -1;
  if (!(value >= min && value <= INT32_MAX) || value != (double)(int32_t)value)
    kg_error_at(L, "stage %I (%s): %s: %f is not an integer from %d to %d", at.number, at.kind->name, field, value,
               (int)min, INT32_MAX);
  return (int32_t)value;
}

/* What parsing a stage allocates is userdata that stays on the stack until the chain is made. */

/* values = {[id] = number} */
static void parse_values(lua_State *L, int index, place at, kg_stage *stage)
{
  if (lua_getfield(L, index, "values") != LUA_TTABLE)
    kg_error_at(L, "stage %I (bias): values: table expected, got %s", at.number, luaL_typename(L, -1));
  const int values = lua_gettop(L);
  size_t n = 0;
  for (lua_pushnil(L); lua_next(L, values); lua_pop(L, 1)) n++;
  if (n > INT32_MAX / 8) kg_error_at(L, "stage %I (bias): values: %I are too many", at.number, (lua_Integer)n);
  int32_t *ids = lua_newuserdatauv(L, n * (sizeof *ids + sizeof(float)) + 1, 0);
  float *numbers = (float *)(ids + n);
  size_t i = 0;
  for (lua_pushnil(L); lua_next(L, values); lua_pop(L, 1), i++) {
    if (i == n) kg_error_at(L, "stage %I (bias): values: a finalizer has changed them", at.number);
    if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) < 0 || lua_tointeger(L, -2) > INT32_MAX)
      kg_error_at(L, "stage %I (bias): values: '%s' is not a token id", at.number, luaL_tolstring(L, -2, NULL));
    if (lua_type(L, -1) != LUA_TNUMBER)
      kg_error_at(L, "stage %I (bias): values[%I]: number expected, got %s", at.number, lua_tointeger(L, -2),
                 luaL_typename(L, -1));
    ids[i] = (int32_t)lua_tointeger(L, -2);
    numbers[i] = (float)lua_tonumber(L, -1);
  }
  lua_remove(L, values);
  stage->bias_ids = ids;
  stage->bias_values = numbers;
  stage->n_bias = (int32_t)i;
}

/* phrases = {{id, id, ..., value = number}, ...}, or nil */
static void parse_phrases(lua_State *L, int index, place at, kg_stage *stage)
{
  const int type = lua_getfield(L, index, "phrases");
  const int phrases = lua_gettop(L);
  if (type == LUA_TNIL) return;
  if (type != LUA_TTABLE)
    kg_error_at(L, "stage %I (bias): phrases: table expected, got %s", at.number, luaL_typename(L, -1));
  const size_t n = (size_t)lua_rawlen(L, phrases);
  if (n > INT32_MAX / 64) kg_error_at(L, "stage %I (bias): phrases: %I are too many", at.number, (lua_Integer)n);
  kg_phrase *made = lua_newuserdatauv(L, n * sizeof *made + 1, 0);
  lua_createtable(L, (int)n, 0); /* holds their ids */
  for (size_t i = 0; i < n; i++) {
    size_t n_ids;
    const lua_Integer number = (lua_Integer)i + 1;
    if (lua_rawgeti(L, phrases, number) != LUA_TTABLE)
      kg_error_at(L, "stage %I (bias): phrases[%I]: table expected, got %s", at.number, number, luaL_typename(L, -1));
    if (lua_getfield(L, -1, "value") != LUA_TNUMBER)
      kg_error_at(L, "stage %I (bias): phrases[%I].value: number expected, got %s", at.number, number,
                 luaL_typename(L, -1));
    made[i].value = (float)lua_tonumber(L, -1);
    made[i].ids = kg_check_ids(L, lua_gettop(L) - 1, &n_ids);
    if (n_ids > INT32_MAX) kg_error_at(L, "stage %I (bias): phrases[%I]: it is too long", at.number, number);
    made[i].n = (int32_t)n_ids;
    lua_rawseti(L, -4, number);
    lua_pop(L, 2);
  }
  stage->phrases = made;
  stage->n_phrases = (int32_t)n;
}

/* breakers = {text, ...}, or nil: with copies of the texts, which a finalizer might take out of the table */
static void parse_breakers(lua_State *L, int index, place at, kg_stage *stage)
{
  const int type = lua_getfield(L, index, "breakers");
  const int breakers = lua_gettop(L);
  if (type == LUA_TNIL) return;
  if (type != LUA_TTABLE)
    kg_error_at(L, "stage %I (dry): breakers: table expected, got %s", at.number, luaL_typename(L, -1));
  const size_t n = (size_t)lua_rawlen(L, breakers);
  if (n > KG_DRY_BREAKERS)
    kg_error_at(L, "stage %I (dry): %I breakers are more than %d", at.number, (lua_Integer)n, KG_DRY_BREAKERS);
  kg_string *made = lua_newuserdatauv(L, n * (sizeof *made + KG_DRY_BREAKER_SIZE) + 1, 0);
  char *bytes = (char *)(made + n);
  for (size_t i = 0; i < n; i++, bytes += KG_DRY_BREAKER_SIZE) {
    if (lua_rawgeti(L, breakers, (lua_Integer)i + 1) != LUA_TSTRING)
      kg_error_at(L, "stage %I (dry): breakers[%I]: string expected, got %s", at.number, (lua_Integer)i + 1,
                 luaL_typename(L, -1));
    size_t size;
    const char *text = lua_tolstring(L, -1, &size);
    if (!size || size > KG_DRY_BREAKER_SIZE)
      kg_error_at(L, "stage %I (dry): breakers[%I]: %I bytes are not 1 to %d", at.number, (lua_Integer)i + 1,
                 (lua_Integer)size, KG_DRY_BREAKER_SIZE);
    memcpy(bytes, text, size);
    made[i] = (kg_string){bytes, size};
    lua_pop(L, 1);
  }
  stage->breakers = made;
  stage->n_breakers = (int32_t)n;
}

/* *tokenizer stays NULL where the stage has none. */
static void parse_stage(lua_State *L, int index, place at, kg_stage *stage, const kg_handle **tokenizer)
{
  refuse_unknown_fields(L, index, at);
  *stage = (kg_stage){.kind = (kg_stage_kind)at.kind->kind};
  for (int i = 0; i < N_FLOATS; i++) {
    const number_field *f = &float_fields[i];
    if (has_field(at.kind, f->name))
      *(float *)((char *)stage + f->at) = (float)read_number(L, index, at, f->name, f->fallback);
  }
  for (int i = 0; i < N_INTEGERS; i++) {
    const number_field *f = &integer_fields[i];
    const bool looks_at_all = stage->kind == KG_STAGE_DRY && f->at == offsetof(kg_stage, last_n);
    if (has_field(at.kind, f->name))
      *(int32_t *)((char *)stage + f->at) = read_integer(L, index, at, f->name, looks_at_all ? -1 : f->fallback);
  }
  if (has_field(at.kind, "values")) parse_values(L, index, at, stage);
  if (has_field(at.kind, "phrases")) parse_phrases(L, index, at, stage);
  if (!has_field(at.kind, "breakers")) return;
  parse_breakers(L, index, at, stage);
  if (lua_getfield(L, index, "tokenizer") != LUA_TNIL) *tokenizer = kg_check_handle(L, -1, KG_CLASS_TOKENIZER);
}

/* core.chain{stage, ...} -> Chain */
static int chain_new(lua_State *L)
{
  kg_check_type(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  const lua_Integer n = (lua_Integer)lua_rawlen(L, 1);
  if (n > 64) return kg_error_at(L, "chain: %I stages are more than 64", n);
  kg_stage *stages = lua_newuserdatauv(L, (size_t)n * sizeof *stages + 1, 0);
  const kg_handle *tokenizers[64] = {NULL}; /* on the stack */
  size_t n_stages = 0;
  for (lua_Integer i = 1; i <= n; i++) {
    luaL_checkstack(L, 16, "chain");
    lua_geti(L, 1, i);
    const int index = lua_gettop(L);
    const place at = {i, check_kind(L, index, i)};
    if (at.kind->kind >= 0) {
      parse_stage(L, index, at, &stages[n_stages], &tokenizers[n_stages]);
      n_stages++;
    } else {
      refuse_unknown_fields(L, index, at);
      if (i < n) return kg_error_at(L, "stage %I (dist): the draw must be the last stage", i);
    }
    lua_remove(L, index); /* but not what parse_stage left above it */
  }
  kg_error err;
  kg_handle *handle = kg_push_handle(L, KG_CLASS_CHAIN, 0);
  for (size_t i = 0; i < n_stages; i++) {
    if (!tokenizers[i]) continue;
    if (!tokenizers[i]->object) return kg_error_at(L, "stage %I (dry): the tokenizer is closed", (lua_Integer)i + 1);
    stages[i].tokenizer = tokenizers[i]->object;
  }
  return kg_chain_new(stages, n_stages, (kg_chain **)&handle->object, &err) ? kg_push_error(L, &err) : 1;
}

/* ---- the handle ---- */

static kg_sequence *optional_sequence(lua_State *L, int index)
{
  return lua_isnoneornil(L, index) ? NULL : kg_check_sequence(L, index);
}

/* Call company for chain, logits and seq at 1 to 3, where there is some on a device; it leaves one value. */
static bool join_company(lua_State *L, int kind, lua_KFunction go_on)
{
  const kg_tensor *logits = kg_check_tensor(L, 2);
  if (!logits->buffer->ops->look || lua_isnoneornil(L, 3) || !kg_push_company(L)) return false;
  lua_pushinteger(L, kind);
  for (int i = 1; i <= 3; i++) lua_pushvalue(L, i);
  lua_callk(L, 4, 1, 0, go_on);
  return true;
}

static int pick_alone(lua_State *L)
{
  kg_chain *chain = kg_check_open(L, 1, KG_CLASS_CHAIN);
  int32_t id;
  kg_error err;
  if (kg_chain_pick(chain, kg_check_tensor(L, 2), optional_sequence(L, 3), &id, &err)) return kg_push_error(L, &err);
  lua_pushinteger(L, id);
  return 1;
}

static int pick_on(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  return lua_isinteger(L, -1) ? 1 : pick_alone(L);
}

/* pick(logits, seq) -> id */
static int pick(lua_State *L)
{
  lua_settop(L, 3);
  kg_check_open(L, 1, KG_CLASS_CHAIN);
  return join_company(L, KG_COMPANY_PICK, pick_on) ? pick_on(L, LUA_OK, 0) : pick_alone(L);
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

static int apply_alone(lua_State *L)
{
  kg_chain *chain = kg_check_open(L, 1, KG_CLASS_CHAIN);
  kg_error err;
  if (kg_chain_apply(chain, kg_check_tensor(L, 2), optional_sequence(L, 3), &err)) return kg_push_error(L, &err);
  lua_settop(L, 2);
  return 1;
}

static int apply_on(lua_State *L, int status, lua_KContext context)
{
  (void)status;
  (void)context;
  if (!lua_toboolean(L, -1)) return apply_alone(L);
  lua_settop(L, 2);
  return 1;
}

/* core.apply(chain, logits, seq) -> logits, as the stages leave them, in place; for Tensor:apply_ */
static int apply(lua_State *L)
{
  lua_settop(L, 3);
  kg_check_open(L, 1, KG_CLASS_CHAIN);
  return join_company(L, KG_COMPANY_APPLY, apply_on) ? apply_on(L, LUA_OK, 0) : apply_alone(L);
}

/* What the entry {kind, chain, logits, seq} on top says; false: something of it is closed. */
static bool read_use(lua_State *L, kg_chain_use *use)
{
  for (int i = 1; i <= 4; i++) lua_rawgeti(L, -i, i);
  *use = (kg_chain_use){.chain = kg_check_handle(L, -3, KG_CLASS_CHAIN)->object,
                        .logits = kg_check_handle(L, -2, KG_CLASS_TENSOR)->object,
                        .sequence = kg_check_handle(L, -1, KG_CLASS_SEQUENCE)->object,
                        .applies = lua_tointeger(L, -4) == KG_COMPANY_APPLY};
  lua_pop(L, 4);
  return use->chain && use->logits && use->sequence;
}

/* core.use_chains{{kind, chain, logits, seq}, ...}: what company wants, done together where that can be; the fifth
 * field of an entry that is done is set, to the id that was drawn or true */
static int use_chains(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  const size_t n = (size_t)lua_rawlen(L, 1);
  kg_chain_use *uses = lua_newuserdatauv(L, n * sizeof *uses + 1, 0);
  size_t *entry = lua_newuserdatauv(L, n * sizeof *entry + 1, 0), n_uses = 0;
  for (size_t i = 1; i <= n; i++) { /* all stay open: nothing is made from here on */
    lua_rawgeti(L, 1, (lua_Integer)i);
    if (read_use(L, &uses[n_uses])) entry[n_uses++] = i;
    lua_pop(L, 1);
  }
  kg_error err;
  if (kg_chain_use_together(uses, n_uses, &err)) return 0; /* it is told to those who try by themselves */
  for (size_t i = 0; i < n_uses; i++) {
    if (!uses[i].is_done) continue;
    lua_rawgeti(L, 1, (lua_Integer)entry[i]);
    if (uses[i].applies)
      lua_pushboolean(L, 1);
    else
      lua_pushinteger(L, uses[i].id);
    lua_rawseti(L, -2, 5);
    lua_pop(L, 1);
  }
  return 0;
}

/* core.apply_as_device(chain, logits, seq) -> logits: the same as the kernels of a device do it, computed here; for
 * tests */
static int apply_as_device(lua_State *L)
{
  kg_chain *chain = kg_check_open(L, 1, KG_CLASS_CHAIN);
  kg_error err;
  if (kg_chain_apply_as_device(chain, kg_check_tensor(L, 2), optional_sequence(L, 3), &err))
    return kg_push_error(L, &err);
  lua_settop(L, 2);
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

static void push_values(lua_State *L, const kg_stage *stage)
{
  lua_newtable(L);
  for (int32_t i = 0; i < stage->n_bias; i++) {
    lua_pushnumber(L, (lua_Number)stage->bias_values[i]);
    lua_rawseti(L, -2, stage->bias_ids[i]);
  }
  lua_setfield(L, -2, "values");
  if (!stage->n_phrases) return;
  lua_newtable(L);
  for (int32_t p = 0; p < stage->n_phrases; p++) {
    kg_push_ids(L, stage->phrases[p].ids, (size_t)stage->phrases[p].n);
    kg_set_number(L, "value", stage->phrases[p].value);
    lua_rawseti(L, -2, (lua_Integer)p + 1);
  }
  lua_setfield(L, -2, "phrases");
}

static void push_breakers(lua_State *L, const kg_stage *stage)
{
  if (!stage->tokenizer) return;
  kg_push_tokenizer(L, stage->tokenizer);
  lua_setfield(L, -2, "tokenizer");
  lua_newtable(L);
  for (int32_t i = 0; i < stage->n_breakers; i++) {
    lua_pushlstring(L, stage->breakers[i].data, stage->breakers[i].size);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "breakers");
}

/* A table that core.chain takes for this stage. */
static void push_stage(lua_State *L, const kg_stage *stage)
{
  const stage_kind *kind = stage_kinds;
  while (kind->kind != (int)stage->kind) kind++;
  lua_newtable(L);
  kg_set_string(L, "kind", kind->name);
  for (int i = 0; i < N_FLOATS; i++)
    if (has_field(kind, float_fields[i].name))
      kg_set_number(L, float_fields[i].name, *(const float *)((const char *)stage + float_fields[i].at));
  for (int i = 0; i < N_INTEGERS; i++)
    if (has_field(kind, integer_fields[i].name))
      kg_set_integer(L, integer_fields[i].name, *(const int32_t *)((const char *)stage + integer_fields[i].at));
  if (has_field(kind, "values")) push_values(L, stage);
  if (has_field(kind, "breakers")) push_breakers(L, stage);
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

/* pick:clone() -> Chain */
static int clone(lua_State *L)
{
  size_t n;
  kg_error err;
  kg_check_open(L, 1, KG_CLASS_CHAIN);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_CHAIN, 0);
  const kg_stage *stages = kg_chain_stages(kg_check_open(L, 1, KG_CLASS_CHAIN), &n);
  return kg_chain_new(stages, n, (kg_chain **)&handle->object, &err) ? kg_push_error(L, &err) : 1;
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
      {"candidates", candidates}, {"stages", stages_of}, {"clone", clone}, {"close", close_chain}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__call", pick}, {"__gc", close_chain}, {"__close", close_chain}, {"__tostring", to_string}, {NULL, NULL}};
  kg_class(L, KG_CLASS_CHAIN, methods, metamethods);
  static const luaL_Reg functions[] = {
      {"chain", chain_new},       {"pick_as_device", pick_as_device},   {"apply", apply},
      {"use_chains", use_chains}, {"apply_as_device", apply_as_device}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
