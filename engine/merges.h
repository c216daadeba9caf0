/* merges.h - the list of merges of a vocabulary (tokenizer.ggml.merges) as a hash table: which two tokens become one,
 * and how early in the list. */
#ifndef KG_MERGES_H
#define KG_MERGES_H

#include "vocab.h"

typedef struct kg_merge_rule {
  int32_t left, right, id; /* left -1: a free slot */
  uint32_t rank;           /* its place in the list */
} kg_merge_rule;

typedef struct kg_merges {
  kg_merge_rule *slots; /* a power of two of them */
  size_t mask;
  uint64_t *filter; /* a bit for each hash: most pairs do not merge, and this table is small enough to stay near */
  size_t filter_mask;
  uint64_t seed;
} kg_merges;

/* `unmap`: from the text of a piece in the list to what it writes. Zero-initialised storage; kg_merges_deinit also
 * after a failure. */
int kg_merges_read(kg_merges *merges, const kg_vocab *vocab, const kg_gguf *gguf, kg_unmap unmap, kg_error *err);
void kg_merges_deinit(kg_merges *merges);

/* For the two below: the hash of a pair, its slot or the free one where it belongs, its word and bit in the filter. */
static inline uint64_t kg_merges_hash(const kg_merges *merges, int32_t left, int32_t right)
{
  /* bounded: 32 bits, moved up by 32 */
  return kg_vocab_hash(merges->seed, (uint64_t)(uint32_t)left << 32 | (uint32_t)right, 1);
}

static inline kg_merge_rule *kg_merges_slot(const kg_merges *merges, uint64_t hash, int32_t left, int32_t right)
{
  for (size_t at = (size_t)hash & merges->mask;; at = (at + 1) & merges->mask) {
    kg_merge_rule *slot = &merges->slots[at];
    if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
  }
}

static inline uint64_t *kg_merges_filter(const kg_merges *merges, uint64_t hash, uint64_t *bit)
{
  *bit = (uint64_t)1 << (hash >> 58); /* bounded: six bits */
  return &merges->filter[hash >> 32 & merges->filter_mask];
}

/* What these two tokens merge to, or NULL. */
static inline const kg_merge_rule *kg_merges_find(const kg_merges *merges, int32_t left, int32_t right)
{
  const uint64_t hash = kg_merges_hash(merges, left, right);
  uint64_t bit;
  if (!(*kg_merges_filter(merges, hash, &bit) & bit)) return NULL;
  const kg_merge_rule *slot = kg_merges_slot(merges, hash, left, right);
  return slot->left < 0 ? NULL : slot;
}

#endif
