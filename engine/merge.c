#include "merge.h"

#include "alloc.h"
#include "error.h"

/* A pair as it stood when it was found. Both symbols start where they started, so equal sizes prove that neither was
 * merged since. */
typedef struct kg_merge_pair {
  uint64_t order; /* rank, then the left symbol's index */
  uint32_t left_size, right_size;
  int32_t id;
} kg_merge_pair;

int kg_merger_reset(kg_merger *merger, size_t n_bytes, kg_error *err)
{
  merger->n_symbols = merger->n_pairs = 0;
  if (kg_grow((void **)&merger->symbols, &merger->symbol_capacity, n_bytes, sizeof *merger->symbols)) return KG_OK;
  return kg_fail_memory(err, n_bytes * sizeof *merger->symbols, "encoding");
}

void kg_merger_add(kg_merger *merger, uint32_t begin, uint32_t size, int32_t id)
{
  const int32_t index = (int32_t)merger->n_symbols++;
  merger->symbols[index] = (kg_symbol){begin, size, id, index - 1, -1};
  if (index) merger->symbols[index - 1].next = index;
}

static void push_pair(kg_merger *merger, kg_merge_pair pair)
{
  kg_merge_pair *pairs = merger->pairs;
  size_t at = merger->n_pairs++;
  while (at && pairs[(at - 1) / 2].order > pair.order) {
    pairs[at] = pairs[(at - 1) / 2];
    at = (at - 1) / 2;
  }
  pairs[at] = pair;
}

static kg_merge_pair pop_pair(kg_merger *merger)
{
  kg_merge_pair *pairs = merger->pairs;
  const kg_merge_pair best = pairs[0], last = pairs[--merger->n_pairs];
  const size_t n = merger->n_pairs;
  size_t at = 0;
  /* bounded: an array in memory, of items larger than two bytes */
  for (size_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && pairs[child + 1].order < pairs[child].order) child++; /* bounded: child < n */
    if (pairs[child].order >= last.order) break;
    pairs[at] = pairs[child];
  }
  pairs[at] = last;
  return best;
}

/* Look at the pair that starts at this symbol. */
static int consider(kg_merger *merger, int32_t index, kg_merge_find find, const void *context, kg_error *err)
{
  if (index < 0 || merger->symbols[index].next < 0) return KG_OK;
  const kg_symbol *left = &merger->symbols[index], *right = &merger->symbols[left->next];
  uint32_t rank;
  int32_t id;
  if (!find(context, left, right, &rank, &id)) return KG_OK;
  if (!kg_grow((void **)&merger->pairs, &merger->pair_capacity, merger->n_pairs + 1, sizeof *merger->pairs))
    return kg_fail_memory(err, (merger->n_pairs + 1) * sizeof *merger->pairs, "encoding");
  /* bounded: 32 bits, moved up by 32 */
  push_pair(merger, (kg_merge_pair){(uint64_t)rank << 32 | (uint32_t)index, left->size, right->size, id});
  return KG_OK;
}

int kg_merger_run(kg_merger *merger, kg_merge_find find, const void *context, kg_error *err)
{
  kg_symbol *symbols = merger->symbols;
  int rc = KG_OK;
  for (size_t i = 0; i + 1 < merger->n_symbols; i++) /* bounded: i < n_symbols */
    if ((rc = consider(merger, (int32_t)i, find, context, err))) return rc;
  while (merger->n_pairs) {
    const kg_merge_pair pair = pop_pair(merger);
    const int32_t index = (int32_t)(uint32_t)pair.order;
    kg_symbol *left = &symbols[index];
    if (left->size != pair.left_size || left->next < 0 || symbols[left->next].size != pair.right_size) continue;
    kg_symbol *right = &symbols[left->next];
    left->size += right->size; /* bounded: two parts of one text */
    left->id = pair.id;
    left->next = right->next;
    right->size = 0;
    if (left->next >= 0) symbols[left->next].prev = index;
    if ((rc = consider(merger, left->prev, find, context, err))) return rc;
    if ((rc = consider(merger, index, find, context, err))) return rc;
  }
  return KG_OK;
}

void kg_merger_deinit(kg_merger *merger)
{
  kg_free(merger->symbols);
  kg_free(merger->pairs);
  *merger = (kg_merger){0};
}
