#include "kv.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

struct kg_kv {
  const kg_backend *backend;
  kg_executable *exe;
  int32_t *refs;      /* [n_pages] tables that hold the page; 0: it is on the free list */
  int32_t *free_list; /* [n_pages] a stack, so that giving pages back needs no memory */
  int32_t n_pages;    /* that exist in the backend */
  int32_t n_free;
  int32_t max_pages;
};

enum { FIRST_PAGES = 4 };

int kg_kv_new(const kg_backend *backend, kg_executable *exe, int32_t max_pages, kg_kv **out, kg_error *err)
{
  kg_kv *kv = kg_alloc_array(1, sizeof *kv);
  if (!kv) return kg_fail_memory(err, sizeof *kv, "the page pool");
  kv->backend = backend;
  kv->exe = exe;
  kv->max_pages = max_pages;
  *out = kv;
  return KG_OK;
}

void kg_kv_free(kg_kv *kv)
{
  if (!kv) return;
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
  if (!resize(&kv->refs, n_pages) || !resize(&kv->free_list, n_pages))
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

/* Have at least `wanted` free pages: grow by half, or by what is needed where memory is short. */
static int provide(kg_kv *kv, int32_t wanted, kg_error *err)
{
  if (wanted <= kv->n_free) return KG_OK;
  const int32_t used = kv->n_pages - kv->n_free;
  if (wanted > kv->max_pages - used)
    return kg_fail(err, KG_ERR_FULL,
                   "the key/value pool is full: %d pages of %d positions are used, %d more wanted, the limit is %d",
                   used, KG_PAGE, wanted, kv->max_pages);
  const int32_t need = used + wanted;
  int64_t amortized = (int64_t)kv->n_pages + kv->n_pages / 2;
  if (amortized < FIRST_PAGES) amortized = FIRST_PAGES;
  if (amortized > kv->max_pages) amortized = kv->max_pages;
  if (amortized > need && !grow_to(kv, (int32_t)amortized, NULL)) return KG_OK;
  return grow_to(kv, need, err);
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
  if (!--kv->refs[page]) kv->free_list[kv->n_free++] = page;
}

/* ---- tables ---- */

static int grow_table(kg_page_table *table, size_t n, kg_error *err)
{
  if (kg_grow((void **)&table->ids, &table->capacity, n, sizeof *table->ids)) return KG_OK;
  return kg_fail_memory(err, n * sizeof *table->ids, "a page table");
}

int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err)
{
  const size_t wanted = (size_t)pages_for(n_positions), first = (size_t)(from / KG_PAGE);
  const int32_t kept = from % KG_PAGE; /* positions of page `first` that stay */
  size_t n_new = wanted > table->n ? wanted - table->n : 0;
  for (size_t i = first; i < table->n && i < wanted; i++) n_new += kv->refs[table->ids[i]] > 1;
  if (!n_new) return KG_OK;

  int status = grow_table(table, wanted, err);
  if (!status) status = provide(kv, (int32_t)n_new, err);
  if (status) return status;
  /* Only the first page can hold positions that stay: its copy goes to the page that is taken first below. */
  if (kept && first < table->n && kv->refs[table->ids[first]] > 1)
    status = kv->backend->kv_copy(kv->exe, kv->free_list[kv->n_free - 1], table->ids[first], kept, err);
  if (status) return status;

  for (size_t i = first; i < table->n && i < wanted; i++) {
    if (kv->refs[table->ids[i]] == 1) continue;
    drop_page(kv, table->ids[i]); /* stays above zero: somebody else holds it */
    table->ids[i] = take_page(kv);
  }
  while (table->n < wanted) table->ids[table->n++] = take_page(kv);
  return KG_OK;
}

void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions)
{
  const size_t kept = (size_t)pages_for(n_positions);
  while (table->n > kept) drop_page(kv, table->ids[--table->n]);
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
  for (size_t i = 0; i < n; i++) kv->refs[copy->ids[i]]++;
  return KG_OK;
}

void kg_kv_release(kg_kv *kv, kg_page_table *table)
{
  kg_kv_truncate(kv, table, 0);
  kg_free(table->ids);
  *table = (kg_page_table){0};
}

int32_t kg_kv_page_count(const kg_kv *kv)
{
  return kv->n_pages;
}

int32_t kg_kv_pages_used(const kg_kv *kv)
{
  return kv->n_pages - kv->n_free;
}

int32_t kg_kv_page_limit(const kg_kv *kv)
{
  return kv->max_pages;
}
