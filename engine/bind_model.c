/* bind_model.c - kigo.Model. The handle keeps the file alive and holds a table for fields that Lua sets
 * (model.tokenizer). Sequences outlive a closed handle: the model itself goes with the last of them. */
#include "bind.h"

#include <string.h>

#include "ahead.h"
#include "error.h"

enum { FIELDS = 1, PARENT, PROGRESS, N_USER_VALUES = PROGRESS };

typedef struct model_box {
  kg_handle handle;
  kg_model *closing;  /* behind a closed handle, waiting for its sequences to go */
  lua_State *L;       /* whose stack holds the progress function, or nil, while a call runs; else NULL */
  int progress_index; /* there; the slot above takes what it or a hook raised */
  bool callback_failed;
  int32_t collect_at; /* open sequences at which the collector looks for forgotten ones */
} model_box;

enum { COLLECT_AT_LEAST = 16 };

static kg_model *check_model(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_MODEL);
}

kg_model *kg_lua_to_model(lua_State *L, int index)
{
  const kg_handle *handle = luaL_testudata(L, index, KG_CLASS_MODEL);
  return handle ? handle->object : NULL;
}

/* ---- progress ---- */

static int add_traceback(lua_State *L)
{
  if (lua_type(L, 1) == LUA_TSTRING) luaL_traceback(L, L, lua_tostring(L, 1), 1);
  return 1;
}

/* Call the function below n_args arguments on top of a message handler. Nothing here may raise: the frames of the step
 * stand between us and Lua. kg_begin_step made the stack high enough. */
static bool call_protected(model_box *box, int n_args)
{
  lua_State *L = box->L;
  const bool failed = lua_pcall(L, n_args, 1, -n_args - 2) != LUA_OK;
  if (failed && !box->callback_failed) lua_copy(L, -1, box->progress_index + 1);
  box->callback_failed = box->callback_failed || failed;
  return !failed;
}

static int on_progress(void *user, const char *what, int64_t done, int64_t total)
{
  model_box *box = user;
  lua_State *L = box->L;
  if (!L || lua_isnil(L, box->progress_index)) return 0;
  kg_progress_call call = {what, done, total};
  lua_pushcfunction(L, add_traceback);
  lua_pushcfunction(L, kg_call_progress);
  lua_pushvalue(L, box->progress_index);
  lua_pushlightuserdata(L, &call);
  const int stop = !call_protected(box, 2) || lua_toboolean(L, -1);
  lua_settop(L, box->progress_index + 1);
  return stop;
}

bool kg_call_in_step(void *model, lua_CFunction f, void *argument)
{
  model_box *box = model;
  lua_State *L = box->L;
  if (!L) return false;
  lua_pushcfunction(L, add_traceback);
  lua_pushcfunction(L, f);
  lua_pushlightuserdata(L, argument);
  const bool done = call_protected(box, 1);
  lua_settop(L, box->progress_index + 1);
  return done;
}

void kg_begin_step(lua_State *L, int model_index)
{
  model_box *box = lua_touserdata(L, model_index);
  const kg_model *model = box->handle.object ? box->handle.object : box->closing;
  kg_error err;
  if (box->L || (model && kg_model_check_idle(model, &err)))
    kg_error_at(L, "%s is in the middle of a step: a progress function or a hook may only look", KG_CLASS_MODEL);
  luaL_checkstack(L, 10, "callbacks of a step");
  lua_getiuservalue(L, model_index, PROGRESS);
  lua_pushnil(L);
  box->callback_failed = false;
  box->L = L;
  box->progress_index = lua_gettop(L) - 1;
}

void kg_end_step(lua_State *L, int model_index)
{
  model_box *box = lua_touserdata(L, model_index);
  box->L = NULL;
  if (box->callback_failed) lua_error(L); /* the slot is on top */
  lua_pop(L, 2);
}

/* ---- opening and closing ---- */

/* prefix_cache = true (default), false, or positions */
static int32_t prefix_cache_field(lua_State *L, int index)
{
  if (lua_isnoneornil(L, index)) return 0;
  lua_getfield(L, index, "prefix_cache");
  const bool is_off = lua_isboolean(L, -1) && !lua_toboolean(L, -1);
  const bool is_default = lua_isnil(L, -1) || lua_isboolean(L, -1);
  lua_pop(L, 1);
  if (is_default) return is_off ? -1 : 0;
  return (int32_t)kg_opt_int_field(L, index, "prefix_cache", 0, 1, INT32_MAX);
}

/* core.model(plan, options) -> Model, or nil, message, code. Takes the plan: its handle is closed on success.
 * options: device, variant, threads, ctx, pool, chunk, kv, prefix_cache, progress = function(what, done, total), which
 * cancels by returning true and is called during long steps too. */
static int open_model(lua_State *L)
{
  kg_check_open(L, 1, KG_CLASS_PLAN);
  lua_settop(L, 2);
  static const char *const fields[] = {"device", "variant", "threads", "ctx", "pool", "chunk", "kv", "progress",
                                     "prefix_cache", NULL};
  kg_check_fields(L, 2, fields);
  kg_model_options options = {.device = kg_opt_string_field(L, 2, "device", "auto"),
                              .variant = kg_opt_string_field(L, 2, "variant", NULL),
                              .n_threads = (int32_t)kg_opt_int_field(L, 2, "threads", 0, 0, INT32_MAX),
                              .context = (int32_t)kg_opt_int_field(L, 2, "ctx", 0, 0, INT32_MAX),
                              .pool = (int32_t)kg_opt_int_field(L, 2, "pool", 0, 0, INT32_MAX),
                              .chunk = (int32_t)kg_opt_int_field(L, 2, "chunk", 0, 0, INT32_MAX),
                              .kv = kg_opt_string_field(L, 2, "kv", NULL),
                              .prefix_cache = prefix_cache_field(L, 2)};
  model_box *box = lua_newuserdatauv(L, sizeof *box, N_USER_VALUES);
  *box = (model_box){.collect_at = COLLECT_AT_LEAST};
  luaL_setmetatable(L, KG_CLASS_MODEL);
  lua_newtable(L);
  lua_setiuservalue(L, 3, FIELDS);
  lua_getiuservalue(L, 1, 1); /* the plan's file */
  lua_setiuservalue(L, 3, PARENT);
  if (lua_istable(L, 2)) {
    if (lua_getfield(L, 2, "progress") != LUA_TNIL) kg_check_type(L, -1, LUA_TFUNCTION);
    lua_setiuservalue(L, 3, PROGRESS);
  }
  options.progress = on_progress;
  options.progress_user = box;

  kg_error err;
  kg_model *model = NULL;
  kg_handle *plan_handle = lua_touserdata(L, 1);
  kg_plan *plan = kg_check_open(L, 1, KG_CLASS_PLAN);
  kg_begin_step(L, 3);
  plan_handle->object = NULL; /* out of the progress function's reach */
  const int status = kg_model_open_take(plan, &options, &model, &err);
  if (status)
    plan_handle->object = plan;
  else
    box->handle.object = model;
  kg_end_step(L, 3);
  if (status) return kg_push_error(L, &err);
  kg_model_set_progress(model, on_progress, box);
  return 1;
}

void kg_release_model(lua_State *L, int model_index)
{
  model_box *box = lua_touserdata(L, model_index);
  if (!box->closing || kg_model_sequence_count(box->closing)) return;
  kg_model_close(box->closing);
  box->closing = NULL;
}

static int collect_model(lua_State *L)
{
  model_box *box = kg_check_userdata(L, 1, KG_CLASS_MODEL);
  if (box->handle.object) box->closing = box->handle.object;
  box->handle.object = NULL;
  kg_release_model(L, 1);
  return 0;
}

/* model:close(): the handle takes no new work. Open sequences go on; the model is released with the last of them. */
static int close_model(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_MODEL);
  if (handle->object && kg_model_is_stepping(handle->object))
    return kg_error_at(L, "%s cannot be closed in the middle of a step", KG_CLASS_MODEL);
  return collect_model(L);
}

static int model_to_string(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_MODEL);
  if (!handle->object) {
    lua_pushliteral(L, KG_CLASS_MODEL " (closed)");
    return 1;
  }
  lua_pushfstring(L, "%s (%s, vocabulary %d, context %d)", KG_CLASS_MODEL, kg_model_backend(handle->object)->name,
                  (int)kg_model_vocab_size(handle->object), (int)kg_model_context(handle->object));
  return 1;
}

/* ---- fields ---- */

static int model_index(lua_State *L)
{
  kg_check_handle(L, 1, KG_CLASS_MODEL);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL) return 1;
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (!strcmp(key, "vocab_size"))
    lua_pushinteger(L, kg_plan_token_count(kg_model_plan(check_model(L, 1))));
  else if (!strcmp(key, "has_head"))
    lua_pushboolean(L, kg_plan_has_head(kg_model_plan(check_model(L, 1))));
  else if (!strcmp(key, "context"))
    lua_pushinteger(L, kg_model_context(check_model(L, 1)));
  else if (!strcmp(key, "device"))
    lua_pushstring(L, kg_model_backend(check_model(L, 1))->name);
  else {
    lua_getiuservalue(L, 1, FIELDS);
    lua_pushvalue(L, 2);
    lua_rawget(L, -2);
  }
  return 1;
}

static int model_new_index(lua_State *L)
{
  kg_check_handle(L, 1, KG_CLASS_MODEL);
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (!strcmp(key, "vocab_size") || !strcmp(key, "has_head") || !strcmp(key, "context") || !strcmp(key, "device"))
    return kg_error_at(L, "%s: %s is read-only", KG_CLASS_MODEL, key);
  lua_settop(L, 3);
  lua_getiuservalue(L, 1, FIELDS);
  lua_insert(L, 2);
  lua_rawset(L, 2);
  return 0;
}

/* ---- sequences and steps ---- */

/* To Lua a sequence is a few bytes, whatever its cache pages hold: without this, those that nobody closed would pile
 * up. */
void kg_collect_sequences(lua_State *L, int model_index)
{
  model_box *box = lua_touserdata(L, model_index);
  const kg_model *model = box->handle.object ? box->handle.object : box->closing;
  if (!model || kg_model_is_stepping(model) || kg_model_sequence_count(model) < box->collect_at) return;
  lua_gc(L, LUA_GCCOLLECT);
  const int32_t twice = 2 * kg_model_sequence_count(model);
  box->collect_at = twice > COLLECT_AT_LEAST ? twice : COLLECT_AT_LEAST;
}

/* model:sequence{seed = 0, prefix_cache = true} -> Sequence */
static int model_sequence(lua_State *L)
{
  static const char *const fields[] = {"seed", "prefix_cache", NULL};
  check_model(L, 1);
  kg_check_fields(L, 2, fields);
  const int64_t seed = kg_opt_int_field(L, 2, "seed", 0, INT64_MIN, INT64_MAX);
  const bool is_apart = !kg_opt_bool_field(L, 2, "prefix_cache", true);
  kg_handle *handle = kg_push_sequence(L, 1);
  kg_sequence *sequence = NULL;
  kg_error err;
  if (kg_sequence_new(check_model(L, 1), (uint64_t)seed, &sequence, &err)) return kg_push_error(L, &err);
  if (is_apart) kg_sequence_stay_apart(sequence);
  handle->object = sequence;
  return 1;
}

/* model:restore(path, adapters = none) -> Sequence, or nil, message, code: one that seq:save wrote */
static int model_restore(lua_State *L)
{
  check_model(L, 1);
  lua_settop(L, 3);
  return kg_restore_sequence(L, 1);
}

/* The sequences of the table at index 2. They stay on the stack: a progress function may empty the table. */
static kg_sequence **check_sequences(lua_State *L, size_t *n)
{
  kg_check_type(L, 2, LUA_TTABLE);
  *n = (size_t)lua_rawlen(L, 2);
  if (*n > INT32_MAX / 16) kg_error_at(L, "sequences: %I are too many", (lua_Integer)*n);
  luaL_checkstack(L, (int)*n + 8, "too many sequences");
  kg_sequence **sequences = lua_newuserdatauv(L, *n * sizeof *sequences + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    sequences[i] = kg_check_sequence(L, -1);
  }
  return sequences;
}

/* model:step(sequences) -> true, or nil, message, code. Evaluates what all of them wait for, in shared passes. */
static int model_step(lua_State *L)
{
  kg_model *model = check_model(L, 1);
  size_t n;
  lua_settop(L, 2);
  kg_sequence **sequences = check_sequences(L, &n);
  kg_error err;
  kg_begin_step(L, 1);
  const int status = kg_step(model, sequences, n, &err);
  kg_end_step(L, 1);
  if (status) return kg_push_error(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* model:draw(sequences, chain, ahead = 1) -> ids, or nil, message, code: seq:draw of all of them, in shared passes. */
static int model_draw(lua_State *L)
{
  kg_model *model = check_model(L, 1);
  kg_chain *chain = kg_check_open(L, 3, KG_CLASS_CHAIN);
  const lua_Integer ahead = luaL_optinteger(L, 4, 1);
  luaL_argcheck(L, ahead >= 1 && ahead <= KG_AHEAD_MAX, 4, "1 to 1024 expected");
  size_t n;
  lua_settop(L, 3);
  kg_sequence **sequences = check_sequences(L, &n);
  kg_draw_item *items = lua_newuserdatauv(L, n * sizeof *items + 1, 0);
  int32_t *ids = lua_newuserdatauv(L, n * sizeof *ids + 1, 0);
  kg_error err;
  kg_begin_step(L, 1);
  kg_chain_ref(chain); /* a progress function may close it */
  for (size_t i = 0; i < n; i++) items[i] = (kg_draw_item){sequences[i], chain};
  const int status = kg_draw_items(model, items, n, (int32_t)ahead, NULL, 0, ids, &err);
  kg_chain_free(chain);
  kg_end_step(L, 1);
  if (status) return kg_push_error(L, &err);
  kg_push_ids(L, ids, n);
  return 1;
}

/* What model:advance is to do, read from tables; the handles stay on the stack, two of each item. */
typedef struct advance {
  kg_step_item *steps;
  kg_draw_item *draws;
  int32_t *ids;
  int n_steps, n_draws, first; /* the first handle's place */
  int32_t ahead;
} advance;

enum { ADVANCE_MAX = 1 << 16 };

static int check_item_count(lua_State *L, int index)
{
  kg_check_type(L, index, LUA_TTABLE);
  const size_t n = (size_t)lua_rawlen(L, index);
  luaL_argcheck(L, n <= ADVANCE_MAX, index, "too many items");
  return (int)n;
}

/* Push two fields of item i of the list at index, and read the numbers that it has besides them. */
static void push_item(lua_State *L, int index, int i, const char *field, kg_step_item *step, int32_t *ahead)
{
  if (lua_rawgeti(L, index, i + 1) != LUA_TTABLE)
    kg_error_at(L, "item %d: table expected, got %s", i + 1, luaL_typename(L, -1));
  const int item = lua_gettop(L);
  if (step) {
    step->most = (int32_t)kg_opt_int_field(L, item, "most", 0, 0, INT32_MAX);
    step->from = (int32_t)kg_opt_int_field(L, item, "from", 0, 0, INT32_MAX);
  } else {
    const int32_t wanted = (int32_t)kg_opt_int_field(L, item, "ahead", 1, 1, KG_AHEAD_MAX);
    *ahead = wanted < *ahead ? wanted : *ahead;
  }
  lua_getfield(L, item, "seq");
  lua_getfield(L, item, field);
  lua_remove(L, item);
}

/* Finalizers and metamethods run no more from here on: take the objects from their handles. */
static void take_objects(lua_State *L, advance *a)
{
  int at = a->first;
  for (int i = 0; i < a->n_steps; i++, at += 2) {
    kg_step_item *item = &a->steps[i];
    item->sequence = kg_check_sequence(L, at);
    if (lua_isnil(L, at + 1)) continue;
    const kg_tensor *rows = kg_check_tensor(L, at + 1);
    const int64_t n_rows = kg_tensor_count(rows) / kg_model_vocab_size(kg_sequence_model(item->sequence));
    if (n_rows < (int64_t)kg_sequence_pos(item->sequence) - item->from)
      kg_error_at(L, "item %d: rows: %d positions expected", i + 1,
                  (int)kg_sequence_pos(item->sequence) - (int)item->from);
    item->all_logits = rows->buffer;
    item->at = rows->at;
  }
  for (int i = 0; i < a->n_draws; i++, at += 2)
    a->draws[i] = (kg_draw_item){kg_check_sequence(L, at), kg_check_open(L, at + 1, KG_CLASS_CHAIN)};
}

/* A progress function may close what the step uses. */
static void hold_objects(const advance *a)
{
  for (int i = 0; i < a->n_steps; i++)
    if (a->steps[i].all_logits) kg_buffer_ref(a->steps[i].all_logits);
  for (int i = 0; i < a->n_draws; i++) kg_chain_ref(a->draws[i].chain);
}

static void drop_objects(const advance *a)
{
  for (int i = 0; i < a->n_steps; i++) kg_buffer_unref(a->steps[i].all_logits);
  for (int i = 0; i < a->n_draws; i++) kg_chain_free(a->draws[i].chain);
}

/* model:advance(steps, draws) -> ids, or nil, message, code: what a scheduler's sequences wait for, in shared passes.
 * steps: {seq, most = all, rows = nil, from = 0}; draws: {seq, chain, ahead = 1}. */
static int model_advance(lua_State *L)
{
  check_model(L, 1);
  lua_settop(L, 3);
  advance a = {.n_steps = check_item_count(L, 2), .n_draws = check_item_count(L, 3), .ahead = KG_AHEAD_MAX};
  luaL_checkstack(L, 2 * (a.n_steps + a.n_draws) + 16, "too many sequences");
  a.steps = lua_newuserdatauv(L, (size_t)a.n_steps * sizeof *a.steps + 1, 0);
  a.draws = lua_newuserdatauv(L, (size_t)a.n_draws * sizeof *a.draws + 1, 0);
  a.ids = lua_newuserdatauv(L, (size_t)a.n_draws * sizeof *a.ids + 1, 0);
  a.first = lua_gettop(L) + 1;
  for (int i = 0; i < a.n_steps; i++) {
    a.steps[i] = (kg_step_item){0};
    push_item(L, 2, i, "rows", &a.steps[i], NULL);
  }
  for (int i = 0; i < a.n_draws; i++) push_item(L, 3, i, "chain", NULL, &a.ahead);
  kg_model *model = check_model(L, 1);
  take_objects(L, &a);
  kg_error err;
  kg_begin_step(L, 1);
  hold_objects(&a);
  const int status = kg_draw_items(model, a.draws, (size_t)a.n_draws, a.ahead, a.steps, (size_t)a.n_steps, a.ids, &err);
  drop_objects(&a);
  kg_end_step(L, 1);
  if (status) return kg_push_error(L, &err);
  kg_push_ids(L, a.ids, (size_t)a.n_draws);
  return 1;
}

/* model:set_progress(function(what, done, total) or nil): called between the passes of long steps; true cancels. */
static int set_progress(lua_State *L)
{
  check_model(L, 1);
  lua_settop(L, 2);
  if (!lua_isnil(L, 2)) kg_check_type(L, 2, LUA_TFUNCTION);
  lua_setiuservalue(L, 1, PROGRESS);
  return 0;
}

/* ---- looking inside ---- */

/* Push a zeroed tensor [n, width] on the model's device. */
static int push_rows(lua_State *L, kg_model *model, int64_t n, int64_t width, kg_tensor **out, kg_error *err)
{
  const int64_t shape[2] = {n, width};
  kg_tensor **slot = kg_push_tensor(L);
  const int status = kg_model_tensor(model, 2, shape, slot, err);
  if (!status) *out = *slot;
  return status;
}

/* Push a sequence of its own with the ids on it: the model lives as long as that. */
static int push_fed(lua_State *L, const int32_t *ids, size_t n, kg_model **model_out, kg_handle **out, kg_error *err)
{
  kg_sequence *sequence = NULL;
  kg_handle *handle = *out = kg_push_sequence(L, 1);
  kg_model *model = *model_out = check_model(L, 1);
  const int status = kg_sequence_new(model, 0, &sequence, err);
  if (status) return status;
  handle->object = sequence;
  return kg_sequence_feed(sequence, ids, n, err);
}

static int step_once(lua_State *L, kg_model *model, const kg_handle *handle, kg_buffer *all_logits,
                     const kg_step_trace *traces, size_t n_traces, kg_error *err)
{
  const kg_step_item item = {.sequence = handle->object, .all_logits = all_logits};
  kg_begin_step(L, 1);
  return kg_step_items(model, &item, 1, traces, n_traces, err);
}

static void let_go(kg_handle *handle)
{
  kg_sequence_free(handle->object);
  handle->object = NULL;
}

static const int32_t *check_some_ids(lua_State *L, int index, size_t *n)
{
  const int32_t *ids = kg_check_ids(L, index, n);
  if (!*n) kg_error_at(L, "token ids: at least one is needed");
  return ids;
}

/* model:logits(ids) -> Tensor [n, vocab], or nil, message, code: after every position, on a sequence of its own */
static int model_logits(lua_State *L)
{
  kg_model *model;
  check_model(L, 1);
  lua_settop(L, 2);
  size_t n;
  const int32_t *ids = check_some_ids(L, 2, &n);
  kg_handle *handle;
  kg_tensor *logits = NULL;
  kg_error err;
  int status = push_fed(L, ids, n, &model, &handle, &err);
  if (!status) status = push_rows(L, model, (int64_t)n, kg_model_vocab_size(model), &logits, &err);
  const bool stepped = !status;
  if (stepped) status = step_once(L, model, handle, logits->buffer, NULL, 0, &err);
  let_go(handle);
  if (stepped) kg_end_step(L, 1);
  return status ? kg_push_error(L, &err) : 1;
}

/* model:trace(ids, names) -> {name = Tensor [n, width]}, or nil, message, code */
static int model_trace(lua_State *L)
{
  kg_model *model;
  check_model(L, 1);
  kg_check_type(L, 3, LUA_TTABLE);
  lua_settop(L, 3);
  size_t n;
  const int32_t *ids = check_some_ids(L, 2, &n);
  const lua_Integer n_names = (lua_Integer)lua_rawlen(L, 3);
  kg_step_trace *traces = lua_newuserdatauv(L, (size_t)n_names * sizeof *traces + 1, 0);
  kg_handle *handle;
  kg_error err;
  int status = push_fed(L, ids, n, &model, &handle, &err);
  const kg_plan *plan = kg_model_plan(model);
  lua_newtable(L); /* holds the tensors while the step writes to them: a name that comes twice has one tensor */
  size_t n_traces = 0;
  for (lua_Integer i = 0; i < n_names && !status; i++) {
    if (lua_rawgeti(L, 3, i + 1) != LUA_TSTRING) {
      let_go(handle);
      return kg_error_at(L, "names: strings expected");
    }
    kg_step_trace *trace = &traces[n_traces];
    *trace = (kg_step_trace){.value = kg_plan_value_find(plan, lua_tostring(L, -1))};
    if (trace->value == KG_NONE) {
      let_go(handle);
      return kg_error_at(L, "the model has no value \"%s\"", lua_tostring(L, -1));
    }
    lua_pushvalue(L, -1);
    if (lua_rawget(L, -3) != LUA_TNIL) {
      lua_pop(L, 2);
      continue;
    }
    lua_pop(L, 1);
    kg_tensor *tensor = NULL;
    status = push_rows(L, model, (int64_t)n, kg_plan_value(plan, trace->value)->width, &tensor, &err);
    if (!status) trace->buffer = tensor->buffer;
    lua_rawset(L, -3);
    n_traces++;
  }
  const bool stepped = !status;
  if (stepped) status = step_once(L, model, handle, NULL, traces, n_traces, &err);
  let_go(handle);
  if (stepped) kg_end_step(L, 1);
  return status ? kg_push_error(L, &err) : 1;
}

static int push_value_names(lua_State *L)
{
  const kg_plan *plan = kg_model_plan(check_model(L, 1));
  const int32_t n = kg_plan_value_count(plan);
  lua_createtable(L, n, 0);
  for (int32_t i = 0; i < n; i++) {
    lua_pushstring(L, kg_plan_value(plan, i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* model:values() -> names of all values, in the order they are computed */
static int model_values(lua_State *L)
{
  check_model(L, 1);
  return kg_call_at_rest(L, push_value_names);
}

static void set_page_counts(lua_State *L, const kg_kv_stats *pages)
{
  kg_set_integer(L, "n_pages", pages->n_pages);
  kg_set_integer(L, "n_pages_used", pages->n_used);
  kg_set_integer(L, "n_pages_kept", pages->n_kept);
}

static void push_page_groups(lua_State *L, const kg_model *model)
{
  const kg_kv *kv = kg_model_kv(model);
  const int32_t n = kg_kv_group_count(kv);
  lua_createtable(L, n, 0);
  for (int32_t g = 0; g < n; g++) {
    kg_kv_stats pages;
    kg_kv_get_stats(kv, g, &pages);
    lua_newtable(L);
    set_page_counts(L, &pages);
    kg_set_integer(L, "window", pages.window);
    kg_set_integer(L, "page_bytes", (int64_t)pages.page_bytes);
    kg_set_integer(L, "attention_flops", kg_plan_group_flops(kg_model_plan(model), g));
    lua_rawseti(L, -2, g + 1);
  }
}

static int push_stats(lua_State *L)
{
  const kg_model *model = check_model(L, 1);
  kg_model_stats stats;
  kg_model_get_stats(model, &stats);
  const int32_t n_sequences = kg_model_sequence_count(model), n_pages_max = kg_kv_page_limit(kg_model_kv(model));
  kg_kv_stats pages;
  kg_kv_get_stats(kg_model_kv(model), 0, &pages);
  const int64_t state_bytes = kg_plan_state_size(kg_model_plan(model)) * (int64_t)sizeof(float);
  const kg_state_pool *states = kg_model_states(model);
  const int32_t n_states = kg_states_count(states), n_states_used = kg_states_used(states);
  lua_newtable(L);
  kg_set_string(L, "device", stats.device);
  kg_set_string(L, "note", stats.note);
  kg_set_string(L, "variant", stats.variant);
  kg_set_string(L, "kv", stats.kv);
  kg_set_integer(L, "weight_bytes", (int64_t)stats.weight_bytes);
  kg_set_integer(L, "kv_bytes", (int64_t)stats.kv_bytes);
  kg_set_integer(L, "n_threads", stats.n_threads);
  kg_set_integer(L, "n_tokens_evaluated", stats.n_tokens_evaluated);
  kg_set_integer(L, "n_tokens_reused", stats.n_tokens_reused);
  kg_set_integer(L, "n_tokens_dropped", stats.n_tokens_dropped);
  kg_set_integer(L, "n_steps", stats.n_steps);
  kg_set_integer(L, "n_steps_dropped", stats.n_steps_dropped);
  kg_set_integer(L, "n_timed", stats.n_timed);
  kg_set_number(L, "timed_s", stats.timed_s);
  if (stats.expert_bytes >= 0) kg_set_integer(L, "expert_bytes", stats.expert_bytes);
  kg_set_integer(L, "n_sequences", n_sequences);
  set_page_counts(L, &pages);
  kg_set_integer(L, "n_pages_max", n_pages_max);
  kg_set_integer(L, "state_bytes", state_bytes);
  kg_set_integer(L, "state_every", kg_states_every(states));
  kg_set_integer(L, "n_states", n_states);
  kg_set_integer(L, "n_states_used", n_states_used);
  kg_set_integer(L, "n_states_kept", kg_kv_state_count(kg_model_kv(model)));
  push_page_groups(L, model);
  lua_setfield(L, -2, "page_groups");
  kg_set_integer(L, "chunk", kg_model_chunk(model));
  kg_set_integer(L, "page", KG_PAGE);
  return 1;
}

/* model:stats() -> table with the fields of kg_model_stats, chunk, n_sequences, n_pages, n_pages_used, n_pages_kept,
 * n_pages_max, page, page_groups, state_bytes, state_every, n_states, n_states_used, n_states_kept */
static int model_get_stats(lua_State *L)
{
  check_model(L, 1);
  return kg_call_at_rest(L, push_stats);
}

/* model:scramble(prefix, seed) -> number of weights whose bytes were permuted, or nil, message, code */
static int model_scramble(lua_State *L)
{
  kg_model *model = check_model(L, 1);
  const char *prefix = kg_check_string(L, 2);
  const uint64_t seed = (uint64_t)luaL_optinteger(L, 3, 0);
  int32_t n = 0;
  kg_error err;
  if (kg_model_scramble(model, prefix, seed, &n, &err)) return kg_push_error(L, &err);
  lua_pushinteger(L, n);
  return 1;
}

void kg_bind_model(lua_State *L)
{
  static const luaL_Reg methods[] = {{"close", close_model},       {"sequence", model_sequence},
                                     {"restore", model_restore},
                                     {"step", model_step},         {"draw", model_draw},
                                     {"advance", model_advance},   {"set_progress", set_progress},
                                     {"logits", model_logits},     {"trace", model_trace},
                                     {"values", model_values},     {"stats", model_get_stats},
                                     {"scramble", model_scramble}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {{"__index", model_index},        {"__newindex", model_new_index},
                                         {"__gc", collect_model},         {"__close", close_model},
                                         {"__tostring", model_to_string}, {NULL, NULL}};
  kg_class(L, KG_CLASS_MODEL, methods, metamethods);
  lua_pushcfunction(L, open_model);
  lua_setfield(L, -2, "model");
}
