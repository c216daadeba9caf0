#include "prefix.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "checksum.h"

enum { LIKE_MOST = 256 }; /* children that are looked at for a common beginning, the newest first */

/* Links are nodes, KG_NO_NODE at the ends. */
typedef struct node {
  bool is_known;               /* it is in the tree */
  int32_t n_held, n_pages;
  int32_t pages[KG_PAGE_GROUPS];
  int32_t state;               /* slot, or KG_NONE */
  int32_t parent, child;       /* its newest child */
  int32_t newer, older;        /* children of the same parent */
  int32_t next;                /* in the bucket; of the free ones */
  uint64_t hash;
  int32_t ids[KG_PAGE];
} node;

struct kg_prefix {
  kg_state_pool *states;
  int32_t n_states;            /* that nodes have */
  node *nodes;                 /* [n_nodes] */
  size_t n_nodes, capacity;
  int32_t free;                /* the first of those that are no node now */
  int32_t *buckets;            /* [n_buckets] first node of each */
  size_t n_buckets;            /* a power of two, or 0 */
  int32_t child;               /* newest node that starts a prefix */
};

kg_prefix *kg_prefix_new(kg_state_pool *states)
{
  kg_prefix *prefix = kg_alloc_array(1, sizeof *prefix);
  if (!prefix) return NULL;
  prefix->child = prefix->free = KG_NO_NODE;
  prefix->states = states;
  return prefix;
}

void kg_prefix_free(kg_prefix *prefix)
{
  if (!prefix) return;
  kg_free(prefix->nodes);
  kg_free(prefix->buckets);
  kg_free(prefix);
}

/* ---- the table ---- */

static uint64_t hash_of(int32_t parent, const int32_t *ids)
{
  kg_checksum sum;
  kg_checksum_begin(&sum);
  kg_checksum_add(&sum, &parent, sizeof parent);
  kg_checksum_add(&sum, ids, KG_PAGE * sizeof *ids);
  return kg_checksum_end(&sum);
}

static int32_t *bucket_of(const kg_prefix *prefix, uint64_t hash)
{
  return &prefix->buckets[hash & (prefix->n_buckets - 1)];
}

static void enter(kg_prefix *prefix, int32_t at)
{
  int32_t *bucket = bucket_of(prefix, prefix->nodes[at].hash);
  prefix->nodes[at].next = *bucket;
  *bucket = at;
}

static bool grow_buckets(kg_prefix *prefix, size_t n_nodes)
{
  size_t n = prefix->n_buckets ? prefix->n_buckets : 16;
  while (n < n_nodes) n *= 2;
  if (n == prefix->n_buckets) return true;
  int32_t *buckets = kg_alloc_array(n, sizeof *buckets);
  if (!buckets) return false;
  for (size_t i = 0; i < n; i++) buckets[i] = KG_NO_NODE;
  kg_free(prefix->buckets);
  prefix->buckets = buckets;
  prefix->n_buckets = n;
  for (size_t i = 0; i < prefix->n_nodes; i++)
    if (prefix->nodes[i].is_known) enter(prefix, (int32_t)i);
  return true;
}

/* A node that is none yet. */
static int32_t take_node(kg_prefix *prefix)
{
  const int32_t at = prefix->free;
  if (at != KG_NO_NODE) {
    prefix->free = prefix->nodes[at].next;
    return at;
  }
  if (prefix->n_nodes == INT32_MAX || !grow_buckets(prefix, prefix->n_nodes + 1) ||
      !kg_grow((void **)&prefix->nodes, &prefix->capacity, prefix->n_nodes + 1, sizeof *prefix->nodes))
    return KG_NO_NODE;
  return (int32_t)prefix->n_nodes++;
}

/* ---- the tree ---- */

static int32_t *children_of(kg_prefix *prefix, int32_t parent)
{
  return parent == KG_NO_NODE ? &prefix->child : &prefix->nodes[parent].child;
}

static int32_t newest_child(const kg_prefix *prefix, int32_t parent)
{
  return parent == KG_NO_NODE ? prefix->child : prefix->nodes[parent].child;
}

bool kg_prefix_has_children(const kg_prefix *prefix, int32_t at) { return prefix->nodes[at].child != KG_NO_NODE; }

int32_t kg_prefix_find(const kg_prefix *prefix, int32_t parent, const int32_t *ids)
{
  if (!prefix->n_buckets) return KG_NO_NODE;
  const uint64_t hash = hash_of(parent, ids);
  int32_t at = *bucket_of(prefix, hash);
  for (; at != KG_NO_NODE; at = prefix->nodes[at].next) {
    const node *e = &prefix->nodes[at];
    if (e->hash == hash && e->parent == parent && !memcmp(e->ids, ids, sizeof e->ids)) break;
  }
  return at;
}

int32_t kg_prefix_find_like(const kg_prefix *prefix, int32_t parent, const int32_t *ids, int32_t n, int32_t *n_common)
{
  int32_t best = KG_NO_NODE, at = newest_child(prefix, parent);
  *n_common = 0;
  if (n > KG_PAGE) n = KG_PAGE;
  for (int seen = 0; at != KG_NO_NODE && seen < LIKE_MOST && *n_common < n; seen++) {
    const node *e = &prefix->nodes[at];
    int32_t same = 0;
    while (same < n && e->ids[same] == ids[same]) same++;
    if (same > *n_common) {
      best = at;
      *n_common = same;
    }
    at = e->older;
  }
  return best;
}

int32_t kg_prefix_add(kg_prefix *prefix, int32_t parent, const int32_t *ids)
{
  const int32_t at = take_node(prefix);
  if (at == KG_NO_NODE) return at;
  node *e = &prefix->nodes[at];
  int32_t *children = children_of(prefix, parent);
  *e = (node){.is_known = true,
              .n_held = 1,
              .state = KG_NONE,
              .parent = parent,
              .child = KG_NO_NODE,
              .newer = KG_NO_NODE,
              .older = *children,
              .hash = hash_of(parent, ids)};
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) e->pages[g] = KG_NO_PAGE;
  if (*children != KG_NO_NODE) prefix->nodes[*children].newer = at;
  *children = at;
  memcpy(e->ids, ids, sizeof e->ids);
  enter(prefix, at);
  return at;
}

static void leave_tree(kg_prefix *prefix, int32_t at)
{
  node *e = &prefix->nodes[at];
  if (e->newer != KG_NO_NODE)
    prefix->nodes[e->newer].older = e->older;
  else
    *children_of(prefix, e->parent) = e->older;
  if (e->older != KG_NO_NODE) prefix->nodes[e->older].newer = e->newer;
  int32_t *link = bucket_of(prefix, e->hash);
  while (*link != at) link = &prefix->nodes[*link].next;
  *link = e->next;
  e->is_known = false;
}

static void drop_state(kg_prefix *prefix, node *e)
{
  if (e->state == KG_NONE) return;
  kg_states_drop(prefix->states, e->state);
  e->state = KG_NONE;
  prefix->n_states--;
}

/* What nobody has a use for goes, and what only stood before it. */
static void remove_unused(kg_prefix *prefix, int32_t at)
{
  while (at != KG_NO_NODE) {
    node *e = &prefix->nodes[at];
    if (e->n_held || e->n_pages || e->child != KG_NO_NODE) return;
    drop_state(prefix, e);
    const int32_t parent = e->is_known ? e->parent : KG_NO_NODE;
    if (e->is_known) leave_tree(prefix, at);
    e->next = prefix->free;
    prefix->free = at;
    at = parent;
  }
}

void kg_prefix_hold(kg_prefix *prefix, int32_t at) { prefix->nodes[at].n_held++; }

void kg_prefix_let_go(kg_prefix *prefix, int32_t at)
{
  assert(prefix->nodes[at].n_held > 0);
  prefix->nodes[at].n_held--;
  remove_unused(prefix, at);
}

int32_t kg_prefix_page(const kg_prefix *prefix, int32_t at, int32_t group) { return prefix->nodes[at].pages[group]; }

void kg_prefix_set_page(kg_prefix *prefix, int32_t at, int32_t group, int32_t page)
{
  node *e = &prefix->nodes[at];
  assert(e->is_known && e->pages[group] == KG_NO_PAGE);
  e->pages[group] = page;
  e->n_pages++;
}

void kg_prefix_clear_page(kg_prefix *prefix, int32_t at, int32_t group)
{
  node *e = &prefix->nodes[at];
  assert(e->pages[group] != KG_NO_PAGE);
  e->pages[group] = KG_NO_PAGE;
  if (!--e->n_pages) drop_state(prefix, e);
  remove_unused(prefix, at);
}

int32_t kg_prefix_state(const kg_prefix *prefix, int32_t at) { return prefix->nodes[at].state; }

void kg_prefix_set_state(kg_prefix *prefix, int32_t at, int32_t slot)
{
  node *e = &prefix->nodes[at];
  assert(e->is_known && e->n_pages && e->state == KG_NONE);
  kg_states_ref(prefix->states, slot);
  e->state = slot;
  prefix->n_states++;
}

int32_t kg_prefix_state_count(const kg_prefix *prefix) { return prefix->n_states; }

void kg_prefix_forget(kg_prefix *prefix)
{
  for (size_t i = 0; i < prefix->n_buckets; i++) prefix->buckets[i] = KG_NO_NODE;
  prefix->child = KG_NO_NODE;
  for (size_t i = 0; i < prefix->n_nodes; i++) {
    node *e = &prefix->nodes[i];
    if (!e->is_known) continue;
    e->is_known = false;
    e->n_pages = 0;
    drop_state(prefix, e);
    e->child = KG_NO_NODE;
    remove_unused(prefix, (int32_t)i);
  }
}
