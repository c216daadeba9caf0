#include "trie.h"

#include <stdlib.h>

#include "alloc.h"
#include "error.h"

/* A node while the tree grows level by level: its items share their first `depth` bytes. */
typedef struct growing_node {
  kg_trie_node node;
  size_t begin, end;
  uint16_t depth;
  uint8_t label;
} growing_node;

typedef struct growth {
  growing_node *nodes;
  size_t n, capacity;
} growth;

static int by_bytes_then_id(const void *a, const void *b)
{
  const kg_trie_item *x = a, *y = b;
  const size_t n = x->piece.size < y->piece.size ? x->piece.size : y->piece.size;
  const int order = n ? memcmp(x->piece.data, y->piece.data, n) : 0;
  if (order) return order;
  if (x->piece.size != y->piece.size) return x->piece.size < y->piece.size ? -1 : 1;
  return (x->id > y->id) - (x->id < y->id);
}

static int add_node(growth *g, growing_node node, kg_error *err)
{
  if (g->n >= UINT32_MAX) return kg_fail(err, KG_ERR_UNSUPPORTED, "the vocabulary has too many bytes");
  if (!kg_grow((void **)&g->nodes, &g->capacity, g->n + 1, sizeof *g->nodes))
    return kg_fail_memory(err, (g->n + 1) * sizeof *g->nodes, "the vocabulary's tree");
  g->nodes[g->n++] = node;
  return KG_OK;
}

/* Give node `at` its id and its children. */
static int expand(growth *g, size_t at, const kg_trie_item *items, kg_error *err)
{
  growing_node parent = g->nodes[at];
  for (; parent.begin < parent.end && items[parent.begin].piece.size == parent.depth; parent.begin++)
    if (parent.depth && parent.node.id < 0) parent.node.id = items[parent.begin].id;
  parent.node.first = (uint32_t)g->n;
  for (size_t i = parent.begin; i < parent.end;) {
    const uint8_t label = (uint8_t)items[i].piece.data[parent.depth];
    const size_t begin = i;
    while (i < parent.end && (uint8_t)items[i].piece.data[parent.depth] == label) i++;
    /* bounded: depth < KG_TRIE_PIECE_MAX */
    const growing_node child = {{0, 0, -1}, begin, i, (uint16_t)(parent.depth + 1), label};
    const int rc = add_node(g, child, err);
    if (rc) return rc;
    parent.node.n_children++;
  }
  g->nodes[at].node = parent.node;
  return KG_OK;
}

static int finish(kg_trie *trie, const growth *g, kg_error *err)
{
  trie->nodes = kg_alloc_array(g->n, sizeof *trie->nodes);
  trie->labels = kg_alloc(g->n);
  if (!trie->nodes || !trie->labels) return kg_fail_memory(err, g->n * sizeof *trie->nodes, "the vocabulary's tree");
  for (size_t i = 0; i < g->n; i++) {
    trie->nodes[i] = g->nodes[i].node;
    trie->labels[i] = g->nodes[i].label;
  }
  const kg_trie_node *root = &trie->nodes[0];
  for (uint32_t i = 0; i < root->n_children; i++)
    trie->starts[trie->labels[root->first + i]] = root->first + i; /* bounded: nodes that there are */
  return KG_OK;
}

int kg_trie_build(kg_trie *trie, kg_trie_item *items, size_t n, kg_error *err)
{
  for (size_t i = 0; i < n; i++)
    if (items[i].piece.size > KG_TRIE_PIECE_MAX)
      return kg_fail(err, KG_ERR_UNSUPPORTED, "token %d writes %zu bytes; at most %d can be looked for in text",
                     items[i].id, items[i].piece.size, KG_TRIE_PIECE_MAX);
  if (n) qsort(items, n, sizeof *items, by_bytes_then_id);
  growth g = {0};
  int rc = add_node(&g, (growing_node){.node.id = -1, .end = n}, err);
  for (size_t at = 0; at < g.n && !rc; at++) rc = expand(&g, at, items, err);
  if (!rc) rc = finish(trie, &g, err);
  kg_free(g.nodes);
  return rc;
}

void kg_trie_deinit(kg_trie *trie)
{
  kg_free(trie->nodes);
  kg_free(trie->labels);
}

int32_t kg_trie_longest(const kg_trie *trie, const char *text, size_t size, size_t *length)
{
  int32_t best = -1;
  uint32_t node = 0;
  for (size_t i = 0; i < size; i++) {
    node = kg_trie_step(trie, node, (unsigned char)text[i]);
    if (!node) break;
    if (trie->nodes[node].id < 0) continue;
    best = trie->nodes[node].id;
    *length = i + 1; /* bounded: i < size */
  }
  return best;
}
