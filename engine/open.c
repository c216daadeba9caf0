/* open.c - `require "kigo"` where only kigo.so is on the path: find lua/kigo beside it and run that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "bind.h"

int luaopen_kigo(lua_State *L)
{
  luaL_requiref(L, "kigo.core", luaopen_kigo_core, 0);
  lua_pop(L, 1);
  Dl_info info;
  char path[PATH_MAX];
  if (!dladdr((void *)(uintptr_t)luaopen_kigo, &info) || !realpath(info.dli_fname, path))
    return luaL_error(L, "kigo: the module cannot find its own file");
  *strrchr(path, '/') = 0;
  static const char *const places[] = {"lua", "../lua", "../../../share/lua/5.4", "../share/lua/5.4"};
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    const char *folder = lua_pushfstring(L, "%s/%s", path, places[i]);
    const char *file = lua_pushfstring(L, "%s/kigo/init.lua", folder);
    if (!luaL_loadfile(L, file)) {
      lua_getglobal(L, "package");
      lua_getfield(L, -1, "path");
      lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", folder, folder, lua_tostring(L, -1));
      lua_setfield(L, -3, "path");
      lua_pop(L, 2);
      lua_pushliteral(L, "kigo");
      lua_pushstring(L, file);
      lua_call(L, 2, 1);
      return 1;
    }
    lua_pop(L, 3);
  }
  return luaL_error(L, "kigo: lua/kigo/init.lua stands neither beside %s nor in ../lua or ../share/lua/5.4", path);
}
