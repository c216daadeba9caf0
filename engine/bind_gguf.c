/* bind_gguf.c - model files and tensor types in Lua: metadata, the tensor table, dequantized values. */
#include <limits.h>
#include <string.h>
#include <strings.h>

#include "alloc.h"
#include "bind.h"
#include "error.h"
#include "gguf.h"
#include "gguf_write.h"
#include "make_model.h"
#include "quantize_file.h"
#include "tensor.h"

enum { VALUES_MAX = 65536 };

kg_gguf *kg_check_gguf(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_GGUF);
}

/* core.open_gguf(path) -> Gguf, or nil, message, code */
static int open_gguf(lua_State *L)
{
  kg_error err;
  const char *path = kg_check_string(L, 1);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_GGUF, 1);
  kg_gguf *gguf;
  if (kg_gguf_open(path, &gguf, &err)) return kg_push_error(L, &err);
  handle->object = gguf;
  return 1;
}

/* core.parse_gguf(bytes, name) -> Gguf, or nil, message, code; the string lives as long as the handle */
static int parse_gguf(lua_State *L)
{
  kg_error err;
  size_t n_bytes;
  const char *bytes = kg_check_lstring(L, 1, &n_bytes), *name = luaL_optstring(L, 2, "bytes");
  kg_handle *handle = kg_push_handle(L, KG_CLASS_GGUF, 1);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  kg_gguf *gguf;
  if (kg_gguf_parse(bytes, n_bytes, name, &gguf, &err)) return kg_push_error(L, &err);
  handle->object = gguf;
  return 1;
}

static int close_gguf(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_GGUF);
  kg_gguf_close(handle->object);
  handle->object = NULL;
  return 0;
}

static int gguf_tostring(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_GGUF);
  if (handle->object)
    lua_pushfstring(L, KG_CLASS_GGUF " (%s)", kg_gguf_path(handle->object));
  else
    lua_pushliteral(L, KG_CLASS_GGUF " (closed)");
  return 1;
}

/* ---- metadata ---- */

/* Lua's integers are 64 bits with a sign: larger ones become floats. */
static void push_element(lua_State *L, const kg_gguf_entry *entry, uint64_t i)
{
  const double number = entry->type == KG_GGUF_STRING ? 0 : kg_gguf_entry_double(entry, i);
  if (entry->type == KG_GGUF_STRING)
    lua_pushlstring(L, entry->strings[i].data, entry->strings[i].size);
  else if (entry->type == KG_GGUF_BOOL)
    lua_pushboolean(L, kg_gguf_entry_int(entry, i) != 0);
  else if (!kg_gguf_type_is_integer(entry->type) || number >= 0x1p63)
    lua_pushnumber(L, number);
  else
    lua_pushinteger(L, kg_gguf_entry_int(entry, i));
}

static void push_array(lua_State *L, const kg_gguf_entry *entry)
{
  lua_createtable(L, entry->count > INT_MAX ? INT_MAX : (int)entry->count, 0);
  for (uint64_t i = 0; i < entry->count; i++) {
    push_element(L, entry, i);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

static int push_value(lua_State *L)
{
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const kg_gguf_entry *entry = kg_gguf_find(gguf, kg_check_string(L, 2));
  if (!entry)
    lua_pushnil(L);
  else if (entry->is_array)
    push_array(L, entry);
  else
    push_element(L, entry, 0);
  return 1;
}

/* gguf:get(key) -> string | number | boolean | array, or nil when absent */
static int get(lua_State *L)
{
  const char *key = kg_check_string(L, 2);
  const kg_gguf_entry *entry = kg_gguf_find(kg_check_gguf(L, 1), key);
  if (entry && entry->is_array) return kg_call_at_rest(L, push_value);
  return push_value(L); /* one value: Lua collects behind it */
}

/* gguf:array(key) -> array, or nil, message, code when it is absent or no array */
static int array(lua_State *L)
{
  kg_error err;
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const char *key = kg_check_string(L, 2);
  const kg_gguf_entry *entry = kg_gguf_find(gguf, key);
  if (!entry || !entry->is_array) {
    kg_fail(&err, KG_ERR_FORMAT, "%s: key %s is %s", kg_gguf_path(gguf), key, entry ? "not an array" : "missing");
    return kg_push_error(L, &err);
  }
  return kg_call_at_rest(L, push_value);
}

/* gguf:count(key) -> integer: elements of an array; nil when there is none */
static int count(lua_State *L)
{
  const kg_gguf_entry *entry = kg_gguf_find(kg_check_gguf(L, 1), kg_check_string(L, 2));
  if (entry && entry->is_array)
    lua_pushinteger(L, (lua_Integer)entry->count); /* bounded: the elements are in memory */
  else
    lua_pushnil(L);
  return 1;
}

static int push_entries(lua_State *L)
{
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const size_t n = kg_gguf_entry_count(gguf);
  lua_createtable(L, n > INT_MAX ? INT_MAX : (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    const kg_gguf_entry *entry = kg_gguf_entry_at(gguf, i);
    lua_createtable(L, 0, 4);
    lua_pushlstring(L, entry->key.data, entry->key.size);
    lua_setfield(L, -2, "key");
    kg_set_string(L, "type", kg_gguf_type_name(entry->type));
    kg_set_integer(L, "count", (lua_Integer)entry->count);
    kg_set_boolean(L, "is_array", entry->is_array);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* gguf:entries() -> array of { key, type, count, is_array } in file order */
static int entries(lua_State *L)
{
  kg_check_gguf(L, 1);
  return kg_call_at_rest(L, push_entries);
}

/* ---- tensors ---- */

static int64_t value_count(const kg_gguf_tensor *tensor)
{
  return tensor->dims[0] * tensor->dims[1] * tensor->dims[2] * tensor->dims[3]; /* checked when the file was opened */
}

static void push_tensor_info(lua_State *L, const kg_gguf_tensor *tensor)
{
  lua_createtable(L, 0, 6);
  kg_set_string(L, "name", tensor->name);
  kg_set_string(L, "type", kg_type_find((uint32_t)tensor->type)->name);
  kg_set_integer(L, "bytes", (lua_Integer)tensor->n_bytes);
  kg_set_integer(L, "offset", (lua_Integer)tensor->offset);
  kg_set_integer(L, "file", tensor->file);
  lua_createtable(L, tensor->n_dims, 0);
  for (int i = 0; i < tensor->n_dims; i++) {
    lua_pushinteger(L, tensor->dims[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "shape");
}

static int push_tensors(lua_State *L)
{
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const size_t n = kg_gguf_tensor_count(gguf);
  lua_createtable(L, n > INT_MAX ? INT_MAX : (int)n, 0);
  for (size_t i = 0; i < n; i++) {
    push_tensor_info(L, kg_gguf_tensor_at(gguf, i));
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* gguf:tensors() -> array of { name, type, shape, bytes, offset, file } in file order; shape[1] is the row length */
static int tensors(lua_State *L)
{
  kg_check_gguf(L, 1);
  return kg_call_at_rest(L, push_tensors);
}

static int push_tensor(lua_State *L)
{
  const kg_gguf_tensor *tensor = kg_gguf_tensor_find(kg_check_gguf(L, 1), kg_check_string(L, 2));
  if (tensor)
    push_tensor_info(L, tensor);
  else
    lua_pushnil(L);
  return 1;
}

/* gguf:tensor(name) -> its description, or nil */
static int tensor_info(lua_State *L)
{
  kg_check_gguf(L, 1);
  kg_check_string(L, 2);
  return kg_call_at_rest(L, push_tensor);
}

/* gguf:values(name, max = 65536) -> array of the tensor's values as float32 */
static int values(lua_State *L)
{
  kg_error err;
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const char *name = kg_check_string(L, 2);
  const int64_t max = lua_isnoneornil(L, 3) ? VALUES_MAX : kg_check_int(L, 3, "max", 0, INT_MAX);
  const kg_gguf_tensor *tensor = kg_gguf_tensor_find(gguf, name);
  if (!tensor) {
    kg_fail(&err, KG_ERR_FORMAT, "%s: there is no tensor %s", kg_gguf_path(gguf), name);
    return kg_push_error(L, &err);
  }
  const kg_type_info *info = kg_type_find((uint32_t)tensor->type);
  const int64_t n = value_count(tensor);
  if (n > max) return kg_error_at(L, "tensor %s has %I values, more than %I", name, (lua_Integer)n, (lua_Integer)max);
  if (!info->dequantize) {
    kg_fail(&err, KG_ERR_UNSUPPORTED, "%s: tensor %s: type %s cannot be computed with", kg_gguf_path(gguf), name,
            info->name);
    return kg_push_error(L, &err);
  }
  float *out = lua_newuserdatauv(L, (size_t)n * sizeof *out, 0);
  kg_check_gguf(L, 1); /* still open, so the tensor is there */
  info->dequantize(tensor->data, n / info->block_size, out);
  lua_createtable(L, (int)n, 0);
  for (int64_t i = 0; i < n; i++) {
    lua_pushnumber(L, (lua_Number)out[i]);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* gguf:release(name): the tensor's values will not be read soon, its memory may go (reading them again is allowed) */
static int release(lua_State *L)
{
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  const kg_gguf_tensor *tensor = kg_gguf_tensor_find(gguf, kg_check_string(L, 2));
  if (tensor) kg_gguf_release_pages(gguf, tensor->data, tensor->n_bytes);
  return 0;
}

/* ---- facts ---- */

static int path(lua_State *L)
{
  lua_pushstring(L, kg_gguf_path(kg_check_gguf(L, 1)));
  return 1;
}

static int version(lua_State *L)
{
  lua_pushinteger(L, kg_gguf_version(kg_check_gguf(L, 1)));
  return 1;
}

/* gguf:files() -> number of files of the model */
static int files(lua_State *L)
{
  lua_pushinteger(L, kg_gguf_file_count(kg_check_gguf(L, 1)));
  return 1;
}

/* gguf:bytes() -> size of all files together */
static int bytes(lua_State *L)
{
  lua_pushinteger(L, (lua_Integer)kg_gguf_file_bytes(kg_check_gguf(L, 1)));
  return 1;
}

/* gguf:parameters() -> number of values in all tensors */
static int parameters(lua_State *L)
{
  const kg_gguf *gguf = kg_check_gguf(L, 1);
  lua_Integer total = 0; /* tensors do not overlap, so their values are at most a few times the bytes that exist */
  for (size_t i = 0; i < kg_gguf_tensor_count(gguf); i++) total += value_count(kg_gguf_tensor_at(gguf, i));
  lua_pushinteger(L, total);
  return 1;
}

/* gguf:check_unchanged() -> true, or nil, message, code when a mapped file was changed since it was opened */
static int check_unchanged(lua_State *L)
{
  kg_error err;
  if (kg_gguf_check_unchanged(kg_check_gguf(L, 1), &err)) return kg_push_error(L, &err);
  lua_pushboolean(L, true);
  return 1;
}

/* ---- types ---- */

enum { TYPE_NUMBERS = 64 }; /* tensor types have numbers below this */

/* A type's name in any case: "q8_0". */
static kg_type check_type(lua_State *L, int index)
{
  const char *name = kg_check_string(L, index);
  for (uint32_t number = 0; number < TYPE_NUMBERS; number++) {
    const kg_type_info *info = kg_type_find(number);
    if (info && !strcasecmp(info->name, name)) return (kg_type)number;
  }
  kg_error_at(L, "unknown tensor type '%s'", name);
  return KG_F32; /* not reached */
}

/* core.dequantize(type, blocks) -> float32 values as a string */
static int dequantize(lua_State *L)
{
  luaL_Buffer buffer;
  size_t n_bytes;
  const kg_type_info *info = kg_type_find((uint32_t)check_type(L, 1));
  const char *blocks = kg_check_lstring(L, 2, &n_bytes);
  const size_t n_blocks = n_bytes / (size_t)info->block_bytes;
  if (!info->dequantize) return kg_error_at(L, "type %s cannot be computed with", info->name);
  if (n_bytes % (size_t)info->block_bytes)
    return kg_error_at(L, "%I bytes are not whole blocks of %d (%s)", (lua_Integer)n_bytes, (int)info->block_bytes,
                      info->name);
  const size_t out_bytes = n_blocks * (size_t)info->block_size * sizeof(float);
  char *out = luaL_buffinitsize(L, &buffer, out_bytes);
  info->dequantize(blocks, (int64_t)n_blocks, (float *)(void *)out); /* Lua aligns its buffers for any type */
  luaL_pushresultsize(&buffer, out_bytes);
  return 1;
}

/* core.quantize(type, float32 values as a string) -> blocks as a string */
static int quantize(lua_State *L)
{
  luaL_Buffer buffer;
  kg_error err;
  size_t n_bytes, out_bytes;
  const kg_type type = check_type(L, 1);
  const kg_type_info *info = kg_type_find((uint32_t)type);
  const char *in = kg_check_lstring(L, 2, &n_bytes);
  if (n_bytes % sizeof(float) || !kg_type_bytes(info, n_bytes / sizeof(float), &out_bytes))
    return kg_error_at(L, "%I bytes are not whole blocks of %d float32 values (%s)", (lua_Integer)n_bytes,
                      (int)info->block_size, info->name);
  float *copy = lua_newuserdatauv(L, n_bytes, 0); /* strings are not aligned for floats */
  memcpy(copy, in, n_bytes);
  char *out = luaL_buffinitsize(L, &buffer, out_bytes);
  if (kg_quantize(type, copy, (int64_t)(n_bytes / sizeof(float)), out, &err)) return kg_push_error(L, &err);
  luaL_pushresultsize(&buffer, out_bytes);
  return 1;
}

/* core.types() -> { name = { block_size, block_bytes, computable } } */
static int types(lua_State *L)
{
  lua_newtable(L);
  for (uint32_t number = 0; number < TYPE_NUMBERS; number++) {
    const kg_type_info *info = kg_type_find(number);
    if (!info) continue;
    lua_createtable(L, 0, 3);
    kg_set_integer(L, "block_size", info->block_size);
    kg_set_integer(L, "block_bytes", info->block_bytes);
    kg_set_boolean(L, "computable", info->dequantize != NULL);
    lua_setfield(L, -2, info->name);
  }
  return 1;
}

/* ---- making models ---- */

typedef struct callback {
  lua_State *L;
  int index;   /* stack index of the function */
  bool raised; /* its error is on top of the stack */
} callback;

/* function(what, done, total): returning true cancels, an error too and is raised again by make_model. Nothing here
 * may raise: the writer stands between us and Lua. */
static int call_progress(void *user, const char *what, int64_t done, int64_t total)
{
  callback *c = user;
  lua_State *L = c->L;
  kg_progress_call call = {what, done, total};
  lua_pushcfunction(L, kg_call_progress);
  lua_pushvalue(L, c->index);
  lua_pushlightuserdata(L, &call);
  c->raised = lua_pcall(L, 2, 1, 0) != LUA_OK;
  if (c->raised) return 1;
  const bool cancelled = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return cancelled;
}

/* core.make_model(path, { like = "qwen2.5-0.5b", type = "q8_0", seed = 1, progress = function(what, done, total) })
 * -> path, or nil, message, code */
static int make_model(lua_State *L)
{
  kg_error err;
  const char *file_path = kg_check_string(L, 1);
  lua_settop(L, 2);
  static const char *const fields[] = {"like", "type", "seed", "progress", NULL};
  kg_check_fields(L, 2, fields);
  const char *like = kg_opt_string_field(L, 2, "like", "qwen2.5-0.5b");
  lua_pushstring(L, kg_opt_string_field(L, 2, "type", "q8_0"));
  const kg_type type = check_type(L, -1);
  const int64_t seed = kg_opt_int_field(L, 2, "seed", 1, INT64_MIN, INT64_MAX);
  if (lua_istable(L, 2))
    lua_getfield(L, 2, "progress");
  else
    lua_pushnil(L);
  callback c = {.L = L, .index = lua_gettop(L)};
  if (!lua_isnil(L, -1)) kg_check_type(L, -1, LUA_TFUNCTION);
  luaL_checkstack(L, 8, NULL);
  if (kg_make_model(file_path, like, type, (uint64_t)seed, lua_isnil(L, -1) ? NULL : call_progress, &c, &err))
    return c.raised ? lua_error(L) : kg_push_error(L, &err);
  lua_pushvalue(L, 1);
  return 1;
}

/* ---- writing small files ---- */

static const char *check_key(lua_State *L, int index, const char *role)
{
  size_t n;
  if (lua_type(L, index) != LUA_TSTRING) kg_error_at(L, "%s: string expected, got %s", role, luaL_typename(L, index));
  const char *key = lua_tolstring(L, index, &n);
  if (!n || strlen(key) != n) kg_error_at(L, "%s: empty, or with a NUL byte", role);
  return key;
}

/* Each of the lists at 2 and 3 holds pairs; checked before a file is open, so that nothing raises then. */
static void check_pairs(lua_State *L)
{
  for (int list = 2; list <= 3; list++) {
    kg_check_type(L, list, LUA_TTABLE);
    for (lua_Integer i = 1; i <= (lua_Integer)lua_rawlen(L, list); i++) {
      if (lua_rawgeti(L, list, i) != LUA_TTABLE) kg_error_at(L, "pair %I: table expected", i);
      lua_rawgeti(L, -1, 1);
      check_key(L, -1, list == 2 ? "key" : "tensor name");
      lua_rawgeti(L, -2, 2);
      if (list == 3)
        kg_check_tensor(L, -1);
      else if (lua_isinteger(L, -1))
        kg_check_int(L, -1, "value", 0, UINT32_MAX);
      else if (lua_type(L, -1) == LUA_TSTRING)
        check_key(L, -1, "value");
      else if (lua_type(L, -1) != LUA_TNUMBER && !lua_isboolean(L, -1))
        kg_error_at(L, "value: string, number or boolean expected, got %s", luaL_typename(L, -1));
      lua_pop(L, 3);
    }
  }
}

static void write_entry(lua_State *L, kg_gguf_writer *writer)
{
  const char *key = lua_tostring(L, -2);
  if (lua_type(L, -1) == LUA_TSTRING)
    kg_gguf_write_string(writer, key, lua_tostring(L, -1));
  else if (lua_isboolean(L, -1))
    kg_gguf_write_bool(writer, key, lua_toboolean(L, -1));
  else if (lua_isinteger(L, -1))
    kg_gguf_write_u32(writer, key, (uint32_t)lua_tointeger(L, -1));
  else
    kg_gguf_write_f32(writer, key, (float)lua_tonumber(L, -1));
}

static void describe_tensor(lua_State *L, kg_gguf_writer *writer)
{
  const kg_tensor *tensor = ((kg_handle *)lua_touserdata(L, -1))->object;
  int64_t dims[KG_TENSOR_DIMS];
  for (int i = 0; i < tensor->n_dims; i++) dims[i] = tensor->shape[tensor->n_dims - 1 - i];
  kg_gguf_write_tensor(writer, lua_tostring(L, -2), KG_F32, tensor->n_dims, dims);
}

static int write_numbers(const kg_tensor *tensor, kg_gguf_writer *writer, kg_error *err)
{
  enum { PIECE = 4096 };
  float piece[PIECE];
  const int64_t n = kg_tensor_count(tensor);
  int status = KG_OK;
  for (int64_t at = 0; at < n && !status; at += PIECE) {
    const int64_t count = n - at < PIECE ? n - at : PIECE;
    status = kg_tensor_read(tensor, at, count, piece, err);
    if (!status) status = kg_gguf_writer_data(writer, piece, (size_t)count * sizeof *piece, err);
  }
  return status;
}

/* core.write_gguf(path, { { key, value }, ... }, { { name, Tensor }, ... }) -> path, or nil, message, code: a small
 * file of float32 tensors; integers become u32, other numbers f32 */
static int write_gguf(lua_State *L)
{
  kg_error err;
  const char *file_path = kg_check_string(L, 1);
  lua_settop(L, 3);
  check_pairs(L);
  luaL_checkstack(L, 8, NULL);
  kg_gguf_writer *writer = NULL;
  int status = kg_gguf_writer_open(file_path, &writer, &err);
  for (int pass = 0; pass < 3 && !status; pass++) { /* entries, descriptions, numbers */
    const int list = pass == 0 ? 2 : 3;
    for (lua_Integer i = 1; i <= (lua_Integer)lua_rawlen(L, list) && !status; i++) {
      lua_rawgeti(L, list, i);
      lua_rawgeti(L, -1, 1);
      lua_rawgeti(L, -2, 2);
      if (pass == 0)
        write_entry(L, writer);
      else if (pass == 1)
        describe_tensor(L, writer);
      else
        status = write_numbers(((kg_handle *)lua_touserdata(L, -1))->object, writer, &err);
      lua_pop(L, 3);
    }
  }
  if (!status) status = kg_gguf_writer_commit(writer, &err);
  kg_gguf_writer_close(writer);
  if (status) return kg_push_error(L, &err);
  lua_pushvalue(L, 1);
  return 1;
}

/* ---- quantizing ---- */

/* The types of a file's tensors from the list at index 2, into userdata that is left on the stack. */
static kg_type *check_types(lua_State *L, const kg_gguf *gguf)
{
  const size_t n = kg_gguf_tensor_count(gguf);
  kg_check_type(L, 2, LUA_TTABLE);
  luaL_argcheck(L, lua_rawlen(L, 2) == n, 2, "not as many types as the file has tensors");
  kg_type *types = lua_newuserdatauv(L, (n + 1) * sizeof *types, 0); /* bounded: the file holds the tensors */
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    types[i] = check_type(L, -1);
    lua_pop(L, 1);
  }
  return types;
}

/* gguf:quantize(types, path, { file_type = 15, threads = 0, progress = function(what, done, total) }) -> path, or nil,
 * message, code; `types` is a list of names, in the order of the file's tensors. */
static int quantize_file(lua_State *L)
{
  kg_error err;
  kg_gguf *gguf = kg_check_gguf(L, 1);
  const char *file_path = kg_check_string(L, 3);
  lua_settop(L, 4);
  static const char *const fields[] = {"file_type", "threads", "progress", NULL};
  kg_check_fields(L, 4, fields);
  if (lua_istable(L, 4))
    lua_getfield(L, 4, "progress");
  else
    lua_pushnil(L);
  callback c = {.L = L, .index = lua_gettop(L)};
  const bool reports = !lua_isnil(L, -1);
  if (reports) kg_check_type(L, -1, LUA_TFUNCTION);
  const kg_quantize_options options = {
      .types = check_types(L, gguf),
      .file_type = (int32_t)kg_opt_int_field(L, 4, "file_type", 0, 0, INT32_MAX),
      .n_threads = (int32_t)kg_opt_int_field(L, 4, "threads", 0, 0, 1024),
      .progress = reports ? call_progress : NULL,
      .progress_user = &c};
  luaL_checkstack(L, 8, NULL);
  kg_gguf *shared = kg_gguf_share(gguf); /* progress may close the handle */
  const int code = kg_quantize_file(shared, file_path, &options, &err);
  kg_gguf_close(shared);
  if (code) return c.raised ? lua_error(L) : kg_push_error(L, &err);
  lua_pushvalue(L, 3);
  return 1;
}

void kg_bind_gguf(lua_State *L)
{
  static const luaL_Reg methods[] = {{"close", close_gguf},
                                     {"get", get},
                                     {"array", array},
                                     {"count", count},
                                     {"entries", entries},
                                     {"tensors", tensors},
                                     {"tensor", tensor_info},
                                     {"values", values},
                                     {"release", release},
                                     {"path", path},
                                     {"version", version},
                                     {"files", files},
                                     {"bytes", bytes},
                                     {"parameters", parameters},
                                     {"check_unchanged", check_unchanged},
                                     {"quantize", quantize_file},
                                     {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__close", close_gguf}, {"__gc", close_gguf}, {"__tostring", gguf_tostring}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"open_gguf", open_gguf},
                                       {"parse_gguf", parse_gguf},
                                       {"dequantize", dequantize},
                                       {"quantize", quantize},
                                       {"types", types},
                                       {"make_model", make_model}, {"write_gguf", write_gguf},
                                       {NULL, NULL}};
  kg_class(L, KG_CLASS_GGUF, methods, metamethods);
  luaL_setfuncs(L, functions, 0);
}
