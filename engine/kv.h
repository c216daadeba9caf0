/* kv.h - page tables and reference counts of the paged key/value cache. The backend holds the pages' memory; this
 * module decides who may use which page. A page is KG_PAGE positions of all layers. Forks share pages; a shared page
 * is copied before somebody writes to it.
 * The prefix cache (prefix.h): whole pages whose rows are what their ids make of them, and nothing else, can be
 * published. Tables that need the same ids at the same positions share them; a page that no table holds any more rests,
 * keeps its rows and is used for something else when pages are wanted, the one that was left longest ago first. A
 * published page is never written to. Pages are not cleared: nobody reads a row of a page but behind ids that equal
 * those it was written for, as a table's rows are its own, a fork's, or found by ids. */
#ifndef KG_KV_H
#define KG_KV_H

#include "backend.h"

typedef struct kg_kv kg_kv;

/* The pages of one sequence, in position order; zero-initialise. */
typedef struct kg_page_table {
  int32_t *ids;
  size_t n, capacity;
  size_t n_published; /* leading pages that the prefix cache knows */
  int64_t epoch;      /* of the cache when the first page came */
} kg_page_table;

/* max_kept: pages for whose sake the pool grows although only the prefix cache holds them; -1: no such cache. */
int kg_kv_new(const kg_backend *backend, kg_executable *exe, int32_t max_pages, int32_t max_kept, kg_kv **out,
              kg_error *err);
void kg_kv_free(kg_kv *kv);

/* Make the table cover positions [0, n_positions) with all pages from the one holding `from` on writable by this
 * table alone. KG_ERR_FULL (pages used, wanted, limit) or KG_ERR_MEMORY: nothing has changed. */
int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err);
/* Give back the pages beyond n_positions. */
void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions);
/* A second table on the pages of the first `n_positions`. On failure *copy is empty. */
int kg_kv_share(kg_kv *kv, const kg_page_table *table, int32_t n_positions, kg_page_table *copy, kg_error *err);
void kg_kv_release(kg_kv *kv, kg_page_table *table); /* all pages and the table itself */

/* ---- the prefix cache ---- */

/* The table's rows [0, n_positions) are those of the ids: let others find its whole pages. Where the cache knows such a
 * page already, it takes the place of the table's own. */
void kg_kv_publish(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions);
/* Find pages for ids [n_positions, n) of a table that covers n_positions and all of whose rows are those of its ids.
 * The positions that it covers then; the last of them may be in the middle of a page. */
int32_t kg_kv_reuse(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions, int32_t n);
/* The weights have changed: rows that are there now are published to nobody any more. */
void kg_kv_forget(kg_kv *kv);

int32_t kg_kv_page_count(const kg_kv *kv); /* that exist in the backend */
int32_t kg_kv_pages_used(const kg_kv *kv); /* that tables hold */
int32_t kg_kv_pages_kept(const kg_kv *kv); /* that only the prefix cache holds: as good as free */
int32_t kg_kv_page_limit(const kg_kv *kv); /* that may ever exist */

#endif
