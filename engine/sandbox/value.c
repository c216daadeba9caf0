#include "value.h"

#include <lauxlib.h>
#include <math.h>
#include <string.h>

#include "alloc.h"
#include "bind.h"
#include "error.h"

enum tag { TAG_NIL, TAG_FALSE, TAG_TRUE, TAG_INTEGER, TAG_FLOAT, TAG_STRING, TAG_TABLE, TAG_TENSOR };

int kg_message_add(kg_bytes *bytes, const void *data, size_t n, kg_error *err)
{
  size_t total;
  if (!kg_add_size(bytes->size, n, &total) || !kg_grow((void **)&bytes->data, &bytes->capacity, total, 1))
    return kg_fail_memory(err, n, "a message");
  if (n && data) memcpy(bytes->data + bytes->size, data, n);
  if (n && !data) memset(bytes->data + bytes->size, 0, n);
  bytes->size = total;
  return KG_OK;
}

/* ---- writing ---- */

static int put(kg_value_writer *writer, const void *data, size_t n, kg_error *err)
{
  if (n > KG_VALUE_BYTES || writer->out->size > KG_VALUE_BYTES - n)
    return kg_fail(err, KG_ERR_ARGUMENT, "values of more than %d bytes cannot cross", (int)KG_VALUE_BYTES);
  return kg_message_add(writer->out, data, n, err);
}

static int put_tagged(kg_value_writer *writer, enum tag tag, const void *data, size_t n, kg_error *err)
{
  const unsigned char byte = (unsigned char)tag;
  const int status = put(writer, &byte, 1, err);
  return status || !n ? status : put(writer, data, n, err);
}

static int write_value(lua_State *L, int index, int depth, kg_value_writer *writer, kg_error *err);

/* Is the key on top of the stack one of the elements 1..n? */
static bool is_element_key(lua_State *L, uint32_t n)
{
  if (!lua_isinteger(L, -1)) return false;
  const lua_Integer key = lua_tointeger(L, -1);
  return key >= 1 && key <= (lua_Integer)n;
}

/* The elements in front that are there, as long as none is missing. */
static uint32_t count_elements(lua_State *L, int index, kg_value_writer *writer)
{
  uint32_t n = 0;
  while (writer->n_elements + (int64_t)n <= KG_VALUE_ELEMENTS) {
    const bool is_there = lua_rawgeti(L, index, (lua_Integer)n + 1) != LUA_TNIL;
    lua_pop(L, 1);
    if (!is_there) break;
    n++;
  }
  return n;
}

static int write_pairs(lua_State *L, int index, uint32_t n_elements, size_t count_at, int depth,
                       kg_value_writer *writer, kg_error *err)
{
  uint32_t n_pairs = 0;
  lua_pushnil(L);
  while (lua_next(L, index)) {
    lua_insert(L, -2); /* value, key */
    if (!is_element_key(L, n_elements)) {
      int status = KG_OK;
      const int type = lua_type(L, -1);
      if (type != LUA_TBOOLEAN && type != LUA_TNUMBER && type != LUA_TSTRING)
        status = kg_fail(err, KG_ERR_ARGUMENT, "a key that is a %s cannot cross", lua_typename(L, type));
      if (!status && ++writer->n_pairs > KG_VALUE_PAIRS)
        status = kg_fail(err, KG_ERR_ARGUMENT, "more than %d named fields cannot cross", (int)KG_VALUE_PAIRS);
      if (!status) status = write_value(L, lua_gettop(L), depth, writer, err);
      if (!status) status = write_value(L, lua_gettop(L) - 1, depth, writer, err);
      if (status) return status;
      n_pairs++;
    }
    lua_remove(L, -2);
  }
  memcpy(writer->out->data + count_at, &n_pairs, sizeof n_pairs);
  return KG_OK;
}

static int write_table(lua_State *L, int index, int depth, kg_value_writer *writer, kg_error *err)
{
  if (depth >= KG_VALUE_DEPTH)
    return kg_fail(err, KG_ERR_ARGUMENT, "tables nested deeper than %d cannot cross (or a table holds itself)",
                   (int)KG_VALUE_DEPTH);
  luaL_checkstack(L, 8, "a nested table");
  const uint32_t n = count_elements(L, index, writer), counts[2] = {n, 0};
  writer->n_elements += (int32_t)n;
  if (writer->n_elements > KG_VALUE_ELEMENTS)
    return kg_fail(err, KG_ERR_ARGUMENT, "more than %d elements cannot cross", (int)KG_VALUE_ELEMENTS);
  int status = put_tagged(writer, TAG_TABLE, counts, sizeof counts, err);
  const size_t count_at = writer->out->size - sizeof counts[1];
  for (uint32_t i = 1; !status && i <= n; i++) {
    lua_rawgeti(L, index, (lua_Integer)i);
    status = write_value(L, lua_gettop(L), depth + 1, writer, err);
    lua_pop(L, 1);
  }
  return status ? status : write_pairs(L, index, n, count_at, depth + 1, writer, err);
}

static int write_tensor(lua_State *L, int index, kg_value_writer *writer, kg_error *err)
{
  const kg_handle *handle = luaL_testudata(L, index, KG_CLASS_TENSOR);
  if (!handle || !writer->max_tensors)
    return kg_fail(err, KG_ERR_ARGUMENT, "%s cannot cross", handle ? "a tensor of the script" : "a userdata");
  if (!handle->object) return kg_fail(err, KG_ERR_ARGUMENT, "%s is closed", KG_CLASS_TENSOR);
  kg_tensor *tensor = handle->object;
  if (tensor->n_dims != 1)
    return kg_fail(err, KG_ERR_ARGUMENT, "one row of a tensor may cross, not %d dimensions", tensor->n_dims);
  if (writer->n_tensors >= writer->max_tensors)
    return kg_fail(err, KG_ERR_ARGUMENT, "more than %d tensors cannot cross", writer->max_tensors);
  const uint32_t number = (uint32_t)writer->n_tensors;
  writer->tensors[writer->n_tensors++] = tensor;
  return put_tagged(writer, TAG_TENSOR, &number, sizeof number, err);
}

static int write_value(lua_State *L, int index, int depth, kg_value_writer *writer, kg_error *err)
{
  const int type = lua_type(L, index);
  switch (type) {
  case LUA_TNIL:
    return put_tagged(writer, TAG_NIL, NULL, 0, err);
  case LUA_TBOOLEAN:
    return put_tagged(writer, lua_toboolean(L, index) ? TAG_TRUE : TAG_FALSE, NULL, 0, err);
  case LUA_TNUMBER: {
    const lua_Integer integer = lua_tointeger(L, index);
    const lua_Number number = lua_tonumber(L, index);
    return lua_isinteger(L, index) ? put_tagged(writer, TAG_INTEGER, &integer, sizeof integer, err)
                                   : put_tagged(writer, TAG_FLOAT, &number, sizeof number, err);
  }
  case LUA_TSTRING: {
    size_t n;
    const char *text = lua_tolstring(L, index, &n);
    const uint32_t size = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
    const int status = put_tagged(writer, TAG_STRING, &size, sizeof size, err);
    return status ? status : put(writer, text, n, err);
  }
  case LUA_TTABLE:
    return write_table(L, index, depth, writer, err);
  case LUA_TUSERDATA:
    return write_tensor(L, index, writer, err);
  default:
    return kg_fail(err, KG_ERR_ARGUMENT, "a %s cannot cross", lua_typename(L, type));
  }
}

int kg_value_write(lua_State *L, int index, kg_value_writer *writer, kg_error *err)
{
  luaL_checkstack(L, 8, "a value");
  return write_value(L, lua_absindex(L, index), 0, writer, err);
}

int kg_value_write_text(kg_bytes *out, const char *text, size_t n, kg_error *err)
{
  kg_value_writer writer = {.out = out};
  const uint32_t size = (uint32_t)n;
  const int status = n > UINT32_MAX ? KG_ERR_ARGUMENT : put_tagged(&writer, TAG_STRING, &size, sizeof size, err);
  return status ? status : put(&writer, text, n, err);
}

/* ---- reading ---- */

static bool take(kg_value_reader *reader, void *out, size_t n)
{
  if ((size_t)(reader->end - reader->data) < n) return false;
  memcpy(out, reader->data, n);
  reader->data += n;
  return true;
}

static int malformed(kg_error *err) { return kg_fail(err, KG_ERR_FORMAT, "a malformed message"); }

static int push_value(lua_State *L, int depth, kg_value_reader *reader, kg_error *err);

static int push_string(lua_State *L, kg_value_reader *reader, kg_error *err)
{
  uint32_t n;
  if (!take(reader, &n, sizeof n) || n > (size_t)(reader->end - reader->data)) return malformed(err);
  lua_pushlstring(L, reader->data, n);
  reader->data += n;
  return KG_OK;
}

/* The key on top of the stack: not nil, no NaN, no table. */
static bool is_key(lua_State *L)
{
  const int type = lua_type(L, -1);
  if (type == LUA_TNUMBER) return !isnan(lua_tonumber(L, -1));
  return type == LUA_TBOOLEAN || type == LUA_TSTRING;
}

static int push_table(lua_State *L, int depth, kg_value_reader *reader, kg_error *err)
{
  uint32_t counts[2];
  if (depth >= KG_VALUE_DEPTH || !take(reader, counts, sizeof counts)) return malformed(err);
  /* Every element takes a byte at least, a pair two: nothing is made that is not there. */
  const size_t left = (size_t)(reader->end - reader->data);
  if (counts[0] > (uint32_t)(KG_VALUE_ELEMENTS - reader->n_elements) || counts[0] > left) return malformed(err);
  if (counts[1] > (uint32_t)(KG_VALUE_PAIRS - reader->n_pairs) || counts[1] > (left - counts[0]) / 2)
    return malformed(err);
  reader->n_elements += (int32_t)counts[0];
  reader->n_pairs += (int32_t)counts[1];
  luaL_checkstack(L, 8, "a nested table");
  lua_createtable(L, (int)counts[0], (int)counts[1]);
  for (uint32_t i = 1; i <= counts[0]; i++) {
    const int status = push_value(L, depth + 1, reader, err);
    if (status) return status;
    lua_rawseti(L, -2, (lua_Integer)i);
  }
  for (uint32_t i = 0; i < counts[1]; i++) {
    int status = push_value(L, depth + 1, reader, err);
    if (!status && !is_key(L)) status = malformed(err);
    if (!status) status = push_value(L, depth + 1, reader, err);
    if (status) return status;
    lua_rawset(L, -3);
  }
  return KG_OK;
}

static int push_value(lua_State *L, int depth, kg_value_reader *reader, kg_error *err)
{
  unsigned char tag;
  if (!take(reader, &tag, 1)) return malformed(err);
  lua_Integer integer;
  lua_Number number;
  uint32_t index;
  switch (tag) {
  case TAG_NIL:
    lua_pushnil(L);
    return KG_OK;
  case TAG_FALSE:
  case TAG_TRUE:
    lua_pushboolean(L, tag == TAG_TRUE);
    return KG_OK;
  case TAG_INTEGER:
    if (!take(reader, &integer, sizeof integer)) return malformed(err);
    lua_pushinteger(L, integer);
    return KG_OK;
  case TAG_FLOAT:
    if (!take(reader, &number, sizeof number)) return malformed(err);
    lua_pushnumber(L, number);
    return KG_OK;
  case TAG_STRING:
    return push_string(L, reader, err);
  case TAG_TABLE:
    return push_table(L, depth, reader, err);
  case TAG_TENSOR:
    if (!take(reader, &index, sizeof index) || index >= (uint32_t)reader->n_tensors) return malformed(err);
    reader->push_tensor(L, reader->tensors[index]);
    return KG_OK;
  default:
    return malformed(err);
  }
}

int kg_value_push(lua_State *L, kg_value_reader *reader, kg_error *err)
{
  luaL_checkstack(L, 8, "a value");
  return push_value(L, 0, reader, err);
}
