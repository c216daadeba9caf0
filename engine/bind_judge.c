#include "bind_judge.h"

#include <string.h>

#include "error.h"
#include "model.h"

#define CLASS_JUDGE "kigo.judge"

/* Slots of its thread's stack. */
enum { HANDLER = 1, COMPLETE, PARTIAL, RAISED, N_SLOTS = RAISED };

typedef struct judge_box {
  lua_State *main;   /* for the registry */
  lua_State *thread; /* in the user value */
  int32_t n_refs;
  int anchor; /* in the registry, while n_refs is positive */
  kg_model *model;   /* of the constrained sequence, or NULL */
  kg_error raised;   /* what the last one that raised was told as; code KG_OK: none has */
} judge_box;

/* Errors that are no strings are left as they are. */
static int add_traceback(lua_State *L)
{
  if (lua_type(L, 1) == LUA_TSTRING) luaL_traceback(L, L, lua_tostring(L, 1), 1);
  return 1;
}

static int fail_raised(judge_box *box, kg_error *err)
{
  lua_State *t = box->thread;
  lua_replace(t, RAISED);
  const char *text = lua_type(t, RAISED) == LUA_TSTRING ? lua_tostring(t, RAISED) : luaL_typename(t, RAISED);
  const int status = kg_fail(&box->raised, KG_ERR_ARGUMENT, "the function of a point raised an error: %s", text);
  if (err) *err = box->raised;
  return status;
}

/* Protected, because pushing the text takes memory: (functions, number, kg_string *) -> answer */
static int ask_function(lua_State *L)
{
  const kg_string *text = lua_touserdata(L, 3);
  lua_rawgeti(L, 1, lua_tointeger(L, 2));
  if (lua_isnil(L, -1)) { /* no partial question for this point */
    lua_pushboolean(L, 1);
    return 1;
  }
  lua_pushlstring(L, text->data, text->size);
  lua_call(L, 1, 1);
  return 1;
}

/* Call the function below n_args arguments on the thread, with its model as in a step: it may only look at it. */
static bool call_function(judge_box *box, int n_args)
{
  const bool is_stepping = box->model && kg_model_is_stepping(box->model);
  if (box->model) kg_model_set_stepping(box->model, true);
  const bool is_good = lua_pcall(box->thread, n_args, 1, HANDLER) == LUA_OK;
  if (box->model) kg_model_set_stepping(box->model, is_stepping);
  return is_good;
}

static int ask(void *user, uint32_t point, bool partial, const char *text, size_t size, bool *answer, kg_error *err)
{
  judge_box *box = user;
  lua_State *t = box->thread;
  kg_string given = {size ? text : "", size};
  if (!lua_checkstack(t, 8)) return kg_fail_memory(err, 8, "a point's function");
  lua_pushcfunction(t, ask_function);
  lua_pushvalue(t, partial ? PARTIAL : COMPLETE);
  lua_pushinteger(t, (lua_Integer)point + 1);
  lua_pushlightuserdata(t, &given);
  if (!call_function(box, 3)) return fail_raised(box, err);
  *answer = lua_toboolean(t, -1);
  lua_pop(t, 1);
  return KG_OK;
}

static void ref(void *user) { ((judge_box *)user)->n_refs++; }

/* Nobody needs it any more; the collector may take it. */
static void let_go(judge_box *box)
{
  luaL_unref(box->main, LUA_REGISTRYINDEX, box->anchor);
  box->anchor = LUA_NOREF;
}

static void unref(void *user)
{
  judge_box *box = user;
  if (!--box->n_refs) let_go(box);
}

/* Store the function at field `field` of the value on top (or, NULL, itself) in the table at `slot` of the thread. */
static bool take_function(lua_State *L, judge_box *box, const char *name, const char *field, int slot,
                          lua_Integer point)
{
  if (field)
    lua_getfield(L, -1, field);
  else
    lua_pushvalue(L, -1);
  if (lua_isnil(L, -1)) {
    lua_pop(L, 1);
    return false;
  }
  if (!lua_isfunction(L, -1)) kg_error_at(L, "points: %s: function expected, got %s", name, luaL_typename(L, -1));
  lua_xmove(L, box->thread, 1);
  lua_rawseti(box->thread, slot, point);
  return true;
}

static void check_names(lua_State *L, int index, const kg_grammar *grammar)
{
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    size_t n = 0;
    const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tolstring(L, -2, &n) : "";
    uint32_t i = 0;
    while (i < grammar->n_points) {
      const kg_string known = kg_grammar_point_name(grammar, i);
      if (known.size == n && !memcmp(known.data, name, n)) break;
      i++;
    }
    if (i == grammar->n_points) kg_error_at(L, "points: the grammar has no point '%s'", luaL_tolstring(L, -2, NULL));
  }
}

static judge_box *push_box(lua_State *L, kg_model *model)
{
  judge_box *box = lua_newuserdatauv(L, sizeof *box, 1);
  *box = (judge_box){.model = model};
  luaL_newmetatable(L, CLASS_JUDGE);
  lua_setmetatable(L, -2);
  lua_rawgeti(L, LUA_REGISTRYINDEX, LUA_RIDX_MAINTHREAD);
  box->main = lua_tothread(L, -1);
  lua_pop(L, 1);
  box->thread = lua_newthread(L);
  lua_setiuservalue(L, -2, 1);
  lua_pushcfunction(box->thread, add_traceback);
  lua_newtable(box->thread);
  lua_newtable(box->thread);
  lua_pushnil(box->thread);
  return box;
}

void kg_push_judge(lua_State *L, int index, const kg_grammar *grammar, kg_model *model, kg_judge *out)
{
  *out = (kg_judge){0};
  luaL_checkstack(L, 10, "points");
  if (lua_isnoneornil(L, index) || lua_getfield(L, index, "points") == LUA_TNIL) {
    if (grammar->n_points) {
      const kg_string name = kg_grammar_point_name(grammar, 0);
      lua_pushlstring(L, name.data, name.size);
      kg_error_at(L, "points: the grammar has a point '%s', for which there is no function", lua_tostring(L, -1));
    }
    if (lua_isnoneornil(L, index)) lua_pushnil(L); /* else there is one already */
    return;
  }
  kg_check_type(L, -1, LUA_TTABLE);
  const int functions = lua_gettop(L);
  check_names(L, functions, grammar);
  judge_box *box = push_box(L, model);
  for (uint32_t i = 0; i < grammar->n_points; i++) {
    const kg_string point = kg_grammar_point_name(grammar, i);
    const char *name = lua_pushlstring(L, point.data, point.size);
    lua_pushvalue(L, -1);
    lua_rawget(L, functions);
    const bool is_table = lua_istable(L, -1);
    if (!take_function(L, box, name, is_table ? "complete" : NULL, COMPLETE, i + 1))
      kg_error_at(L, "points: there is no function for the point '%s'", name);
    if (is_table && take_function(L, box, name, "partial", PARTIAL, i + 1)) out->asks_partial = true;
    lua_pop(L, 2);
  }
  lua_pushvalue(L, -1);
  box->anchor = luaL_ref(L, LUA_REGISTRYINDEX);
  lua_replace(L, functions);
  *out = (kg_judge){.ask = ask, .ref = ref, .unref = unref, .asks_partial = out->asks_partial, .user = box};
}

void kg_settle_judge(const kg_judge *judge)
{
  judge_box *box = judge->user;
  if (box && !box->n_refs) let_go(box);
}

void kg_raise_judged(lua_State *L, const kg_judge *judge, const kg_error *err)
{
  judge_box *box = judge->user;
  if (!box || !box->raised.code || strcmp(box->raised.message, err->message) != 0) return; /* a draft may have asked */
  box->raised.code = KG_OK;
  luaL_checkstack(L, 1, "points");
  lua_pushvalue(box->thread, RAISED);
  lua_xmove(box->thread, L, 1);
  lua_error(L);
}
