/* bind_unicode.c - what Unicode says about one character, from utf8proc. */
#include <utf8proc.h>

#include "bind.h"

static utf8proc_int32_t check_character(lua_State *L)
{
  return (utf8proc_int32_t)kg_check_int(L, 1, "character", 0, 0x10FFFF);
}

/* core.unicode.category(c) -> "Lu", "Nd", ... */
static int category(lua_State *L)
{
  lua_pushstring(L, utf8proc_category_string(check_character(L)));
  return 1;
}

/* core.unicode.upper(c), lower(c), title(c) -> the one character that stands for it; itself where there is none. */
static int upper(lua_State *L)
{
  lua_pushinteger(L, utf8proc_toupper(check_character(L)));
  return 1;
}

static int lower(lua_State *L)
{
  lua_pushinteger(L, utf8proc_tolower(check_character(L)));
  return 1;
}

static int title(lua_State *L)
{
  lua_pushinteger(L, utf8proc_totitle(check_character(L)));
  return 1;
}

/* core.unicode.fold(c) -> one or more characters: full case folding ("ss" for a sharp s). */
static int fold(lua_State *L)
{
  utf8proc_int32_t folded[8];
  int boundary = 0;
  const utf8proc_ssize_t n = utf8proc_decompose_char(check_character(L), folded, 8, UTF8PROC_CASEFOLD, &boundary);
  if (n < 0 || n > 8) return luaL_error(L, "character: %s", n < 0 ? utf8proc_errmsg(n) : "folds to too many");
  for (utf8proc_ssize_t i = 0; i < n; i++) lua_pushinteger(L, folded[i]);
  return (int)n;
}

void kg_bind_unicode(lua_State *L)
{
  static const luaL_Reg functions[] = {{"category", category}, {"upper", upper}, {"lower", lower},
                                       {"title", title},       {"fold", fold},   {NULL, NULL}};
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "unicode");
}
