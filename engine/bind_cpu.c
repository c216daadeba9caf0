/* bind_cpu.c - what benchmarks ask of the processor itself. */
#include "bind.h"
#include "cpu/pool.h"

/* core.read_bandwidth(threads, megabytes) -> bytes per second that the threads together read from memory: the best of
 * several passes. threads 0: one per core. */
static int read_bandwidth(lua_State *L)
{
  const int32_t n_threads = (int32_t)kg_check_int(L, 1, "threads", 0, 1024);
  const int64_t megabytes = kg_check_int(L, 2, "megabytes", 1, 1 << 20);
  kg_pool *pool = NULL;
  double bandwidth = 0;
  kg_error err;
  int code = kg_pool_new(n_threads, &pool, &err);
  if (!code) code = kg_pool_read_bandwidth(pool, (size_t)megabytes << 20, &bandwidth, &err);
  kg_pool_free(pool);
  if (code) return kg_push_error(L, &err);
  lua_pushnumber(L, bandwidth);
  return 1;
}

void kg_bind_cpu(lua_State *L)
{
  static const luaL_Reg functions[] = {{"read_bandwidth", read_bandwidth}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
