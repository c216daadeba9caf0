/* bind_stream.c - kigo.Stream. */
#include <string.h>

#include "bind.h"
#include "stream.h"

static kg_stream *check_stream(lua_State *L)
{
  return kg_check_open(L, 1, KG_CLASS_STREAM);
}

static void push_text(lua_State *L, kg_string text)
{
  lua_pushlstring(L, text.data, text.size);
}

/* stream:add(id) -> text to show now, maybe empty */
static int add(lua_State *L)
{
  kg_stream *stream = check_stream(L);
  const int32_t id = (int32_t)kg_check_int(L, 2, "token id", 0, INT32_MAX);
  kg_string text;
  kg_error err = {0};
  if (kg_stream_add(stream, id, &text, &err)) return kg_push_error(L, &err);
  push_text(L, text);
  return 1;
}

/* stream:finish() -> text that was held back */
static int finish(lua_State *L)
{
  kg_stream *stream = check_stream(L);
  kg_string text;
  kg_error err = {0};
  if (kg_stream_finish(stream, &text, &err)) return kg_push_error(L, &err);
  push_text(L, text);
  return 1;
}

/* stream:read() -> text to show now that was not returned yet, maybe empty: for streams that follow a sequence */
static int read_text(lua_State *L)
{
  push_text(L, kg_stream_read(check_stream(L)));
  return 1;
}

/* stream:rewind(n) -> the stream, as it was when n ids had been added */
static int rewind_stream(lua_State *L)
{
  kg_stream *stream = check_stream(L);
  const int64_t n = kg_check_int(L, 2, "n", 0, (int64_t)kg_stream_count(stream));
  if (kg_stream_is_following(stream)) return kg_error_at(L, "the stream follows a sequence: rewind that");
  kg_stream_rewind(stream, (size_t)n);
  lua_settop(L, 1);
  return 1;
}

/* stream:copy() -> Stream in the same state */
static int copy(lua_State *L)
{
  check_stream(L);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_STREAM, 0);
  kg_stream *twin;
  kg_error err = {0};
  if (kg_stream_copy(check_stream(L), &twin, &err)) return kg_push_error(L, &err);
  handle->object = twin;
  return 1;
}

static int get(lua_State *L)
{
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1)) return 1;
  static const char *const reasons[] = {[KG_STREAM_STOP] = "stop", [KG_STREAM_END] = "end",
                                        [KG_STREAM_LENGTH] = "length"};
  const kg_stream *stream = kg_check_open(L, 1, KG_CLASS_STREAM);
  const kg_stream_reason reason = kg_stream_get_reason(stream);
  if (!strcmp(key, "stopped"))
    lua_pushboolean(L, reason == KG_STREAM_STOP || reason == KG_STREAM_END);
  else if (!strcmp(key, "reason") && reason != KG_STREAM_OPEN)
    lua_pushstring(L, reasons[reason]);
  else if (!strcmp(key, "text"))
    push_text(L, kg_stream_text(stream));
  else if (!strcmp(key, "n_ids"))
    lua_pushinteger(L, (lua_Integer)kg_stream_count(stream));
  else if (!strcmp(key, "following"))
    lua_pushboolean(L, kg_stream_is_following(stream));
  return 1; /* else the nil of the method table */
}

static int to_string(lua_State *L)
{
  const kg_stream *stream = kg_check_handle(L, 1, KG_CLASS_STREAM)->object;
  if (stream)
    lua_pushfstring(L, "kigo.Stream (%I bytes)", (lua_Integer)kg_stream_text(stream).size);
  else
    lua_pushliteral(L, "kigo.Stream (closed)");
  return 1;
}

static int release(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_STREAM);
  kg_stream_free(handle->object);
  handle->object = NULL;
  return 0;
}

/* The stop strings on top of the stack (an array, one string or nil) in userdata, pushed; what was there keeps the
 * strings alive, unless a finalizer changes it: until they are used nothing may be made. */
static kg_string *check_stops(lua_State *L, size_t *n)
{
  const int table = lua_gettop(L);
  if (lua_type(L, table) == LUA_TSTRING) {
    kg_string *stop = lua_newuserdatauv(L, sizeof *stop, 0);
    stop->data = lua_tolstring(L, table, &stop->size);
    *n = 1;
    return stop;
  }
  if (!lua_isnil(L, table) && !lua_istable(L, table))
    kg_error_at(L, "stop: string or array of strings expected, got %s", luaL_typename(L, table));
  *n = lua_istable(L, table) ? (size_t)lua_rawlen(L, table) : 0;
  if (*n > INT32_MAX) kg_error_at(L, "stop: %I strings are too many", (lua_Integer)*n);
  kg_string *stops = lua_newuserdatauv(L, *n * sizeof *stops + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    if (lua_rawgeti(L, table, (lua_Integer)i + 1) != LUA_TSTRING)
      kg_error_at(L, "stop %I: string expected, got %s", (lua_Integer)i + 1, luaL_typename(L, -1));
    stops[i].data = lua_tolstring(L, -1, &stops[i].size);
    lua_pop(L, 1);
  }
  return stops;
}

/* core.stream(tokenizer, {stop = "..." or {...}, after = id, control = false}) -> Stream; `after`: the token before the
 * first one (stream.h); `control`: control tokens are spelled out */
static int stream_new(lua_State *L)
{
  static const char *const fields[] = {"stop", "after", "control", NULL};
  kg_check_tokenizer(L, 1);
  lua_settop(L, 2);
  kg_check_fields(L, 2, fields);
  const int32_t after = (int32_t)kg_opt_int_field(L, 2, "after", -1, 0, INT32_MAX);
  const bool spell_control = kg_opt_bool_field(L, 2, "control", false);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_STREAM, 0);
  if (lua_istable(L, 2))
    lua_getfield(L, 2, "stop");
  else
    lua_pushnil(L);
  size_t n;
  const kg_string *stops = check_stops(L, &n);
  kg_stream *stream;
  kg_error err = {0};
  if (kg_stream_new(kg_check_tokenizer(L, 1), stops, n, &stream, &err)) return kg_push_error(L, &err);
  handle->object = stream;
  if (spell_control) kg_stream_spell_control(stream);
  if (after >= 0 && kg_stream_follow(stream, after, &err)) return kg_push_error(L, &err);
  lua_settop(L, 3); /* the handle */
  return 1;
}

void kg_bind_stream(lua_State *L)
{
  static const luaL_Reg methods[] = {
      {"add", add},   {"read", read_text}, {"finish", finish}, {"rewind", rewind_stream},
      {"copy", copy}, {"close", release},  {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__index", get}, {"__tostring", to_string}, {"__close", release}, {"__gc", release}, {NULL, NULL}};
  kg_class(L, KG_CLASS_STREAM, methods, metamethods);
  lua_pushcfunction(L, stream_new);
  lua_setfield(L, -2, "stream");
}
