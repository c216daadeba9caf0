/* bind_tokenizer.c - kigo.Tokenizer. */
#include <string.h>

#include "bind.h"
#include "pretokenize.h"
#include "tokenizer.h"

/* ---- results that outlive an error ---- */

/* Growing arrays in userdata: where Lua raises while they are turned into values, the collector releases them. */
#define CLASS_TOKENS "kigo.tokens"
#define CLASS_BYTES "kigo.bytes"

static int tokens_gc(lua_State *L)
{
  kg_tokens_deinit(kg_check_userdata(L, 1, CLASS_TOKENS));
  return 0;
}

static int bytes_gc(lua_State *L)
{
  kg_bytes_deinit(kg_check_userdata(L, 1, CLASS_BYTES));
  return 0;
}

static void *push_array(lua_State *L, const char *name, size_t size)
{
  void *array = lua_newuserdatauv(L, size, 0);
  memset(array, 0, size);
  luaL_setmetatable(L, name);
  return array;
}

kg_tokens *kg_push_tokens(lua_State *L)
{
  return push_array(L, CLASS_TOKENS, sizeof(kg_tokens));
}

/* ---- text in ---- */

kg_tokenizer *kg_check_tokenizer(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_TOKENIZER);
}

void kg_push_tokenizer(lua_State *L, kg_tokenizer *tokenizer)
{
  kg_handle *handle = kg_push_handle(L, KG_CLASS_TOKENIZER, 0);
  handle->object = kg_tokenizer_ref(tokenizer);
}

/* The field of the table on top of the stack, which keeps it alive; false where it is absent. */
static bool string_field(lua_State *L, const char *field, lua_Integer at, kg_segment *out)
{
  lua_pushstring(L, field);
  const int type = lua_rawget(L, -2);
  if (type != LUA_TNIL && type != LUA_TSTRING)
    kg_error_at(L, "segment %I: %s: string expected, got %s", at, field, luaL_typename(L, -1));
  if (type == LUA_TSTRING) out->text = lua_tolstring(L, -1, &out->size);
  lua_pop(L, 1);
  return type == LUA_TSTRING;
}

static kg_segment check_segment(lua_State *L, int index, lua_Integer at)
{
  kg_segment segment = {0};
  if (lua_rawgeti(L, index, at) == LUA_TSTRING) {
    segment.text = lua_tolstring(L, -1, &segment.size);
  } else if (lua_istable(L, -1)) {
    const bool is_text = string_field(L, "text", at, &segment);
    segment.control = string_field(L, "control", at, &segment);
    if (is_text == segment.control) kg_error_at(L, "segment %I: either text or control expected", at);
  } else {
    kg_error_at(L, "segment %I: string or table expected, got %s", at, luaL_typename(L, -1));
  }
  lua_pop(L, 1);
  return segment;
}

/* A string or an array of segments, as an array in userdata on the stack. The strings live as long as the argument. */
static kg_segment *check_segments(lua_State *L, int index, size_t *n)
{
  const bool is_string = lua_type(L, index) == LUA_TSTRING;
  if (!is_string && !lua_istable(L, index))
    kg_error_at(L, "text: string or array of segments expected, got %s", luaL_typename(L, index));
  *n = is_string ? 1 : (size_t)lua_rawlen(L, index);
  if (*n > INT32_MAX) kg_error_at(L, "text: %I segments are too many", (lua_Integer)*n);
  kg_segment *segments = lua_newuserdatauv(L, *n * sizeof *segments + 1, 0);
  if (is_string) {
    segments[0] = (kg_segment){0};
    segments[0].text = lua_tolstring(L, index, &segments[0].size);
    return segments;
  }
  for (size_t i = 0; i < *n; i++) segments[i] = check_segment(L, index, (lua_Integer)i + 1);
  return segments;
}

/* ---- methods ---- */

/* tokenizer:encode(text or segments, {bos = false, eos = false, special = false, continues = false}) -> ids */
static int encode(lua_State *L)
{
  static const char *const fields[] = {"bos", "eos", "special", "continues", NULL};
  kg_check_tokenizer(L, 1);
  kg_check_fields(L, 3, fields);
  unsigned flags = kg_opt_bool_field(L, 3, "bos", false) ? KG_ENCODE_BOS : 0;
  if (kg_opt_bool_field(L, 3, "eos", false)) flags |= KG_ENCODE_EOS;
  if (kg_opt_bool_field(L, 3, "special", false)) flags |= KG_ENCODE_SPECIAL;
  if (kg_opt_bool_field(L, 3, "continues", false)) flags |= KG_ENCODE_CONTINUES;
  size_t n;
  const kg_segment *segments = check_segments(L, 2, &n);
  kg_tokens *ids = kg_push_tokens(L);
  kg_error err = {0};
  if (kg_tokenizer_encode(kg_check_tokenizer(L, 1), segments, n, flags, ids, &err)) return kg_push_error(L, &err);
  kg_push_ids(L, ids->ids, ids->n);
  kg_tokens_deinit(ids);
  return 1;
}

/* tokenizer:decode(ids, {control = false}) -> bytes */
static int decode(lua_State *L)
{
  static const char *const fields[] = {"control", NULL};
  kg_check_tokenizer(L, 1);
  kg_check_fields(L, 3, fields);
  const unsigned flags = kg_opt_bool_field(L, 3, "control", false) ? KG_DECODE_CONTROL : 0;
  size_t n;
  const int32_t *ids = kg_check_ids(L, 2, &n);
  kg_bytes *bytes = push_array(L, CLASS_BYTES, sizeof *bytes);
  kg_error err = {0};
  if (kg_tokenizer_decode(kg_check_tokenizer(L, 1), ids, n, flags, bytes, &err)) return kg_push_error(L, &err);
  lua_pushlstring(L, bytes->data ? bytes->data : "", bytes->size);
  kg_bytes_deinit(bytes);
  return 1;
}

static int32_t check_id(lua_State *L, const kg_tokenizer *tokenizer, int index)
{
  return (int32_t)kg_check_int(L, index, "token id", 0, kg_tokenizer_size(tokenizer) - 1);
}

/* tokenizer:piece(id) -> bytes of one token, control tokens spelled out */
static int piece(lua_State *L)
{
  const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
  bool after_special = false;
  const kg_string bytes =
      kg_tokenizer_piece(tokenizer, check_id(L, tokenizer, 2), KG_DECODE_CONTROL, &after_special);
  lua_pushlstring(L, bytes.data, bytes.size);
  return 1;
}

/* tokenizer:is_end(id) -> boolean: does it end an answer? */
static int is_end(lua_State *L)
{
  const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
  lua_pushboolean(L, kg_tokenizer_is_end(tokenizer, check_id(L, tokenizer, 2)));
  return 1;
}

/* tokenizer:is_control(id) -> boolean */
static int is_control(lua_State *L)
{
  const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
  lua_pushboolean(L, kg_tokenizer_is_control(tokenizer, check_id(L, tokenizer, 2)));
  return 1;
}

/* The id that `find` gives for the text at index 2, or nothing. */
static int push_found(lua_State *L, int32_t (*find)(const kg_tokenizer *tokenizer, const char *text, size_t size))
{
  const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
  size_t size;
  kg_check_type(L, 2, LUA_TSTRING);
  const char *text = lua_tolstring(L, 2, &size);
  const int32_t id = find(tokenizer, text, size);
  if (id < 0) return 0;
  lua_pushinteger(L, id);
  return 1;
}

/* tokenizer:control(text) -> id of the control token that spells it, or nil */
static int control(lua_State *L) { return push_found(L, kg_tokenizer_control_find); }

/* tokenizer:token(text) -> id of the token of ordinary text that writes just this, or nil */
static int token(lua_State *L) { return push_found(L, kg_tokenizer_find); }

/* tokenizer:with_prefix(text) -> ids of the tokens of ordinary text that begin so */
static int with_prefix(lua_State *L)
{
  kg_check_tokenizer(L, 1);
  size_t size;
  kg_check_type(L, 2, LUA_TSTRING);
  const char *text = lua_tolstring(L, 2, &size);
  kg_tokens *ids = kg_push_tokens(L);
  kg_error err = {0};
  if (kg_tokenizer_with_prefix(kg_check_tokenizer(L, 1), text, size, ids, &err)) return kg_push_error(L, &err);
  kg_push_ids(L, ids->ids, ids->n);
  kg_tokens_deinit(ids);
  return 1;
}

/* list[n] = {[field] = bytes} for the list on top of the stack */
static void push_segment(lua_State *L, const char *field, const char *bytes, size_t size, lua_Integer n)
{
  lua_createtable(L, 0, 1);
  lua_pushlstring(L, bytes, size);
  lua_setfield(L, -2, field);
  lua_rawseti(L, -2, n);
}

/* tokenizer:segments(text) -> trusted text as segments: control tokens that it spells, and the text between them */
static int segments(lua_State *L)
{
  kg_check_type(L, 2, LUA_TSTRING);
  size_t size, from = 0;
  const char *text = lua_tolstring(L, 2, &size);
  lua_Integer n = 0;
  lua_newtable(L);
  while (from < size) {
    const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
    size_t at = size;
    const int32_t id = kg_tokenizer_control_first(tokenizer, text, size, from, &at);
    if (id < 0) at = size;
    if (at > from) push_segment(L, "text", text + from, at - from, ++n);
    if (id < 0) break;
    const kg_string token = kg_vocab_piece(&kg_check_tokenizer(L, 1)->vocab, id);
    push_segment(L, "control", token.data, token.size, ++n);
    from = at + token.size;
  }
  return 1;
}

/* ---- properties ---- */

static void push_id_or_nil(lua_State *L, int32_t id)
{
  if (id >= 0)
    lua_pushinteger(L, id);
  else
    lua_pushnil(L);
}

static void push_pre(lua_State *L, const kg_tokenizer *tokenizer)
{
  if (tokenizer->pre)
    lua_pushlstring(L, tokenizer->pre, tokenizer->pre_size);
  else
    lua_pushnil(L);
}

static int get(lua_State *L)
{
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  if (!lua_isnil(L, -1)) return 1;
  const kg_tokenizer *tokenizer = kg_check_tokenizer(L, 1);
  const kg_special special = kg_special_find(key);
  if (special)
    push_id_or_nil(L, tokenizer->special[special]);
  else if (!strcmp(key, "size"))
    lua_pushinteger(L, kg_tokenizer_size(tokenizer));
  else if (!strcmp(key, "model"))
    lua_pushstring(L, tokenizer->kind->model);
  else if (!strcmp(key, "normalize"))
    lua_pushboolean(L, tokenizer->normalize);
  else if (!strcmp(key, "pre"))
    push_pre(L, tokenizer);
  else if (!strcmp(key, "add_bos"))
    lua_pushboolean(L, tokenizer->add_bos);
  else if (!strcmp(key, "add_eos"))
    lua_pushboolean(L, tokenizer->add_eos);
  else if (!strcmp(key, "add_sep"))
    lua_pushboolean(L, tokenizer->add_sep);
  return 1; /* else the nil of the method table */
}

static int to_string(lua_State *L)
{
  const kg_tokenizer *tokenizer = kg_check_handle(L, 1, KG_CLASS_TOKENIZER)->object;
  if (tokenizer)
    lua_pushfstring(L, "kigo.Tokenizer (%s, %d tokens)", tokenizer->kind->model, tokenizer->vocab.size);
  else
    lua_pushliteral(L, "kigo.Tokenizer (closed)");
  return 1;
}

static int release(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_TOKENIZER);
  kg_tokenizer_free(handle->object);
  handle->object = NULL;
  return 0;
}

/* core.tokenizer(gguf, {pre = nil, normalize = false}) -> Tokenizer; the Gguf may be closed afterwards */
static int tokenizer_open(lua_State *L)
{
  static const char *const fields[] = {"pre", "normalize", NULL};
  kg_check_gguf(L, 1);
  kg_check_fields(L, 2, fields);
  const kg_tokenizer_options options = {.pre = kg_opt_string_field(L, 2, "pre", NULL),
                                        .normalize = kg_opt_bool_field(L, 2, "normalize", false)};
  kg_handle *handle = kg_push_handle(L, KG_CLASS_TOKENIZER, 0);
  kg_tokenizer *tokenizer;
  kg_error err = {0};
  if (kg_tokenizer_open(kg_check_gguf(L, 1), &options, &tokenizer, &err)) return kg_push_error(L, &err);
  handle->object = tokenizer;
  return 1;
}

/* ---- pre-tokenizers ---- */

/* core.pretokenizers() -> names */
static int pretokenizers(lua_State *L)
{
  const char *name;
  lua_newtable(L);
  for (size_t i = 0; (name = kg_pretokenizer_name(i)); i++) {
    lua_pushstring(L, name);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

/* A splitter at work, in userdata: where Lua raises in between, the collector releases it. */
#define CLASS_SPLITTING "kigo.splitting"

typedef struct splitting {
  kg_splitter splitter;
  kg_split split;
} splitting;

static int splitting_gc(lua_State *L)
{
  splitting *s = kg_check_userdata(L, 1, CLASS_SPLITTING);
  kg_split_end(&s->split);
  kg_splitter_deinit(&s->splitter);
  *s = (splitting){0};
  return 0;
}

/* core.split(pre, text, {by_regex = false, count = false}) -> where the words end, or how many there are */
static int split(lua_State *L)
{
  static const char *const fields[] = {"by_regex", "count", NULL};
  size_t name_size, size;
  const char *name = kg_check_lstring(L, 1, &name_size), *text = kg_check_lstring(L, 2, &size);
  kg_check_fields(L, 3, fields);
  const bool by_regex = kg_opt_bool_field(L, 3, "by_regex", false), count = kg_opt_bool_field(L, 3, "count", false);
  const kg_pretokenizer *pre = kg_pretokenizer_find(name, name_size);
  if (!pre) return luaL_argerror(L, 1, "no name of a pre-tokenizer");
  splitting *s = push_array(L, CLASS_SPLITTING, sizeof *s);
  kg_error err = {0};
  int rc = kg_splitter_init(&s->splitter, pre, by_regex, &err);
  if (!rc) rc = kg_split_begin(&s->split, &s->splitter, text, size, &err);
  if (!count) lua_newtable(L);
  lua_Integer n = 0;
  for (size_t pos = 0; pos < size && !rc; n++) {
    rc = kg_split_move(&s->split, &pos, &err);
    if (count) continue;
    lua_pushinteger(L, (lua_Integer)pos);
    lua_rawseti(L, -2, n + 1);
  }
  if (rc) return kg_push_error(L, &err);
  if (count) lua_pushinteger(L, n);
  return 1;
}

static void define_array(lua_State *L, const char *name, lua_CFunction gc)
{
  luaL_newmetatable(L, name);
  lua_pushcfunction(L, gc);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
}

void kg_bind_tokenizer(lua_State *L)
{
  static const luaL_Reg methods[] = {{"encode", encode},   {"decode", decode},         {"piece", piece},
                                     {"is_end", is_end},   {"is_control", is_control}, {"control", control},
                                     {"segments", segments}, {"token", token}, {"with_prefix", with_prefix},
                                     {"close", release},   {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__index", get}, {"__tostring", to_string}, {"__close", release}, {"__gc", release}, {NULL, NULL}};
  define_array(L, CLASS_TOKENS, tokens_gc);
  define_array(L, CLASS_BYTES, bytes_gc);
  define_array(L, CLASS_SPLITTING, splitting_gc);
  kg_class(L, KG_CLASS_TOKENIZER, methods, metamethods);
  static const luaL_Reg functions[] = {
      {"tokenizer", tokenizer_open}, {"pretokenizers", pretokenizers}, {"split", split}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
