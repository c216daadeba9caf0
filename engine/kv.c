#include "kv.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "prefix.h"

struct kg_kv {
  const kg_backend *backend;
  kg_executable *exe;
  kg_prefix *prefix;  /* NULL: no prefix cache */
  int64_t epoch;      /* how often the weights have changed */
  int32_t max_kept;
  int32_t *refs;      /* [n_pages] tables that hold the page; 0: it is on the free list, or rests in the prefix cache */
  int32_t *free_list; /* [n_pages] a stack, so that giving pages back needs no memory */
  int32_t n_pages;    /* that exist in the backend */
  int32_t n_free;
  int32_t max_pages;
};

enum { FIRST_PAGES = 4 };

int kg_kv_new(const kg_backend *backend, kg_executable *exe, int32_t max_pages, int32_t max_kept, kg_kv **out,
              kg_error *err)
{
  kg_kv *kv = kg_alloc_array(1, sizeof *kv);
  if (!kv) return kg_fail_memory(err, sizeof *kv, "the page pool");
  if (max_kept >= 0 && !(kv->prefix = kg_prefix_new())) {
    kg_free(kv);
    return kg_fail_memory(err, sizeof *kv, "the prefix cache");
  }
  kv->max_kept = max_kept > 0 ? max_kept : 0;
  kv->backend = backend;
  kv->exe = exe;
  kv->max_pages = max_pages;
  *out = kv;
  return KG_OK;
}

void kg_kv_free(kg_kv *kv)
{
  if (!kv) return;
  kg_prefix_free(kv->prefix);
  kg_free(kv->refs);
  kg_free(kv->free_list);
  kg_free(kv);
}

static int32_t pages_for(int32_t n_positions)
{
  return n_positions / KG_PAGE + (n_positions % KG_PAGE != 0);
}

/* ---- the pool ---- */

static bool resize(int32_t **items, int32_t n)
{
  int32_t *grown = kg_realloc_array(*items, (size_t)n, sizeof **items);
  if (!grown) return false;
  *items = grown;
  return true;
}

/* Make pages [0, n_pages) exist. The arrays may be larger than the pool after a failure, which nobody sees. */
static int grow_to(kg_kv *kv, int32_t n_pages, kg_error *err)
{
  if (!resize(&kv->refs, n_pages) || !resize(&kv->free_list, n_pages) ||
      (kv->prefix && !kg_prefix_grow(kv->prefix, n_pages)))
    return kg_fail_memory(err, (size_t)n_pages * sizeof *kv->refs, "the page pool");
  const int status = kv->backend->kv_reserve(kv->exe, n_pages, err);
  if (status) return status;
  for (int32_t page = n_pages - 1; page >= kv->n_pages; page--) { /* low pages are handed out first */
    kv->refs[page] = 0;
    kv->free_list[kv->n_free++] = page;
  }
  kv->n_pages = n_pages;
  return KG_OK;
}

static bool is_published(const kg_kv *kv, int32_t page)
{
  return kv->prefix && kg_prefix_knows(kv->prefix, page);
}

/* Forget the page that has rested longest. */
static void evict(kg_kv *kv)
{
  const int32_t page = kg_prefix_oldest(kv->prefix);
  kg_prefix_remove(kv->prefix, page);
  kv->free_list[kv->n_free++] = page;
}

/* Make `n` more pages exist: half of what there are where memory allows, or just these. */
static int grow_by(kg_kv *kv, int32_t n, kg_error *err)
{
  const int32_t need = kv->n_pages + n;
  int64_t amortized = (int64_t)kv->n_pages + kv->n_pages / 2;
  if (amortized < FIRST_PAGES) amortized = FIRST_PAGES;
  if (amortized > kv->max_pages) amortized = kv->max_pages;
  if (amortized > need && !grow_to(kv, (int32_t)amortized, NULL)) return KG_OK;
  return grow_to(kv, need, err);
}

/* Have at least `wanted` free pages: those that rest beyond the cache's share first, then new ones, then all that
 * rest. On failure there are as many as before, free or resting. */
static int provide(kg_kv *kv, int32_t wanted, kg_error *err)
{
  const int32_t used = kg_kv_pages_used(kv);
  if (wanted > kv->max_pages - used)
    return kg_fail(err, KG_ERR_FULL,
                   "the key/value pool is full: %d pages of %d positions are used, %d more wanted, the limit is %d",
                   used, KG_PAGE, wanted, kv->max_pages);
  while (wanted > kv->n_free && kg_kv_pages_kept(kv) > kv->max_kept) evict(kv);
  if (wanted <= kv->n_free) return KG_OK;
  const int32_t missing = wanted - kv->n_free, room = kv->max_pages - kv->n_pages;
  const int status = room ? grow_by(kv, missing < room ? missing : room, err) : KG_OK;
  if (status && kg_kv_pages_kept(kv) < missing) return status;
  while (wanted > kv->n_free) evict(kv);
  return KG_OK;
}

static int32_t take_page(kg_kv *kv)
{
  const int32_t page = kv->free_list[--kv->n_free];
  kv->refs[page] = 1;
  return page;
}

static void drop_page(kg_kv *kv, int32_t page)
{
  assert(kv->refs[page] > 0);
  if (--kv->refs[page]) return;
  if (is_published(kv, page))
    kg_prefix_rest(kv->prefix, page);
  else
    kv->free_list[kv->n_free++] = page;
}

/* One more table holds this published page. */
static void hold_page(kg_kv *kv, int32_t page)
{
  if (!kv->refs[page]++) kg_prefix_wake(kv->prefix, page);
}

/* Take a page out of the cache that only one table holds, and whose children that table does not hold: they rest. */
static void unpublish(kg_kv *kv, int32_t page)
{
  while (kg_prefix_has_children(kv->prefix, page)) evict(kv);
  kg_prefix_remove(kv->prefix, page);
}

/* ---- tables ---- */

static int grow_table(kg_page_table *table, size_t n, kg_error *err)
{
  if (kg_grow((void **)&table->ids, &table->capacity, n, sizeof *table->ids)) return KG_OK;
  return kg_fail_memory(err, n * sizeof *table->ids, "a page table");
}

/* Does a table that holds the page need another one to write to? */
static bool is_shared(const kg_kv *kv, int32_t page)
{
  return kv->refs[page] > 1 || is_published(kv, page);
}

/* Pages [first, end) of the table that nobody else holds become private again. */
static void take_back(kg_kv *kv, const kg_page_table *table, size_t first, size_t end)
{
  for (size_t i = end; i > first; i--)
    if (kv->refs[table->ids[i - 1]] == 1 && is_published(kv, table->ids[i - 1])) unpublish(kv, table->ids[i - 1]);
}

int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err)
{
  const size_t wanted = (size_t)pages_for(n_positions), first = (size_t)(from / KG_PAGE);
  const int32_t kept = from % KG_PAGE; /* positions of page `first` that stay */
  const size_t end = wanted < table->n ? wanted : table->n;
  size_t n_new = wanted - end, n_public = 0; /* published, and nobody else holds it */
  for (size_t i = first; i < end; i++) {
    n_new += is_shared(kv, table->ids[i]);
    n_public += is_shared(kv, table->ids[i]) && kv->refs[table->ids[i]] == 1;
  }
  if (!n_new) return KG_OK;

  int status = grow_table(table, wanted, err);
  if (status) return status;
  status = provide(kv, (int32_t)n_new, n_public ? NULL : err);
  if (status && n_public) { /* no room for copies */
    status = provide(kv, (int32_t)(n_new - n_public), err);
    if (!status) take_back(kv, table, first, end);
  }
  if (status) return status;
  /* Only the first page can hold positions that stay: its copy goes to the page that is taken first below. */
  if (kept && first < end && is_shared(kv, table->ids[first]))
    status = kv->backend->kv_copy(kv->exe, kv->free_list[kv->n_free - 1], table->ids[first], kept, err);
  if (table->n_published > first) table->n_published = first;
  if (status) return status;

  if (!table->n) table->epoch = kv->epoch;
  for (size_t i = first; i < end; i++) {
    const int32_t page = table->ids[i];
    if (!is_shared(kv, page)) continue;
    table->ids[i] = take_page(kv);
    drop_page(kv, page); /* others hold it, or it rests */
  }
  while (table->n < wanted) table->ids[table->n++] = take_page(kv);
  return KG_OK;
}

void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions)
{
  const size_t kept = (size_t)pages_for(n_positions);
  while (table->n > kept) drop_page(kv, table->ids[--table->n]);
  if (table->n_published > table->n) table->n_published = table->n;
}

int kg_kv_share(kg_kv *kv, const kg_page_table *table, int32_t n_positions, kg_page_table *copy, kg_error *err)
{
  const size_t n = (size_t)pages_for(n_positions);
  assert(n <= table->n);
  *copy = (kg_page_table){0};
  if (!n) return KG_OK;
  const int status = grow_table(copy, n, err);
  if (status) return status;
  memcpy(copy->ids, table->ids, n * sizeof *copy->ids);
  copy->n = n;
  copy->n_published = table->n_published < n ? table->n_published : n;
  copy->epoch = table->epoch;
  for (size_t i = 0; i < n; i++) kv->refs[copy->ids[i]]++;
  return KG_OK;
}

void kg_kv_release(kg_kv *kv, kg_page_table *table)
{
  kg_kv_truncate(kv, table, 0);
  kg_free(table->ids);
  *table = (kg_page_table){0};
}

/* ---- the prefix cache ---- */

static bool takes_part(const kg_kv *kv, const kg_page_table *table)
{
  return kv->prefix && (!table->n || table->epoch == kv->epoch);
}

/* The page before number i of the table. */
static int32_t parent_of(const kg_page_table *table, size_t i)
{
  return i ? table->ids[i - 1] : KG_NO_PAGE;
}

void kg_kv_publish(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions)
{
  if (!takes_part(kv, table)) return;
  for (size_t i = table->n_published; i < (size_t)(n_positions / KG_PAGE); i++) {
    const int32_t page = table->ids[i], parent = parent_of(table, i), *own = ids + i * KG_PAGE;
    if (kv->refs[page] > 1 || is_published(kv, page)) return; /* then it is not written by this table alone */
    const int32_t known = kg_prefix_find(kv->prefix, parent, own);
    if (known == KG_NO_PAGE)
      kg_prefix_add(kv->prefix, page, parent, own);
    else {
      hold_page(kv, known);
      table->ids[i] = known;
      drop_page(kv, page);
    }
    table->n_published = i + 1;
  }
}

/* Have the table hold this published page as its number i, which is its last one or the next. */
static bool put(kg_kv *kv, kg_page_table *table, size_t i, int32_t page)
{
  if (grow_table(table, i + 1, NULL)) return false;
  hold_page(kv, page);
  if (!table->n) table->epoch = kv->epoch;
  if (i < table->n)
    drop_page(kv, table->ids[i]);
  else
    table->n = i + 1;
  table->ids[i] = page;
  return true;
}

int32_t kg_kv_reuse(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions, int32_t n)
{
  size_t i = (size_t)(n_positions / KG_PAGE);
  if (!takes_part(kv, table) || i > table->n_published) return n_positions;
  for (; (i + 1) * KG_PAGE <= (size_t)n; i++) {
    const int32_t page = kg_prefix_find(kv->prefix, parent_of(table, i), ids + i * KG_PAGE);
    if (page == KG_NO_PAGE) break;
    if (!put(kv, table, i, page)) return n_positions;
    if (table->n_published < i + 1) table->n_published = i + 1;
    n_positions = (int32_t)((i + 1) * KG_PAGE);
  }
  const int32_t start = (int32_t)(i * KG_PAGE);
  int32_t n_common;
  const int32_t like = kg_prefix_find_like(kv->prefix, parent_of(table, i), ids + start, n - start, &n_common);
  if (like == KG_NO_PAGE || start + n_common <= n_positions) return n_positions;
  /* Its other rows are never read: whoever writes behind these gets a copy of these. */
  return put(kv, table, i, like) ? start + n_common : n_positions;
}

void kg_kv_forget(kg_kv *kv)
{
  kv->epoch++;
  if (!kv->prefix) return;
  while (kg_kv_pages_kept(kv)) evict(kv);
  /* What is left is held by tables, each with all parents: page by page, those without children first. */
  for (bool is_done = false; !is_done;) {
    is_done = true;
    for (int32_t page = 0; page < kv->n_pages; page++)
      if (is_published(kv, page) && !kg_prefix_has_children(kv->prefix, page)) {
        kg_prefix_remove(kv->prefix, page);
        is_done = false;
      }
  }
}

int32_t kg_kv_page_count(const kg_kv *kv)
{
  return kv->n_pages;
}

int32_t kg_kv_pages_used(const kg_kv *kv)
{
  return kv->n_pages - kv->n_free - kg_kv_pages_kept(kv);
}

int32_t kg_kv_pages_kept(const kg_kv *kv)
{
  return kv->prefix ? kg_prefix_resting(kv->prefix) : 0;
}

int32_t kg_kv_page_limit(const kg_kv *kv)
{
  return kv->max_pages;
}
