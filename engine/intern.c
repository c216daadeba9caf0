#include "intern.h"

#include "alloc.h"
#include "error.h"

int kg_budget_grow(kg_budget *budget, void **items, size_t *capacity, size_t need, size_t item_size, kg_error *err)
{
  if (need <= *capacity) return KG_OK;
  size_t wanted = *capacity + *capacity / 2 + 16, more; /* bounded: what is there is in memory */
  if (wanted < need) wanted = need;
  if (!kg_mul_size(wanted - *capacity, item_size, &more)) return kg_fail_memory(err, SIZE_MAX, "an automaton");
  if (more > budget->limit - budget->used)
    return kg_fail(err, KG_ERR_FULL, "the automaton of the grammar needs more than its %zu bytes", budget->limit);
  void *grown = kg_realloc_array(*items, wanted, item_size);
  if (!grown) return kg_fail_memory(err, more, "an automaton");
  *items = grown;
  *capacity = wanted;
  budget->used += more; /* bounded: by the limit */
  return KG_OK;
}

void kg_budget_free(kg_budget *budget, void **items, size_t *capacity, size_t item_size)
{
  budget->used -= *capacity * item_size; /* bounded: it was granted */
  kg_free(*items);
  *items = NULL;
  *capacity = 0;
}

int32_t kg_intern_next(const kg_intern *table, uint32_t hash, size_t *at)
{
  if (!table->n_slots) return KG_INTERN_NONE;
  for (;;) {
    const struct kg_intern_slot *slot = &table->slots[*at & (table->n_slots - 1)];
    if (slot->item == KG_INTERN_NONE) return KG_INTERN_NONE;
    ++*at;
    if (slot->hash == hash) return slot->item;
  }
}

static void put(kg_intern *table, struct kg_intern_slot item)
{
  size_t at = item.hash;
  while (table->slots[at & (table->n_slots - 1)].item != KG_INTERN_NONE) at++;
  table->slots[at & (table->n_slots - 1)] = item;
}

/* Twice the slots. */
static int grow(kg_intern *table, kg_budget *budget, kg_error *err)
{
  kg_intern grown = {.n = table->n};
  const size_t n_slots = table->n_slots ? 2 * table->n_slots : 64; /* bounded: they are in memory */
  const int status = kg_budget_grow(budget, (void **)&grown.slots, &grown.n_slots, n_slots, sizeof *grown.slots, err);
  if (status) return status;
  for (size_t i = 0; i < n_slots; i++) grown.slots[i].item = KG_INTERN_NONE;
  for (size_t i = 0; i < table->n_slots; i++)
    if (table->slots[i].item != KG_INTERN_NONE) put(&grown, table->slots[i]);
  kg_intern_free(table, budget);
  *table = grown;
  return KG_OK;
}

int kg_intern_add(kg_intern *table, kg_budget *budget, uint32_t hash, int32_t item, kg_error *err)
{
  if (2 * table->n >= table->n_slots) { /* bounded: they are in memory */
    const int status = grow(table, budget, err);
    if (status) return status;
  }
  put(table, (struct kg_intern_slot){hash, item});
  table->n++;
  return KG_OK;
}

void kg_intern_clear(kg_intern *table)
{
  for (size_t i = 0; i < table->n_slots; i++) table->slots[i].item = KG_INTERN_NONE;
  table->n = 0;
}

void kg_intern_free(kg_intern *table, kg_budget *budget)
{
  kg_budget_free(budget, (void **)&table->slots, &table->n_slots, sizeof *table->slots);
  table->n = 0;
}

uint32_t kg_intern_hash(const uint32_t *words, size_t n)
{
  uint64_t hash = 0x9E3779B97F4A7C15u ^ n;
  for (size_t i = 0; i < n; i++) {
    hash = (hash ^ words[i]) * 0xD6E8FEB86659FD93u; /* bounded: it may wrap */
    hash ^= hash >> 32;
  }
  return (uint32_t)hash;
}
