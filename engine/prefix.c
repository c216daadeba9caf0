#include "prefix.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "checksum.h"

enum { LIKE_MOST = 256 }; /* children that are looked at for a common beginning, the newest first */

/* What is known of a page. Links are pages, KG_NO_PAGE at the ends. */
typedef struct entry {
  bool is_known, rests;
  int32_t parent, child;       /* its newest child */
  int32_t newer, older;        /* children of the same parent */
  int32_t next;                /* in the bucket */
  int32_t earlier, later;      /* in line, while it rests */
  uint64_t hash;
  int32_t ids[KG_PAGE];
} entry;

struct kg_prefix {
  entry *entries;              /* [n_pages] */
  size_t n_pages;
  int32_t *buckets;            /* [n_buckets] first page of each */
  size_t n_buckets;            /* a power of two, or 0 */
  int32_t child;               /* newest page that starts a prefix */
  int32_t first, last;         /* of the line */
  int32_t n_resting;
};

kg_prefix *kg_prefix_new(void)
{
  kg_prefix *prefix = kg_alloc_array(1, sizeof *prefix);
  if (prefix) prefix->child = prefix->first = prefix->last = KG_NO_PAGE;
  return prefix;
}

void kg_prefix_free(kg_prefix *prefix)
{
  if (!prefix) return;
  kg_free(prefix->entries);
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

static void enter(kg_prefix *prefix, int32_t page)
{
  int32_t *bucket = bucket_of(prefix, prefix->entries[page].hash);
  prefix->entries[page].next = *bucket;
  *bucket = page;
}

static bool grow_buckets(kg_prefix *prefix, size_t n_pages)
{
  size_t n = prefix->n_buckets ? prefix->n_buckets : 16;
  while (n < n_pages) n *= 2;
  if (n == prefix->n_buckets) return true;
  int32_t *buckets = kg_alloc_array(n, sizeof *buckets);
  if (!buckets) return false;
  for (size_t i = 0; i < n; i++) buckets[i] = KG_NO_PAGE;
  kg_free(prefix->buckets);
  prefix->buckets = buckets;
  prefix->n_buckets = n;
  for (size_t page = 0; page < prefix->n_pages; page++)
    if (prefix->entries[page].is_known) enter(prefix, (int32_t)page);
  return true;
}

bool kg_prefix_grow(kg_prefix *prefix, int32_t n_pages)
{
  const size_t n = (size_t)n_pages;
  if (n <= prefix->n_pages) return true;
  if (!grow_buckets(prefix, n)) return false;
  entry *entries = kg_realloc_array(prefix->entries, n, sizeof *entries);
  if (!entries) return false;
  for (size_t page = prefix->n_pages; page < n; page++) entries[page].is_known = entries[page].rests = false;
  prefix->entries = entries;
  prefix->n_pages = n;
  return true;
}

/* ---- the tree ---- */

static int32_t *children_of(kg_prefix *prefix, int32_t parent)
{
  return parent == KG_NO_PAGE ? &prefix->child : &prefix->entries[parent].child;
}

static int32_t newest_child(const kg_prefix *prefix, int32_t parent)
{
  return parent == KG_NO_PAGE ? prefix->child : prefix->entries[parent].child;
}

bool kg_prefix_knows(const kg_prefix *prefix, int32_t page)
{
  return prefix->entries[page].is_known;
}

bool kg_prefix_has_children(const kg_prefix *prefix, int32_t page)
{
  return prefix->entries[page].child != KG_NO_PAGE;
}

int32_t kg_prefix_find(const kg_prefix *prefix, int32_t parent, const int32_t *ids)
{
  if (!prefix->n_buckets) return KG_NO_PAGE;
  const uint64_t hash = hash_of(parent, ids);
  int32_t page = *bucket_of(prefix, hash);
  for (; page != KG_NO_PAGE; page = prefix->entries[page].next) {
    const entry *e = &prefix->entries[page];
    if (e->hash == hash && e->parent == parent && !memcmp(e->ids, ids, sizeof e->ids)) break;
  }
  return page;
}

int32_t kg_prefix_find_like(const kg_prefix *prefix, int32_t parent, const int32_t *ids, int32_t n, int32_t *n_common)
{
  int32_t best = KG_NO_PAGE, page = newest_child(prefix, parent);
  *n_common = 0;
  if (n > KG_PAGE) n = KG_PAGE;
  for (int seen = 0; page != KG_NO_PAGE && seen < LIKE_MOST && *n_common < n; seen++) {
    const entry *e = &prefix->entries[page];
    int32_t same = 0;
    while (same < n && e->ids[same] == ids[same]) same++;
    if (same > *n_common) {
      best = page;
      *n_common = same;
    }
    page = e->older;
  }
  return best;
}

void kg_prefix_add(kg_prefix *prefix, int32_t page, int32_t parent, const int32_t *ids)
{
  entry *e = &prefix->entries[page];
  int32_t *children = children_of(prefix, parent);
  assert(!e->is_known);
  e->is_known = true;
  e->rests = false;
  e->parent = parent;
  e->child = KG_NO_PAGE;
  e->newer = KG_NO_PAGE;
  e->older = *children;
  if (*children != KG_NO_PAGE) prefix->entries[*children].newer = page;
  *children = page;
  e->hash = hash_of(parent, ids);
  memcpy(e->ids, ids, sizeof e->ids);
  enter(prefix, page);
}

void kg_prefix_remove(kg_prefix *prefix, int32_t page)
{
  entry *e = &prefix->entries[page];
  assert(e->is_known && e->child == KG_NO_PAGE);
  if (e->rests) kg_prefix_wake(prefix, page);
  if (e->newer != KG_NO_PAGE)
    prefix->entries[e->newer].older = e->older;
  else
    *children_of(prefix, e->parent) = e->older;
  if (e->older != KG_NO_PAGE) prefix->entries[e->older].newer = e->newer;
  int32_t *link = bucket_of(prefix, e->hash);
  while (*link != page) link = &prefix->entries[*link].next;
  *link = e->next;
  e->is_known = false;
}

/* ---- the line ---- */

void kg_prefix_rest(kg_prefix *prefix, int32_t page)
{
  entry *e = &prefix->entries[page];
  e->rests = true;
  e->earlier = prefix->last;
  e->later = KG_NO_PAGE;
  if (prefix->last != KG_NO_PAGE)
    prefix->entries[prefix->last].later = page;
  else
    prefix->first = page;
  prefix->last = page;
  prefix->n_resting++;
}

void kg_prefix_wake(kg_prefix *prefix, int32_t page)
{
  entry *e = &prefix->entries[page];
  if (e->earlier != KG_NO_PAGE)
    prefix->entries[e->earlier].later = e->later;
  else
    prefix->first = e->later;
  if (e->later != KG_NO_PAGE)
    prefix->entries[e->later].earlier = e->earlier;
  else
    prefix->last = e->earlier;
  e->rests = false;
  prefix->n_resting--;
}

int32_t kg_prefix_oldest(const kg_prefix *prefix)
{
  return prefix->first;
}

int32_t kg_prefix_resting(const kg_prefix *prefix)
{
  return prefix->n_resting;
}
