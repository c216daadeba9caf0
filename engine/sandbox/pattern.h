/* pattern.h - Lua's patterns, paid for step by step. Stock find, match, gmatch and gsub try all ways to match, and no
 * hook runs meanwhile (18 times ".-" on a short line takes longer than anybody waits), and no estimate from outside
 * tells a bomb from "^%s*(.-)%s*$". So this is a matcher of our own, by the reference manual, whose steps are counted.
 * Stock Lua is its oracle (spec/sandbox_library_spec.lua). */
#ifndef KG_PATTERN_H
#define KG_PATTERN_H

#include <lauxlib.h>
#include <lua.h>

/* find, match, gmatch and gsub, for a state with a budget. */
int kg_pattern_find(lua_State *L);
int kg_pattern_match(lua_State *L);
int kg_pattern_gmatch(lua_State *L);
int kg_pattern_gsub(lua_State *L);

#endif
