/* bind_grammar.c - kigo.Grammar: from Lua tables to kg_grammar; kigo.Matcher. */
#include <string.h>

#include "bind.h"
#include "bind_judge.h"
#include "error.h"
#include "matcher.h"
#include "tensor.h"

enum { NESTING_MAX = 200 }; /* of tables */

kg_grammar *kg_check_grammar(lua_State *L, int index) { return kg_check_open(L, index, KG_CLASS_GRAMMAR); }

/* ---- tables to nodes ---- */

/* Shapes that are wrong raise; what the grammar itself refuses is kept, and everything else is skipped. */
typedef struct reader {
  kg_grammar *grammar;
  int seen; /* stack index of a table: from tables that were read to their nodes; false while one is being read */
  int depth;
  int status;
  kg_error err;
} reader;

static kg_node read_node(lua_State *L, reader *r, int index);

static kg_node finished(reader *r, int status, const kg_node *node)
{
  if (status && !r->status) r->status = status;
  return status ? 0 : *node;
}

/* Nodes at index[from ..], as an array in userdata on the stack. */
static kg_node *read_nodes(lua_State *L, reader *r, int index, lua_Integer from, size_t *n)
{
  const lua_Integer size = (lua_Integer)lua_rawlen(L, index);
  *n = size >= from ? (size_t)(size - from + 1) : 0;
  kg_node *nodes = lua_newuserdatauv(L, *n * sizeof *nodes + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    lua_rawgeti(L, index, from + (lua_Integer)i);
    nodes[i] = read_node(L, r, -1);
    lua_pop(L, 1);
  }
  return nodes;
}

static kg_node read_list(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  size_t n;
  kg_node made = 0;
  const kg_node *nodes = read_nodes(L, r, index, 2, &n);
  if (r->status) return 0;
  return finished(r, kg_grammar_add_list(r->grammar, kind, nodes, n, &made, &r->err), &made);
}

static bool read_flag(lua_State *L, int index, const char *field) { return kg_opt_bool_field(L, index, field, false); }

static kg_node read_ranges(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  const size_t n = (size_t)lua_rawlen(L, index) - 1;
  kg_node made = 0;
  if (n % 2) kg_error_at(L, "%s: pairs of numbers expected", kind == KG_NODE_CLASS ? "class" : "bytes");
  uint32_t *ranges = lua_newuserdatauv(L, n * sizeof *ranges + 1, 0);
  for (size_t i = 0; i < n; i++) {
    lua_rawgeti(L, index, (lua_Integer)i + 2);
    ranges[i] = (uint32_t)kg_check_int(L, -1, kind == KG_NODE_CLASS ? "class" : "bytes", 0, 0x10FFFF);
    lua_pop(L, 1);
  }
  const bool negate = read_flag(L, index, "negate");
  return finished(r, kg_grammar_add_ranges(r->grammar, kind, ranges, n / 2, negate, &made, &r->err), &made);
}

static kg_node read_child(lua_State *L, reader *r, int index)
{
  lua_rawgeti(L, index, 2);
  const kg_node child = read_node(L, r, -1);
  lua_pop(L, 1);
  return child;
}

static kg_node read_unary(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  kg_node made = 0;
  const kg_node child = read_child(L, r, index);
  const char *escapes = kg_opt_string_field(L, index, "escapes", "all");
  if (strcmp(escapes, "all") && strcmp(escapes, "needed"))
    kg_error_at(L, "json: escapes: \"all\" or \"needed\" expected");
  if (r->status) return 0;
  return finished(r, kg_grammar_add_unary(r->grammar, kind, child, escapes[0] == 'a', &made, &r->err), &made);
}

static uint32_t read_count(lua_State *L, int index, lua_Integer at, const char *name, uint32_t fallback)
{
  uint32_t count = fallback;
  if (lua_rawgeti(L, index, at) != LUA_TNIL) count = (uint32_t)kg_check_int(L, -1, name, 0, KG_REPEAT_MAX);
  lua_pop(L, 1);
  return count;
}

static kg_node read_repeat(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  (void)kind;
  kg_node made = 0;
  const kg_node child = read_child(L, r, index);
  const uint32_t min = read_count(L, index, 3, "repeat: min", 0),
                 max = read_count(L, index, 4, "repeat: max", KG_NO_LIMIT);
  if (r->status) return 0;
  return finished(r, kg_grammar_add_repeat(r->grammar, child, min, max, &made, &r->err), &made);
}

static kg_node read_multiple(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  (void)kind;
  kg_node made = 0;
  const uint32_t k = read_count(L, index, 2, "multiple: k", 0), places = read_count(L, index, 3, "multiple: places", 0);
  return finished(r, kg_grammar_add_multiple(r->grammar, k, places, &made, &r->err), &made);
}

static kg_node read_rule(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  (void)kind;
  kg_node made = 0;
  size_t n;
  if (lua_rawgeti(L, index, 2) != LUA_TSTRING) kg_error_at(L, "rule: string expected, got %s", luaL_typename(L, -1));
  const char *name = lua_tolstring(L, -1, &n);
  const int status = kg_grammar_add_rule(r->grammar, name, n, &made, &r->err);
  lua_pop(L, 1);
  return finished(r, status, &made);
}

static kg_node read_point(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  (void)kind;
  kg_node made = 0;
  size_t n;
  const kg_node child = read_child(L, r, index);
  if (lua_getfield(L, index, "name") != LUA_TSTRING)
    kg_error_at(L, "point: name: string expected, got %s", luaL_typename(L, -1));
  const char *name = lua_tolstring(L, -1, &n);
  if (!r->status) finished(r, kg_grammar_add_point(r->grammar, name, n, child, &made, &r->err), &made);
  lua_pop(L, 1);
  return made;
}

/* The numbers of the items that the item on top of the stack requires, in userdata that is pushed. */
static const uint32_t *read_requires(lua_State *L, size_t *n)
{
  *n = 0;
  if (lua_getfield(L, -1, "requires") == LUA_TNIL) return NULL;
  kg_check_type(L, -1, LUA_TTABLE);
  const int list = lua_gettop(L);
  *n = (size_t)lua_rawlen(L, list);
  uint32_t *requires = lua_newuserdatauv(L, *n * sizeof *requires + 1, 0);
  for (size_t i = 0; i < *n; i++) {
    lua_rawgeti(L, list, (lua_Integer)i + 1);
    requires[i] = (uint32_t)kg_check_int(L, -1, "requires", 1, KG_MEMBERS_MAX) - 1;
    lua_pop(L, 1);
  }
  return requires;
}

/* All of it stays on the stack until the node is made. */
static kg_node read_members(lua_State *L, reader *r, int index, kg_node_kind kind)
{
  (void)kind;
  kg_node made = 0, separator, others;
  if (lua_rawgeti(L, index, 2) != LUA_TTABLE) kg_error_at(L, "members: table expected, got %s", luaL_typename(L, -1));
  const int list = lua_gettop(L);
  kg_members members = {.n_items = (size_t)lua_rawlen(L, list)};
  if (members.n_items > KG_MEMBERS_MAX) kg_error_at(L, "members: more than %d items", KG_MEMBERS_MAX);
  kg_member *items = lua_newuserdatauv(L, members.n_items * sizeof *items + 1, 0);
  lua_newtable(L); /* keeps what the items point to */
  const int anchors = lua_gettop(L);
  for (size_t i = 0; i < members.n_items; i++) {
    if (lua_rawgeti(L, list, (lua_Integer)i + 1) != LUA_TTABLE)
      kg_error_at(L, "member %I: table expected, got %s", (lua_Integer)i + 1, luaL_typename(L, -1));
    const int item = lua_gettop(L);
    items[i].is_required = read_flag(L, item, "required");
    items[i].requires = read_requires(L, &items[i].n_requires);
    lua_rawseti(L, anchors, (lua_Integer)i + 1); /* nil, or the userdata */
    lua_settop(L, item);
    lua_rawgeti(L, item, 1);
    items[i].node = read_node(L, r, -1);
    lua_settop(L, anchors);
  }
  members.items = items;
  if (lua_getfield(L, index, "separator") != LUA_TNIL) {
    separator = read_node(L, r, -1);
    members.separator = &separator;
  }
  if (lua_getfield(L, index, "others") != LUA_TNIL) {
    others = read_node(L, r, -1);
    members.others = &others;
  }
  members.min = (uint32_t)kg_opt_int_field(L, index, "min", 0, 0, KG_REPEAT_MAX);
  members.max = (uint32_t)kg_opt_int_field(L, index, "max", KG_NO_LIMIT, 0, KG_NO_LIMIT);
  members.is_ordered = read_flag(L, index, "ordered");
  if (r->status) return 0;
  return finished(r, kg_grammar_add_members(r->grammar, &members, &made, &r->err), &made);
}

typedef struct node_reader {
  const char *name;
  kg_node_kind kind;
  kg_node (*read)(lua_State *L, reader *r, int index, kg_node_kind kind);
} node_reader;

static const node_reader node_readers[] = {{"class", KG_NODE_CLASS, read_ranges},
                                           {"bytes", KG_NODE_BYTES, read_ranges},
                                           {"multiple", KG_NODE_MULTIPLE, read_multiple},
                                           {"seq", KG_NODE_SEQ, read_list},
                                           {"alt", KG_NODE_ALT, read_list},
                                           {"repeat", KG_NODE_REPEAT, read_repeat},
                                           {"rule", KG_NODE_RULE, read_rule},
                                           {"and", KG_NODE_AND, read_list},
                                           {"not", KG_NODE_NOT, read_unary},
                                           {"regular", KG_NODE_REGULAR, read_unary},
                                           {"json", KG_NODE_JSON, read_unary},
                                           {"members", KG_NODE_MEMBERS, read_members},
                                           {"point", KG_NODE_POINT, read_point}};

static const node_reader *find_reader(lua_State *L, int index)
{
  if (lua_rawgeti(L, index, 1) != LUA_TSTRING) kg_error_at(L, "node: its first element must be the name of a kind");
  const char *name = lua_tostring(L, -1);
  for (size_t i = 0; i < sizeof node_readers / sizeof node_readers[0]; i++) {
    if (strcmp(name, node_readers[i].name)) continue;
    lua_pop(L, 1);
    return &node_readers[i];
  }
  kg_error_at(L, "node: there is no kind '%s'", name);
  return NULL;
}

static kg_node read_text(lua_State *L, reader *r, int index)
{
  size_t n;
  kg_node made = 0;
  const char *text = lua_tolstring(L, index, &n);
  return finished(r, kg_grammar_add_text(r->grammar, text, n, &made, &r->err), &made);
}

static kg_node read_table(lua_State *L, reader *r, int index)
{
  if (r->depth == NESTING_MAX) {
    r->status = kg_fail(&r->err, KG_ERR_FULL, "the grammar has nodes nested deeper than %d", NESTING_MAX);
    return 0;
  }
  lua_pushvalue(L, index);
  lua_pushboolean(L, 0);
  lua_rawset(L, r->seen);
  const node_reader *kind = find_reader(L, index);
  r->depth++;
  const kg_node node = kind->read(L, r, index, kind->kind);
  r->depth--;
  return node;
}

/* Read a node; the same table is the same node. */
static kg_node read_node(lua_State *L, reader *r, int index)
{
  index = lua_absindex(L, index);
  const int top = lua_gettop(L);
  kg_node node = 0;
  if (r->status) return 0;
  luaL_checkstack(L, 16, "a grammar");
  const int type = lua_type(L, index);
  if (type != LUA_TSTRING && type != LUA_TTABLE)
    kg_error_at(L, "node: string or table expected, got %s", luaL_typename(L, index));
  lua_pushvalue(L, index);
  const int known = lua_rawget(L, r->seen);
  if (known == LUA_TNUMBER) {
    node = (kg_node)lua_tointeger(L, -1);
  } else if (known != LUA_TNIL) {
    kg_error_at(L, "node: it contains itself; recursion is written with rules");
  } else if (type == LUA_TSTRING) {
    node = read_text(L, r, index);
  } else {
    node = read_table(L, r, index);
  }
  if (known == LUA_TNIL) {
    lua_pushvalue(L, index);
    lua_pushinteger(L, node);
    lua_rawset(L, r->seen);
  }
  lua_settop(L, top);
  return node;
}

static void read_rules(lua_State *L, reader *r, int index)
{
  for (lua_pushnil(L); lua_next(L, index) && !r->status; lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING)
      kg_error_at(L, "rules: the name of a rule is a string, got %s", luaL_typename(L, -2));
    size_t n;
    const kg_node node = read_node(L, r, -1);
    const char *name = lua_tolstring(L, -2, &n);
    if (!r->status) finished(r, kg_grammar_define(r->grammar, name, n, node, &r->err), &node);
  }
}

/* core.grammar(rules, {memory, nodes, depth}) -> Grammar, or nil, message, code */
static int grammar_new(lua_State *L)
{
  static const char *const fields[] = {"memory", "nodes", "depth", NULL};
  kg_check_type(L, 1, LUA_TTABLE);
  kg_check_fields(L, 2, fields);
  const kg_grammar_options options = {
      .memory =
          (size_t)kg_opt_int_field(L, 2, "memory", (int64_t)kg_grammar_defaults.memory, 1 << 16, (int64_t)1 << 32),
      .nodes = (uint32_t)kg_opt_int_field(L, 2, "nodes", kg_grammar_defaults.nodes, 1, 10000000),
      .depth = (uint32_t)kg_opt_int_field(L, 2, "depth", kg_grammar_defaults.depth, 1, KG_STACK_MAX)};
  lua_settop(L, 2);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_GRAMMAR, 0);
  reader r = {0};
  if (kg_grammar_new(&options, &r.grammar, &r.err)) return kg_push_error(L, &r.err);
  handle->object = r.grammar;
  lua_newtable(L);
  r.seen = lua_gettop(L);
  read_rules(L, &r, 1);
  if (!r.status) r.status = kg_grammar_compile(r.grammar, "root", 4, &r.err);
  lua_settop(L, 3);
  if (!r.status) return 1;
  handle->object = NULL;
  kg_grammar_free(r.grammar);
  return kg_push_error(L, &r.err);
}

static int grammar_release(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_GRAMMAR);
  kg_grammar_free(handle->object);
  handle->object = NULL;
  return 0;
}

static int grammar_to_string(lua_State *L)
{
  const kg_grammar *grammar = kg_check_handle(L, 1, KG_CLASS_GRAMMAR)->object;
  if (grammar)
    lua_pushfstring(L, "%s (%d rules)", KG_CLASS_GRAMMAR, (int)grammar->n_rules);
  else
    lua_pushliteral(L, KG_CLASS_GRAMMAR " (closed)");
  return 1;
}

/* ---- matchers ---- */

static kg_matcher *check_matcher(lua_State *L, int index) { return kg_check_open(L, index, KG_CLASS_MATCHER); }

/* Finish a call that failed: what a function of the user's raised, or the error. */
static int push_failure(lua_State *L, const kg_matcher *matcher, const kg_error *err)
{
  kg_raise_judged(L, kg_matcher_judge(matcher), err);
  return kg_push_error(L, err);
}

/* Push a matcher of the grammar at 1, with the options at `options`. */
static int push_matcher(lua_State *L, kg_tokenizer *tokenizer, int options, kg_error *err)
{
  kg_handle *handle = kg_push_handle(L, KG_CLASS_MATCHER, 1);
  kg_judge judge;
  kg_matcher *made = NULL;
  kg_push_judge(L, options, kg_check_grammar(L, 1), NULL, &judge);
  const int status = kg_matcher_new(kg_check_grammar(L, 1), tokenizer, judge.user ? &judge : NULL, &made, err);
  kg_settle_judge(&judge);
  if (status) {
    if (judge.user) kg_raise_judged(L, &judge, err);
    return status;
  }
  handle->object = made;
  lua_setiuservalue(L, -2, 1);
  return KG_OK;
}

/* grammar:matcher(tokenizer or nil, {points = nil, start = false}) -> Matcher, or nil, message, code */
static int grammar_matcher(lua_State *L)
{
  static const char *const fields[] = {"points", "start", NULL};
  kg_check_grammar(L, 1);
  lua_settop(L, 3);
  kg_check_fields(L, 3, fields);
  const bool is_start = kg_opt_bool_field(L, 3, "start", false);
  kg_tokenizer *tokenizer = lua_isnil(L, 2) ? NULL : kg_check_tokenizer(L, 2);
  kg_error err;
  if (push_matcher(L, tokenizer, 3, &err)) return kg_push_error(L, &err);
  kg_matcher_begin_text(check_matcher(L, -1), is_start);
  return 1;
}

/* grammar:accepts(text, {points}) -> boolean: is all of the text in the language? */
static int grammar_accepts(lua_State *L)
{
  static const char *const fields[] = {"points", NULL};
  size_t n;
  kg_check_grammar(L, 1);
  const char *text = kg_check_lstring(L, 2, &n);
  lua_settop(L, 3);
  kg_check_fields(L, 3, fields);
  kg_error err;
  if (push_matcher(L, NULL, 3, &err)) return kg_push_error(L, &err);
  kg_handle *handle = kg_check_handle(L, -1, KG_CLASS_MATCHER);
  bool fits = false;
  int status = kg_matcher_accept_bytes(handle->object, text, n, &fits, &err);
  if (!status && fits) status = kg_matcher_is_complete(handle->object, &fits, &err);
  if (status) return push_failure(L, handle->object, &err);
  kg_matcher_free(handle->object);
  handle->object = NULL;
  lua_pushboolean(L, fits);
  return 1;
}

static int matcher_release(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_MATCHER);
  kg_matcher *matcher = handle->object;
  handle->object = NULL;
  kg_matcher_free(matcher);
  return 0;
}

/* The matcher is amid its reading while the function of a point runs. */
static kg_matcher *check_not_judging(lua_State *L, kg_matcher *matcher)
{
  if (matcher && kg_matcher_is_judging(matcher))
    kg_error_at(L, "%s is in use: the function of a point must leave it alone", KG_CLASS_MATCHER);
  return matcher;
}

static int matcher_close(lua_State *L)
{
  check_not_judging(L, kg_check_handle(L, 1, KG_CLASS_MATCHER)->object);
  return matcher_release(L);
}

static int matcher_to_string(lua_State *L)
{
  const kg_matcher *matcher = kg_check_handle(L, 1, KG_CLASS_MATCHER)->object;
  if (matcher)
    lua_pushfstring(L, "%s (%d steps)", KG_CLASS_MATCHER, (int)kg_matcher_n_steps(matcher));
  else
    lua_pushliteral(L, KG_CLASS_MATCHER " (closed)");
  return 1;
}

/* What a question about a token, text or state comes to. */
static int push_answer(lua_State *L, int status, const bool *answer, const kg_error *err)
{
  if (status) return push_failure(L, check_matcher(L, 1), err);
  lua_pushboolean(L, *answer);
  return 1;
}

/* matcher:accept(id) -> boolean, or nil, message, code; false: it does not fit, and nothing has changed */
static int matcher_accept(lua_State *L)
{
  bool accepted = false;
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  const int32_t id = (int32_t)kg_check_int(L, 2, "token id", 0, INT32_MAX);
  return push_answer(L, kg_matcher_accept(matcher, id, &accepted, &err), &accepted, &err);
}

/* matcher:accept_bytes(text) -> boolean, or nil, message, code */
static int matcher_accept_bytes(lua_State *L)
{
  size_t n;
  bool accepted = false;
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  const char *text = kg_check_lstring(L, 2, &n);
  return push_answer(L, kg_matcher_accept_bytes(matcher, text, n, &accepted, &err), &accepted, &err);
}

/* matcher:allowed(id) -> boolean, or nil, message, code */
static int matcher_allowed(lua_State *L)
{
  bool fits = false;
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  const int32_t id = (int32_t)kg_check_int(L, 2, "token id", 0, INT32_MAX);
  return push_answer(L, kg_matcher_fits(matcher, id, &fits, &err), &fits, &err);
}

/* matcher:is_complete() -> boolean: may the text end here? */
static int matcher_is_complete(lua_State *L)
{
  bool answer = false;
  kg_error err;
  return push_answer(L, kg_matcher_is_complete(check_matcher(L, 1), &answer, &err), &answer, &err);
}

/* matcher:is_over() -> boolean: can it do nothing but end? */
static int matcher_is_over(lua_State *L)
{
  bool answer = false;
  kg_error err;
  return push_answer(L, kg_matcher_is_over(check_matcher(L, 1), &answer, &err), &answer, &err);
}

static int push_allowed(lua_State *L)
{
  const uint64_t *masks[2];
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  if (kg_matcher_mask(matcher, &masks[0], &masks[1], &err)) return push_failure(L, matcher, &err);
  const size_t n_words = kg_matcher_n_words(matcher);
  const int n_lists = masks[0] == masks[1] ? 1 : 2;
  for (int list = 0; list < n_lists; list++) {
    lua_Integer n = 0;
    lua_newtable(L);
    for (size_t w = 0; w < n_words; w++)
      for (uint64_t left = masks[list][w]; left; left &= left - 1) {
        lua_pushinteger(L, (lua_Integer)(w * 64 + (size_t)__builtin_ctzll(left)));
        lua_rawseti(L, -2, ++n);
      }
  }
  return n_lists;
}

/* matcher:ids() -> allowed ids in order, or nil, message, code. With points: those that may be allowed, and those that
 * are, whatever the functions say. */
static int matcher_ids(lua_State *L)
{
  check_matcher(L, 1);
  lua_settop(L, 1);
  return kg_call_at_rest(L, push_allowed);
}

/* matcher:count() -> how many ids may be allowed, or nil, message, code: the mask alone */
static int matcher_count(lua_State *L)
{
  size_t n_allowed;
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  if (kg_matcher_count(matcher, &n_allowed, &err)) return push_failure(L, matcher, &err);
  lua_pushinteger(L, (lua_Integer)n_allowed);
  return 1;
}

/* matcher:mask(logits) -> how many are left, or nil, message, code: the others become -inf */
static int matcher_mask(lua_State *L)
{
  size_t n_allowed;
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  const kg_tensor *logits = kg_check_tensor(L, 2);
  kg_buffer *buffer = logits->buffer;
  kg_buffer_ref(buffer); /* the function of a point may close the tensor */
  const int status = kg_matcher_mask_buffer(matcher, buffer, logits->at, kg_tensor_count(logits), &n_allowed, &err);
  kg_buffer_unref(buffer);
  if (status) return push_failure(L, matcher, &err);
  lua_pushinteger(L, (lua_Integer)n_allowed);
  return 1;
}

/* matcher:rewind(n = 1) -> steps left: take back so many accepted tokens (or pieces of text) */
static int matcher_rewind(lua_State *L)
{
  kg_matcher *matcher = check_not_judging(L, check_matcher(L, 1));
  const int32_t there = kg_matcher_n_steps(matcher);
  const int32_t n = lua_isnoneornil(L, 2) ? 1 : (int32_t)kg_check_int(L, 2, "n", 0, there);
  if (n > there) return kg_error_at(L, "n: nothing was accepted yet");
  kg_matcher_rewind(matcher, there - n);
  lua_pushinteger(L, there - n);
  return 1;
}

/* matcher:text() -> what was accepted */
static int matcher_text(lua_State *L)
{
  const kg_string text = kg_matcher_text(check_matcher(L, 1));
  lua_pushlstring(L, text.size ? text.data : "", text.size);
  return 1;
}

/* matcher:forced() -> ids that must follow whatever comes, or nil, message, code */
static int matcher_forced(lua_State *L)
{
  check_matcher(L, 1);
  kg_tokens *ids = kg_push_tokens(L);
  kg_error err;
  kg_matcher *matcher = check_matcher(L, 1);
  if (kg_matcher_forced(matcher, ids, &err)) return push_failure(L, matcher, &err);
  kg_push_ids(L, ids->ids, ids->n);
  kg_tokens_deinit(ids);
  return 1;
}

/* matcher:copy() -> Matcher, or nil, message, code */
static int matcher_copy(lua_State *L)
{
  check_matcher(L, 1);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_MATCHER, 1);
  lua_getiuservalue(L, 1, 1);
  lua_setiuservalue(L, -2, 1);
  kg_matcher *made;
  kg_error err;
  if (kg_matcher_copy(check_matcher(L, 1), &made, &err)) return kg_push_error(L, &err);
  handle->object = made;
  return 1;
}

void kg_bind_grammar(lua_State *L)
{
  static const luaL_Reg grammar_methods[] = {
      {"close", grammar_release}, {"matcher", grammar_matcher}, {"accepts", grammar_accepts}, {NULL, NULL}};
  static const luaL_Reg grammar_metamethods[] = {
      {"__tostring", grammar_to_string}, {"__close", grammar_release}, {"__gc", grammar_release}, {NULL, NULL}};
  static const luaL_Reg matcher_methods[] = {{"close", matcher_close},
                                             {"accept", matcher_accept},
                                             {"accept_bytes", matcher_accept_bytes},
                                             {"allowed", matcher_allowed},
                                             {"is_complete", matcher_is_complete},
                                             {"is_over", matcher_is_over},
                                             {"ids", matcher_ids},
                                             {"count", matcher_count},
                                             {"mask", matcher_mask},
                                             {"rewind", matcher_rewind},
                                             {"text", matcher_text},
                                             {"forced", matcher_forced},
                                             {"copy", matcher_copy},
                                             {NULL, NULL}};
  static const luaL_Reg matcher_metamethods[] = {
      {"__tostring", matcher_to_string}, {"__close", matcher_close}, {"__gc", matcher_release}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"grammar", grammar_new}, {NULL, NULL}};
  kg_class(L, KG_CLASS_GRAMMAR, grammar_methods, grammar_metamethods);
  kg_class(L, KG_CLASS_MATCHER, matcher_methods, matcher_metamethods);
  luaL_setfuncs(L, functions, 0);
}
