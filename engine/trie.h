/* trie.h - many pieces as one tree of bytes: one walk along a text finds all pieces that it starts with. Immutable. */
#ifndef KG_TRIE_H
#define KG_TRIE_H

#include <string.h>

#include "kigo.h"

/* Longest piece in a trie: what bounds the walk from each byte of a text, so that no vocabulary makes it slow. */
enum { KG_TRIE_PIECE_MAX = 1024 };

typedef struct kg_trie_node {
  uint32_t first; /* node of the first child; children stand side by side, sorted by their bytes */
  uint16_t n_children;
  int32_t id; /* piece that ends here; -1: none */
} kg_trie_node;

/* Zero-initialised it holds nothing. */
typedef struct kg_trie {
  kg_trie_node *nodes; /* in order of depth; 0 is the root and nobody's child */
  uint8_t *labels;     /* the byte that leads to each node */
  uint32_t starts[256]; /* children of the root; 0: no piece starts with this byte */
} kg_trie;

typedef struct kg_trie_item {
  kg_string piece; /* borrowed for the time of building */
  int32_t id;
} kg_trie_item;

/* Build from items, which are sorted; empty pieces are left out, of equal pieces the lowest id counts.
 * KG_ERR_UNSUPPORTED for pieces of more than KG_TRIE_PIECE_MAX bytes. Zero-initialised storage; kg_trie_deinit also
 * after a failure. */
int kg_trie_build(kg_trie *trie, kg_trie_item *items, size_t n, kg_error *err);
void kg_trie_deinit(kg_trie *trie);

/* The node behind `byte`, from 0 (the root) on; 0: no piece goes on so. */
static inline uint32_t kg_trie_step(const kg_trie *trie, uint32_t node, unsigned char byte)
{
  if (!node) return trie->starts[byte];
  const kg_trie_node *at = &trie->nodes[node];
  if (!at->n_children) return 0;
  const uint8_t *labels = trie->labels + at->first, *found = memchr(labels, byte, at->n_children);
  return found ? at->first + (uint32_t)(found - labels) : 0;
}

/* The longest piece that the text starts with: its id, and its size in *length. -1: none. */
int32_t kg_trie_longest(const kg_trie *trie, const char *text, size_t size, size_t *length);

#endif
