/* bind_sequence.c - kigo.Sequence with its random numbers (kigo.Rng) and marks (kigo.Mark). */
#include "bind.h"

#include <math.h>
#include <string.h>

#include "ahead.h"
#include "bind_judge.h"
#include "constraint.h"
#include "draft.h"
#include "error.h"
#include "follow.h"
#include "kv_file.h"

#define CLASS_RNG "kigo.Rng"
#define CLASS_MARK "kigo.Mark"

enum { MODEL = 1, STATE, LOGITS, RNG, FIELDS, N_USER_VALUES = KG_SEQUENCE_HOOKS };

/* User values of a mark: the model keeps its kg_mark.model from being another one's address; the state is a copy. */
enum { MARK_MODEL = 1, MARK_STATE, MARK_N_USER_VALUES = MARK_STATE };

kg_sequence *kg_check_sequence(lua_State *L, int index)
{
  return kg_check_open(L, index, KG_CLASS_SEQUENCE);
}

kg_handle *kg_push_sequence(lua_State *L, int model_index)
{
  model_index = lua_absindex(L, model_index);
  kg_collect_sequences(L, model_index);
  kg_handle *handle = kg_push_handle(L, KG_CLASS_SEQUENCE, N_USER_VALUES);
  lua_pushvalue(L, model_index);
  lua_setiuservalue(L, -2, MODEL);
  return handle;
}

static int collect_sequence(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_SEQUENCE);
  if (!handle->object) return 0;
  kg_sequence_free(handle->object);
  handle->object = NULL;
  lua_getiuservalue(L, 1, MODEL);
  kg_release_model(L, -1);
  return 0;
}

static int close_sequence(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_SEQUENCE);
  if (handle->object && kg_model_is_stepping(kg_sequence_model(handle->object)))
    return kg_error_at(L, "%s cannot be closed in the middle of a step", KG_CLASS_SEQUENCE);
  return collect_sequence(L);
}

static int sequence_to_string(lua_State *L)
{
  const kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_SEQUENCE);
  const kg_sequence *sequence = handle->object;
  if (sequence)
    lua_pushfstring(L, "%s (%d of %d tokens)", KG_CLASS_SEQUENCE, (int)kg_sequence_pos(sequence),
                    (int)kg_model_context(kg_sequence_model(sequence)));
  else
    lua_pushliteral(L, KG_CLASS_SEQUENCE " (closed)");
  return 1;
}

/* Finish a call that failed; the function of a constraint's point may have raised something. */
static int push_failure(lua_State *L, const kg_sequence *sequence, const kg_error *err)
{
  const kg_judge *judge = kg_sequence_judge(sequence);
  if (judge) kg_raise_judged(L, judge, err);
  return kg_push_error(L, err);
}

/* ---- the timeline ---- */

static int push_pos(lua_State *L, const kg_sequence *sequence)
{
  lua_pushinteger(L, kg_sequence_pos(sequence));
  return 1;
}

/* seq:feed(ids) -> pos, or nil, message, code: append tokens; all or nothing */
static int feed(lua_State *L)
{
  kg_check_sequence(L, 1);
  size_t n;
  const int32_t *ids = kg_check_ids(L, 2, &n);
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_error err;
  return kg_sequence_feed(sequence, ids, n, &err) ? push_failure(L, sequence, &err) : push_pos(L, sequence);
}

/* seq:push(id) -> pos, or nil, message, code */
static int push(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  const int32_t id = (int32_t)kg_check_int(L, 2, "id", INT32_MIN, INT32_MAX);
  kg_error err;
  return kg_sequence_feed(sequence, &id, 1, &err) ? push_failure(L, sequence, &err) : push_pos(L, sequence);
}

static int pos(lua_State *L)
{
  return push_pos(L, kg_check_sequence(L, 1));
}

/* seq:tokens(from = 0) -> ids on the timeline, from this position on. They are copied before the table is made, which
 * may run finalizers; letting the collector rest instead would make it work off a step with every call. */
static int tokens(lua_State *L)
{
  const int32_t pos = kg_sequence_pos(kg_check_sequence(L, 1));
  const int32_t from = lua_isnoneornil(L, 2) ? 0 : (int32_t)kg_check_int(L, 2, "from", 0, INT32_MAX);
  const size_t most = from < pos ? (size_t)(pos - from) : 0;
  int32_t *ids = lua_newuserdatauv(L, most * sizeof *ids + 1, 0);
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  const int32_t now = kg_sequence_pos(sequence);
  const size_t there = from < now ? (size_t)(now - from) : 0, n = there < most ? there : most;
  if (n) memcpy(ids, kg_sequence_tokens(sequence) + from, n * sizeof *ids);
  kg_push_ids(L, ids, n);
  return 1;
}

static int seed(lua_State *L)
{
  lua_pushinteger(L, (lua_Integer)kg_sequence_seed(kg_check_sequence(L, 1)));
  return 1;
}

static int evaluate(lua_State *L, kg_error *err)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  if (kg_sequence_pos(sequence) && !kg_sequence_pending(sequence)) return kg_sequence_evaluate(sequence, err);
  lua_getiuservalue(L, 1, MODEL);
  const int model = lua_gettop(L);
  kg_begin_step(L, model);
  const int status = kg_sequence_evaluate(sequence, err);
  kg_end_step(L, model);
  lua_pop(L, 1);
  return status;
}

/* seq:step() -> true, or nil, message, code: evaluate what is pending, alone */
static int step(lua_State *L)
{
  kg_error err;
  if (evaluate(L, &err)) return push_failure(L, kg_check_sequence(L, 1), &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* seq:pending() -> tokens that a pass has to evaluate before the logits are there */
static int pending(lua_State *L)
{
  lua_pushinteger(L, kg_sequence_pending(kg_check_sequence(L, 1)));
  return 1;
}

/* seq:drawn(chain) -> was the next draw of this chain made ahead, so that it needs no pass? */
static int drawn(lua_State *L)
{
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  lua_pushboolean(L, kg_sequence_has_drawn(sequence, kg_check_open(L, 2, KG_CLASS_CHAIN)));
  return 1;
}

/* seq:pages() -> cache pages that the timeline holds, shared ones too */
static int pages(lua_State *L)
{
  lua_pushinteger(L, kg_kv_count_held(&kg_check_sequence(L, 1)->pages));
  return 1;
}

/* seq:release() -> pages given back, or nil, message, code: until somebody asks for what lies behind them */
static int release(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  const int32_t n = kg_kv_count_held(&sequence->pages);
  kg_error err;
  if (kg_sequence_release(sequence, &err)) return kg_push_error(L, &err);
  lua_pushinteger(L, n - kg_kv_count_held(&sequence->pages));
  return 1;
}

/* seq:draw(chain, ahead = 1) -> id as chain(seq.logits, seq) draws it, or nil, message, code. Up to `ahead` - 1 tokens
 * further are computed at once, for a caller who pushes each id and draws again. */
static int draw(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_chain *chain = kg_check_open(L, 2, KG_CLASS_CHAIN);
  const int32_t ahead = (int32_t)luaL_optinteger(L, 3, 1);
  luaL_argcheck(L, ahead >= 1 && ahead <= KG_AHEAD_MAX, 3, "1 to 1024 expected");
  lua_getiuservalue(L, 1, MODEL);
  const int model = lua_gettop(L);
  int32_t id;
  kg_error err;
  kg_begin_step(L, model);
  kg_chain_ref(chain); /* a progress function may close it */
  const int status = kg_sequence_draw(sequence, chain, ahead, &id, &err);
  kg_chain_free(chain);
  kg_end_step(L, model);
  if (status) return push_failure(L, kg_check_sequence(L, 1), &err);
  lua_pushinteger(L, id);
  return 1;
}

/* ---- drafts ---- */

/* seq:expect(ids) -> how many of them are kept, or nil, message, code: what may be fed next, for the next pass to take
 * along */
static int expect(lua_State *L)
{
  kg_check_sequence(L, 1);
  size_t n;
  const int32_t *ids = kg_check_ids(L, 2, &n);
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_error err;
  if (kg_sequence_expect(sequence, ids, n, &err)) return kg_push_error(L, &err);
  lua_pushinteger(L, sequence->draft.n);
  return 1;
}

/* seq:lookup(longest, shortest, most) -> ids: what followed the last tokens when they stood on the timeline before */
static int lookup(lua_State *L)
{
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  const int32_t longest = (int32_t)kg_check_int(L, 2, "longest", 1, KG_LOOKUP_MAX);
  const int32_t shortest = (int32_t)kg_check_int(L, 3, "shortest", 1, longest);
  const int32_t most = (int32_t)kg_check_int(L, 4, "most", 0, KG_DRAFT_MAX);
  const int32_t *found = NULL;
  int32_t ids[KG_DRAFT_MAX];
  const int32_t n = kg_sequence_lookup(sequence, longest, shortest, most, &found);
  if (n) memcpy(ids, found, (size_t)n * sizeof *ids); /* making the table may close the sequence */
  kg_push_ids(L, ids, (size_t)n);
  return 1;
}

/* seq:common(other) -> tokens that both timelines begin with; the other may be another model's */
static int common(lua_State *L)
{
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  lua_pushinteger(L, kg_sequence_common(sequence, kg_check_sequence(L, 2)));
  return 1;
}

/* ---- mark, rewind, fork ---- */

/* Push a copy of seq.state, or of the mark's copy of it. */
static void push_state_copy(lua_State *L, int index, int slot)
{
  lua_getiuservalue(L, index, slot);
  kg_copy_plain(L, "seq.state");
}

/* seq:mark() -> mark: position, random numbers drawn there, companions, and a copy of seq.state */
static int make_mark(lua_State *L)
{
  kg_check_sequence(L, 1);
  kg_handle *handle = kg_push_handle(L, CLASS_MARK, MARK_N_USER_VALUES);
  lua_getiuservalue(L, 1, MODEL);
  lua_setiuservalue(L, -2, MARK_MODEL);
  push_state_copy(L, 1, STATE);
  lua_setiuservalue(L, -2, MARK_STATE);
  kg_mark *mark;
  kg_error err;
  if (kg_sequence_mark(kg_check_sequence(L, 1), &mark, &err)) return kg_push_error(L, &err);
  handle->object = mark;
  return 1;
}

static int rewind_to_mark(lua_State *L)
{
  lua_getiuservalue(L, 1, MODEL);
  lua_getiuservalue(L, 2, MARK_MODEL);
  if (!lua_rawequal(L, -1, -2)) return kg_error_at(L, "the mark is of another model's sequence");
  push_state_copy(L, 2, MARK_STATE); /* the mark stays good for another rewind */
  const kg_mark *mark = kg_check_open(L, 2, CLASS_MARK);
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_error err;
  if (kg_sequence_rewind_to(sequence, mark, &err)) return kg_push_error(L, &err);
  lua_setiuservalue(L, 1, STATE);
  return push_pos(L, sequence);
}

/* seq:rewind(mark or pos) -> pos. A mark brings back everything, seq.state too; a position leaves seq.state alone, and
 * the rest is as when the timeline first came there. */
static int rewind_sequence(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  lua_settop(L, 2);
  if (luaL_testudata(L, 2, CLASS_MARK)) return rewind_to_mark(L);
  const int32_t target = (int32_t)kg_check_int(L, 2, "pos", 0, kg_sequence_pos(sequence));
  kg_error err;
  return kg_sequence_rewind(sequence, target, &err) ? kg_push_error(L, &err) : push_pos(L, sequence);
}

/* seq:fork{seed = its own} -> Sequence, or nil, message, code: shares the past; seq.state is copied */
static int fork_sequence(lua_State *L)
{
  static const char *const fields[] = {"seed", NULL};
  const int64_t own_seed = (int64_t)kg_sequence_seed(kg_check_sequence(L, 1));
  kg_check_fields(L, 2, fields);
  const int64_t fork_seed = kg_opt_int_field(L, 2, "seed", own_seed, INT64_MIN, INT64_MAX);
  lua_getiuservalue(L, 1, MODEL);
  kg_handle *handle = kg_push_sequence(L, -1);
  push_state_copy(L, 1, STATE);
  lua_setiuservalue(L, -2, STATE);
  kg_sequence *fork = NULL;
  kg_error err;
  if (kg_sequence_fork(kg_check_sequence(L, 1), (uint64_t)fork_seed, &fork, &err)) return kg_push_error(L, &err);
  handle->object = fork;
  return 1;
}

static int mark_index(lua_State *L)
{
  const kg_mark *mark = kg_check_open(L, 1, CLASS_MARK);
  if (lua_type(L, 2) == LUA_TSTRING && !strcmp(lua_tostring(L, 2), "pos"))
    lua_pushinteger(L, mark->pos);
  else
    lua_pushnil(L);
  return 1;
}

static int mark_to_string(lua_State *L)
{
  const kg_mark *mark = kg_check_handle(L, 1, CLASS_MARK)->object;
  if (mark)
    lua_pushfstring(L, "%s (position %d)", CLASS_MARK, (int)mark->pos);
  else
    lua_pushliteral(L, CLASS_MARK " (closed)");
  return 1;
}

static int collect_mark(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, CLASS_MARK);
  kg_mark_free(handle->object);
  handle->object = NULL;
  return 0;
}

/* seq:save(path) -> true, or nil, message, code */
static int save(lua_State *L)
{
  kg_check_sequence(L, 1);
  const char *path = kg_check_string(L, 2);
  kg_string state;
  lua_getiuservalue(L, 1, STATE);
  kg_push_plain_bytes(L, "seq.state");
  state.data = lua_tolstring(L, -1, &state.size);
  kg_error err;
  if (kg_sequence_save(kg_check_sequence(L, 1), path, state, &err)) return kg_push_error(L, &err);
  lua_pushboolean(L, 1);
  return 1;
}

/* What outlives an error of Lua's: the collector releases it. */
#define CLASS_SAVED_STATE "kigo.saved_state"

static int release_saved_state(lua_State *L)
{
  kg_bytes_deinit(kg_check_userdata(L, 1, CLASS_SAVED_STATE));
  return 0;
}

/* Push the table that is stored as these bytes, or nil where there are none. */
static bool read_state(lua_State *L, const kg_bytes *bytes)
{
  if (!bytes->size) {
    lua_pushnil(L);
    return true;
  }
  return kg_read_plain(L, (kg_string){bytes->data, bytes->size}) && (lua_isnil(L, -1) || lua_istable(L, -1));
}

int kg_restore_sequence(lua_State *L, int model_index)
{
  const char *path = kg_check_string(L, 2);
  kg_handle *handle = kg_push_sequence(L, model_index);
  const int made = lua_gettop(L);
  kg_bytes *state = lua_newuserdatauv(L, sizeof *state, 0);
  *state = (kg_bytes){0};
  luaL_setmetatable(L, CLASS_SAVED_STATE);
  lua_getfield(L, model_index, "tokenizer");
  const int tokenizer = lua_gettop(L);
  kg_kv_needs needs = {0};
  needs.adapters = kg_check_adapters(L, 3, model_index, &needs.n_adapters);
  if (!lua_isnil(L, tokenizer)) needs.tokenizer = kg_check_tokenizer(L, tokenizer);
  kg_model *model = kg_check_open(L, model_index, KG_CLASS_MODEL);
  kg_sequence *sequence;
  kg_error err;
  if (kg_sequence_restore(model, path, &needs, state, &sequence, &err)) return kg_push_error(L, &err);
  handle->object = sequence;
  if (!read_state(L, state)) {
    kg_sequence_free(handle->object);
    handle->object = NULL;
    kg_release_model(L, model_index);
    kg_fail(&err, KG_ERR_FORMAT, "%s: the state is malformed", path);
    return kg_push_error(L, &err);
  }
  lua_setiuservalue(L, made, STATE);
  lua_settop(L, made);
  return 1;
}

/* ---- streams that follow ---- */

static kg_stream *check_stream(lua_State *L) { return kg_check_open(L, 2, KG_CLASS_STREAM); }

/* seq:attach(stream) -> stream, which gets from now on what is fed and pushed, and goes where the sequence goes */
static int attach(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_error err;
  if (kg_sequence_attach_stream(sequence, check_stream(L), &err)) return kg_push_error(L, &err);
  lua_settop(L, 2);
  return 1;
}

/* seq:detach(stream) -> stream */
static int detach(lua_State *L)
{
  kg_sequence *sequence = kg_check_sequence(L, 1);
  kg_error err;
  if (kg_sequence_detach_stream(sequence, check_stream(L), &err)) return kg_push_error(L, &err);
  lua_settop(L, 2);
  return 1;
}

/* seq:attached() -> new handles of the streams that follow, in order of attachment */
static int attached(lua_State *L)
{
  kg_check_sequence(L, 1);
  lua_newtable(L);
  for (size_t i = 0;; i++) {
    kg_handle *handle = kg_push_handle(L, KG_CLASS_STREAM, 0);
    kg_stream *stream = kg_sequence_stream(kg_check_sequence(L, 1), i);
    if (!stream) break;
    handle->object = kg_stream_ref(stream);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_pop(L, 1);
  return 1;
}

/* ---- properties ---- */

/* One handle serves as long as the numbers stay in the same buffer: a decode loop asks for them at every token. */
static int push_ready_logits(lua_State *L)
{
  kg_error err;
  if (evaluate(L, &err)) return kg_raise(L, &err);
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  lua_getiuservalue(L, 1, LOGITS);
  const kg_handle *cached = lua_touserdata(L, -1);
  const kg_tensor *tensor = cached ? cached->object : NULL;
  if (tensor && tensor->buffer == sequence->logits) return 1;
  kg_tensor **made = kg_push_tensor(L);
  if (kg_sequence_logits(kg_check_sequence(L, 1), made, &err)) return kg_raise(L, &err);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, LOGITS);
  return 1;
}

static int logits_after_step(lua_State *L, int status, lua_KContext context)
{
  (void)status, (void)context;
  if (!lua_toboolean(L, -2)) return kg_error_at(L, "%s", luaL_tolstring(L, -1, NULL));
  return push_ready_logits(L);
}

/* What is missing is asked of seq:step(), which Lua has replaced by one that may yield (lua/kigo/sequence.lua). */
static int push_logits(lua_State *L)
{
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  if (kg_sequence_pos(sequence) && !kg_sequence_pending(sequence)) return push_ready_logits(L);
  lua_getfield(L, lua_upvalueindex(1), "step");
  lua_pushvalue(L, 1);
  lua_callk(L, 1, 2, 0, logits_after_step);
  return logits_after_step(L, LUA_OK, 0);
}

static int push_rng(lua_State *L)
{
  kg_check_sequence(L, 1);
  if (lua_getiuservalue(L, 1, RNG) != LUA_TNIL) return 1;
  lua_newuserdatauv(L, 0, 1);
  luaL_setmetatable(L, CLASS_RNG);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, RNG);
  return 1;
}

static int push_stats(lua_State *L)
{
  const kg_sequence *sequence = kg_check_sequence(L, 1);
  const int64_t n_evaluated = sequence->n_tokens_evaluated, n_reused = sequence->n_tokens_reused,
                n_drafted = sequence->n_drafted, n_accepted = sequence->n_accepted;
  lua_newtable(L);
  kg_set_integer(L, "n_tokens_evaluated", n_evaluated);
  kg_set_integer(L, "n_tokens_reused", n_reused);
  kg_set_integer(L, "n_drafted", n_drafted);
  kg_set_integer(L, "n_accepted", n_accepted);
  return 1;
}

/* The table at user value `slot` of the sequence, made on first use. */
static int push_table(lua_State *L, int slot)
{
  if (lua_getiuservalue(L, 1, slot) != LUA_TNIL) return 1;
  lua_pop(L, 1);
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_setiuservalue(L, 1, slot);
  return 1;
}

static int sequence_index(lua_State *L)
{
  kg_check_handle(L, 1, KG_CLASS_SEQUENCE);
  lua_settop(L, 2);
  lua_pushvalue(L, 2);
  if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL) return 1;
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (!strcmp(key, "logits")) return push_logits(L);
  if (!strcmp(key, "rng")) return push_rng(L);
  if (!strcmp(key, "state")) return push_table(L, STATE);
  if (!strcmp(key, "stats")) return push_stats(L);
  if (!strcmp(key, "model")) {
    lua_getiuservalue(L, 1, MODEL);
    return 1;
  }
  if (lua_getiuservalue(L, 1, FIELDS) == LUA_TNIL) return 1;
  lua_pushvalue(L, 2);
  lua_rawget(L, -2);
  return 1;
}

static int sequence_new_index(lua_State *L)
{
  kg_check_handle(L, 1, KG_CLASS_SEQUENCE);
  lua_settop(L, 3);
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  if (!strcmp(key, "logits") || !strcmp(key, "rng") || !strcmp(key, "model") || !strcmp(key, "stats"))
    return kg_error_at(L, "%s: %s is read-only", KG_CLASS_SEQUENCE, key);
  if (!strcmp(key, "state")) {
    kg_check_type(L, 3, LUA_TTABLE);
    lua_setiuservalue(L, 1, STATE);
    return 0;
  }
  push_table(L, FIELDS);
  lua_insert(L, 2);
  lua_rawset(L, 2);
  return 0;
}

/* ---- random numbers ---- */

static kg_sequence *check_rng(lua_State *L)
{
  kg_check_userdata(L, 1, CLASS_RNG);
  lua_getiuservalue(L, 1, 1);
  kg_sequence *sequence = kg_check_sequence(L, -1);
  lua_pop(L, 1);
  return sequence;
}

/* rng:uniform() -> number in [0, 1) */
static int rng_uniform(lua_State *L)
{
  lua_pushnumber(L, kg_sequence_uniform(check_rng(L)));
  return 1;
}

int kg_rng_integer(lua_State *L, double (*uniform)(void *), void *source)
{
  const int64_t n = kg_check_int(L, 2, "n", 1, (int64_t)1 << 53);
  const int64_t drawn = (int64_t)(uniform(source) * (double)n); /* below n, or n by rounding */
  lua_pushinteger(L, drawn < n ? drawn + 1 : n);
  return 1;
}

enum { FEW_NUMBERS = 256 }; /* that the stack holds */

/* The numbers of the table at index 2, in `few` or in userdata that is pushed. */
static double *read_numbers(lua_State *L, const char *what, double few[FEW_NUMBERS], lua_Integer *n)
{
  kg_check_type(L, 2, LUA_TTABLE);
  *n = (lua_Integer)lua_rawlen(L, 2);
  double *numbers = *n <= FEW_NUMBERS ? few : lua_newuserdatauv(L, (size_t)*n * sizeof *numbers, 0);
  for (lua_Integer i = 1; i <= *n; i++) {
    if (lua_rawgeti(L, 2, i) != LUA_TNUMBER)
      kg_error_at(L, "%s %I: number expected, got %s", what, i, luaL_typename(L, -1));
    numbers[i - 1] = lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return numbers;
}

static int choose(lua_State *L, double (*uniform)(void *), void *source, const double *weights, lua_Integer n)
{
  double sum = 0;
  lua_Integer chosen = 0;
  for (lua_Integer i = 1; i <= n; i++) {
    sum += weights[i - 1];
    if (weights[i - 1] > 0) chosen = i;
  }
  if (!(sum > 0) || isinf(sum)) return kg_error_at(L, "probabilities: their sum %f is not positive and finite", sum);
  double left = uniform(source) * sum;
  for (lua_Integer i = 1; i < chosen; i++) { /* the last possible one takes what rounding leaves */
    if (left < weights[i - 1]) chosen = i;
    left -= weights[i - 1];
  }
  lua_pushinteger(L, chosen);
  return 1;
}

int kg_rng_choose(lua_State *L, double (*uniform)(void *), void *source)
{
  double few[FEW_NUMBERS];
  lua_Integer n;
  const double *weights = read_numbers(L, "probability", few, &n);
  for (lua_Integer i = 0; i < n; i++)
    if (!(weights[i] >= 0) || isinf(weights[i]))
      return kg_error_at(L, "probability %I: %f is not finite and at least 0", i + 1, weights[i]);
  return choose(L, uniform, source, weights, n);
}

int kg_rng_choose_logits(lua_State *L, double (*uniform)(void *), void *source)
{
  double few[FEW_NUMBERS], best = -INFINITY;
  lua_Integer n;
  double *numbers = read_numbers(L, "logit", few, &n);
  for (lua_Integer i = 0; i < n; i++) {
    if (!(numbers[i] < INFINITY)) return kg_error_at(L, "logit %I: %f is not below infinity", i + 1, numbers[i]);
    if (numbers[i] > best) best = numbers[i];
  }
  if (best == -INFINITY) return kg_error_at(L, "logits: there is none above -infinity");
  for (lua_Integer i = 0; i < n; i++) numbers[i] = exp(numbers[i] - best);
  return choose(L, uniform, source, numbers, n);
}

static double sequence_uniform(void *sequence)
{
  return kg_sequence_uniform(sequence);
}

/* rng:integer(n) -> integer in 1 to n */
static int rng_integer(lua_State *L)
{
  return kg_rng_integer(L, sequence_uniform, check_rng(L));
}

/* rng:choose(probs) -> index, drawn in proportion to the numbers, which need not add up to 1 */
static int rng_choose(lua_State *L)
{
  return kg_rng_choose(L, sequence_uniform, check_rng(L));
}

/* rng:choose_logits(logits) -> index, drawn by their softmax */
static int rng_choose_logits(lua_State *L)
{
  return kg_rng_choose_logits(L, sequence_uniform, check_rng(L));
}

void kg_bind_sequence(lua_State *L)
{
  static const luaL_Reg methods[] = {
      {"close", close_sequence}, {"feed", feed}, {"push", push},      {"pos", pos},
      {"tokens", tokens},        {"seed", seed}, {"mark", make_mark}, {"rewind", rewind_sequence},
      {"fork", fork_sequence},   {"step", step}, {"draw", draw},      {"pending", pending},
      {"drawn", drawn},          {"pages", pages}, {"release", release}, {"attach", attach},
      {"detach", detach},        {"attached", attached}, {"expect", expect}, {"lookup", lookup},
      {"common", common},        {"save", save}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {{"__index", sequence_index},        {"__newindex", sequence_new_index},
                                         {"__gc", collect_sequence},         {"__close", close_sequence},
                                         {"__tostring", sequence_to_string}, {NULL, NULL}};
  static const luaL_Reg rng_methods[] = {{"uniform", rng_uniform},
                                         {"integer", rng_integer},
                                         {"choose", rng_choose},
                                         {"choose_logits", rng_choose_logits},
                                         {NULL, NULL}};
  static const luaL_Reg no_functions[] = {{NULL, NULL}};
  static const luaL_Reg mark_metamethods[] = {
      {"__index", mark_index}, {"__tostring", mark_to_string}, {"__gc", collect_mark}, {NULL, NULL}};
  kg_class(L, KG_CLASS_SEQUENCE, methods, metamethods);
  kg_class(L, CLASS_RNG, rng_methods, no_functions);
  kg_class(L, CLASS_MARK, no_functions, mark_metamethods);
  luaL_newmetatable(L, CLASS_SAVED_STATE);
  lua_pushcfunction(L, release_saved_state);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
}
