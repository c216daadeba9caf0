/* bind_adapter.c - kigo.Adapter, model:adapter, and the adapters of sequences. An adapter knows its model by a user
 * value, which tells it from another one that has come to stand at the same address. */
#include "bind.h"

#include <string.h>

#include "sequence.h"

#define CLASS_ADAPTER "kigo.Adapter"

enum { MODEL = 1, N_USER_VALUES = MODEL };

static kg_adapter *check_adapter(lua_State *L, int index)
{
  return kg_check_open(L, index, CLASS_ADAPTER);
}

/* Is the adapter at index of the model at model_index? */
static bool is_of(lua_State *L, int index, int model_index)
{
  lua_getiuservalue(L, index, MODEL);
  const bool same = lua_rawequal(L, -1, model_index);
  lua_pop(L, 1);
  return same;
}

kg_adapter **kg_check_adapters(lua_State *L, int index, int model_index, size_t *n)
{
  if (!lua_isnil(L, index)) kg_check_type(L, index, LUA_TTABLE);
  *n = lua_isnil(L, index) ? 0 : lua_rawlen(L, index);
  kg_adapter **adapters = lua_newuserdatauv(L, *n * sizeof *adapters, 0); /* bounded: the list is in memory */
  for (size_t i = 0; i < *n; i++) {
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    luaL_argexpected(L, luaL_testudata(L, -1, CLASS_ADAPTER), index, "list of adapters");
    luaL_argcheck(L, is_of(L, lua_gettop(L), model_index), index, "adapters of this model expected");
    adapters[i] = check_adapter(L, -1);
    lua_pop(L, 1);
  }
  return adapters;
}

/* A closed handle for the model on top of the stack, which it replaces. */
static kg_handle *push_adapter(lua_State *L)
{
  kg_handle *handle = kg_push_handle(L, CLASS_ADAPTER, N_USER_VALUES);
  lua_insert(L, -2);
  lua_setiuservalue(L, -2, MODEL);
  return handle;
}

/* model:adapter(path or gguf) -> Adapter, or nil, message, code */
static int model_adapter(lua_State *L)
{
  kg_check_open(L, 1, KG_CLASS_MODEL);
  const bool is_open = luaL_testudata(L, 2, KG_CLASS_GGUF) != NULL;
  const char *path = is_open ? NULL : kg_check_string(L, 2);
  lua_settop(L, 2);
  lua_pushvalue(L, 1);
  kg_handle *handle = push_adapter(L);
  const kg_model *model = kg_check_open(L, 1, KG_CLASS_MODEL);
  kg_gguf *gguf = NULL;
  kg_adapter *adapter = NULL;
  kg_error err;
  int status = KG_OK;
  if (is_open)
    gguf = kg_gguf_share(kg_check_gguf(L, 2));
  else
    status = kg_gguf_open(path, &gguf, &err);
  if (!status) status = kg_model_adapter(model, gguf, &adapter, &err);
  kg_gguf_close(gguf);
  if (status) return kg_push_error(L, &err);
  handle->object = adapter;
  return 1;
}

static int close_adapter(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, CLASS_ADAPTER);
  kg_adapter_unref(handle->object);
  handle->object = NULL;
  return 0;
}

static int adapter_to_string(lua_State *L)
{
  const kg_adapter *adapter = kg_check_handle(L, 1, CLASS_ADAPTER)->object;
  if (adapter)
    lua_pushfstring(L, "%s (%s, rank %d)", CLASS_ADAPTER, kg_adapter_path(adapter), (int)kg_adapter_rank(adapter));
  else
    lua_pushliteral(L, CLASS_ADAPTER " (closed)");
  return 1;
}

static int adapter_index(lua_State *L)
{
  kg_check_handle(L, 1, CLASS_ADAPTER);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL) return 1;
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  const kg_adapter *adapter = check_adapter(L, 1);
  if (!strcmp(key, "path"))
    lua_pushstring(L, kg_adapter_path(adapter));
  else if (!strcmp(key, "name"))
    lua_pushstring(L, kg_adapter_name(adapter));
  else if (!strcmp(key, "sha256"))
    lua_pushstring(L, kg_adapter_digest(adapter));
  else if (!strcmp(key, "alpha"))
    lua_pushnumber(L, kg_adapter_alpha(adapter));
  else if (!strcmp(key, "rank"))
    lua_pushinteger(L, kg_adapter_rank(adapter));
  else if (!strcmp(key, "n_matrices"))
    lua_pushinteger(L, kg_adapter_part_count(adapter));
  else if (!strcmp(key, "n_bytes"))
    lua_pushinteger(L, (lua_Integer)kg_adapter_bytes(adapter));
  return 1;
}

/* ---- of a sequence ---- */

/* seq:adapt(adapter, scale = 1) -> seq, or nil, message, code; 0: no more */
static int adapt(lua_State *L)
{
  kg_check_sequence(L, 1);
  check_adapter(L, 2);
  const float scale = (float)luaL_optnumber(L, 3, 1);
  lua_getfield(L, 1, "model");
  luaL_argcheck(L, is_of(L, 2, lua_gettop(L)), 2, "an adapter of the sequence's model expected");
  kg_error err;
  if (kg_sequence_adapt(kg_check_sequence(L, 1), check_adapter(L, 2), scale, &err)) return kg_push_error(L, &err);
  lua_settop(L, 1);
  return 1;
}

/* seq:adapters() -> list of {adapter, scale}, new handles, in the order in which they are applied */
static int adapters(lua_State *L)
{
  kg_check_sequence(L, 1);
  lua_settop(L, 1);
  lua_newtable(L);
  for (int32_t i = 0; i < KG_ADAPTERS_MAX; i++) {
    lua_createtable(L, 0, 2);
    lua_getfield(L, 1, "model");
    kg_handle *handle = push_adapter(L);
    const kg_sequence *sequence = kg_check_sequence(L, 1);
    if (i >= sequence->n_adapters) break;
    const float scale = sequence->adapters[i].scale;
    handle->object = kg_adapter_ref(sequence->adapters[i].adapter);
    lua_setfield(L, 3, "adapter");
    lua_pushnumber(L, scale);
    lua_setfield(L, 3, "scale");
    lua_rawseti(L, 2, i + 1);
  }
  lua_settop(L, 2);
  return 1;
}

void kg_bind_adapter(lua_State *L)
{
  static const luaL_Reg methods[] = {{"close", close_adapter}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {{"__index", adapter_index},   {"__gc", close_adapter},
                                         {"__close", close_adapter},   {"__tostring", adapter_to_string},
                                         {NULL, NULL}};
  static const luaL_Reg of_models[] = {{"adapter", model_adapter}, {NULL, NULL}};
  static const luaL_Reg of_sequences[] = {{"adapt", adapt}, {"adapters", adapters}, {NULL, NULL}};
  kg_class(L, CLASS_ADAPTER, methods, metamethods);
  kg_extend_class(L, KG_CLASS_MODEL, of_models);
  kg_extend_class(L, KG_CLASS_SEQUENCE, of_sequences);
}
