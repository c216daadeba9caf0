#define _GNU_SOURCE /* clock_gettime */
#include "budget.h"

#include <stdio.h>
#include <time.h>

#include "alloc.h"

enum {
  BYTES_PER_STEP = 16,   /* fresh memory costs work too: it is filled, and collected */
  LOOK_BYTES = 64 << 10, /* so much fresh memory asks for a look */
  LOOK_STEPS = 4096,     /* so many steps of C functions ask for a look at the clock */
  STRING_HEAD = 64,      /* more than Lua puts before a string's bytes */
  BLOCK_HEADER = 8,
  BLOCK_ALIGNMENT = 16,
  BLOCK_MIN = 32 /* of malloc, glibc's */
};

int64_t kg_budget_now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

kg_budget *kg_budget_of(lua_State *L)
{
  void *budget;
  lua_getallocf(L, &budget);
  return budget;
}

/* ---- work ---- */

static void on_count(lua_State *L, lua_Debug *event);

static void spent(kg_budget *budget, const char *what)
{
  if (budget->is_spent) return;
  budget->is_spent = true;
  /* Where: a Lua function that runs, or the one that called the C function that runs. Nothing here allocates. */
  lua_Debug at;
  for (int level = 0; level < 3 && budget->running && lua_getstack(budget->running, level, &at); level++) {
    if (!lua_getinfo(budget->running, "Sl", &at) || at.currentline < 1) continue;
    snprintf(budget->reason, sizeof budget->reason, "%s:%d: %s", at.short_src, at.currentline, what);
    return;
  }
  snprintf(budget->reason, sizeof budget->reason, "%s", what);
}

/* Look at steps and clock. */
static void look(kg_budget *budget)
{
  char what[80];
  budget->steps += budget->fresh_bytes / BYTES_PER_STEP;
  budget->steps_seen = budget->fresh_bytes = 0;
  if (budget->steps > budget->steps_max) {
    snprintf(what, sizeof what, "more than %lld instructions", (long long)budget->steps_max);
    spent(budget, what);
  } else if (kg_budget_now() > budget->deadline_ns) {
    spent(budget, "out of time");
  }
}

/* Have the hook called every `period` instructions of this thread. */
static void set_period(lua_State *L, int period) { lua_sethook(L, on_count, LUA_MASKCOUNT, period); }

static void raise_spent(lua_State *L)
{
  set_period(L, 1);
  lua_pushlightuserdata(L, kg_budget_of(L));
  lua_error(L);
}

static void on_count(lua_State *L, lua_Debug *event)
{
  (void)event;
  kg_budget *budget = kg_budget_of(L);
  const int period = lua_gethookcount(L);
  budget->running = L;
  budget->is_armed = false;
  budget->steps += period;
  look(budget);
  if (budget->is_spent) raise_spent(L);
  if (period != KG_BUDGET_PERIOD) set_period(L, KG_BUDGET_PERIOD);
}

void kg_budget_watch(lua_State *L)
{
  kg_budget_of(L)->running = L;
  set_period(L, KG_BUDGET_PERIOD);
}

void kg_budget_begin(kg_budget *budget, int64_t steps_max, int64_t timeout_ns)
{
  budget->steps = budget->steps_seen = budget->fresh_bytes = 0;
  budget->steps_max = steps_max;
  const int64_t now = kg_budget_now();
  budget->deadline_ns = timeout_ns < INT64_MAX - now ? now + timeout_ns : INT64_MAX;
}

bool kg_budget_spend(kg_budget *budget, uint64_t steps)
{
  if (budget->is_spent) return false;
  const int64_t left = budget->steps_max - budget->steps;
  const int64_t n = steps > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)steps;
  budget->steps = left < 0 || n > left ? budget->steps_max + 1 : budget->steps + n;
  budget->steps_seen += n > left ? LOOK_STEPS : n;
  if (budget->steps > budget->steps_max || budget->steps_seen >= LOOK_STEPS) look(budget);
  return !budget->is_spent;
}

void kg_budget_charge(lua_State *L, uint64_t steps)
{
  kg_budget *budget = kg_budget_of(L);
  budget->running = L;
  if (!kg_budget_spend(budget, steps)) raise_spent(L);
}

void kg_budget_check(lua_State *L)
{
  /* What was caught may have cost a collection of everything (out of memory): look at the clock. */
  kg_budget *budget = kg_budget_of(L);
  budget->running = L;
  look(budget);
  if (budget->is_spent) raise_spent(L);
}

/* ---- memory ---- */

/* What malloc takes for a block. */
static size_t block_bytes(size_t n)
{
  size_t padded;
  if (!n) return 0;
  if (!kg_add_size(n, BLOCK_HEADER, &padded) || !kg_align_size(padded, BLOCK_ALIGNMENT, &padded)) return SIZE_MAX;
  return padded < BLOCK_MIN ? BLOCK_MIN : padded;
}

/* Work that nobody counts instruction by instruction: let the hook come at the next one, which lua_sethook can do from
 * anywhere. */
static void arm(kg_budget *budget)
{
  if (!budget->running || budget->is_armed) return;
  budget->is_armed = true;
  set_period(budget->running, 1);
}

bool kg_budget_take(kg_budget *budget, size_t n_bytes)
{
  if (n_bytes > budget->memory_max - budget->memory) {
    arm(budget); /* everything may be collected now */
    return false;
  }
  budget->memory += n_bytes;
  if (budget->memory > budget->memory_peak) budget->memory_peak = budget->memory;
  budget->fresh_bytes += (int64_t)n_bytes;
  if (budget->fresh_bytes > LOOK_BYTES) arm(budget);
  return true;
}

void kg_budget_give(kg_budget *budget, size_t n_bytes) { budget->memory -= n_bytes; }

void *kg_budget_alloc(void *user, void *block, size_t old_size, size_t new_size)
{
  kg_budget *budget = user;
  const size_t old_bytes = block ? block_bytes(old_size) : 0; /* without a block, old_size is the kind of object */
  const size_t new_bytes = block_bytes(new_size);
  if (!new_size) {
    kg_free(block);
    kg_budget_give(budget, old_bytes);
    return NULL;
  }
  if (!block && old_size == LUA_TSTRING && new_size > KG_BUDGET_STRING_MAX + STRING_HEAD) {
    arm(budget);
    return NULL;
  }
  if (new_bytes > old_bytes && !kg_budget_take(budget, new_bytes - old_bytes)) return NULL;
  void *made = kg_realloc_array(block, new_size, 1);
  if (!made && new_bytes > old_bytes) {
    kg_budget_give(budget, new_bytes - old_bytes);
    return NULL;
  }
  if (new_bytes < old_bytes) kg_budget_give(budget, old_bytes - new_bytes);
  return made ? made : block; /* Lua shrinks on the understanding that it cannot fail */
}
