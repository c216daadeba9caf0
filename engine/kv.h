/* kv.h - page tables and reference counts of the paged key/value cache. The backend holds the pages' memory; this
 * module decides who may use which page. A page is KG_PAGE positions of all layers of a page group (plan.h): each group
 * has a pool of its own. Forks share pages; a shared page is copied before somebody writes to it.
 *
 * Windows: where no row of a group sees everything, a table lets pages go that no later row sees (kg_kv_forget_unseen).
 * It keeps some more: KG_KV_SLACK positions, so that going back a little computes nothing again, what the caller wants
 * to come back to, and fewer and fewer places before that, so that going back far does not compute everything again.
 * From a position whose pages are gone nothing can be computed: kg_kv_resume_point says where one can begin.
 *
 * The prefix cache (prefix.h): whole pages whose rows are what their ids make of them, and nothing else, can be
 * published. Tables that need the same ids at the same positions share them; a page that no table holds any more
 * rests, keeps its rows and is used for something else when pages are wanted, the one that was left longest ago
 * first. Of those that were let go because they were out of sight just the latest rest. A published page is never
 * written to. Pages are not cleared: nobody reads a row of a page but behind ids that equal those it was written
 * for, as a table's rows are its own, a fork's, or found by ids. What else rows depend on stands before the ids in
 * the tree, as nodes without pages. */
#ifndef KG_KV_H
#define KG_KV_H

#include "state.h"

typedef struct kg_kv kg_kv;

enum { KG_KV_SLACK = 2 * KG_PAGE };

/* The pages of one sequence, in position order; zero-initialise. */
typedef struct kg_page_table {
  int32_t *ids[KG_PAGE_GROUPS]; /* [n] by group; KG_NONE: let go, or never had. Never so where rows see everything */
  size_t capacity[KG_PAGE_GROUPS];
  size_t n;
  size_t n_seen[KG_PAGE_GROUPS];  /* of those before, nothing is left to let go */
  int64_t n_gaps[KG_PAGE_GROUPS]; /* when they were looked at; see kv.c */
  int32_t *nodes;     /* [n_published] of the prefix cache: each is held */
  size_t n_published; /* leading pages that the prefix cache knows */
  size_t nodes_capacity;
  bool has_origin;
  int32_t origin;     /* then the node that those of the ids stand behind: held */
  int64_t epoch;      /* of the cache when the first page came */
} kg_page_table;

/* What must stay when the rest goes: everything to go on from any position that is not before `from`, and from each of
 * the points (in two lists) and the position before it. */
typedef struct kg_kv_wanted {
  int32_t from;
  const int32_t *points[2];
  size_t n_points[2];
} kg_kv_wanted;

/* Pages of a group. */
typedef struct kg_kv_stats {
  int32_t window;     /* positions that a row sees; 0: all before it */
  int32_t n_pages;    /* that exist in the backend */
  int32_t n_used;     /* that tables hold */
  int32_t n_kept;     /* that only the prefix cache holds: as good as free */
  size_t page_bytes;
} kg_kv_stats;

/* states: the model's, or NULL. max_pages: of each group. max_kept: pages of a group for whose sake its pool grows
 * although only the prefix cache holds them; -1: no such cache. */
int kg_kv_new(const kg_plan *plan, const kg_backend *backend, kg_executable *exe, kg_state_pool *states,
              int32_t max_pages, int32_t max_kept, kg_kv **out, kg_error *err);
void kg_kv_free(kg_kv *kv);

/* Make the table cover positions [0, n_positions) with all pages from the one holding `from`, a resume point, on
 * writable by this table alone. KG_ERR_FULL (pages used, wanted, limit) or KG_ERR_MEMORY: nothing has changed. */
int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err);
/* Give back the pages beyond n_positions. */
void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions);
/* A second table on the pages of the first `n_positions`. On failure *copy is empty. */
int kg_kv_share(kg_kv *kv, const kg_page_table *table, int32_t n_positions, kg_page_table *copy, kg_error *err);
void kg_kv_release(kg_kv *kv, kg_page_table *table); /* all pages and the table itself */

/* ---- windows ---- */

/* The largest position <= pos such that all pages are there that rows from it on see before it. The table covers
 * pos. */
int32_t kg_kv_resume_point(const kg_kv *kv, const kg_page_table *table, int32_t pos);
/* Let go of pages that no row sees and that are not wanted. `is_less`: points were wanted last time that are not
 * now. */
void kg_kv_forget_unseen(kg_kv *kv, kg_page_table *table, const kg_kv_wanted *wanted, bool is_less);
/* The first of the positions [*from, n_positions) of a group that the table holds, to *from, and behind the last one
 * that follows without a gap. Returns *from where there are no more. */
int32_t kg_kv_held(const kg_page_table *table, int32_t group, int32_t n_positions, int32_t *from);
/* Pages that the table holds, of the first group. */
int32_t kg_kv_count_held(const kg_page_table *table);

/* A stretch of positions that are there, for kg_kv_restore. */
typedef struct kg_kv_range {
  int32_t group, from, end;
} kg_kv_range;

/* Have an empty table cover [0, n_positions): with pages of its own for positions that lie in a range as a whole
 * page (of the last page: what there is of it). The ranges are in order of groups and positions and do not touch. On
 * failure the table is empty. */
int kg_kv_restore(kg_kv *kv, kg_page_table *table, int32_t n_positions, const kg_kv_range *ranges, size_t n_ranges,
                  kg_error *err);

/* ---- the prefix cache ---- */

/* The table's rows are what its ids make of them under these words: adapters, say. Only tables with the same words
 * find each other's pages. To be called before kg_kv_publish and kg_kv_reuse; other words than before only when the
 * table is empty. False: no memory, and neither of these may be called. */
bool kg_kv_originate(kg_kv *kv, kg_page_table *table, const int32_t *words, size_t n);
/* The table's rows [0, n_positions) are those of the ids: let others find its whole pages, and the states behind these.
 * Where the cache knows such a page already, it takes the place of the table's own. */
void kg_kv_publish(kg_kv *kv, kg_page_table *table, const kg_snapshots *snapshots, const int32_t *ids,
                   int32_t n_positions);
/* Find pages for ids [n_positions, n) of a table that covers n_positions and all of whose rows are those of its ids.
 * The resume point that it covers then; it may be in the middle of a page. *n_known: ids that the cache knows, from the
 * first one on: if they are more, pages that rows behind them see were let go. Both are n - 1 at most. */
int32_t kg_kv_reuse(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions, int32_t n,
                    int32_t *n_known);
/* The slot of the state that comes with a position that was found, held by the cache; KG_NONE: there are no states. */
int32_t kg_kv_state(const kg_kv *kv, const kg_page_table *table, int32_t pos);
int32_t kg_kv_state_count(const kg_kv *kv); /* that the cache holds */
/* The weights have changed: rows that are there now are published to nobody any more. */
void kg_kv_forget(kg_kv *kv);

int32_t kg_kv_group_count(const kg_kv *kv);
void kg_kv_get_stats(const kg_kv *kv, int32_t group, kg_kv_stats *out);
int32_t kg_kv_page_limit(const kg_kv *kv); /* pages of a group that may ever exist */

#endif
