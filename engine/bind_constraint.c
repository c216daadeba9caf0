/* bind_constraint.c - constraints of sequences: methods of kigo.Sequence. */
#include "bind.h"
#include "bind_judge.h"
#include "constraint.h"

static int push_failure(lua_State *L, const kg_judge *judge, const kg_error *err)
{
  if (judge) kg_raise_judged(L, judge, err);
  return kg_push_error(L, err);
}

/* The model's tokenizer, which the sequence of the stack's index 1 needs. */
static kg_tokenizer *check_model_tokenizer(lua_State *L)
{
  lua_getfield(L, 1, "model");
  lua_getfield(L, -1, "tokenizer");
  if (lua_isnil(L, -1)) kg_error_at(L, "the model was loaded without a tokenizer, which a constraint needs");
  return kg_check_tokenizer(L, -1);
}

static void read_options(lua_State *L, kg_constraint_options *out)
{
  static const char *const fields[] = {"after", "within", "points", NULL};
  kg_check_fields(L, 3, fields);
  out->within = (int32_t)kg_opt_int_field(L, 3, "within", -1, -1, INT32_MAX);
  out->after = (kg_string){0};
  if (lua_istable(L, 3) && lua_getfield(L, 3, "after") != LUA_TNIL) {
    if (lua_type(L, -1) != LUA_TSTRING) kg_error_at(L, "after: string expected, got %s", luaL_typename(L, -1));
    out->after.data = lua_tolstring(L, -1, &out->after.size); /* the table keeps it */
  }
}

/* seq:constrain(grammar or nil, {after = nil, within = nil, points = nil}) -> seq, or nil, message, code */
static int constrain(lua_State *L)
{
  kg_constraint_options options;
  kg_judge judge = {0};
  kg_error err;
  kg_check_sequence(L, 1);
  lua_settop(L, 3);
  if (lua_isnil(L, 2)) {
    if (lua_type(L, 3) == LUA_TSTRING) kg_error_at(L, "no grammar, but a message: %s", lua_tostring(L, 3));
    if (!lua_isnil(L, 3)) kg_error_at(L, "a grammar expected, got nil: what made it failed (see assert)");
    if (kg_sequence_constrain(kg_check_sequence(L, 1), NULL, NULL, NULL, &err)) return kg_push_error(L, &err);
    lua_settop(L, 1);
    return 1;
  }
  read_options(L, &options);
  kg_tokenizer *tokenizer = check_model_tokenizer(L);
  kg_push_judge(L, 3, kg_check_grammar(L, 2), kg_sequence_model(kg_check_sequence(L, 1)), &judge);
  options.judge = judge.user ? &judge : NULL;
  const int status = kg_sequence_constrain(kg_check_sequence(L, 1), kg_check_grammar(L, 2), tokenizer, &options, &err);
  kg_settle_judge(&judge);
  if (status && judge.user) kg_raise_judged(L, &judge, &err);
  if (status) return kg_push_error(L, &err);
  lua_settop(L, 1);
  return 1;
}

/* seq:constraint() -> table of what the constraint stands at, or nil: there is none */
static int constraint(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_matcher *matcher = kg_sequence_matcher(sequence);
  bool is_complete = false, is_over = false;
  kg_error err;
  if (!kg_sequence_is_constrained(sequence)) return 0;
  int status = matcher ? kg_matcher_is_complete(matcher, &is_complete, &err) : KG_OK;
  if (!status && matcher) status = kg_matcher_is_over(matcher, &is_over, &err);
  if (status) return push_failure(L, kg_sequence_judge(sequence), &err);
  const bool is_waiting = kg_sequence_is_waiting(sequence);
  lua_createtable(L, 0, 4);
  kg_set_boolean(L, "waiting", is_waiting);
  kg_set_boolean(L, "complete", is_complete);
  kg_set_boolean(L, "over", is_over);
  sequence = kg_check_sequence(L, 1);
  matcher = kg_sequence_matcher(sequence);
  const kg_string text = matcher ? kg_matcher_text(matcher) : (kg_string){0};
  lua_pushlstring(L, text.size ? text.data : "", text.size);
  lua_setfield(L, -2, "text");
  return 1;
}

/* seq:is_over() -> does the constraint allow nothing but the end? False without one */
static int is_over(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_matcher *matcher = kg_sequence_matcher(sequence);
  bool answer = false;
  kg_error err;
  if (matcher && !kg_matcher_has_ended(matcher) && kg_matcher_is_over(matcher, &answer, &err))
    return push_failure(L, kg_sequence_judge(sequence), &err);
  lua_pushboolean(L, answer);
  return 1;
}

/* seq:forced() -> ids that the constraint forces next; none without one */
static int forced(lua_State *L)
{
  kg_check_sequence(L, 1);
  kg_tokens *ids = kg_push_tokens(L);
  kg_error err;
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_matcher *matcher = kg_sequence_matcher(sequence);
  if (matcher && kg_matcher_forced(matcher, ids, &err)) return push_failure(L, kg_sequence_judge(sequence), &err);
  kg_push_ids(L, ids->ids, ids->n);
  kg_tokens_deinit(ids);
  return 1;
}

void kg_bind_constraint(lua_State *L)
{
  static const luaL_Reg methods[] = {
      {"constrain", constrain}, {"constraint", constraint}, {"is_over", is_over}, {"forced", forced}, {NULL, NULL}};
  kg_extend_class(L, KG_CLASS_SEQUENCE, methods);
}
