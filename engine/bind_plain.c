/* bind_plain.c - plain Lua data: nil, booleans, numbers, strings, and tables of them, which may contain each other and
 * themselves. Deep copies, and bytes to save. Keys are strings, numbers or booleans; what else there is, and tables
 * with a metatable, is refused by its path. */
#include <math.h>
#include <string.h>

#include "bind.h"
#include "error.h"

enum { MAX_DEPTH = 100, STACK_PER_LEVEL = 8 };

/* Where we are: the table at stack index `table` of the walk, reached by the key at `key`. */
typedef struct level {
  const struct level *up; /* NULL: the value that was asked for */
  int key;
  int depth;
} level;

/* ---- refusals ---- */

static void add_path(lua_State *L, luaL_Buffer *text, const level *at)
{
  if (!at->up) return;
  add_path(L, text, at->up);
  luaL_addchar(text, '[');
  if (lua_type(L, at->key) == LUA_TSTRING) {
    size_t size;
    char quoted[KG_QUOTE_MAX];
    const char *key = lua_tolstring(L, at->key, &size);
    luaL_addstring(text, kg_quote(quoted, key, size));
  } else {
    luaL_tolstring(L, at->key, NULL);
    luaL_addvalue(text);
  }
  luaL_addchar(text, ']');
}

static int refuse(lua_State *L, const char *name, const level *at, const char *what)
{
  luaL_Buffer text;
  luaL_buffinit(L, &text);
  luaL_addstring(&text, name);
  add_path(L, &text, at);
  luaL_pushresult(&text);
  return kg_error_at(L, "%s: %s is no plain data; it takes nil, booleans, numbers, strings and tables of them",
                    lua_tostring(L, -1), what);
}

static bool is_key(lua_State *L, int index)
{
  const int type = lua_type(L, index);
  return type == LUA_TSTRING || type == LUA_TNUMBER || type == LUA_TBOOLEAN;
}

/* Is the value on top a table? Raises where it is nothing plain. */
static bool check_plain(lua_State *L, const char *name, const level *at)
{
  switch (lua_type(L, -1)) {
  case LUA_TNIL:
  case LUA_TBOOLEAN:
  case LUA_TNUMBER:
  case LUA_TSTRING:
    return false;
  case LUA_TTABLE:
    break;
  default:
    return refuse(L, name, at, luaL_typename(L, -1));
  }
  if (at->depth == MAX_DEPTH) refuse(L, name, at, "a table in a hundred others");
  if (lua_getmetatable(L, -1)) refuse(L, name, at, "a table with a metatable");
  luaL_checkstack(L, STACK_PER_LEVEL, "plain data");
  return true;
}

static void check_key(lua_State *L, const char *name, const level *at)
{
  if (is_key(L, -2)) return;
  lua_pushfstring(L, "a key of type %s", luaL_typename(L, -2));
  refuse(L, name, at, lua_tostring(L, -1));
}

/* ---- copies ---- */

/* Replace the value on top. `memo`: the copy of each table that was met. */
static void copy(lua_State *L, const char *name, int memo, const level *at)
{
  if (!check_plain(L, name, at)) return;
  lua_pushvalue(L, -1);
  if (lua_rawget(L, memo) == LUA_TTABLE) {
    lua_remove(L, -2);
    return;
  }
  lua_pop(L, 1);
  const int from = lua_gettop(L), to = from + 1;
  lua_newtable(L);
  lua_pushvalue(L, from);
  lua_pushvalue(L, to);
  lua_rawset(L, memo);
  lua_pushnil(L);
  while (lua_next(L, from)) {
    check_key(L, name, at);
    const level inner = {at, lua_gettop(L) - 1, at->depth + 1};
    copy(L, name, memo, &inner);
    lua_pushvalue(L, -2);
    lua_insert(L, -2);
    lua_rawset(L, to);
  }
  lua_remove(L, from);
}

void kg_copy_plain(lua_State *L, const char *name)
{
  luaL_checkstack(L, STACK_PER_LEVEL, "plain data");
  const level top = {0};
  lua_newtable(L);
  lua_insert(L, -2);
  copy(L, name, lua_gettop(L) - 1, &top);
  lua_remove(L, -2);
}

/* ---- bytes ----
 * A value is a letter and what belongs to it, numbers little-endian as in memory:
 *   n, f, t             nil, false, true
 *   i, d                int64, float64
 *   s                   uint64 size, bytes
 *   T ... e             a table: keys and values in turn; tables count from 0 in the order of their T
 *   r                   uint64: the table of that number once more */

/* Strings collect in the table at `parts`: nothing of ours is held while Lua may raise. */
typedef struct writer {
  const char *name;
  int memo, parts;
  lua_Integer n_parts, n_tables;
} writer;

static void put(lua_State *L, writer *w, const void *bytes, size_t n)
{
  lua_pushlstring(L, bytes, n);
  lua_rawseti(L, w->parts, ++w->n_parts);
}

static void put_number(lua_State *L, writer *w, char letter, const void *number)
{
  char bytes[9] = {letter};
  memcpy(bytes + 1, number, 8);
  put(L, w, bytes, sizeof bytes);
}

static void put_scalar(lua_State *L, writer *w, int index)
{
  switch (lua_type(L, index)) {
  case LUA_TBOOLEAN:
    put(L, w, lua_toboolean(L, index) ? "t" : "f", 1);
    return;
  case LUA_TNUMBER:
    if (lua_isinteger(L, index)) {
      const int64_t number = lua_tointeger(L, index);
      put_number(L, w, 'i', &number);
    } else {
      const double number = lua_tonumber(L, index);
      put_number(L, w, 'd', &number);
    }
    return;
  case LUA_TSTRING: {
    const uint64_t size = lua_rawlen(L, index);
    put_number(L, w, 's', &size);
    lua_pushvalue(L, index);
    lua_rawseti(L, w->parts, ++w->n_parts);
    return;
  }
  default:
    put(L, w, "n", 1);
  }
}

/* The value on top, which stays there. */
static void write_value(lua_State *L, writer *w, const level *at)
{
  if (!check_plain(L, w->name, at)) {
    put_scalar(L, w, lua_gettop(L));
    return;
  }
  lua_pushvalue(L, -1);
  if (lua_rawget(L, w->memo) == LUA_TNUMBER) {
    const uint64_t number = (uint64_t)lua_tointeger(L, -1);
    put_number(L, w, 'r', &number);
    lua_pop(L, 1);
    return;
  }
  lua_pop(L, 1);
  lua_pushvalue(L, -1);
  lua_pushinteger(L, w->n_tables++);
  lua_rawset(L, w->memo);
  put(L, w, "T", 1);
  lua_pushnil(L);
  while (lua_next(L, -2)) {
    check_key(L, w->name, at);
    put_scalar(L, w, lua_gettop(L) - 1);
    const level inner = {at, lua_gettop(L) - 1, at->depth + 1};
    write_value(L, w, &inner);
    lua_pop(L, 1);
  }
  put(L, w, "e", 1);
}

void kg_push_plain_bytes(lua_State *L, const char *name)
{
  luaL_checkstack(L, STACK_PER_LEVEL, "plain data");
  const int value = lua_gettop(L);
  const level top = {0};
  lua_newtable(L);
  lua_newtable(L);
  writer w = {.name = name, .memo = value + 1, .parts = value + 2};
  lua_pushvalue(L, value);
  write_value(L, &w, &top);
  luaL_Buffer all;
  luaL_buffinit(L, &all);
  for (lua_Integer i = 1; i <= w.n_parts; i++) {
    lua_rawgeti(L, w.parts, i);
    luaL_addvalue(&all);
  }
  luaL_pushresult(&all);
  lua_replace(L, value);
  lua_settop(L, value);
}

typedef struct reader {
  const char *at, *end;
  int tables; /* stack index of the list of tables */
  lua_Integer n_tables;
} reader;

static bool get(reader *r, void *out, size_t n)
{
  if ((size_t)(r->end - r->at) < n) return false;
  memcpy(out, r->at, n);
  r->at += n;
  return true;
}

static bool read_value(lua_State *L, reader *r, int depth);

/* Keys and values up to the letter e, into a new table. */
static bool read_table(lua_State *L, reader *r, int depth)
{
  if (depth == MAX_DEPTH) return false;
  luaL_checkstack(L, STACK_PER_LEVEL, "plain data");
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_rawseti(L, r->tables, ++r->n_tables);
  while (r->at < r->end && *r->at != 'e') {
    if (!read_value(L, r, depth + 1) || !is_key(L, -1)) return false;
    if (lua_type(L, -1) == LUA_TNUMBER && isnan(lua_tonumber(L, -1))) return false;
    if (!read_value(L, r, depth + 1) || lua_isnil(L, -1)) return false;
    lua_rawset(L, -3);
  }
  return r->at++ < r->end;
}

/* Push the next value. False: it is malformed, and something may be on the stack. */
static bool read_value(lua_State *L, reader *r, int depth)
{
  char letter;
  int64_t integer;
  double number;
  if (!get(r, &letter, 1)) return false;
  switch (letter) {
  case 'n':
    lua_pushnil(L);
    return true;
  case 'f':
  case 't':
    lua_pushboolean(L, letter == 't');
    return true;
  case 'i':
    if (!get(r, &integer, 8)) return false;
    lua_pushinteger(L, integer);
    return true;
  case 'd':
    if (!get(r, &number, 8)) return false;
    lua_pushnumber(L, number);
    return true;
  case 's':
    if (!get(r, &integer, 8) || integer < 0 || integer > r->end - r->at) return false;
    lua_pushlstring(L, r->at, (size_t)integer);
    r->at += integer; /* bounded: by the line before last */
    return true;
  case 'r':
    if (!get(r, &integer, 8) || integer < 0 || integer >= r->n_tables) return false;
    lua_rawgeti(L, r->tables, integer + 1); /* bounded: a table's number */
    return true;
  case 'T':
    return read_table(L, r, depth);
  default:
    return false;
  }
}

bool kg_read_plain(lua_State *L, kg_string bytes)
{
  luaL_checkstack(L, STACK_PER_LEVEL, "plain data");
  lua_newtable(L);
  const int bottom = lua_gettop(L);
  reader r = {.at = bytes.data, .end = bytes.data + bytes.size, .tables = bottom};
  const bool is_good = read_value(L, &r, 0) && r.at == r.end;
  if (is_good) lua_replace(L, bottom);
  lua_settop(L, is_good ? bottom : bottom - 1);
  return is_good;
}

/* ---- for Lua ---- */

/* core.copy_plain(value, name) -> a deep copy; raises what is no plain data, by its path from `name` on */
static int copy_plain(lua_State *L)
{
  luaL_checkany(L, 1);
  const char *name = kg_check_string(L, 2);
  lua_pushvalue(L, 1);
  kg_copy_plain(L, name);
  return 1;
}

void kg_bind_plain(lua_State *L)
{
  static const luaL_Reg functions[] = {{"copy_plain", copy_plain}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
