#include "bind.h"

#include <stdarg.h>
#include <string.h>

/* ---- classes and handles ---- */

void kg_class(lua_State *L, const char *name, const luaL_Reg *methods, const luaL_Reg *metamethods)
{
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  const int method_table = lua_gettop(L);

  luaL_newmetatable(L, name);
  lua_pushvalue(L, method_table);
  lua_setfield(L, -2, "__index");
  lua_pushvalue(L, method_table);
  luaL_setfuncs(L, metamethods, 1); /* replaces __index when the class has properties */
  lua_pop(L, 1);

  luaL_getsubtable(L, LUA_REGISTRYINDEX, "kigo.classes");
  lua_pushvalue(L, method_table);
  lua_setfield(L, -2, strchr(name, '.') + 1);
  lua_settop(L, method_table - 1);
}

void kg_extend_class(lua_State *L, const char *name, const luaL_Reg *methods)
{
  luaL_getsubtable(L, LUA_REGISTRYINDEX, "kigo.classes");
  lua_getfield(L, -1, strchr(name, '.') + 1);
  luaL_setfuncs(L, methods, 0);
  lua_pop(L, 2);
}

/* ---- positions ---- */

/* Is this function in a Lua file of the library, as a source tree or an installation has them? */
static bool is_ours(const lua_Debug *frame)
{
  return strstr(frame->source, "lua/kigo/") || strstr(frame->source, "5.4/kigo/");
}

/* Push "FILE:LINE: " of the first caller outside the library. */
static void push_position(lua_State *L)
{
  lua_Debug frame;
  for (int level = 1; lua_getstack(L, level, &frame); level++) {
    lua_getinfo(L, "Sl", &frame);
    if (frame.currentline <= 0 || is_ours(&frame)) continue;
    lua_pushfstring(L, "%s:%d: ", frame.short_src, frame.currentline);
    return;
  }
  luaL_where(L, 1); /* ours all the way: the program itself */
}

int kg_error_at(lua_State *L, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  push_position(L);
  lua_pushvfstring(L, format, args);
  va_end(args);
  lua_concat(L, 2);
  return lua_error(L);
}

/* The caller's own names of arguments are told where he called us himself. */
static void fail_type(lua_State *L, int index, const char *wanted)
{
  lua_Debug frame;
  if (lua_getstack(L, 1, &frame) && lua_getinfo(L, "Sl", &frame) && !is_ours(&frame)) luaL_typeerror(L, index, wanted);
  kg_error_at(L, "%s expected, got %s", wanted, luaL_typename(L, index));
}

void kg_check_type(lua_State *L, int index, int type)
{
  if (lua_type(L, index) != type) fail_type(L, index, lua_typename(L, type));
}

const char *kg_check_lstring(lua_State *L, int index, size_t *size)
{
  const char *text = lua_tolstring(L, index, size);
  if (!text) fail_type(L, index, lua_typename(L, LUA_TSTRING));
  return text;
}

const char *kg_check_string(lua_State *L, int index)
{
  return kg_check_lstring(L, index, NULL);
}

double kg_check_number(lua_State *L, int index)
{
  int is_number;
  const double number = lua_tonumberx(L, index, &is_number);
  if (!is_number) fail_type(L, index, lua_typename(L, LUA_TNUMBER));
  return number;
}

kg_handle *kg_push_handle(lua_State *L, const char *name, int n_user_values)
{
  kg_handle *handle = lua_newuserdatauv(L, sizeof *handle, n_user_values);
  handle->object = NULL;
  luaL_setmetatable(L, name);
  return handle;
}

void *kg_check_userdata(lua_State *L, int index, const char *name)
{
  void *userdata = luaL_testudata(L, index, name);
  if (!userdata) fail_type(L, index, name);
  return userdata;
}

kg_handle *kg_check_handle(lua_State *L, int index, const char *name)
{
  return kg_check_userdata(L, index, name);
}

void *kg_check_open(lua_State *L, int index, const char *name)
{
  kg_handle *handle = kg_check_handle(L, index, name);
  if (!handle->object) kg_error_at(L, "%s is closed", name);
  return handle->object;
}

/* ---- errors ---- */

int kg_raise(lua_State *L, const kg_error *err)
{
  return kg_error_at(L, "%s", err->message);
}

int kg_push_error(lua_State *L, const kg_error *err)
{
  if (err->code == KG_ERR_ARGUMENT) return kg_raise(L, err);
  lua_pushnil(L);
  lua_pushstring(L, err->message);
  lua_pushinteger(L, err->code);
  return 3;
}

/* ---- arguments ---- */

static int64_t check_range(lua_State *L, const char *name, int index, int64_t min, int64_t max)
{
  int is_integer;
  const lua_Integer value = lua_tointegerx(L, index, &is_integer);
  if (lua_type(L, index) != LUA_TNUMBER)
    kg_error_at(L, "%s: integer expected, got %s", name, luaL_typename(L, index));
  if (!is_integer) kg_error_at(L, "%s: integer expected, got %f", name, lua_tonumber(L, index));
  if (value < min || value > max)
    kg_error_at(L, "%s: %I is outside %I to %I", name, value, (lua_Integer)min, (lua_Integer)max);
  return value;
}

int64_t kg_check_int(lua_State *L, int index, const char *name, int64_t min, int64_t max)
{
  return check_range(L, name, index, min, max);
}

/* Push the field, or nil where there is no table; false when it is nil (and popped). */
static bool push_field(lua_State *L, int index, const char *field)
{
  if (lua_isnoneornil(L, index)) return false;
  kg_check_type(L, index, LUA_TTABLE);
  lua_getfield(L, index, field);
  if (!lua_isnil(L, -1)) return true;
  lua_pop(L, 1);
  return false;
}

int64_t kg_opt_int_field(lua_State *L, int index, const char *field, int64_t fallback, int64_t min, int64_t max)
{
  if (!push_field(L, index, field)) return fallback;
  const int64_t value = check_range(L, field, -1, min, max);
  lua_pop(L, 1);
  return value;
}

double kg_opt_number_field(lua_State *L, int index, const char *field, double fallback, double min, double max)
{
  if (!push_field(L, index, field)) return fallback;
  if (lua_type(L, -1) != LUA_TNUMBER) kg_error_at(L, "%s: number expected, got %s", field, luaL_typename(L, -1));
  const double value = lua_tonumber(L, -1);
  if (!(value >= min && value <= max)) kg_error_at(L, "%s: %f is outside %f to %f", field, value, min, max);
  lua_pop(L, 1);
  return value;
}

void kg_check_fields(lua_State *L, int index, const char *const *allowed)
{
  if (lua_isnoneornil(L, index)) return;
  kg_check_type(L, index, LUA_TTABLE);
  lua_pushnil(L);
  while (lua_next(L, index)) {
    lua_pop(L, 1);
    const char *field = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
    const char *const *known = allowed;
    while (*known && (!field || strcmp(*known, field))) known++;
    if (!*known) kg_error_at(L, "%s: no such option", field ? field : luaL_tolstring(L, -1, NULL));
  }
}

const char *kg_opt_string_field(lua_State *L, int index, const char *field, const char *fallback)
{
  if (!push_field(L, index, field)) return fallback;
  if (lua_type(L, -1) != LUA_TSTRING) kg_error_at(L, "%s: string expected, got %s", field, luaL_typename(L, -1));
  const char *value = lua_tostring(L, -1);
  lua_pop(L, 1);
  return value;
}

bool kg_opt_bool_field(lua_State *L, int index, const char *field, bool fallback)
{
  if (!push_field(L, index, field)) return fallback;
  if (!lua_isboolean(L, -1)) kg_error_at(L, "%s: boolean expected, got %s", field, luaL_typename(L, -1));
  const bool value = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return value;
}

/* ---- calling Lua ---- */

int kg_call_progress(lua_State *L)
{
  const kg_progress_call *call = lua_touserdata(L, 2);
  lua_settop(L, 1);
  lua_pushstring(L, call->what);
  lua_pushinteger(L, call->done);
  lua_pushinteger(L, call->total);
  lua_call(L, 3, 1);
  return 1;
}

static const char company_key = 0;

int kg_set_company(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_settop(L, 1);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &company_key);
  return 0;
}

bool kg_push_company(lua_State *L)
{
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &company_key) == LUA_TFUNCTION) return true;
  lua_pop(L, 1);
  return false;
}

int kg_call_at_rest(lua_State *L, lua_CFunction f)
{
  const bool was_running = lua_gc(L, LUA_GCISRUNNING);
  lua_pushcfunction(L, f);
  lua_insert(L, 1);
  lua_gc(L, LUA_GCSTOP);
  const int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  if (was_running) lua_gc(L, LUA_GCRESTART);
  return status ? lua_error(L) : lua_gettop(L);
}

/* ---- token ids ---- */

int32_t *kg_check_ids(lua_State *L, int index, size_t *n)
{
  index = lua_absindex(L, index);
  kg_check_type(L, index, LUA_TTABLE);
  *n = (size_t)lua_rawlen(L, index);
  if (*n > INT32_MAX) kg_error_at(L, "token ids: %I are too many", (lua_Integer)*n);
  int32_t *ids = lua_newuserdatauv(L, *n * sizeof *ids + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    int is_integer;
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    const lua_Integer id = lua_tointegerx(L, -1, &is_integer);
    if (!is_integer || lua_type(L, -1) != LUA_TNUMBER || id < INT32_MIN || id > INT32_MAX)
      kg_error_at(L, "token id %I: integer expected, got %s", (lua_Integer)i + 1, luaL_tolstring(L, -1, NULL));
    ids[i] = (int32_t)id;
    lua_pop(L, 1);
  }
  return ids;
}

void kg_push_ids(lua_State *L, const int32_t *ids, size_t n)
{
  lua_createtable(L, (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    lua_pushinteger(L, ids[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

/* ---- the core table ---- */

static void push_error_codes(lua_State *L)
{
  static const struct { const char *name; int code; } codes[] = {
      {"ARGUMENT", KG_ERR_ARGUMENT}, {"MEMORY", KG_ERR_MEMORY}, {"IO", KG_ERR_IO},
      {"FORMAT", KG_ERR_FORMAT},     {"UNSUPPORTED", KG_ERR_UNSUPPORTED}, {"FULL", KG_ERR_FULL},
      {"DEVICE", KG_ERR_DEVICE},     {"NUMERIC", KG_ERR_NUMERIC}, {"CANCELLED", KG_ERR_CANCELLED},
      {"SCRIPT", KG_ERR_SCRIPT},     {"LIMIT", KG_ERR_LIMIT}};
  lua_newtable(L);
  for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
    lua_pushinteger(L, codes[i].code);
    lua_setfield(L, -2, codes[i].name);
  }
}

int luaopen_kigo_core(lua_State *L)
{
  luaL_checkversion(L);
  lua_newtable(L);
  luaL_getsubtable(L, LUA_REGISTRYINDEX, "kigo.classes");
  lua_setfield(L, -2, "classes");
  push_error_codes(L);
  lua_setfield(L, -2, "err");
  lua_pushliteral(L, KG_VERSION);
  lua_setfield(L, -2, "version");
  static void (*const binders[])(lua_State *) = {kg_bind_system,   kg_bind_gguf,     kg_bind_tokenizer,
                                                 kg_bind_stream,   kg_bind_plan,     kg_bind_model,
                                                 kg_bind_evidence, kg_bind_sequence, kg_bind_tensor,
                                                 kg_bind_inside,   kg_bind_chain,    kg_bind_kernels,  kg_bind_cpu,
                                                 kg_bind_unicode, kg_bind_plain,  kg_bind_sandbox, kg_bind_grammar,
                                                 kg_bind_constraint, kg_bind_adapter};
  for (size_t i = 0; i < sizeof binders / sizeof binders[0]; i++) binders[i](L);
  return 1;
}

/* ---- tables ---- */

void kg_set_number(lua_State *L, const char *field, double value)
{
  lua_pushnumber(L, value);
  lua_setfield(L, -2, field);
}

void kg_set_integer(lua_State *L, const char *field, lua_Integer value)
{
  lua_pushinteger(L, value);
  lua_setfield(L, -2, field);
}

void kg_set_string(lua_State *L, const char *field, const char *value)
{
  lua_pushstring(L, value);
  lua_setfield(L, -2, field);
}

void kg_set_boolean(lua_State *L, const char *field, bool value)
{
  lua_pushboolean(L, value);
  lua_setfield(L, -2, field);
}
