#include "pattern.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "budget.h"

enum {
  CAPTURES_MAX = 32,
  DEPTH_MAX = 200, /* items that wait for the rest of the pattern, each a frame of C */
  OPEN = -1,       /* length of a capture that has not ended */
  POSITION = -2,   /* "()" */
  PAY_STEPS = 256, /* so many steps are paid for together */
  STEPS_PER_CLASS = 8
};

typedef struct matcher {
  lua_State *L;
  const char *subject, *subject_end, *pattern_end;
  int n_captures, depth;
  unsigned n_steps; /* not yet paid */
  struct {
    const char *start;
    ptrdiff_t length;
  } captures[CAPTURES_MAX];
} matcher;

static const char *match(matcher *m, const char *s, const char *p);

static void step(matcher *m)
{
  if (++m->n_steps < PAY_STEPS) return;
  kg_budget_charge(m->L, m->n_steps);
  m->n_steps = 0;
}

static void matcher_init(matcher *m, lua_State *L, const char *subject, size_t n, const char *pattern, size_t n_pattern)
{
  *m = (matcher){.L = L, .subject = subject, .subject_end = subject + n, .pattern_end = pattern + n_pattern};
}

static const char *try_at(matcher *m, const char *s, const char *p)
{
  m->n_captures = 0;
  m->depth = 0;
  return match(m, s, p);
}

/* ---- single characters ---- */

/* The end of the single character class at p. */
static const char *class_end(const matcher *m, const char *p)
{
  const char first = *p++;
  if (first == '%') {
    if (p == m->pattern_end) luaL_error(m->L, "malformed pattern (ends with '%%')");
    return p + 1;
  }
  if (first != '[') return p;
  if (p < m->pattern_end && *p == '^') p++;
  do { /* the first character may be a ']' */
    if (p == m->pattern_end) luaL_error(m->L, "malformed pattern (missing ']')");
    if (*p++ != '%') continue;
    if (p == m->pattern_end) luaL_error(m->L, "malformed pattern (missing ']')");
    p++;
  } while (p == m->pattern_end || *p != ']');
  return p + 1;
}

static int is_nul(int c) { return c == 0; } /* %z of Lua 5.1, still there */

/* Is c in the class that the letter names ("%a")? Letters that name none stand for themselves. */
static bool in_named_class(int c, int letter)
{
  static const struct {
    int letter;
    int (*holds)(int c);
  } classes[] = {{'a', isalpha}, {'c', iscntrl}, {'d', isdigit}, {'g', isgraph},  {'l', islower}, {'p', ispunct},
                 {'s', isspace}, {'u', isupper}, {'w', isalnum}, {'x', isxdigit}, {'z', is_nul}};
  for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
    if (classes[i].letter == tolower(letter)) return !classes[i].holds(c) == !islower(letter);
  return letter == c;
}

/* Is c in the set whose '[' is at p and whose ']' is at `last`? A long set costs what its length says. */
static bool in_set(matcher *m, int c, const char *p, const char *last)
{
  bool found = true;
  if (p[1] == '^') {
    found = false;
    p++;
  }
  for (int n = 1; ++p < last; n++) {
    if (n % STEPS_PER_CLASS == 0) step(m);
    if (*p == '%') {
      p++;
      if (in_named_class(c, (unsigned char)*p)) return found;
    } else if (p[1] == '-' && p + 2 < last) {
      if ((unsigned char)*p <= c && c <= (unsigned char)p[2]) return found;
      p += 2;
    } else if ((unsigned char)*p == c) {
      return found;
    }
  }
  return !found;
}

/* Does the class [p, end) hold the character at s? */
static bool single(matcher *m, const char *s, const char *p, const char *end)
{
  step(m);
  if (s >= m->subject_end) return false;
  const int c = (unsigned char)*s;
  switch (*p) {
  case '.':
    return true;
  case '%':
    return in_named_class(c, (unsigned char)p[1]);
  case '[':
    return in_set(m, c, p, end - 1);
  default:
    return (unsigned char)*p == c;
  }
}

/* ---- items ---- */

/* As many as possible, then fewer, until the rest matches. */
static const char *match_greedy(matcher *m, const char *s, const char *p, const char *end)
{
  ptrdiff_t n = 0;
  while (single(m, s + n, p, end)) n++;
  for (; n >= 0; n--) {
    const char *found = match(m, s + n, end + 1);
    if (found) return found;
  }
  return NULL;
}

static const char *match_lazy(matcher *m, const char *s, const char *p, const char *end)
{
  for (;; s++) {
    const char *found = match(m, s, end + 1);
    if (found || !single(m, s, p, end)) return found;
  }
}

/* %bxy; p is at x */
static const char *match_balance(matcher *m, const char *s, const char *p)
{
  if (p + 1 >= m->pattern_end) luaL_error(m->L, "malformed pattern (missing arguments to '%%b')");
  if (s >= m->subject_end || *s != *p) return NULL;
  ptrdiff_t depth = 1;
  while (++s < m->subject_end) {
    step(m);
    if (*s == p[1]) {
      if (--depth == 0) return s + 1;
    } else if (*s == p[0]) {
      depth++;
    }
  }
  return NULL;
}

/* %f[set]; p is at the set */
static bool at_frontier(matcher *m, const char *s, const char *p, const char *end)
{
  const int before = s == m->subject ? 0 : (unsigned char)s[-1];
  const int after = s == m->subject_end ? 0 : (unsigned char)*s;
  return !in_set(m, before, p, end - 1) && in_set(m, after, p, end - 1);
}

static const char *start_capture(matcher *m, const char *s, const char *p, ptrdiff_t length)
{
  const int i = m->n_captures;
  if (i >= CAPTURES_MAX) luaL_error(m->L, "too many captures");
  m->captures[i].start = s;
  m->captures[i].length = length;
  m->n_captures++;
  const char *found = match(m, s, p);
  if (!found) m->n_captures = i;
  return found;
}

static const char *end_capture(matcher *m, const char *s, const char *p)
{
  int i = m->n_captures - 1;
  while (i >= 0 && m->captures[i].length != OPEN) i--;
  if (i < 0) luaL_error(m->L, "invalid pattern capture");
  m->captures[i].length = s - m->captures[i].start;
  const char *found = match(m, s, p);
  if (!found) m->captures[i].length = OPEN;
  return found;
}

/* %1 */
static const char *match_again(matcher *m, const char *s, int digit)
{
  const int i = digit - '1';
  if (i < 0 || i >= m->n_captures || m->captures[i].length == OPEN)
    luaL_error(m->L, "invalid capture index %%%d", i + 1);
  /* What was only a position stands for no text; its length is no size. */
  if (m->captures[i].length == POSITION) return NULL;
  const size_t n = (size_t)m->captures[i].length;
  if ((size_t)(m->subject_end - s) < n || memcmp(s, m->captures[i].start, n)) return NULL;
  m->n_steps += (unsigned)(n / 16);
  return s + n;
}

/* One item with nothing behind it that repeats; p is moved behind it. NULL: no match. */
static const char *match_plain(matcher *m, const char *s, const char **p)
{
  if (**p == '%' && *p + 1 < m->pattern_end) {
    const char kind = (*p)[1];
    if (kind == 'b') {
      s = match_balance(m, s, *p + 2);
      *p += 4;
      return s;
    }
    if (kind == 'f') {
      const char *set = *p + 2;
      if (set >= m->pattern_end || *set != '[') luaL_error(m->L, "missing '[' after '%%f' in pattern");
      *p = class_end(m, set);
      return at_frontier(m, s, set, *p) ? s : NULL;
    }
    if (isdigit((unsigned char)kind)) {
      s = match_again(m, s, kind);
      *p += 2;
      return s;
    }
  }
  const char *end = class_end(m, *p);
  const bool fits = single(m, s, *p, end);
  *p = end;
  return fits ? s + 1 : NULL;
}

static bool is_special(const matcher *m, const char *p)
{
  return *p == '%' && p + 1 < m->pattern_end && (p[1] == 'b' || p[1] == 'f' || isdigit((unsigned char)p[1]));
}

/* The pattern from p on against the subject from s on: the end of the match, or NULL. */
static const char *match_rest(matcher *m, const char *s, const char *p)
{
  while (s && p < m->pattern_end) {
    step(m);
    if (*p == '(') {
      const bool is_position = p + 1 < m->pattern_end && p[1] == ')';
      return start_capture(m, s, p + (is_position ? 2 : 1), is_position ? POSITION : OPEN);
    }
    if (*p == ')') return end_capture(m, s, p + 1);
    if (*p == '$' && p + 1 == m->pattern_end) return s == m->subject_end ? s : NULL;
    if (is_special(m, p)) {
      s = match_plain(m, s, &p);
      continue;
    }
    const char *end = class_end(m, p);
    const char repeat = end < m->pattern_end ? *end : 0;
    if (repeat == '*') return match_greedy(m, s, p, end);
    if (repeat == '-') return match_lazy(m, s, p, end);
    if (repeat == '+') return single(m, s, p, end) ? match_greedy(m, s + 1, p, end) : NULL;
    if (repeat == '?') {
      if (single(m, s, p, end)) {
        const char *found = match(m, s + 1, end + 1);
        if (found) return found;
      }
      p = end + 1;
      continue;
    }
    s = match_plain(m, s, &p);
  }
  return s;
}

static const char *match(matcher *m, const char *s, const char *p)
{
  if (++m->depth > DEPTH_MAX) luaL_error(m->L, "pattern too complex");
  const char *found = match_rest(m, s, p);
  m->depth--;
  return found;
}

/* ---- results ---- */

static void push_capture(matcher *m, int i, const char *s, const char *end)
{
  if (i >= m->n_captures) {
    if (i) luaL_error(m->L, "invalid capture index %%%d", i + 1);
    lua_pushlstring(m->L, s, (size_t)(end - s)); /* the whole match */
  } else if (m->captures[i].length == POSITION) {
    lua_pushinteger(m->L, m->captures[i].start - m->subject + 1);
  } else if (m->captures[i].length == OPEN) {
    luaL_error(m->L, "unfinished capture");
  } else {
    lua_pushlstring(m->L, m->captures[i].start, (size_t)m->captures[i].length);
  }
}

/* All captures, or, where there are none and s is given, the whole match. */
static int push_captures(matcher *m, const char *s, const char *end)
{
  const int n = m->n_captures || !s ? m->n_captures : 1;
  luaL_checkstack(m->L, n, "too many captures");
  for (int i = 0; i < n; i++) push_capture(m, i, s, end);
  return n;
}

/* Argument `init` as an offset from the start; more than n: behind the end. */
static size_t start_offset(lua_State *L, int index, size_t n)
{
  const lua_Integer init = luaL_optinteger(L, index, 1);
  if (init > 0) return (lua_Unsigned)init - 1 > n ? n + 1 : (size_t)init - 1;
  if (init == 0 || init < -(lua_Integer)n) return 0;
  return n - (size_t)-init;
}

static bool is_plain(const char *pattern, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (pattern[i] && strchr("^$*+?.([%-", pattern[i])) return false;
  return true;
}

/* Where `wanted` first stands in [s, end), or NULL. Pays for every comparison. */
static const char *find_plain(lua_State *L, const char *s, const char *end, const char *wanted, size_t n)
{
  if (!n) return s;
  for (size_t n_steps = 0; (size_t)(end - s) >= n; s++) {
    const char *first = memchr(s, *wanted, (size_t)(end - s) - n + 1);
    if (!first) return NULL;
    n_steps += (size_t)(first - s) / 16 + 1;
    size_t same = 1;
    while (same < n && first[same] == wanted[same]) same++;
    if (same == n) return first;
    n_steps += same / 4;
    if (n_steps >= PAY_STEPS) {
      kg_budget_charge(L, n_steps);
      n_steps = 0;
    }
    s = first;
  }
  return NULL;
}

static int find_or_match(lua_State *L, bool find)
{
  size_t n, n_pattern;
  const char *subject = luaL_checklstring(L, 1, &n), *pattern = luaL_checklstring(L, 2, &n_pattern);
  const size_t init = start_offset(L, 3, n);
  if (init > n) {
    luaL_pushfail(L);
    return 1;
  }
  if (find && (lua_toboolean(L, 4) || is_plain(pattern, n_pattern))) {
    const char *found = find_plain(L, subject + init, subject + n, pattern, n_pattern);
    if (!found) {
      luaL_pushfail(L);
      return 1;
    }
    lua_pushinteger(L, found - subject + 1);
    lua_pushinteger(L, found - subject + (lua_Integer)n_pattern);
    return 2;
  }
  matcher m;
  matcher_init(&m, L, subject, n, pattern, n_pattern);
  const bool is_anchored = n_pattern && *pattern == '^';
  for (const char *s = subject + init; s <= m.subject_end; s++) {
    const char *end = try_at(&m, s, pattern + is_anchored);
    if (end && !find) return push_captures(&m, s, end);
    if (end) {
      lua_pushinteger(L, s - subject + 1);
      lua_pushinteger(L, end - subject);
      return push_captures(&m, NULL, NULL) + 2;
    }
    if (is_anchored) break;
  }
  luaL_pushfail(L);
  return 1;
}

int kg_pattern_find(lua_State *L) { return find_or_match(L, true); }

int kg_pattern_match(lua_State *L) { return find_or_match(L, false); }

/* Upvalues: subject, pattern, offset to go on from, end of the last match (-1: none). */
static int next_match(lua_State *L)
{
  size_t n, n_pattern;
  const char *subject = lua_tolstring(L, lua_upvalueindex(1), &n);
  const char *pattern = lua_tolstring(L, lua_upvalueindex(2), &n_pattern);
  const lua_Integer last = lua_tointeger(L, lua_upvalueindex(4));
  matcher m;
  matcher_init(&m, L, subject, n, pattern, n_pattern);
  for (size_t at = (size_t)lua_tointeger(L, lua_upvalueindex(3)); at <= n; at++) {
    const char *end = try_at(&m, subject + at, pattern);
    if (!end || end - subject == last) continue; /* an empty match where the last one ended is none */
    lua_pushinteger(L, end - subject);
    lua_copy(L, -1, lua_upvalueindex(3));
    lua_replace(L, lua_upvalueindex(4));
    return push_captures(&m, subject + at, end);
  }
  return 0;
}

int kg_pattern_gmatch(lua_State *L)
{
  size_t n;
  luaL_checklstring(L, 1, &n);
  luaL_checkstring(L, 2);
  const size_t init = start_offset(L, 3, n);
  lua_settop(L, 2);
  lua_pushinteger(L, (lua_Integer)(init > n ? n + 1 : init));
  lua_pushinteger(L, -1);
  lua_pushcclosure(L, next_match, 4);
  return 1;
}

/* Add the replacement text (argument 3) with its %0 to %9 filled in. */
static void add_template(matcher *m, luaL_Buffer *out, const char *s, const char *end)
{
  lua_State *L = m->L;
  size_t n;
  const char *text = lua_tolstring(L, 3, &n);
  for (size_t i = 0; i < n; i++) {
    if (text[i] != '%') {
      const char *next = memchr(text + i, '%', n - i);
      const size_t run = next ? (size_t)(next - text) - i : n - i;
      luaL_addlstring(out, text + i, run);
      i += run - 1;
      continue;
    }
    const char c = ++i < n ? text[i] : 0;
    if (c == '%') {
      luaL_addchar(out, c);
    } else if (c == '0') {
      luaL_addlstring(out, s, (size_t)(end - s));
    } else if (isdigit((unsigned char)c)) {
      push_capture(m, c - '1', s, end);
      luaL_tolstring(L, -1, NULL); /* a position is a number */
      lua_remove(L, -2);
      luaL_addvalue(out);
    } else {
      luaL_error(L, "invalid use of '%%' in replacement string");
    }
  }
}

/* Add what the match [s, end) becomes; true if it changed. */
static bool add_replacement(matcher *m, luaL_Buffer *out, const char *s, const char *end)
{
  lua_State *L = m->L;
  if (lua_type(L, 3) == LUA_TFUNCTION) {
    lua_pushvalue(L, 3);
    lua_call(L, push_captures(m, s, end), 1);
  } else if (lua_type(L, 3) == LUA_TTABLE) {
    push_capture(m, 0, s, end);
    lua_gettable(L, 3);
  } else {
    add_template(m, out, s, end);
    return true;
  }
  if (!lua_toboolean(L, -1)) {
    lua_pop(L, 1);
    luaL_addlstring(out, s, (size_t)(end - s));
    return false;
  }
  if (!lua_isstring(L, -1)) luaL_error(L, "invalid replacement value (a %s)", luaL_typename(L, -1));
  luaL_addvalue(out);
  return true;
}

int kg_pattern_gsub(lua_State *L)
{
  size_t n, n_pattern, n_replacement = 0;
  const char *subject = luaL_checklstring(L, 1, &n), *pattern = luaL_checklstring(L, 2, &n_pattern);
  const int kind = lua_type(L, 3);
  luaL_argexpected(L, kind == LUA_TNUMBER || kind == LUA_TSTRING || kind == LUA_TFUNCTION || kind == LUA_TTABLE, 3,
                   "string/function/table");
  if (kind == LUA_TNUMBER || kind == LUA_TSTRING) lua_tolstring(L, 3, &n_replacement);
  const lua_Integer n_max = luaL_optinteger(L, 4, (lua_Integer)n + 1);
  const bool is_anchored = n_pattern && *pattern == '^';
  lua_Integer n_matches = 0;
  bool changed = false;
  matcher m;
  matcher_init(&m, L, subject, n, pattern + is_anchored, n_pattern - is_anchored);
  luaL_Buffer out;
  luaL_buffinit(L, &out);
  const char *s = subject, *last = NULL;
  while (n_matches < n_max) {
    const char *end = try_at(&m, s, pattern + is_anchored);
    if (end && end != last) {
      n_matches++;
      kg_budget_charge(L, n_replacement / 16 + 1);
      changed |= add_replacement(&m, &out, s, end);
      s = last = end;
    } else if (s < m.subject_end) {
      luaL_addchar(&out, *s++);
    } else {
      break;
    }
    if (is_anchored) break;
  }
  if (changed) {
    luaL_addlstring(&out, s, (size_t)(m.subject_end - s));
    luaL_pushresult(&out);
  } else {
    lua_pushvalue(L, 1);
  }
  lua_pushinteger(L, n_matches);
  return 2;
}
