/* intern.h - what lazily grown automata are made of: arrays that grow within a budget, and tables that find equal items
 * again, so that equal things have one number. */
#ifndef KG_INTERN_H
#define KG_INTERN_H

#include "kigo.h"

/* Bytes that may be held, shared by many arrays. */
typedef struct kg_budget {
  size_t used, limit;
} kg_budget;

/* Make room for `need` items in *items. KG_ERR_FULL: over the limit; KG_ERR_MEMORY; nothing has changed then. */
int kg_budget_grow(kg_budget *budget, void **items, size_t *capacity, size_t need, size_t item_size, kg_error *err);
/* Free an array that grew in this budget. */
void kg_budget_free(kg_budget *budget, void **items, size_t *capacity, size_t item_size);

enum { KG_INTERN_NONE = -1 };

/* Numbers of items by hash; the items stand elsewhere, and their owner compares them. Zero-initialised it is empty. */
typedef struct kg_intern {
  struct kg_intern_slot {
    uint32_t hash;
    int32_t item; /* KG_INTERN_NONE: free */
  } *slots;
  size_t n_slots, n;
} kg_intern;

/* The next item with this hash; start with *at = hash, go on until KG_INTERN_NONE. */
int32_t kg_intern_next(const kg_intern *table, uint32_t hash, size_t *at);
int kg_intern_add(kg_intern *table, kg_budget *budget, uint32_t hash, int32_t item, kg_error *err);
void kg_intern_clear(kg_intern *table); /* keeps its memory */
void kg_intern_free(kg_intern *table, kg_budget *budget);

/* A hash of n words. */
uint32_t kg_intern_hash(const uint32_t *words, size_t n);

#endif
