/* bind_system.c - what scripts need of the machine: a clock, Ctrl-C, random bytes, terminals, test switches. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "bind.h"
#include "random.h"
#include "checksum.h"
#include "sha256.h"
#include "system.h"

/* Set by the signal handler; a flag is all that a handler may touch. */
static volatile sig_atomic_t interrupted_flag;

static void on_sigint(int signal_number)
{
  (void)signal_number;
  interrupted_flag = 1;
}

/* core.catch_interrupts(on): with true, Ctrl-C sets a flag instead of ending the program. With false the system's
 * default is back. */
static int catch_interrupts(lua_State *L)
{
  struct sigaction action = {0};
  action.sa_handler = lua_toboolean(L, 1) ? on_sigint : SIG_DFL;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  interrupted_flag = 0;
  return 0;
}

/* core.interrupted() -> boolean: was Ctrl-C pressed since the last call? */
static int interrupted(lua_State *L)
{
  lua_pushboolean(L, interrupted_flag != 0);
  interrupted_flag = 0;
  return 1;
}

/* core.now() -> seconds on a monotonic clock */
static int now(lua_State *L)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  lua_pushnumber(L, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec);
  return 1;
}

/* core.random_bytes(n) -> string of n bytes from the system, or nil, message, code */
static int random_bytes(lua_State *L)
{
  const size_t n = (size_t)kg_check_int(L, 1, "n", 0, 256);
  char bytes[256];
  kg_error err;
  if (kg_sys_getrandom(bytes, n, &err)) return kg_push_error(L, &err);
  lua_pushlstring(L, bytes, n);
  return 1;
}

/* core.is_terminal(fd) -> boolean */
static int is_terminal(lua_State *L)
{
  lua_pushboolean(L, isatty((int)kg_check_int(L, 1, "fd", 0, 2)));
  return 1;
}

/* core.error_name(code) -> "full" */
static int error_name(lua_State *L)
{
  lua_pushstring(L, kg_error_name((int)kg_check_int(L, 1, "code", -1000, 0)));
  return 1;
}

/* core.uniform(seed, pos, draw) -> number in [0, 1): the generator that sequences draw from */
static int uniform(lua_State *L)
{
  lua_pushnumber(L, kg_uniform((uint64_t)luaL_checkinteger(L, 1), (uint64_t)luaL_checkinteger(L, 2),
                               (uint64_t)luaL_checkinteger(L, 3)));
  return 1;
}

/* core.philox(k0, k1, c0, c1, c2, c3) -> four words: the generator's raw function, for tests */
static int philox(lua_State *L)
{
  uint32_t words[6], out[4];
  for (int i = 0; i < 6; i++) words[i] = (uint32_t)kg_check_int(L, i + 1, "word", 0, UINT32_MAX);
  kg_philox(words, words + 2, out);
  for (int i = 0; i < 4; i++) lua_pushinteger(L, out[i]);
  return 4;
}

/* core.sha256(bytes, portably = false) -> 64 hexadecimal digits */
static int sha256(lua_State *L)
{
  size_t n;
  const char *bytes = kg_check_lstring(L, 1, &n);
  kg_sha256 sha;
  char hex[KG_SHA256_HEX];
  (lua_toboolean(L, 2) ? kg_sha256_begin_portably : kg_sha256_begin)(&sha);
  kg_sha256_add(&sha, bytes, n);
  kg_sha256_end(&sha, hex);
  lua_pushstring(L, hex);
  return 1;
}

/* core.checksum(bytes) -> XXH64 as an integer */
static int checksum(lua_State *L)
{
  size_t n;
  const char *bytes = kg_check_lstring(L, 1, &n);
  kg_checksum sum;
  kg_checksum_begin(&sum);
  kg_checksum_add(&sum, bytes, n / 3); /* in two parts, as files come */
  kg_checksum_add(&sum, bytes + n / 3, n - n / 3);
  lua_pushinteger(L, (lua_Integer)kg_checksum_end(&sum));
  return 1;
}

/* core.sha256_file(path) -> 64 hexadecimal digits, or nil, message, code */
static int sha256_file(lua_State *L)
{
  char hex[KG_SHA256_HEX];
  kg_error err;
  if (kg_sha256_file(kg_check_string(L, 1), hex, &err)) return kg_push_error(L, &err);
  lua_pushstring(L, hex);
  return 1;
}

/* core.alloc_inject(nth, for_ever), core.alloc_counts() -> live, calls: for tests */
static int alloc_inject(lua_State *L)
{
  kg_alloc_inject(luaL_checkinteger(L, 1), lua_toboolean(L, 2));
  return 0;
}

static int alloc_counts(lua_State *L)
{
  lua_pushinteger(L, kg_alloc_live());
  lua_pushinteger(L, kg_alloc_calls());
  return 2;
}

/* core.system_inject(call, nth, error, for_ever): the n-th call of this name from now fails with this error ("EIO";
 * "short": it moves one byte), once or for ever; nth 0: none does. core.system_calls(call) -> how many were made. For
 * tests. */
static kg_sys_call check_call(lua_State *L)
{
  const char *name = kg_check_string(L, 1);
  for (int call = 0; call < KG_SYS_N_CALLS; call++)
    if (!strcmp(kg_sys_name((kg_sys_call)call), name)) return (kg_sys_call)call;
  luaL_argerror(L, 1, "unknown system call");
  return KG_SYS_N_CALLS; /* not reached */
}

static int system_inject(lua_State *L)
{
  static const char *const names[] = {"EIO", "ENOSPC", "EINTR", "ENOMEM", "EACCES", "EMFILE", "EAGAIN", "short", NULL};
  static const int numbers[] = {EIO, ENOSPC, EINTR, ENOMEM, EACCES, EMFILE, EAGAIN, KG_SYS_SHORT};
  const kg_sys_call call = check_call(L);
  const int error = numbers[luaL_checkoption(L, 3, "EIO", names)];
  kg_sys_inject(call, luaL_checkinteger(L, 2), error, lua_toboolean(L, 4));
  return 0;
}

static int system_calls(lua_State *L)
{
  lua_pushinteger(L, kg_sys_calls(check_call(L)));
  return 1;
}

void kg_bind_system(lua_State *L)
{
  static const luaL_Reg functions[] = {{"catch_interrupts", catch_interrupts},
                                       {"interrupted", interrupted},
                                       {"now", now},
                                       {"random_bytes", random_bytes},
                                       {"is_terminal", is_terminal},
                                       {"error_name", error_name},
                                       {"philox", philox},
                                       {"uniform", uniform},
                                       {"alloc_inject", alloc_inject},
                                       {"alloc_counts", alloc_counts},
                                       {"system_inject", system_inject},
                                       {"system_calls", system_calls},
                                       {"sha256", sha256},
                                       {"checksum", checksum},
                                       {"sha256_file", sha256_file},
                                       {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
