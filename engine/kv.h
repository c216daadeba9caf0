/* kv.h - page tables and reference counts of the paged key/value cache. The backend holds the pages' memory; this
 * module decides who may use which page. A page is KG_PAGE positions of all layers. Forks share pages; a shared page
 * is copied before somebody writes to it. */
#ifndef KG_KV_H
#define KG_KV_H

#include "backend.h"

typedef struct kg_kv kg_kv;

/* The pages of one sequence, in position order; zero-initialise. */
typedef struct kg_page_table {
  int32_t *ids;
  size_t n, capacity;
} kg_page_table;

int kg_kv_new(const kg_backend *backend, kg_executable *exe, int32_t max_pages, kg_kv **out, kg_error *err);
void kg_kv_free(kg_kv *kv);

/* Make the table cover positions [0, n_positions) with all pages from the one holding `from` on writable by this
 * table alone. KG_ERR_FULL (pages used, wanted, limit) or KG_ERR_MEMORY: nothing has changed. */
int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err);
/* Give back the pages beyond n_positions. */
void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions);
/* A second table on the pages of the first `n_positions`. On failure *copy is empty. */
int kg_kv_share(kg_kv *kv, const kg_page_table *table, int32_t n_positions, kg_page_table *copy, kg_error *err);
void kg_kv_release(kg_kv *kv, kg_page_table *table); /* all pages and the table itself */

int32_t kg_kv_page_count(const kg_kv *kv); /* that exist in the backend */
int32_t kg_kv_pages_used(const kg_kv *kv);
int32_t kg_kv_page_limit(const kg_kv *kv); /* that may ever exist */

#endif
