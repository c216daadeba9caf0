/* bind_sandbox.c - kigo.Sandbox: scripts that nobody trusts. */
#include <string.h>

#include "bind.h"
#include "error.h"
#include "sandbox/sandbox.h"
#include "sandbox/worker.h"
#include "sequence.h"

static kg_sandbox *check_sandbox(lua_State *L) { return kg_check_open(L, 1, KG_CLASS_SANDBOX); }

/* May byte i of a text go to a terminal? No controls, be they one byte or two of UTF-8; lines and tabs may. */
static bool is_harmless(const char *text, size_t i, size_t n)
{
  const unsigned char c = (unsigned char)text[i], next = i + 1 < n ? (unsigned char)text[i + 1] : 0;
  if (c == '\n' || c == '\t') return true;
  return c >= 32 && c != 127 && !(c == 0xc2 && next >= 0x80 && next < 0xa0);
}

/* Push what the script said: nil, its text, a code. */
static int push_failure(lua_State *L)
{
  size_t n;
  const int code = kg_sandbox_answer(check_sandbox(L))->code;
  const char *text = kg_sandbox_answer_bytes(check_sandbox(L), &n);
  char clean[KG_SCRIPT_TEXT_MAX];
  if (n > sizeof clean) n = sizeof clean;
  for (size_t i = 0; i < n; i++) clean[i] = is_harmless(text, i, n) ? text[i] : '?';
  lua_pushnil(L);
  lua_pushlstring(L, clean, n);
  lua_pushinteger(L, code);
  return 3;
}

/* Push the values of the answer (after a true), from a copy: making values may run finalizers, and those may close the
 * sandbox. The number of values, or nil, message, code. */
static int push_answer(lua_State *L, bool with_true)
{
  size_t n;
  kg_error err;
  (void)kg_sandbox_answer_bytes(check_sandbox(L), &n);
  char *copy = lua_newuserdatauv(L, n + 1, 0);
  const uint32_t n_values = kg_sandbox_answer(check_sandbox(L))->n_values;
  memcpy(copy, kg_sandbox_answer_bytes(check_sandbox(L), &n), n);
  kg_value_reader reader = {.data = copy, .end = copy + n};
  int status = KG_OK;
  luaL_checkstack(L, (int)n_values + 1, "results of a script");
  if (with_true) lua_pushboolean(L, true);
  for (uint32_t i = 0; !status && i < n_values; i++) status = kg_value_push(L, &reader, &err);
  if (!status && reader.data != reader.end) status = kg_fail(&err, KG_ERR_FORMAT, "a malformed message");
  if (!status) return (int)n_values + with_true;
  lua_settop(L, 1);
  err.code = KG_ERR_SCRIPT; /* only a worker sends such an answer */
  return kg_push_error(L, &err);
}

/* Write the values at stack indices first..last to a new request, and ask it. */
static int ask(lua_State *L, kg_request *head, int first, int last, kg_error *err)
{
  kg_sandbox *sandbox = check_sandbox(L);
  kg_value_writer writer = {.out = kg_sandbox_request(sandbox, err), .max_tensors = KG_VALUE_TENSORS};
  int status = writer.out ? KG_OK : err->code;
  if (last - first + 1 > KG_VALUE_LIST) kg_error_at(L, "more than %d arguments cannot cross", (int)KG_VALUE_LIST);
  for (int i = first; !status && i <= last; i++) status = kg_value_write(L, i, &writer, err);
  head->n_values = (uint32_t)(last - first + 1);
  head->n_tensors = (uint32_t)writer.n_tensors;
  return status ? status : kg_sandbox_ask(sandbox, head, writer.tensors, err);
}

/* The name of a function of the script, or nil for the one that it returned. */
static void check_name(lua_State *L)
{
  luaL_argexpected(L, lua_isnoneornil(L, 2) || lua_type(L, 2) == LUA_TSTRING, 2, "string or nil");
  if (lua_isnone(L, 2)) lua_settop(L, 2);
}

/* sandbox:call(name or nil, ...) -> true, results..., or nil, message, code */
static int call(lua_State *L)
{
  kg_error err;
  kg_request head = {.kind = KG_REQUEST_CALL};
  check_sandbox(L);
  check_name(L);
  if (ask(L, &head, 2, lua_gettop(L), &err)) return kg_push_error(L, &err);
  lua_settop(L, 1);
  return kg_sandbox_answer(check_sandbox(L))->code ? push_failure(L) : push_answer(L, true);
}

/* sandbox:sample(name or nil, logits, seq or nil, state or nil) -> id, state, or nil, message, code. The random numbers
 * of the script are those of the sequence, and count as drawn there. */
static int sample(lua_State *L)
{
  enum { DRAWS_MAX = 1 << 20 }; /* of one call; a worker may say anything */
  kg_error err;
  kg_request head = {.kind = KG_REQUEST_SAMPLE};
  check_sandbox(L);
  check_name(L);
  lua_settop(L, 5);
  kg_check_tensor(L, 3);
  kg_sequence *sequence = lua_isnil(L, 4) ? NULL : kg_check_sequence(L, 4);
  if (sequence) {
    head.seed = kg_sequence_seed(sequence);
    head.draws = kg_sequence_draws(sequence);
    head.pos = kg_sequence_pos(sequence);
  }
  lua_insert(L, 4); /* the values are name, logits, state; the sequence stays behind them */
  if (ask(L, &head, 2, 4, &err)) return kg_push_error(L, &err);
  const kg_answer *answer = kg_sandbox_answer(check_sandbox(L));
  if (answer->code) return push_failure(L);
  if (answer->n_values != 2 || answer->draws < head.draws || answer->draws - head.draws > DRAWS_MAX) {
    kg_fail(&err, KG_ERR_SCRIPT, "the script drew more than %d random numbers", (int)DRAWS_MAX);
    return kg_push_error(L, &err);
  }
  if (sequence && answer->draws != head.draws) kg_sequence_set_draws(sequence, answer->draws);
  return push_answer(L, false);
}

/* sandbox:restart() -> true, or nil, message, code: the script as it was at first */
static int restart(lua_State *L)
{
  kg_error err;
  if (kg_sandbox_start(check_sandbox(L), &err)) return kg_push_error(L, &err);
  if (kg_sandbox_answer(check_sandbox(L))->code) return push_failure(L);
  lua_pushboolean(L, true);
  return 1;
}

/* sandbox:stats() -> table */
static int stats(lua_State *L)
{
  kg_sandbox_stats now;
  kg_sandbox_get_stats(check_sandbox(L), &now);
  lua_createtable(L, 0, 10);
  kg_set_boolean(L, "alive", now.is_alive);
  kg_set_integer(L, "calls", (lua_Integer)now.n_calls);
  kg_set_integer(L, "instructions", (lua_Integer)now.steps);
  kg_set_integer(L, "memory", (lua_Integer)now.memory);
  kg_set_integer(L, "memory_peak", (lua_Integer)now.memory_peak);
  if (!now.pid) return 1;
  kg_set_integer(L, "pid", now.pid);
  static const struct {
    const char *name;
    uint32_t bit;
  } layers[] = {{"limits", KG_LAYER_LIMITS},
                {"addresses", KG_LAYER_ADDRESSES},
                {"seccomp", KG_LAYER_SECCOMP},
                {"landlock", KG_LAYER_LANDLOCK}};
  lua_createtable(L, 0, 4);
  for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++)
    kg_set_boolean(L, layers[i].name, now.layers & layers[i].bit);
  lua_setfield(L, -2, "layers");
  return 1;
}

static int close_sandbox(lua_State *L)
{
  kg_handle *handle = kg_check_handle(L, 1, KG_CLASS_SANDBOX);
  kg_sandbox *sandbox = handle->object;
  handle->object = NULL;
  kg_sandbox_free(sandbox);
  return 0;
}

static int to_string(lua_State *L)
{
  const kg_sandbox *sandbox = kg_check_handle(L, 1, KG_CLASS_SANDBOX)->object;
  kg_sandbox_stats now = {0};
  if (sandbox) kg_sandbox_get_stats(sandbox, &now);
  lua_pushfstring(L, KG_CLASS_SANDBOX " (%s)",
                  !sandbox        ? "closed"
                  : !now.is_alive ? "spent"
                  : now.pid       ? "worker"
                                  : "in process");
  return 1;
}

/* core.sandbox(source, { isolate, memory, tensors, instructions, timeout, name }) -> Sandbox, or nil, message, code */
static int new_sandbox(lua_State *L)
{
  static const char *const fields[] = {"isolate", "memory", "tensors", "instructions", "timeout", "name", NULL};
  const int64_t limit = (int64_t)1 << 40;
  size_t n;
  kg_error err;
  const char *source = kg_check_lstring(L, 1, &n);
  kg_check_fields(L, 2, fields);
  const kg_sandbox_options options = {.isolate = kg_opt_bool_field(L, 2, "isolate", false),
                                      .memory = (size_t)kg_opt_int_field(L, 2, "memory", 16 << 20, 64 << 10, limit),
                                      .shared = (size_t)kg_opt_int_field(L, 2, "tensors", 4 << 20, 4096, limit),
                                      .steps = kg_opt_int_field(L, 2, "instructions", 10000000, 1, INT64_MAX / 2),
                                      .timeout_ns =
                                          (int64_t)(kg_opt_number_field(L, 2, "timeout", 1, 1e-3, 1e6) * 1e9)};
  const char *name = kg_opt_string_field(L, 2, "name", "script");
  kg_handle *handle = kg_push_handle(L, KG_CLASS_SANDBOX, 0);
  kg_sandbox *sandbox = NULL;
  int status = kg_sandbox_new(&options, name, source, n, &sandbox, &err);
  handle->object = sandbox;
  if (!status) status = kg_sandbox_start(sandbox, &err);
  if (status) return kg_push_error(L, &err);
  if (!kg_sandbox_answer(sandbox)->code) return 1;
  lua_replace(L, 1);
  return push_failure(L);
}

void kg_bind_sandbox(lua_State *L)
{
  static const luaL_Reg methods[] = {{"call", call},   {"sample", sample},       {"restart", restart},
                                     {"stats", stats}, {"close", close_sandbox}, {NULL, NULL}};
  static const luaL_Reg metamethods[] = {
      {"__gc", close_sandbox}, {"__close", close_sandbox}, {"__tostring", to_string}, {NULL, NULL}};
  kg_class(L, KG_CLASS_SANDBOX, methods, metamethods);
  static const luaL_Reg functions[] = {{"sandbox", new_sandbox}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
