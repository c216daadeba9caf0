/* library.h - what a script that nobody trusts finds in its environment: Lua's own functions where they are bounded by
 * what they are given, and functions of ours where stock ones loop in C without anybody counting, catch errors, make
 * finalizers or read bytecode. README.md, "Scripts you do not trust", says what is there and what differs. */
#ifndef KG_LIBRARY_H
#define KG_LIBRARY_H

#include <lua.h>

/* Make the environment of a new state with a budget: it becomes the global table. Nothing of the stock libraries can be
 * reached but what it lists; strings have a metatable that scripts can neither see nor change. May raise (memory). */
void kg_library_open(lua_State *L);

/* Compile text, no bytecode, as lua_load does, and pay for it piece by piece: there are texts that take n squared steps.
 * Raises when the budget is spent. */
int kg_library_load(lua_State *L, const char *text, size_t n, const char *name);

#endif
