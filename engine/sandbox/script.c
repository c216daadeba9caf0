#include "script.h"

#include <lauxlib.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "bind.h"
#include "budget.h"
#include "error.h"
#include "library.h"
#include "loan.h"
#include "random.h"

struct kg_script {
  kg_budget budget; /* first: the allocator's user data is the script */
  lua_State *L;
  bool is_loaded;
  kg_request request; /* the one that runs */
  uint64_t draws;
  int32_t n_loans;
  kg_buffer *loans[KG_VALUE_TENSORS];
};

/* What a protected call works on. */
typedef struct call {
  kg_script *script;
  kg_value_reader in;
  kg_value_writer out;
  kg_answer *answer;
} call;

static const char main_key, rng_key; /* in the registry: the function that the script returned; its random numbers */

static kg_script *script_of(lua_State *L) { return (kg_script *)kg_budget_of(L); }

/* ---- errors ---- */

/* The message handler: text with a traceback. Error objects of scripts are not asked what they mean. */
static int describe_error(lua_State *L)
{
  enum { MESSAGE_MAX = 1024 };
  if (kg_budget_of(L)->is_spent) return 1;
  size_t n;
  if (lua_type(L, 1) == LUA_TSTRING || lua_type(L, 1) == LUA_TNUMBER) {
    const char *text = lua_tolstring(L, 1, &n);
    lua_pushlstring(L, text, n < MESSAGE_MAX ? n : MESSAGE_MAX);
  } else {
    lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
  }
  luaL_traceback(L, L, lua_tostring(L, -1), 1);
  return 1;
}

/* ---- random numbers: s.rng ---- */

static double next_uniform(void *source)
{
  kg_script *script = source;
  return kg_uniform(script->request.seed, (uint64_t)script->request.pos, script->draws++);
}

static int rng_uniform(lua_State *L)
{
  lua_pushnumber(L, next_uniform(script_of(L)));
  return 1;
}

static int rng_integer(lua_State *L) { return kg_rng_integer(L, next_uniform, script_of(L)); }

static int rng_choose(lua_State *L)
{
  luaL_checktype(L, 2, LUA_TTABLE);
  kg_budget_charge(L, 2 * lua_rawlen(L, 2));
  return kg_rng_choose(L, next_uniform, script_of(L));
}

static int rng_choose_logits(lua_State *L)
{
  luaL_checktype(L, 2, LUA_TTABLE);
  kg_budget_charge(L, 3 * lua_rawlen(L, 2));
  return kg_rng_choose_logits(L, next_uniform, script_of(L));
}

static int timeline_pos(lua_State *L)
{
  lua_pushinteger(L, script_of(L)->request.pos);
  return 1;
}

/* ---- requests, in protected mode ---- */

static void push_loan(lua_State *L, kg_buffer *buffer)
{
  kg_script *script = script_of(L);
  if (script->n_loans >= KG_VALUE_TENSORS) luaL_error(L, "more than %d tensors", (int)KG_VALUE_TENSORS);
  luaL_checkstack(L, 4, "a tensor");
  script->loans[script->n_loans] = kg_loan_push(L, buffer);
  script->n_loans++;
}

static void push_values(lua_State *L, call *c, uint32_t n)
{
  kg_error err;
  for (uint32_t i = 0; i < n; i++) {
    c->answer->code = kg_value_push(L, &c->in, &err);
    if (c->answer->code) luaL_error(L, "%s", err.message);
  }
}

/* Write the values from stack index `first` on as the answer. */
static void write_values(lua_State *L, call *c, int first)
{
  kg_error err;
  const int n = lua_gettop(L) - first + 1;
  if (n > KG_VALUE_LIST) luaL_error(L, "more than %d results cannot cross", (int)KG_VALUE_LIST);
  for (int i = 0; i < n; i++) {
    if (!kg_value_write(L, first + i, &c->out, &err)) continue;
    c->answer->code = err.code == KG_ERR_MEMORY ? KG_ERR_MEMORY : KG_ERR_SCRIPT;
    luaL_error(L, "result %d: %s", i + 1, err.message);
  }
  c->answer->n_values = (uint32_t)n;
}

/* name, text */
static void load(lua_State *L, call *c)
{
  size_t n;
  push_values(L, c, 2);
  const char *name = lua_tostring(L, 1), *text = lua_tolstring(L, 2, &n);
  lua_pushfstring(L, "=%s", name);
  const int status = kg_library_load(L, text, n, lua_tostring(L, -1));
  if (status == LUA_ERRSYNTAX) c->answer->code = KG_ERR_FORMAT;
  if (status) lua_error(L);
  lua_call(L, 0, 1);
  if (!lua_isfunction(L, -1)) return;
  lua_rawsetp(L, LUA_REGISTRYINDEX, &main_key);
}

/* Read the name of a function, and push the function. */
static void push_function(lua_State *L, call *c)
{
  push_values(L, c, 1);
  if (lua_isnil(L, -1)) {
    lua_rawgetp(L, LUA_REGISTRYINDEX, &main_key);
    if (!lua_isfunction(L, -1)) luaL_error(L, "the script returned no function");
  } else {
    lua_pushglobaltable(L);
    lua_pushvalue(L, -2);
    if (lua_rawget(L, -2) != LUA_TFUNCTION) luaL_error(L, "the script has no function '%s'", lua_tostring(L, -3));
  }
}

static void call_function(lua_State *L, call *c)
{
  push_function(L, c);
  const int top = lua_gettop(L);
  push_values(L, c, c->script->request.n_values - 1);
  lua_call(L, lua_gettop(L) - top, LUA_MULTRET);
  write_values(L, c, top);
}

/* f(logits, s) -> id. What f returns beside is dropped; s.state goes back with the id. */
static void sample(lua_State *L, call *c)
{
  push_function(L, c);
  push_values(L, c, 1);
  lua_createtable(L, 0, 3);
  push_values(L, c, 1);
  lua_setfield(L, -2, "state");
  lua_rawgetp(L, LUA_REGISTRYINDEX, &rng_key);
  lua_setfield(L, -2, "rng");
  lua_pushcfunction(L, timeline_pos);
  lua_setfield(L, -2, "pos");
  lua_pushvalue(L, -1);
  lua_insert(L, -4); /* s stays below f */
  const int s = lua_gettop(L) - 3;
  lua_call(L, 2, 1);
  lua_pushliteral(L, "state");
  lua_rawget(L, s);
  write_values(L, c, s + 1);
}

static int run_request(lua_State *L)
{
  call *c = lua_touserdata(L, 1);
  lua_settop(L, 0);
  switch (c->script->request.kind) {
  case KG_REQUEST_LOAD:
    load(L, c);
    break;
  case KG_REQUEST_CALL:
    call_function(L, c);
    break;
  default:
    sample(L, c);
    break;
  }
  return 0;
}

/* ---- answers ---- */

/* The loans end with the call; which of them were changed? */
static uint32_t end_loans(kg_script *script)
{
  uint32_t changed = 0;
  for (int32_t i = 0; i < script->n_loans; i++)
    if (kg_loan_end(script->loans[i])) changed |= 1u << i;
  script->n_loans = 0;
  return changed;
}

/* What went wrong, as the answer's code and text. */
static int write_error(kg_script *script, int status, kg_answer *answer, kg_bytes *out, kg_error *err)
{
  const kg_budget *budget = &script->budget;
  char text[KG_SCRIPT_TEXT_MAX];
  if (budget->is_spent) {
    answer->code = KG_ERR_LIMIT;
    snprintf(text, sizeof text, "%s", budget->reason);
  } else if (status == LUA_ERRMEM) {
    answer->code = KG_ERR_MEMORY;
    snprintf(text, sizeof text, "not enough memory: the script may hold %zu bytes, a string of it %d",
             budget->memory_max, (int)KG_BUDGET_STRING_MAX);
  } else {
    if (!answer->code) answer->code = KG_ERR_SCRIPT;
    const char *message =
        lua_type(script->L, -1) == LUA_TSTRING ? lua_tostring(script->L, -1) : "error in error handling";
    snprintf(text, sizeof text, "%s", message);
  }
  return kg_message_add(out, text, strlen(text), err);
}

static bool is_request(const kg_script *script, const kg_request *request)
{
  if (request->n_tensors > KG_VALUE_TENSORS || request->n_values > KG_VALUE_LIST + 1) return false;
  switch (request->kind) {
  case KG_REQUEST_LOAD:
    return !script->is_loaded && request->n_values == 2;
  case KG_REQUEST_CALL:
    return script->is_loaded && request->n_values >= 1;
  case KG_REQUEST_SAMPLE:
    return script->is_loaded && request->n_values == 3;
  default:
    return false;
  }
}

int kg_script_answer(kg_script *script, const char *request, size_t n, kg_buffer *const *tensors, kg_bytes *out,
                     kg_error *err)
{
  out->size = 0;
  if (n < sizeof script->request) return kg_fail(err, KG_ERR_FORMAT, "a malformed request");
  memcpy(&script->request, request, sizeof script->request);
  if (!is_request(script, &script->request)) return kg_fail(err, KG_ERR_FORMAT, "a malformed request");
  script->is_loaded = true;
  script->draws = script->request.draws;
  kg_answer answer = {0};
  int status = kg_message_add(out, &answer, sizeof answer, err);
  if (status) return status;
  kg_budget *budget = &script->budget;
  call c = {.script = script,
            .in = {.data = request + sizeof script->request,
                   .end = request + n,
                   .n_tensors = (int32_t)script->request.n_tensors,
                   .tensors = tensors,
                   .push_tensor = push_loan},
            .out = {.out = out},
            .answer = &answer};
  lua_State *L = script->L;
  kg_budget_begin(budget, script->request.steps, script->request.timeout_ns);
  lua_settop(L, 0);
  budget->running = L;
  lua_pushcfunction(L, describe_error);
  lua_pushcfunction(L, run_request);
  lua_pushlightuserdata(L, &c);
  const int raised = lua_pcall(L, 1, 0, 1);
  budget->running = L;
  answer.changed = end_loans(script);
  if (raised || budget->is_spent) {
    out->size = sizeof answer;
    answer.n_values = answer.changed = 0;
    status = write_error(script, raised, &answer, out, err);
    if (status) return status;
  }
  lua_settop(L, 0);
  answer.is_spent = budget->is_spent;
  answer.draws = script->draws;
  answer.memory = budget->memory;
  answer.memory_peak = budget->memory_peak;
  answer.steps = (uint64_t)budget->steps;
  memcpy(out->data, &answer, sizeof answer);
  return KG_OK;
}

/* ---- states ---- */

static int open_state(lua_State *L)
{
  kg_library_open(L);
  lua_pushglobaltable(L);
  kg_loan_open(L);
  static const luaL_Reg rng[] = {{"uniform", rng_uniform},
                                 {"integer", rng_integer},
                                 {"choose", rng_choose},
                                 {"choose_logits", rng_choose_logits},
                                 {NULL, NULL}};
  luaL_newlib(L, rng);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &rng_key);
  return 0;
}

int kg_script_new(size_t memory, kg_script **out, kg_error *err)
{
  kg_script *script = kg_alloc_array(1, sizeof *script);
  if (!script) return kg_fail_memory(err, sizeof *script, "a sandbox");
  script->budget.memory_max = memory;
  kg_budget_begin(&script->budget, INT64_MAX, INT64_MAX);
  lua_State *L = script->L = lua_newstate(kg_budget_alloc, script);
  if (L) {
    kg_budget_watch(L);
    lua_pushcfunction(L, open_state);
    if (lua_pcall(L, 0, 0, 0) == LUA_OK) {
      lua_gc(L, LUA_GCCOLLECT); /* what the stock libraries brought beside */
      *out = script;
      return KG_OK;
    }
  }
  kg_script_free(script);
  return kg_fail(err, KG_ERR_MEMORY, "a sandbox does not fit into %zu bytes", memory);
}

void kg_script_free(kg_script *script)
{
  if (!script) return;
  if (script->L) {
    script->budget.running = NULL; /* nothing of the script runs any more */
    lua_close(script->L);
  }
  kg_free(script);
}
