/* bind_plan.c - kigo.Plan: the builder of plan.h for Lua. Values and weights are their integer ids here;
 * lua/kigo/arch/init.lua wraps them into objects. The plan shares the open file, so the kigo.Gguf may be closed; the
 * handle's user value 1 is that kigo.Gguf all the same, because one made from a string keeps its bytes alive. A model
 * that takes the plan must keep it too. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "bind.h"
#include "plan.h"

static kg_plan *check_plan(lua_State *L)
{
  return kg_check_open(L, 1, KG_CLASS_PLAN);
}

/* ---- arguments ---- */

static int32_t check_id(lua_State *L, int index, const char *role)
{
  return (int32_t)kg_check_int(L, index, role, 0, INT32_MAX);
}

static int32_t opt_id(lua_State *L, int index, const char *role)
{
  return lua_isnoneornil(L, index) ? KG_NONE : check_id(L, index, role);
}

/* Names go to C as NUL-terminated strings: one with a NUL inside would be cut, so it is refused. */
static const char *check_name(lua_State *L, int index, const char *role)
{
  size_t n;
  if (lua_type(L, index) != LUA_TSTRING) kg_error_at(L, "%s: string expected, got %s", role, luaL_typename(L, index));
  const char *name = lua_tolstring(L, index, &n);
  if (strlen(name) != n) kg_error_at(L, "%s: a NUL byte at byte %d", role, (int)strlen(name) + 1);
  return name;
}

/* Parameters: they must be there, and kg_check_fields must know them. */
static void check_fields(lua_State *L, int index, const char *const *allowed)
{
  kg_check_type(L, index, LUA_TTABLE);
  kg_check_fields(L, index, allowed);
}

static void need_field(lua_State *L, int index, const char *field)
{
  if (lua_getfield(L, index, field) == LUA_TNIL) kg_error_at(L, "%s: parameter is missing", field);
  lua_pop(L, 1);
}

static int32_t need_int(lua_State *L, int index, const char *field, int64_t min, int64_t max)
{
  need_field(L, index, field);
  return (int32_t)kg_opt_int_field(L, index, field, 0, min, max);
}

/* Any finite float32; the builder knows the ranges. */
static float opt_float(lua_State *L, int index, const char *field, double fallback)
{
  return (float)kg_opt_number_field(L, index, field, fallback, -FLT_MAX, FLT_MAX);
}

static float need_float(lua_State *L, int index, const char *field)
{
  need_field(L, index, field);
  return opt_float(L, index, field, 0);
}

static float check_float(lua_State *L, int index, const char *role)
{
  if (lua_type(L, index) != LUA_TNUMBER) kg_error_at(L, "%s: number expected, got %s", role, luaL_typename(L, index));
  const double value = lua_tonumber(L, index);
  if (!(fabs(value) <= FLT_MAX)) kg_error_at(L, "%s: %f is not finite", role, value);
  return (float)value;
}

/* Index of a name in a NULL-terminated list. */
static int check_option(lua_State *L, const char *what, const char *name, const char *const *names)
{
  for (int i = 0; names[i]; i++)
    if (!strcmp(names[i], name)) return i;
  luaL_Buffer known;
  luaL_buffinit(L, &known);
  for (int i = 0; names[i]; i++) {
    if (i) luaL_addstring(&known, ", ");
    luaL_addstring(&known, names[i]);
  }
  luaL_pushresult(&known);
  return kg_error_at(L, "%s: no such thing as '%s'; there are: %s", what, name, lua_tostring(L, -1));
}

static const char *const act_names[] = {"silu", "gelu", "gelu_erf", "relu", "swiglu_clamped", NULL};
static const char *const rope_names[] = {"halves", "pairs", NULL};
static const char *const gate_names[] = {"softmax", "softmax_used", "sigmoid", NULL};

/* "silu", or { kind = "swiglu_clamped", limit =, alpha = } */
static kg_act check_act(lua_State *L, int index)
{
  static const char *const fields[] = {"kind", "limit", "alpha", NULL};
  kg_act act = {0};
  if (lua_type(L, index) == LUA_TSTRING) {
    act.kind = (kg_act_kind)check_option(L, "act", lua_tostring(L, index), act_names);
    return act;
  }
  check_fields(L, index, fields);
  need_field(L, index, "kind");
  act.kind = (kg_act_kind)check_option(L, "act", kg_opt_string_field(L, index, "kind", NULL), act_names);
  act.limit = opt_float(L, index, "limit", 0);
  act.alpha = opt_float(L, index, "alpha", 0);
  return act;
}

/* The id that a call gave, or its error. */
static int push_result(lua_State *L, int code, int32_t id, const kg_error *err)
{
  if (code) return kg_push_error(L, err);
  lua_pushinteger(L, id);
  return 1;
}

/* ---- building ---- */

/* core.plan(gguf) -> Plan */
static int new_plan(lua_State *L)
{
  kg_check_gguf(L, 1);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_PLAN, 1);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  kg_error err;
  kg_plan *plan;
  if (kg_plan_new(kg_check_gguf(L, 1), &plan, &err)) return kg_push_error(L, &err);
  handle->object = plan;
  return 1;
}

/* plan:weight(tensor_name, cols, rows, planes) -> weight; a shape of nil or 0 is any */
static int plan_weight(lua_State *L)
{
  kg_plan *plan = check_plan(L);
  const char *name = check_name(L, 2, "tensor name");
  int64_t shape[3];
  for (int i = 0; i < 3; i++)
    shape[i] = lua_isnoneornil(L, 3 + i) ? 0 : kg_check_int(L, 3 + i, "shape", 0, INT32_MAX);
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_weight(plan, name, shape[0], shape[1], shape[2], &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:weight_stack(tensor_names) -> weight: each a plane of it */
static int plan_weight_stack(lua_State *L)
{
  kg_plan *plan = check_plan(L);
  kg_check_type(L, 2, LUA_TTABLE);
  const lua_Integer n = (lua_Integer)lua_rawlen(L, 2);
  luaL_argcheck(L, n >= 2 && n <= KG_PLAN_MAX_EXPERTS, 2, "too many names, or too few");
  const char **names = lua_newuserdatauv(L, (size_t)n * sizeof *names, 0);
  luaL_checkstack(L, (int)n + 4, "too many names");
  for (int i = 0; i < (int)n; i++) { /* they stay on the stack */
    lua_rawgeti(L, 2, i + 1);
    names[i] = check_name(L, -1, "tensor name");
  }
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_weight_stack(plan, names, (int32_t)n, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:has_weight(tensor_name) -> boolean */
static int plan_has_weight(lua_State *L)
{
  lua_pushboolean(L, kg_plan_has_weight(check_plan(L), check_name(L, 2, "tensor name")));
  return 1;
}

/* plan:embed(name, table, positions, types) -> value; positions (a weight of learned positions) and types (one whose
 * first row is added to all) may be nil */
static int plan_embed(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_embed(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "table"),
                                 opt_id(L, 4, "positions"), opt_id(L, 5, "types"), &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:norm(name, x, scale, bias|nil, { epsilon =, groups = 1, subtract_mean = false }) -> value */
static int plan_norm(lua_State *L)
{
  static const char *const fields[] = {"epsilon", "groups", "subtract_mean", NULL};
  check_plan(L);
  check_fields(L, 6, fields);
  const kg_norm_params params = {.epsilon = need_float(L, 6, "epsilon"),
                                 .groups = (int32_t)kg_opt_int_field(L, 6, "groups", 1, 1, KG_PLAN_MAX_WIDTH),
                                 .subtract_mean = kg_opt_bool_field(L, 6, "subtract_mean", false)};
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_norm(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), check_id(L, 4, "scale"),
                                opt_id(L, 5, "bias"), &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:linear(name, x, weight, bias|nil) -> value */
static int plan_linear(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_linear(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"),
                                  check_id(L, 4, "weight"), opt_id(L, 5, "bias"), &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:linear_each(name, x, weight) -> value: a plane of the weight for each equal part of x */
static int plan_linear_each(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_linear_each(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"),
                                       check_id(L, 4, "weight"), &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:conv(name, x, weight, bias|nil, gated = false) -> value */
static int plan_conv(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_conv(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), check_id(L, 4, "weight"),
                                opt_id(L, 5, "bias"), lua_toboolean(L, 6), &out, &err);
  return push_result(L, code, out, &err);
}

/* Field inverse_freqs as a buffer of n floats that the collector owns, pushed on the stack. */
static const float *push_freqs(lua_State *L, int index, int32_t n)
{
  lua_getfield(L, index, "inverse_freqs");
  if (!lua_istable(L, -1)) kg_error_at(L, "inverse_freqs: table expected, got %s", luaL_typename(L, -1));
  const lua_Integer there = (lua_Integer)lua_rawlen(L, -1);
  if (there != n) kg_error_at(L, "inverse_freqs: %I numbers, %d wanted (half of dims)", there, n);
  float *freqs = lua_newuserdatauv(L, (size_t)n * sizeof *freqs + 1, 0);
  for (int32_t i = 0; i < n; i++) {
    lua_rawgeti(L, -2, i + 1);
    freqs[i] = check_float(L, -1, "inverse_freqs");
    lua_pop(L, 1);
  }
  return freqs;
}

/* plan:rope(name, x, { style = "halves"|"pairs", heads =, head_dim =, dims = head_dim, inverse_freqs = { ... },
 * magnitude = 1, growth = 0, growth_length = 1 }) -> value */
static int plan_rope(lua_State *L)
{
  static const char *const fields[] = {"style", "heads", "head_dim", "dims", "inverse_freqs", "magnitude", "growth",
                                       "growth_length", NULL};
  check_plan(L);
  check_fields(L, 4, fields);
  need_field(L, 4, "style");
  kg_rope_params params = {
      .style = (kg_rope_style)check_option(L, "style", kg_opt_string_field(L, 4, "style", NULL), rope_names),
      .n_heads = need_int(L, 4, "heads", 1, KG_PLAN_MAX_WIDTH),
      .head_dim = need_int(L, 4, "head_dim", 2, KG_PLAN_MAX_WIDTH),
      .magnitude = opt_float(L, 4, "magnitude", 1),
      .growth = opt_float(L, 4, "growth", 0),
      .growth_length = (int32_t)kg_opt_int_field(L, 4, "growth_length", 1, 1, INT32_MAX)};
  params.n_dims = (int32_t)kg_opt_int_field(L, 4, "dims", params.head_dim, 2, params.head_dim);
  params.inverse_freqs = push_freqs(L, 4, params.n_dims / 2);
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_rope(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:attention(name, q, k, v|nil, sinks|nil, { heads =, kv_heads =, head_dim =, value_dim = head_dim,
 * scale = 1 / sqrt(head_dim), softcap = 0, window = 0 }) -> value; without v the first value_dim channels of the keys
 * are the values */
static int plan_attention(lua_State *L)
{
  static const char *const fields[] = {"heads",   "kv_heads", "head_dim",      "value_dim", "scale",
                                       "softcap", "window",   "bidirectional", NULL};
  check_plan(L);
  check_fields(L, 7, fields);
  kg_attention_params params = {.n_heads = need_int(L, 7, "heads", 1, KG_PLAN_MAX_WIDTH),
                                .n_kv_heads = need_int(L, 7, "kv_heads", 1, KG_PLAN_MAX_WIDTH),
                                .head_dim = need_int(L, 7, "head_dim", 1, KG_PLAN_MAX_WIDTH),
                                .softcap = opt_float(L, 7, "softcap", 0),
                                .window = (int32_t)kg_opt_int_field(L, 7, "window", 0, 0, INT32_MAX),
                                .is_bidirectional = kg_opt_bool_field(L, 7, "bidirectional", false)};
  params.value_dim = (int32_t)kg_opt_int_field(L, 7, "value_dim", params.head_dim, 1, KG_PLAN_MAX_WIDTH);
  params.scale = opt_float(L, 7, "scale", 1 / sqrt(params.head_dim));
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_attention(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "q"), check_id(L, 4, "k"),
                                     opt_id(L, 5, "v"), opt_id(L, 6, "sinks"), &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:glu(name, gate, up, act) -> value */
static int plan_glu(lua_State *L)
{
  const kg_act act = check_act(L, 5);
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_glu(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "gate"), check_id(L, 4, "up"),
                               &act, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:act(name, x, act) -> value */
static int plan_act(lua_State *L)
{
  const kg_act act = check_act(L, 4);
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_act(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), &act, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:moe(name, x, router, weights, params) -> value
 * weights: { gate =, up =, down =, gate_bias =, up_bias =, down_bias =, choice_bias = }, the biases optional
 * params: { experts =, used =, gate = "softmax"|"softmax_used"|"sigmoid", normalize = false, scale = 1, act =,
 * groups = 1, groups_used = groups, group_top = 1 } */
static int plan_moe(lua_State *L)
{
  static const char *const roles[] = {"gate", "up", "down", "gate_bias", "up_bias", "down_bias", "choice_bias", NULL};
  static const char *const fields[] = {"experts", "used",   "gate",        "normalize", "scale",
                                       "act",     "groups", "groups_used", "group_top", NULL};
  check_plan(L);
  check_fields(L, 5, roles);
  check_fields(L, 6, fields);
  int32_t weights[KG_OP_WEIGHTS];
  for (int i = 0; i < KG_OP_WEIGHTS; i++)
    weights[i] = i < 3 ? need_int(L, 5, roles[i], 0, INT32_MAX)
                       : (int32_t)kg_opt_int_field(L, 5, roles[i], KG_NONE, 0, INT32_MAX);
  need_field(L, 6, "gate");
  kg_moe_params params = {
      .n_experts = need_int(L, 6, "experts", 1, INT32_MAX),
      .n_used = need_int(L, 6, "used", 1, INT32_MAX),
      .gate = (kg_moe_gate)check_option(L, "gate", kg_opt_string_field(L, 6, "gate", NULL), gate_names),
      .normalize = kg_opt_bool_field(L, 6, "normalize", false),
      .scale = opt_float(L, 6, "scale", 1),
      .n_groups = (int32_t)kg_opt_int_field(L, 6, "groups", 1, 1, INT32_MAX),
      .group_top = (int32_t)kg_opt_int_field(L, 6, "group_top", 1, 1, 2)};
  params.n_groups_used = (int32_t)kg_opt_int_field(L, 6, "groups_used", params.n_groups, 1, INT32_MAX);
  need_field(L, 6, "act");
  lua_getfield(L, 6, "act");
  params.act = check_act(L, lua_gettop(L));
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_moe(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), check_id(L, 4, "router"),
                               weights, &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:add(name, a, b) -> value */
static int plan_add(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_add(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "a"), check_id(L, 4, "b"), &out,
                               &err);
  return push_result(L, code, out, &err);
}

/* plan:scale(name, x, factor) -> value */
static int plan_scale(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_scale(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"),
                                 check_float(L, 4, "factor"), &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:softcap(name, x, cap) -> value */
static int plan_softcap(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const int code = kg_plan_softcap(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"),
                                   check_float(L, 4, "cap"), &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:slice(name, x, first, width, groups = 1) -> value; first is a 0-based column of each group */
static int plan_slice(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const kg_slice_params params = {
      .first = (int32_t)kg_check_int(L, 4, "first", INT32_MIN, INT32_MAX),
      .width = (int32_t)kg_check_int(L, 5, "width", INT32_MIN, INT32_MAX),
      .groups = lua_isnoneornil(L, 6) ? 1 : (int32_t)kg_check_int(L, 6, "groups", INT32_MIN, INT32_MAX)};
  const int code =
      kg_plan_slice(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "x"), &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:concat(name, a, b, groups = 1, shared = false) -> value: the parts of a, each followed by b's, or by all of b */
static int plan_concat(lua_State *L)
{
  kg_error err;
  int32_t out = KG_NONE;
  const kg_concat_params params = {
      .groups = lua_isnoneornil(L, 5) ? 1 : (int32_t)kg_check_int(L, 5, "groups", INT32_MIN, INT32_MAX),
      .is_shared = lua_toboolean(L, 6)};
  const int code = kg_plan_concat(check_plan(L), check_name(L, 2, "name"), check_id(L, 3, "a"), check_id(L, 4, "b"),
                                  &params, &out, &err);
  return push_result(L, code, out, &err);
}

/* plan:rename(value, name) -> value */
static int plan_rename(lua_State *L)
{
  kg_error err;
  const int32_t value = check_id(L, 2, "value");
  return push_result(L, kg_plan_rename(check_plan(L), value, check_name(L, 3, "name"), &err), value, &err);
}

/* plan:finish(logits, context_length, has_head = true) -> true */
static int plan_finish(lua_State *L)
{
  kg_error err;
  const int32_t context = (int32_t)kg_check_int(L, 3, "context_length", INT32_MIN, INT32_MAX);
  const bool has_head = lua_isnoneornil(L, 4) || lua_toboolean(L, 4);
  if (kg_plan_finish(check_plan(L), check_id(L, 2, "logits"), context, has_head, &err)) return kg_push_error(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* ---- reading ---- */

static void set_act(lua_State *L, const kg_act *act)
{
  kg_set_string(L, "act", act_names[act->kind]);
  if (act->kind != KG_ACT_SWIGLU_CLAMPED) return;
  kg_set_number(L, "limit", act->limit);
  kg_set_number(L, "alpha", act->alpha);
}

static void set_rope(lua_State *L, const kg_rope_params *p)
{
  kg_set_string(L, "style", rope_names[p->style]);
  kg_set_integer(L, "heads", p->n_heads);
  kg_set_integer(L, "head_dim", p->head_dim);
  kg_set_integer(L, "dims", p->n_dims);
  kg_set_number(L, "magnitude", p->magnitude);
  kg_set_number(L, "growth", p->growth);
  kg_set_integer(L, "growth_length", p->growth_length);
  lua_createtable(L, p->n_dims / 2, 0);
  for (int32_t i = 0; i < p->n_dims / 2; i++) {
    lua_pushnumber(L, p->inverse_freqs[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "inverse_freqs");
}

static void set_attention(lua_State *L, const kg_attention_params *p)
{
  kg_set_integer(L, "layer", p->layer);
  kg_set_integer(L, "heads", p->n_heads);
  kg_set_integer(L, "kv_heads", p->n_kv_heads);
  kg_set_integer(L, "head_dim", p->head_dim);
  kg_set_integer(L, "value_dim", p->value_dim);
  kg_set_number(L, "scale", p->scale);
  kg_set_number(L, "softcap", p->softcap);
  kg_set_integer(L, "window", p->window);
  kg_set_boolean(L, "bidirectional", p->is_bidirectional);
}

static void set_moe(lua_State *L, const kg_moe_params *p)
{
  kg_set_integer(L, "experts", p->n_experts);
  kg_set_integer(L, "used", p->n_used);
  kg_set_string(L, "gate", gate_names[p->gate]);
  kg_set_boolean(L, "normalize", p->normalize);
  kg_set_number(L, "scale", p->scale);
  kg_set_integer(L, "groups", p->n_groups);
  kg_set_integer(L, "groups_used", p->n_groups_used);
  kg_set_integer(L, "group_top", p->group_top);
  set_act(L, &p->act);
}

/* The parameters of an operation as fields of the table on top. */
static void set_params(lua_State *L, const kg_op *op)
{
  switch (op->kind) {
  case KG_OP_NORM:
    kg_set_number(L, "epsilon", op->u.norm.epsilon);
    kg_set_integer(L, "groups", op->u.norm.groups);
    kg_set_boolean(L, "subtract_mean", op->u.norm.subtract_mean);
    break;
  case KG_OP_ROPE: set_rope(L, &op->u.rope); break;
  case KG_OP_ATTENTION: set_attention(L, &op->u.attention); break;
  case KG_OP_GLU:
  case KG_OP_ACT: set_act(L, &op->u.act); break;
  case KG_OP_MOE: set_moe(L, &op->u.moe); break;
  case KG_OP_SCALE: kg_set_number(L, "factor", op->u.scale); break;
  case KG_OP_SOFTCAP: kg_set_number(L, "cap", op->u.scale); break;
  case KG_OP_SLICE:
    kg_set_integer(L, "first", op->u.slice.first);
    kg_set_integer(L, "groups", op->u.slice.groups);
    break;
  case KG_OP_CONCAT:
    kg_set_integer(L, "groups", op->u.concat.groups);
    kg_set_boolean(L, "shared", op->u.concat.is_shared);
    break;
  case KG_OP_CONV:
    kg_set_integer(L, "taps", op->u.conv.taps);
    kg_set_boolean(L, "gated", op->u.conv.is_gated);
    break;
  case KG_OP_EMBED:
  case KG_OP_LINEAR:
  case KG_OP_LINEAR_EACH:
  case KG_OP_ADD: break;
  }
}

static int push_ops(lua_State *L)
{
  const kg_plan *plan = check_plan(L);
  lua_createtable(L, kg_plan_op_count(plan), 0);
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    const kg_op *op = kg_plan_op(plan, i);
    lua_newtable(L);
    kg_set_string(L, "kind", kg_op_name(op->kind));
    kg_set_string(L, "out", kg_plan_value(plan, op->out)->name);
    kg_set_integer(L, "width", kg_plan_value(plan, op->out)->width);
    lua_newtable(L);
    for (int j = 0; j < KG_OP_INPUTS && op->in[j] != KG_NONE; j++) {
      lua_pushstring(L, kg_plan_value(plan, op->in[j])->name);
      lua_rawseti(L, -2, j + 1);
    }
    lua_setfield(L, -2, "inputs");
    lua_newtable(L);
    for (int j = 0; j < KG_OP_WEIGHTS; j++) {
      if (op->w[j] == KG_NONE) continue;
      lua_pushstring(L, kg_plan_weight_at(plan, op->w[j])->name);
      lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    }
    lua_setfield(L, -2, "weights");
    set_params(L, op);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* plan:ops() -> array of { kind =, out = name, width =, inputs = { names }, weights = { names }, parameters ... } */
static int plan_ops(lua_State *L)
{
  check_plan(L);
  return kg_call_at_rest(L, push_ops);
}

static int push_value_names(lua_State *L)
{
  const kg_plan *plan = check_plan(L);
  lua_createtable(L, kg_plan_value_count(plan), 0);
  for (int32_t i = 0; i < kg_plan_value_count(plan); i++) {
    lua_pushstring(L, kg_plan_value(plan, i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* plan:value_names() -> array of names, in order of computation; value ids are 0-based positions in it */
static int plan_value_names(lua_State *L)
{
  check_plan(L);
  return kg_call_at_rest(L, push_value_names);
}

static int push_value(lua_State *L)
{
  const kg_plan *plan = check_plan(L);
  const kg_value *value = kg_plan_value(plan, (int32_t)lua_tointeger(L, 2));
  lua_newtable(L);
  kg_set_string(L, "name", value->name);
  kg_set_integer(L, "width", value->width);
  kg_set_integer(L, "producer", value->producer);
  kg_set_integer(L, "last_use", value->last_use);
  return 1;
}

/* plan:value(id) -> { name =, width =, producer =, last_use = }; the last two are 0-based operations */
static int plan_value(lua_State *L)
{
  kg_check_int(L, 2, "value", 0, kg_plan_value_count(check_plan(L)) - 1);
  return kg_call_at_rest(L, push_value);
}

static int push_weights(lua_State *L)
{
  const kg_plan *plan = check_plan(L);
  lua_createtable(L, kg_plan_weight_count(plan), 0);
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++) {
    const kg_weight *w = kg_plan_weight_at(plan, i);
    lua_newtable(L);
    kg_set_string(L, "name", w->name);
    kg_set_string(L, "type", kg_type_find(w->type)->name);
    kg_set_integer(L, "cols", w->cols);
    kg_set_integer(L, "rows", w->rows);
    kg_set_integer(L, "planes", w->planes);
    kg_set_integer(L, "bytes", (lua_Integer)w->n_bytes);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* plan:weights() -> array of { name =, type =, cols =, rows =, planes =, bytes = } that the plan uses */
static int plan_weights(lua_State *L)
{
  check_plan(L);
  return kg_call_at_rest(L, push_weights);
}

static int push_info(lua_State *L)
{
  const kg_plan *plan = check_plan(L);
  lua_newtable(L);
  kg_set_integer(L, "vocab_size", kg_plan_vocab_size(plan));
  kg_set_integer(L, "tokens", kg_plan_token_count(plan));
  kg_set_boolean(L, "has_head", kg_plan_has_head(plan));
  kg_set_integer(L, "context_length", kg_plan_context_length(plan));
  kg_set_integer(L, "layers", kg_plan_layer_count(plan));
  kg_set_integer(L, "tail", kg_plan_tail(plan));
  const int32_t logits = kg_plan_logits(plan);
  if (logits != KG_NONE) kg_set_string(L, "logits", kg_plan_value(plan, logits)->name);
  return 1;
}

/* plan:info() -> { vocab_size =, tokens =, context_length =, layers =, tail =, logits = name|nil, has_head = }; sizes
 * are 0 and logits is nil until the plan is finished */
static int plan_info(lua_State *L)
{
  check_plan(L);
  return kg_call_at_rest(L, push_info);
}

/* ---- the class ---- */

static int plan_close(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_PLAN);
  kg_plan_free(handle->object);
  handle->object = NULL;
  return 0;
}

static int plan_tostring(lua_State *L)
{
  const kg_plan *plan = kg_check_handle(L, 1, KG_CLASS_PLAN)->object;
  if (!plan)
    lua_pushliteral(L, KG_CLASS_PLAN " (closed)");
  else
    lua_pushfstring(L, KG_CLASS_PLAN " (%d operations, %s)", (int)kg_plan_op_count(plan),
                    kg_plan_logits(plan) == KG_NONE ? "open" : "finished");
  return 1;
}

void kg_bind_plan(lua_State *L)
{
  static const luaL_Reg methods[] = {
      {"weight", plan_weight},   {"weight_stack", plan_weight_stack}, {"has_weight", plan_has_weight},
      {"embed", plan_embed},     {"norm", plan_norm},             {"linear", plan_linear},
      {"rope", plan_rope},       {"attention", plan_attention},
      {"glu", plan_glu},         {"act", plan_act},               {"moe", plan_moe},       {"add", plan_add},
      {"scale", plan_scale},     {"softcap", plan_softcap},       {"slice", plan_slice},   {"rename", plan_rename},
      {"concat", plan_concat},   {"linear_each", plan_linear_each}, {"conv", plan_conv},
      {"finish", plan_finish},   {"ops", plan_ops},               {"value_names", plan_value_names},
      {"value", plan_value},     {"weights", plan_weights},       {"info", plan_info},     {"close", plan_close},
      {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__gc", plan_close}, {"__close", plan_close}, {"__tostring", plan_tostring}, {NULL, NULL}};
  kg_class(L, KG_CLASS_PLAN, methods, metamethods);
  lua_pushcfunction(L, new_plan);
  lua_setfield(L, -2, "plan");
}
