/* merge.h - pair merging, the heart of both kinds of BPE: adjacent symbols of a text are merged, best pair first and
 * leftmost first among equals, until no pair is left. A linked list and a heap: n log n for n symbols. */
#ifndef KG_MERGE_H
#define KG_MERGE_H

#include "kigo.h"

typedef struct kg_symbol {
  uint32_t begin, size; /* bytes of the text; size 0: swallowed by its left neighbour */
  int32_t id;           /* token, or -1 */
  int32_t prev, next;   /* index of the neighbours; -1: none */
} kg_symbol;

/* Storage that lives for one encode call, so that words need no allocation of their own. Zero-initialise. */
typedef struct kg_merger {
  kg_symbol *symbols; /* the first is never swallowed: results are walked from 0 along `next` */
  size_t n_symbols, symbol_capacity;
  struct kg_merge_pair *pairs; /* a binary heap */
  size_t n_pairs, pair_capacity;
} kg_merger;

/* May these neighbours become one token? Lower ranks go first. */
typedef bool (*kg_merge_find)(const void *context, const kg_symbol *left, const kg_symbol *right, uint32_t *rank,
                              int32_t *id);

/* Make room for symbols of a text of n bytes, and forget the last text. */
int kg_merger_reset(kg_merger *merger, size_t n_bytes, kg_error *err);
/* Append a symbol; room was made. */
void kg_merger_add(kg_merger *merger, uint32_t begin, uint32_t size, int32_t id);
int kg_merger_run(kg_merger *merger, kg_merge_find find, const void *context, kg_error *err);
void kg_merger_deinit(kg_merger *merger);

#endif
