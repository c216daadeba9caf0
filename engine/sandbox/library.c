#include "library.h"

#include <lauxlib.h>
#include <lualib.h>
#include <stdbool.h>
#include <string.h>

#include "budget.h"
#include "pattern.h"

enum {
  BYTES_PER_STEP = 16, /* of a string that a C function walks over */
  SOURCE_STEPS = 4,    /* to compile a byte */
  PIECE_BYTES = 128,   /* of source, between two looks at the budget */
  VALUES_MAX = 4096,   /* that one call of unpack, byte or codepoint may return: calls copy them */
  PROTECTED_MAX = 150, /* protected calls in one another, in one thread */
  FORMAT_MAX = 4096    /* bytes of a format: each two may be a number of 400 digits */
};

static int raise_too_many(lua_State *L, const char *what)
{
  return luaL_error(L, "%s: more than %d results", what, VALUES_MAX);
}

/* ---- base ---- */

/* How many protected calls of this thread are open. In a coroutine they take none of the stack of C that limits them
 * elsewhere, and Lua looks at all frames below whenever an error is caught: with many of them the end of a spent script
 * would cost n squared. */
static int *n_protected(lua_State *L) { return lua_getextraspace(L); }

static void begin_protected(lua_State *L)
{
  kg_budget_check(L);
  if (*n_protected(L) >= PROTECTED_MAX) luaL_error(L, "more than %d nested protected calls", (int)PROTECTED_MAX);
  ++*n_protected(L);
}

/* After something was caught: an error must not outlive a spent budget. What is above the first n_below values stays.
 */
static int finish_protected(lua_State *L, int status, lua_KContext n_below)
{
  --*n_protected(L);
  kg_budget_check(L);
  if (status == LUA_OK || status == LUA_YIELD) return lua_gettop(L) - (int)n_below;
  lua_pushboolean(L, false);
  lua_pushvalue(L, -2);
  return 2;
}

/* pcall(f, ...) */
static int protected_call(lua_State *L)
{
  luaL_checkany(L, 1);
  begin_protected(L);
  lua_pushboolean(L, true);
  lua_insert(L, 1);
  return finish_protected(L, lua_pcallk(L, lua_gettop(L) - 2, LUA_MULTRET, 0, 0, finish_protected), 0);
}

/* The message handler of xpcall, around the script's own (upvalue 1): not called once the budget is spent. */
static int handle_error(lua_State *L)
{
  if (kg_budget_of(L)->is_spent) return 1;
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_insert(L, 1);
  lua_call(L, lua_gettop(L) - 1, 1);
  return 1;
}

/* xpcall(f, handler, ...) */
static int protected_call_handled(lua_State *L)
{
  const int n = lua_gettop(L);
  luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_pushvalue(L, 2);
  lua_pushcclosure(L, handle_error, 1);
  lua_replace(L, 2);
  begin_protected(L);
  lua_pushboolean(L, true);
  lua_pushvalue(L, 1);
  lua_rotate(L, 3, 2); /* f, handler, true, f, arguments */
  return finish_protected(L, lua_pcallk(L, n - 2, LUA_MULTRET, 2, 2, finish_protected), 2);
}

typedef struct source {
  const char *text;
  size_t n; /* that are left */
} source;

/* The next piece of a text, for Lua's compiler, which is watched by nobody else. */
static const char *read_piece(lua_State *L, void *user, size_t *n)
{
  source *from = user;
  const char *piece = from->text;
  *n = from->n < PIECE_BYTES ? from->n : PIECE_BYTES;
  from->text += *n;
  from->n -= *n;
  kg_budget_charge(L, *n * SOURCE_STEPS);
  kg_budget_check(L);
  return piece;
}

int kg_library_load(lua_State *L, const char *text, size_t n, const char *name)
{
  source from = {.text = text, .n = n};
  const int status = lua_load(L, read_piece, &from, name, "t");
  kg_budget_check(L);
  return status;
}

/* load(text, name, mode, env): text only, and whole */
static int load_text(lua_State *L)
{
  size_t n;
  const char *text = luaL_checklstring(L, 1, &n), *name = luaL_optstring(L, 2, text);
  const char *mode = luaL_optstring(L, 3, "t");
  if (!strchr(mode, 't')) {
    luaL_pushfail(L);
    lua_pushliteral(L, "load: only text is loaded here");
    return 2;
  }
  const bool has_environment = !lua_isnone(L, 4);
  if (kg_library_load(L, text, n, name)) {
    luaL_pushfail(L);
    lua_insert(L, -2);
    return 2;
  }
  if (has_environment) {
    lua_pushvalue(L, 4);
    lua_setupvalue(L, -2, 1);
  }
  return 1;
}

/* setmetatable(t, mt): no finalizers, which run with hooks off and at times of nobody's choosing. (A __gc that is set
 * later has no effect: Lua looks for it here.) No weak keys, since a chain of them costs the collector n squared at a
 * stretch; who sets that mode later gets round this, and only a worker stops him. */
static int set_metatable(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_argexpected(L, lua_isnil(L, 2) || lua_istable(L, 2), 2, "nil or table");
  if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL) return luaL_error(L, "cannot change a protected metatable");
  if (lua_istable(L, 2)) {
    lua_pushliteral(L, "__gc");
    if (lua_rawget(L, 2) != LUA_TNIL) return luaL_error(L, "setmetatable: a script has no __gc here");
    lua_pushliteral(L, "__mode");
    if (lua_rawget(L, 2) == LUA_TSTRING && strchr(lua_tostring(L, -1), 'k'))
      return luaL_error(L, "setmetatable: a script has no weak keys here");
  }
  lua_settop(L, 2);
  lua_setmetatable(L, 1);
  return 1;
}

/* ---- coroutines ---- */

/* Resume co with the n values on top of L: the number of results there, or -1 and the error. */
static int resume(lua_State *L, lua_State *co, int n)
{
  if (!lua_checkstack(co, n)) {
    lua_pushliteral(L, "too many arguments to resume");
    return -1;
  }
  kg_budget_charge(L, 1);
  lua_xmove(L, co, n);
  kg_budget *budget = kg_budget_of(L);
  int n_results;
  budget->running = co;
  const int status = lua_resume(co, L, n, &n_results);
  budget->running = L;
  if (status != LUA_OK && status != LUA_YIELD) {
    lua_xmove(co, L, 1);
    return -1;
  }
  if (!lua_checkstack(L, n_results + 1)) {
    lua_pop(co, n_results);
    lua_pushliteral(L, "too many results to resume");
    return -1;
  }
  lua_xmove(co, L, n_results);
  return n_results;
}

static lua_State *check_thread(lua_State *L)
{
  lua_State *co = lua_tothread(L, 1);
  luaL_argexpected(L, co, 1, "coroutine");
  return co;
}

/* coroutine.create(f). A new thread starts counting anew, so it is paid for ahead. */
static int coroutine_create(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TFUNCTION);
  kg_budget_charge(L, KG_BUDGET_PERIOD);
  lua_State *co = lua_newthread(L);
  *n_protected(co) = 0;
  lua_pushvalue(L, 1);
  lua_xmove(L, co, 1);
  return 1;
}

static int coroutine_resume(lua_State *L)
{
  lua_State *co = check_thread(L);
  const int n = resume(L, co, lua_gettop(L) - 1);
  kg_budget_check(L);
  lua_pushboolean(L, n >= 0);
  const int n_results = n >= 0 ? n : 1;
  lua_insert(L, -(n_results + 1));
  return n_results + 1;
}

/* Run what waits to be closed in a thread that is dead or suspended: the status, and the error on top of it. */
static int close_thread(lua_State *L, lua_State *co)
{
  kg_budget *budget = kg_budget_of(L);
  budget->running = co;
  const int status = lua_resetthread(co);
  budget->running = L;
  return status;
}

/* The function of coroutine.wrap; upvalue 1 is the thread. */
static int resume_wrapped(lua_State *L)
{
  lua_State *co = lua_tothread(L, lua_upvalueindex(1));
  const int n = resume(L, co, lua_gettop(L));
  kg_budget_check(L);
  if (n >= 0) return n;
  const int status = lua_status(co);
  if (status != LUA_OK && status != LUA_YIELD) { /* it failed: close what it left open */
    close_thread(L, co);
    lua_xmove(co, L, 1);
    kg_budget_check(L);
  }
  if (lua_type(L, -1) == LUA_TSTRING && status != LUA_ERRMEM) {
    luaL_where(L, 1);
    lua_insert(L, -2);
    lua_concat(L, 2);
  }
  return lua_error(L);
}

static int coroutine_wrap(lua_State *L)
{
  coroutine_create(L);
  lua_pushcclosure(L, resume_wrapped, 1);
  return 1;
}

static int coroutine_close(lua_State *L)
{
  lua_State *co = check_thread(L);
  lua_Debug at;
  const int status = lua_status(co);
  const bool is_running = co == L || (status == LUA_OK && lua_getstack(co, 0, &at)); /* or has resumed another */
  if (is_running) return luaL_error(L, "cannot close a running coroutine");
  if (close_thread(L, co) == LUA_OK) {
    kg_budget_check(L);
    lua_pushboolean(L, true);
    return 1;
  }
  lua_pushboolean(L, false);
  lua_xmove(co, L, 1);
  kg_budget_check(L);
  return 2;
}

/* ---- strings ---- */

/* A stock function (upvalue 1) that walks over its strings: paid by their length. */
static int call_paid(lua_State *L)
{
  uint64_t n_bytes = 0;
  for (int i = lua_gettop(L); i > 0; i--)
    if (lua_type(L, i) == LUA_TSTRING) n_bytes += lua_rawlen(L, i);
  kg_budget_charge(L, n_bytes / BYTES_PER_STEP + 1);
  return lua_tocfunction(L, lua_upvalueindex(1))(L);
}

static int string_format(lua_State *L)
{
  size_t n;
  luaL_checklstring(L, 1, &n);
  if (n > FORMAT_MAX) return luaL_error(L, "format: a format has at most %d bytes here", FORMAT_MAX);
  kg_budget_charge(L, n);
  return call_paid(L);
}

static int string_rep(lua_State *L)
{
  size_t n, n_separator;
  luaL_checklstring(L, 1, &n);
  const lua_Integer times = luaL_checkinteger(L, 2);
  luaL_optlstring(L, 3, "", &n_separator);
  if (times > 0) {
    const uint64_t n_each = (uint64_t)n + n_separator;
    /* Nothing very often is nothing, but stock rep goes round for every time. */
    if ((uint64_t)times > KG_BUDGET_STRING_MAX || n_each > KG_BUDGET_STRING_MAX / (uint64_t)times)
      return luaL_error(L, "rep: more than %d bytes", (int)KG_BUDGET_STRING_MAX);
    kg_budget_charge(L, (uint64_t)times + (uint64_t)times * n_each / BYTES_PER_STEP);
  }
  return call_paid(L);
}

/* byte(s, i, j) and codepoint(s, i, j) return as many values as the slice says. */
static int call_slice(lua_State *L)
{
  size_t n;
  luaL_checklstring(L, 1, &n);
  const lua_Integer first = luaL_optinteger(L, 2, 1), from = first < 0 ? first + (lua_Integer)n + 1 : first;
  lua_Integer last = luaL_optinteger(L, 3, from);
  if (last < 0) last = last < -(lua_Integer)n ? 0 : last + (lua_Integer)n + 1;
  if (last > (lua_Integer)n) last = (lua_Integer)n;
  if (last >= VALUES_MAX && from <= last - VALUES_MAX) return raise_too_many(L, "byte or codepoint");
  return call_paid(L);
}

/* ---- tables: raw, so that no metamethod can say how long one is ---- */

static lua_Integer check_length(lua_State *L, int index)
{
  luaL_checktype(L, index, LUA_TTABLE);
  return (lua_Integer)lua_rawlen(L, index);
}

/* Pay for the elements from..to, before a loop over them. */
static void pay_range(lua_State *L, lua_Integer from, lua_Integer to)
{
  if (from <= to) kg_budget_charge(L, (uint64_t)to - (uint64_t)from);
  kg_budget_charge(L, 1);
}

static int table_insert(lua_State *L)
{
  const lua_Integer end = (lua_Integer)((lua_Unsigned)check_length(L, 1) + 1);
  lua_Integer at = end;
  if (lua_gettop(L) == 3) {
    at = luaL_checkinteger(L, 2);
    luaL_argcheck(L, (lua_Unsigned)at - 1u < (lua_Unsigned)end, 2, "position out of bounds");
    pay_range(L, at, end);
    for (lua_Integer i = end; i > at; i--) {
      lua_rawgeti(L, 1, i - 1);
      lua_rawseti(L, 1, i);
    }
  } else if (lua_gettop(L) != 2) {
    return luaL_error(L, "wrong number of arguments to 'insert'");
  }
  lua_rawseti(L, 1, at);
  return 0;
}

static int table_remove(lua_State *L)
{
  const lua_Integer size = check_length(L, 1);
  lua_Integer at = luaL_optinteger(L, 2, size);
  if (at != size) /* of an empty table, element 0 */
    luaL_argcheck(L, (lua_Unsigned)at - 1u <= (lua_Unsigned)size, 2, "position out of bounds");
  pay_range(L, at, size);
  lua_rawgeti(L, 1, at);
  for (; at < size; at++) {
    lua_rawgeti(L, 1, at + 1);
    lua_rawseti(L, 1, at);
  }
  lua_pushnil(L);
  lua_rawseti(L, 1, at);
  return 1;
}

static int table_move(lua_State *L)
{
  const lua_Integer from = luaL_checkinteger(L, 2), to = luaL_checkinteger(L, 3), at = luaL_checkinteger(L, 4);
  const int target = lua_isnoneornil(L, 5) ? 1 : 5;
  luaL_checktype(L, 1, LUA_TTABLE);
  luaL_checktype(L, target, LUA_TTABLE);
  lua_settop(L, 5);
  if (to >= from) {
    luaL_argcheck(L, from > 0 || to < LUA_MAXINTEGER + from, 3, "too many elements to move");
    const lua_Integer n = to - from + 1;
    luaL_argcheck(L, at <= LUA_MAXINTEGER - n + 1, 4, "destination wrap around");
    pay_range(L, from, to);
    const bool ascending = at > to || at <= from || (target == 5 && !lua_rawequal(L, 1, 5));
    for (lua_Integer k = 0; k < n; k++) {
      const lua_Integer i = ascending ? k : n - 1 - k;
      lua_rawgeti(L, 1, from + i);
      lua_rawseti(L, target, at + i);
    }
  }
  lua_pushvalue(L, target);
  return 1;
}

static int table_concat(lua_State *L)
{
  size_t n_separator;
  const lua_Integer size = check_length(L, 1);
  const char *separator = luaL_optlstring(L, 2, "", &n_separator);
  const lua_Integer first = luaL_optinteger(L, 3, 1), last = luaL_optinteger(L, 4, size);
  luaL_Buffer out;
  luaL_buffinit(L, &out);
  for (lua_Integer i = first; i <= last; i++) {
    lua_rawgeti(L, 1, i);
    if (!lua_isstring(L, -1)) return luaL_error(L, "invalid value (at index %I) in table for 'concat'", (LUAI_UACINT)i);
    kg_budget_charge(L, (lua_rawlen(L, -1) + n_separator) / BYTES_PER_STEP + 1);
    luaL_addvalue(&out);
    if (i == last) break; /* which may be the largest integer */
    luaL_addlstring(&out, separator, n_separator);
  }
  luaL_pushresult(&out);
  return 1;
}

static int table_unpack(lua_State *L)
{
  const lua_Integer size = check_length(L, 1);
  const lua_Integer first = luaL_optinteger(L, 2, 1), last = luaL_optinteger(L, 3, size);
  if (first > last) return 0;
  if ((lua_Unsigned)last - (lua_Unsigned)first >= VALUES_MAX) return raise_too_many(L, "unpack");
  const int n = (int)(last - first) + 1;
  luaL_checkstack(L, n, "unpack");
  kg_budget_charge(L, (uint64_t)n);
  for (int i = 0; i < n; i++) lua_rawgeti(L, 1, first + i);
  return n;
}

/* Element i of the table at 1 before element j, as the function at 2 or `<` says? */
static bool is_before(lua_State *L, int i, int j)
{
  const bool by_function = !lua_isnil(L, 2);
  if (by_function) lua_pushvalue(L, 2);
  lua_rawgeti(L, 1, i);
  lua_rawgeti(L, 1, j);
  const bool strings = lua_type(L, -1) == LUA_TSTRING && lua_type(L, -2) == LUA_TSTRING;
  kg_budget_charge(L, strings ? lua_rawlen(L, -1) / BYTES_PER_STEP + 2 : 2);
  if (by_function)
    lua_call(L, 2, 1);
  else
    lua_pushboolean(L, lua_compare(L, -2, -1, LUA_OPLT));
  const bool result = lua_toboolean(L, -1);
  lua_pop(L, by_function ? 1 : 3);
  return result;
}

static void swap(lua_State *L, int i, int j)
{
  lua_rawgeti(L, 1, i);
  lua_rawgeti(L, 1, j);
  lua_rawseti(L, 1, i);
  lua_rawseti(L, 1, j);
}

/* Let the element at `root` sink in the heap of elements 1..n. */
static void sift_down(lua_State *L, int root, int n)
{
  while (root <= n / 2) {
    int child = 2 * root;
    if (child < n && is_before(L, child, child + 1)) child++;
    if (!is_before(L, root, child)) return;
    swap(L, root, child);
    root = child;
  }
}

/* A heap sort: n log n comparisons, whatever the order function says; stock sort can be led to n squared. */
static int table_sort(lua_State *L)
{
  const lua_Integer size = check_length(L, 1);
  if (!lua_isnoneornil(L, 2)) luaL_checktype(L, 2, LUA_TFUNCTION);
  lua_settop(L, 2);
  pay_range(L, 0, size);
  luaL_argcheck(L, size < INT_MAX / 2, 1, "array too big");
  const int n = (int)size;
  for (int root = n / 2; root > 0; root--) sift_down(L, root, n);
  for (int last = n; last > 1; last--) {
    swap(L, 1, last);
    sift_down(L, 1, last - 1);
  }
  return 0;
}

/* ---- the environment ---- */

typedef struct entry {
  const char *name;
  lua_CFunction function; /* NULL: the stock function as it is; with a stock one of that name, it is upvalue 1 */
} entry;

static const entry base[] = {{"assert", NULL},        {"error", NULL},
                             {"getmetatable", NULL},  {"ipairs", NULL},
                             {"load", load_text},     {"next", NULL},
                             {"pairs", NULL},         {"pcall", protected_call},
                             {"rawequal", NULL},      {"rawget", NULL},
                             {"rawlen", NULL},        {"rawset", NULL},
                             {"select", NULL},        {"setmetatable", set_metatable},
                             {"tonumber", call_paid}, {"tostring", NULL},
                             {"type", NULL},          {"xpcall", protected_call_handled},
                             {"_VERSION", NULL},      {NULL, NULL}};
static const entry coroutine[] = {{"close", coroutine_close},
                                  {"create", coroutine_create},
                                  {"isyieldable", NULL},
                                  {"resume", coroutine_resume},
                                  {"running", NULL},
                                  {"status", NULL},
                                  {"wrap", coroutine_wrap},
                                  {"yield", NULL},
                                  {NULL, NULL}};
static const entry math[] = {{"abs", NULL},        {"acos", NULL},       {"asin", NULL}, {"atan", NULL},
                             {"ceil", NULL},       {"cos", NULL},        {"deg", NULL},  {"exp", NULL},
                             {"floor", NULL},      {"fmod", NULL},       {"huge", NULL}, {"log", NULL},
                             {"max", NULL},        {"maxinteger", NULL}, {"min", NULL},  {"mininteger", NULL},
                             {"modf", NULL},       {"pi", NULL},         {"rad", NULL},  {"random", NULL},
                             {"randomseed", NULL}, {"sin", NULL},        {"sqrt", NULL}, {"tan", NULL},
                             {"tointeger", NULL},  {"type", NULL},       {"ult", NULL},  {NULL, NULL}};
static const entry string[] = {{"byte", call_slice},
                               {"char", call_paid},
                               {"find", kg_pattern_find},
                               {"format", string_format},
                               {"gmatch", kg_pattern_gmatch},
                               {"gsub", kg_pattern_gsub},
                               {"len", NULL},
                               {"lower", call_paid},
                               {"match", kg_pattern_match},
                               {"rep", string_rep},
                               {"reverse", call_paid},
                               {"sub", call_paid},
                               {"upper", call_paid},
                               {NULL, NULL}};
static const entry table[] = {
    {"concat", table_concat}, {"insert", table_insert}, {"move", table_move},     {"pack", NULL},
    {"remove", table_remove}, {"sort", table_sort},     {"unpack", table_unpack}, {NULL, NULL}};
static const entry utf8[] = {{"char", call_paid},  {"charpattern", NULL}, {"codepoint", call_slice},
                             {"codes", call_paid}, {"len", call_paid},    {"offset", call_paid},
                             {NULL, NULL}};

/* Copy entries from the stock table on top to the table below it. */
static void copy_entries(lua_State *L, const entry *entries)
{
  for (; entries->name; entries++) {
    lua_getfield(L, -1, entries->name);
    if (entries->function) lua_pushcclosure(L, entries->function, 1);
    lua_setfield(L, -3, entries->name);
  }
}

/* Open a stock library and put our copy of it into the table on top. */
static void add_library(lua_State *L, const char *name, lua_CFunction open, const entry *entries)
{
  lua_newtable(L);
  luaL_requiref(L, name, open, 0);
  copy_entries(L, entries);
  lua_pop(L, 1);
  lua_setfield(L, -2, name);
}

/* One metatable for all strings: methods of their own, no arithmetic on them, locked. */
static void lock_strings(lua_State *L)
{
  lua_pushliteral(L, "");
  lua_createtable(L, 0, 2);
  lua_newtable(L);
  lua_getfield(L, -4, "string");
  for (const entry *method = string; method->name; method++) {
    lua_getfield(L, -1, method->name);
    lua_setfield(L, -3, method->name);
  }
  lua_pop(L, 1);
  lua_setfield(L, -2, "__index");
  lua_pushboolean(L, false);
  lua_setfield(L, -2, "__metatable");
  lua_setmetatable(L, -2);
  lua_pop(L, 1);
}

void kg_library_open(lua_State *L)
{
  *n_protected(L) = 0;
  lua_newtable(L); /* the environment */
  luaL_requiref(L, LUA_GNAME, luaopen_base, 0);
  copy_entries(L, base);
  lua_pop(L, 1);
  add_library(L, LUA_COLIBNAME, luaopen_coroutine, coroutine);
  add_library(L, LUA_MATHLIBNAME, luaopen_math, math);
  add_library(L, LUA_STRLIBNAME, luaopen_string, string);
  add_library(L, LUA_TABLIBNAME, luaopen_table, table);
  add_library(L, LUA_UTF8LIBNAME, luaopen_utf8, utf8);
  lock_strings(L);
  /* The same script draws the same numbers every time. */
  lua_getfield(L, -1, LUA_MATHLIBNAME);
  lua_getfield(L, -1, "randomseed");
  lua_pushinteger(L, 0);
  lua_call(L, 1, 0);
  lua_pop(L, 1);
  lua_pushvalue(L, -1);
  lua_setfield(L, -2, LUA_GNAME);
  lua_rawseti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
  lua_pushnil(L);
  lua_setfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
}
