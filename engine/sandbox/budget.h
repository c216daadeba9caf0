/* budget.h - what a script may spend: memory to the byte, work (steps) and time soon after.
 *
 * One budget belongs to one lua_State and is its allocator's user data, so every C function of that state finds it. A
 * step is about the work of one instruction of Lua's machine. Work is looked at by a count hook every KG_BUDGET_PERIOD
 * instructions, by the functions of library.c, which pay for their loops before or while they run, and soon after much
 * was allocated.
 *
 * Spent is spent: from then on the hook raises at every instruction of every thread, and whatever catches errors in
 * this state (library.c) raises again. The error is a light userdata, which takes no memory. */
#ifndef KG_BUDGET_H
#define KG_BUDGET_H

#include <lauxlib.h>
#include <lua.h>

#include "kigo.h"

enum {
  KG_BUDGET_PERIOD = 256,          /* instructions between two looks */
  KG_BUDGET_STRING_MAX = 256 << 10 /* of one string: what one instruction may compare, read or join */
};

typedef struct kg_budget {
  size_t memory_max, memory, memory_peak; /* bytes, as malloc counts them */
  int64_t steps_max, steps;
  int64_t deadline_ns;             /* of kg_budget_now */
  int64_t steps_seen, fresh_bytes; /* since the clock was looked at: steps; bytes allocated */
  lua_State *running;              /* the thread that runs */
  bool is_armed;                   /* the hook comes at the next instruction */
  bool is_spent;
  char reason[160]; /* why, once it is spent */
} kg_budget;

int64_t kg_budget_now(void); /* nanoseconds on a monotonic clock */

/* A lua_Alloc whose user data is a kg_budget. */
void *kg_budget_alloc(void *budget, void *block, size_t old_size, size_t new_size);
kg_budget *kg_budget_of(lua_State *L);

/* Watch a new state; threads that it makes inherit the hook. */
void kg_budget_watch(lua_State *L);
/* A new call: what it may spend. A spent budget stays so. */
void kg_budget_begin(kg_budget *budget, int64_t steps_max, int64_t timeout_ns);

/* Spend steps: kg_budget_charge raises when they are not there, kg_budget_spend says so (false) and leaves raising to
 * its caller. kg_budget_check raises if the budget is spent. */
void kg_budget_charge(lua_State *L, uint64_t steps);
bool kg_budget_spend(kg_budget *budget, uint64_t steps);
void kg_budget_check(lua_State *L);

/* Memory that this state owns without Lua's allocator. Take: false when it is not there. */
bool kg_budget_take(kg_budget *budget, size_t n_bytes);
void kg_budget_give(kg_budget *budget, size_t n_bytes);

#endif
