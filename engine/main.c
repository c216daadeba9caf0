/* main.c - the program: a stand-alone Lua 5.4 with the module inside. `kigo script.lua args` runs a script,
 * `kigo COMMAND ...` runs lua/kigo/cli.lua. It exports Lua's symbols, so that C modules load. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "kigo.h"

static void *lua_alloc(void *user, void *block, size_t old_size, size_t new_size)
{
  (void)user;
  (void)old_size;
  if (new_size) return kg_realloc_array(block, new_size, 1);
  kg_free(block);
  return NULL;
}

/* Add the folder's modules, C ones too (a bundle has some), to the search paths, before the system's. */
static void add_path(lua_State *L, const char *folder)
{
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "path");
  lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", folder, folder, lua_tostring(L, -1));
  lua_setfield(L, -3, "path");
  lua_getfield(L, -2, "cpath");
  lua_pushfstring(L, "%s/?.so;%s", folder, lua_tostring(L, -1));
  lua_setfield(L, -4, "cpath");
  lua_pop(L, 3);
}

/* The Lua library stands beside the program: ../lua in the source tree and in a bundle, ../share/lua/5.4 installed. */
static void find_library(lua_State *L)
{
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n <= 0) return;
  path[n] = 0;
  *strrchr(path, '/') = 0;
  static const char *const places[] = {"lua", "../lua", "../share/lua/5.4"};
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    lua_pushfstring(L, "%s/%s", path, places[i]);
    const char *folder = lua_tostring(L, -1);
    lua_pushfstring(L, "%s/kigo/init.lua", folder);
    const int found = !access(lua_tostring(L, -1), R_OK);
    if (found) add_path(L, folder);
    lua_pop(L, 2);
    if (found) return;
  }
}

static bool ends_with(const char *text, const char *end)
{
  const size_t n = strlen(text), n_end = strlen(end);
  return n >= n_end && !strcmp(text + n - n_end, end);
}

/* A first argument that is a file and no command: Lua's ending or a folder before it. Not a model, which is a likely
 * slip: the command line explains that one. */
static bool is_script(const char *argument)
{
  return ends_with(argument, ".lua") || (strchr(argument, '/') && !ends_with(argument, ".gguf"));
}

/* A standard stream that was closed would lend its number to the next file opened, and a model would be read as text
 * or written over. Reading from the replacement ends at once, writing to it fails. */
static void fill_closed_streams(void)
{
  for (int fd = 0; fd <= 2; fd++) {
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", O_RDONLY);
  }
}

/* Output that was lost (a full disk, a closed stream) is a failure, whatever the command thinks of its own work. */
static bool output_arrived(void)
{
  errno = 0;
  const bool failed_before = ferror(stdout);
  if (!fflush(stdout) && !failed_before) return true;
  fprintf(stderr, "kigo: standard output: %s\n", errno ? strerror(errno) : "not everything could be written");
  return false;
}

static int traceback(lua_State *L)
{
  const char *message = luaL_tolstring(L, 1, NULL);
  luaL_traceback(L, L, message, 1);
  return 1;
}

static int run(lua_State *L)
{
  const int argc = (int)lua_tointeger(L, 1);
  char **argv = lua_touserdata(L, 2);
  luaL_openlibs(L);
  luaL_checkstack(L, argc, "too many arguments");
  luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_PRELOAD_TABLE);
  lua_pushcfunction(L, luaopen_kigo_core);
  lua_setfield(L, -2, "kigo.core");
  lua_pop(L, 1);
  find_library(L);

  const bool script = argc > 1 && is_script(argv[1]);
  lua_createtable(L, argc, 0); /* arg as in lua(1): the script is 0, or the program when there is none */
  for (int i = 0; i < argc; i++) {
    lua_pushstring(L, argv[i]);
    lua_rawseti(L, -2, i - script);
  }
  lua_setglobal(L, "arg");
  if (script) {
    if (luaL_loadfile(L, argv[1])) { /* the message names the file and the line: no traceback */
      fprintf(stderr, "kigo: %s\n", lua_tostring(L, -1));
      lua_pushinteger(L, EXIT_FAILURE);
      return 1;
    }
    for (int i = 2; i < argc; i++) lua_pushstring(L, argv[i]);
    lua_call(L, argc - 2, 0);
    lua_pushinteger(L, 0);
    return 1;
  }
  lua_getglobal(L, "require");
  lua_pushliteral(L, "kigo.cli");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, "main"); /* main(arguments...) returns the exit status */
  for (int i = 1; i < argc; i++) lua_pushstring(L, argv[i]);
  lua_call(L, argc - 1, 1);
  return 1;
}

int main(int argc, char **argv)
{
  fill_closed_streams();
  lua_State *L = lua_newstate(lua_alloc, NULL);
  if (!L) {
    fputs("kigo: out of memory\n", stderr);
    return EXIT_FAILURE;
  }
  lua_pushcfunction(L, traceback);
  lua_pushcfunction(L, run);
  lua_pushinteger(L, argc);
  lua_pushlightuserdata(L, argv);
  int status = EXIT_FAILURE;
  if (lua_pcall(L, 2, 1, 1))
    fprintf(stderr, "kigo: %s\n", lua_tostring(L, -1));
  else
    status = (int)lua_tointeger(L, -1);
  lua_close(L);
  if (!output_arrived() && !status) status = EXIT_FAILURE;
  return status;
}
