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
  if (n < 0 || n > 8) return kg_error_at(L, "character: %s", n < 0 ? utf8proc_errmsg(n) : "folds to too many");
  for (utf8proc_ssize_t i = 0; i < n; i++) lua_pushinteger(L, folded[i]);
  return (int)n;
}

static bool is_of(utf8proc_int32_t character, const char *name)
{
  const char *category = utf8proc_category_string(character);
  return category[0] == name[0] && (!name[1] || category[1] == name[1]);
}

/* core.unicode.ranges("L" or "Lu") -> {lo, hi, lo, hi, ...}, or nil where no character has this category */
static int ranges(lua_State *L)
{
  size_t size;
  const char *name = kg_check_lstring(L, 1, &size);
  lua_Integer n = 0;
  bool is_within = false;
  if (size < 1 || size > 2) return 0;
  lua_newtable(L);
  for (utf8proc_int32_t character = 0; character <= 0x110000; character++) {
    const bool is_one = character < 0x110000 && is_of(character, name);
    if (is_one == is_within) continue;
    lua_pushinteger(L, is_one ? character : character - 1);
    lua_rawseti(L, -2, ++n);
    is_within = is_one;
  }
  return n > 0;
}

void kg_bind_unicode(lua_State *L)
{
  static const luaL_Reg functions[] = {{"category", category}, {"upper", upper},   {"lower", lower}, {"title", title},
                                       {"fold", fold},         {"ranges", ranges}, {NULL, NULL}};
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "unicode");
}
