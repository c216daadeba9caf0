#include "kv.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "prefix.h"

/* Pages that rest, in the order in which they were left; links are pages. */
typedef struct line {
  int32_t first, last, n;
} line;

typedef struct page {
  int32_t refs;           /* tables that hold it; 0: it is on the free list, or rests in the prefix cache */
  int32_t node;           /* of the prefix cache: it is published; or KG_NO_NODE */
  int32_t earlier, later; /* in its line, while it rests */
  bool is_unseen;         /* which line */
} page;

/* The pages of a group. */
typedef struct pool {
  int32_t window;     /* 0: none, every row sees all before it. At least 2: a page is there as a whole, or not at all */
  page *pages;        /* [n_pages] */
  int32_t *free_list; /* [n_pages] a stack, so that giving pages back needs no memory */
  int32_t n_pages;    /* that exist in the backend */
  int32_t n_free;
  line left, unseen;  /* that rest: their last table has gone back or away; or let them go, as they are out of sight */
  int32_t max_unseen;
} pool;

struct kg_kv {
  const kg_backend *backend;
  kg_executable *exe;
  kg_prefix *prefix;  /* NULL: no prefix cache */
  bool has_states;    /* nobody can go on where there is none */
  int64_t epoch;      /* how often the weights have changed */
  int32_t max_kept, max_pages;
  int32_t n_groups;
  pool pools[KG_PAGE_GROUPS];
};

enum { FIRST_PAGES = 4,
       MOST_SPARE = 8 /* pages that a pool with a window grows by at a time: it does not go on growing */ };

int kg_kv_new(const kg_plan *plan, const kg_backend *backend, kg_executable *exe, kg_state_pool *states,
              int32_t max_pages, int32_t max_kept, kg_kv **out, kg_error *err)
{
  kg_kv *kv = kg_alloc_array(1, sizeof *kv);
  if (!kv) return kg_fail_memory(err, sizeof *kv, "the page pool");
  if (max_kept >= 0 && !(kv->prefix = kg_prefix_new(states))) {
    kg_free(kv);
    return kg_fail_memory(err, sizeof *kv, "the prefix cache");
  }
  kv->max_kept = max_kept > 0 ? max_kept : 0;
  kv->has_states = states != NULL;
  kv->backend = backend;
  kv->exe = exe;
  kv->max_pages = max_pages;
  kv->n_groups = kg_plan_group_count(plan);
  for (int32_t g = 0; g < kv->n_groups; g++) {
    const int32_t window = kg_plan_group_window(plan, g);
    kv->pools[g] = (pool){.window = window == 1 ? 2 : window,
                          .left = {KG_NO_PAGE, KG_NO_PAGE, 0},
                          .unseen = {KG_NO_PAGE, KG_NO_PAGE, 0},
                          .max_unseen = window / KG_PAGE / 4 + 4};
  }
  *out = kv;
  return KG_OK;
}

void kg_kv_free(kg_kv *kv)
{
  if (!kv) return;
  kg_prefix_free(kv->prefix);
  for (int32_t g = 0; g < kv->n_groups; g++) {
    kg_free(kv->pools[g].pages);
    kg_free(kv->pools[g].free_list);
  }
  kg_free(kv);
}

static int32_t pages_for(int32_t n_positions)
{
  return n_positions / KG_PAGE + (n_positions % KG_PAGE != 0);
}

/* ---- pages that rest ---- */

static int32_t n_resting(const pool *p) { return p->left.n + p->unseen.n; }
static int32_t n_used(const pool *p) { return p->n_pages - p->n_free - n_resting(p); }
static line *line_of(pool *p, int32_t id) { return p->pages[id].is_unseen ? &p->unseen : &p->left; }

static void join_line(pool *p, int32_t id, bool is_unseen)
{
  page *e = &p->pages[id];
  e->is_unseen = is_unseen;
  line *to = line_of(p, id);
  e->earlier = to->last;
  e->later = KG_NO_PAGE;
  if (to->last != KG_NO_PAGE)
    p->pages[to->last].later = id;
  else
    to->first = id;
  to->last = id;
  to->n++;
}

static void leave_line(pool *p, int32_t id)
{
  const page *e = &p->pages[id];
  line *from = line_of(p, id);
  if (e->earlier != KG_NO_PAGE)
    p->pages[e->earlier].later = e->later;
  else
    from->first = e->later;
  if (e->later != KG_NO_PAGE)
    p->pages[e->later].earlier = e->earlier;
  else
    from->last = e->earlier;
  from->n--;
}

/* Take a published page out of the prefix cache. */
static void unpublish(kg_kv *kv, int32_t g, int32_t id)
{
  page *e = &kv->pools[g].pages[id];
  kg_prefix_clear_page(kv->prefix, e->node, g);
  e->node = KG_NO_NODE;
}

/* Forget a page that rests. */
static void forget_page(kg_kv *kv, int32_t g, int32_t id)
{
  pool *p = &kv->pools[g];
  leave_line(p, id);
  unpublish(kv, g, id);
  p->free_list[p->n_free++] = id;
}

/* The same with what else is of no use without it: nobody goes on from a node whose rows of all positions are not
 * there. Whoever holds another page of the node holds this one too. */
static void evict(kg_kv *kv, int32_t g, int32_t id)
{
  const int32_t node = kv->pools[g].pages[id].node;
  for (int32_t other = g + 1; other < kv->n_groups && !kv->pools[g].window; other++) {
    const int32_t of_other = kg_prefix_page(kv->prefix, node, other);
    if (of_other != KG_NO_PAGE) forget_page(kv, other, of_other);
  }
  forget_page(kv, g, id);
}

/* Forget the page that has rested longest; those out of sight first. */
static void evict_oldest(kg_kv *kv, int32_t g)
{
  const pool *p = &kv->pools[g];
  evict(kv, g, p->unseen.n ? p->unseen.first : p->left.first);
}

/* ---- the pools ---- */

/* Make pages [0, n_pages) exist. The arrays may be larger than the pool after a failure, which nobody sees. */
static int grow_to(kg_kv *kv, int32_t g, int32_t n_pages, kg_error *err)
{
  pool *p = &kv->pools[g];
  page *pages = kg_realloc_array(p->pages, (size_t)n_pages, sizeof *pages);
  if (pages) p->pages = pages;
  int32_t *free_list = pages ? kg_realloc_array(p->free_list, (size_t)n_pages, sizeof *free_list) : NULL;
  if (!free_list) return kg_fail_memory(err, (size_t)n_pages * sizeof *pages, "the page pool");
  p->free_list = free_list;
  const int status = kv->backend->kv_reserve(kv->exe, g, n_pages, err);
  if (status) return status;
  for (int32_t id = n_pages - 1; id >= p->n_pages; id--) { /* low pages are handed out first */
    p->pages[id] = (page){.node = KG_NO_NODE};
    p->free_list[p->n_free++] = id;
  }
  p->n_pages = n_pages;
  return KG_OK;
}

/* Make `n` more pages exist: half of what there are where memory allows, or just these. */
static int grow_by(kg_kv *kv, int32_t g, int32_t n, kg_error *err)
{
  const pool *p = &kv->pools[g];
  const int32_t need = p->n_pages + n;
  int64_t amortized = (int64_t)p->n_pages + p->n_pages / 2;
  if (p->window && amortized > (int64_t)need + MOST_SPARE) amortized = (int64_t)need + MOST_SPARE;
  if (amortized < FIRST_PAGES) amortized = FIRST_PAGES;
  if (amortized > kv->max_pages) amortized = kv->max_pages;
  if (amortized > need && !grow_to(kv, g, (int32_t)amortized, NULL)) return KG_OK;
  return grow_to(kv, g, need, err);
}

/* Have at least `wanted` free pages: those that rest beyond the cache's share first, then new ones, then all that
 * rest. On failure there are as many as before, free or resting. */
static int provide(kg_kv *kv, int32_t g, int32_t wanted, kg_error *err)
{
  const pool *p = &kv->pools[g];
  const int32_t used = n_used(p);
  if (wanted > kv->max_pages - used)
    return kg_fail(err, KG_ERR_FULL,
                   "the key/value pool is full: %d pages of %d positions are used, %d more wanted, the limit is %d",
                   used, KG_PAGE, wanted, kv->max_pages);
  while (wanted > p->n_free && n_resting(p) > kv->max_kept) evict_oldest(kv, g);
  if (wanted <= p->n_free) return KG_OK;
  const int32_t missing = wanted - p->n_free, room = kv->max_pages - p->n_pages;
  const int status = room ? grow_by(kv, g, missing < room ? missing : room, err) : KG_OK;
  if (status && n_resting(p) < missing) return status;
  while (wanted > p->n_free) evict_oldest(kv, g);
  return KG_OK;
}

static int32_t take_page(kg_kv *kv, int32_t g)
{
  pool *p = &kv->pools[g];
  const int32_t id = p->free_list[--p->n_free];
  p->pages[id].refs = 1;
  return id;
}

static void drop_page(kg_kv *kv, int32_t g, int32_t id, bool is_unseen)
{
  pool *p = &kv->pools[g];
  assert(p->pages[id].refs > 0);
  if (--p->pages[id].refs) return;
  if (p->pages[id].node == KG_NO_NODE) {
    p->free_list[p->n_free++] = id;
    return;
  }
  join_line(p, id, is_unseen);
  if (p->unseen.n > p->max_unseen) evict(kv, g, p->unseen.first);
}

/* One more table holds this published page. */
static void hold_page(kg_kv *kv, int32_t g, int32_t id)
{
  pool *p = &kv->pools[g];
  if (!p->pages[id].refs++) leave_line(p, id);
}

/* ---- tables ---- */

static int grow_table(const kg_kv *kv, kg_page_table *table, size_t n, kg_error *err)
{
  for (int32_t g = 0; g < kv->n_groups; g++)
    if (!kg_grow((void **)&table->ids[g], &table->capacity[g], n, sizeof *table->ids[g]))
      return kg_fail_memory(err, n * sizeof *table->ids[g], "a page table");
  return KG_OK;
}

static bool grow_nodes(kg_page_table *table, size_t n)
{
  return kg_grow((void **)&table->nodes, &table->nodes_capacity, n, sizeof *table->nodes);
}

/* Does a table that holds the page need another one to write to? */
static bool is_shared(const pool *p, int32_t id) { return p->pages[id].refs > 1 || p->pages[id].node != KG_NO_NODE; }

/* Only the first n pages of the table count as published from now on. */
static void let_nodes_go(kg_kv *kv, kg_page_table *table, size_t n)
{
  while (table->n_published > n) kg_prefix_let_go(kv->prefix, table->nodes[--table->n_published]);
}

/* Pages [first, end) of the table that nobody else holds become private again. Those of rows that see everything take
 * their nodes along, and whatever rests behind these. */
static void take_back(kg_kv *kv, kg_page_table *table, int32_t g, size_t first, size_t end)
{
  pool *p = &kv->pools[g];
  let_nodes_go(kv, table, first);
  for (size_t i = end; i > first; i--) {
    const int32_t id = table->ids[g][i - 1];
    if (id == KG_NO_PAGE || p->pages[id].refs > 1 || p->pages[id].node == KG_NO_NODE) continue;
    const int32_t node = p->pages[id].node;
    while (!p->window && kg_prefix_has_children(kv->prefix, node)) evict_oldest(kv, g);
    for (int32_t other = g + 1; other < kv->n_groups && !p->window; other++) {
      const int32_t of_other = kg_prefix_page(kv->prefix, node, other);
      if (of_other == KG_NO_PAGE) continue;
      if (kv->pools[other].pages[of_other].refs)
        unpublish(kv, other, of_other);
      else
        forget_page(kv, other, of_other);
    }
    unpublish(kv, g, id);
  }
}

/* Have free pages for what is missing of pages [first, wanted) of the table, and for what others hold too. */
static int provide_for(kg_kv *kv, kg_page_table *table, int32_t g, size_t first, size_t wanted, kg_error *err)
{
  const pool *p = &kv->pools[g];
  const size_t end = wanted < table->n ? wanted : table->n;
  size_t n_new = wanted - end, n_public = 0; /* published, and nobody else holds it */
  for (size_t i = first; i < end; i++) {
    const int32_t id = table->ids[g][i];
    n_new += id == KG_NO_PAGE || is_shared(p, id);
    n_public += id != KG_NO_PAGE && is_shared(p, id) && p->pages[id].refs == 1;
  }
  int status = n_new ? provide(kv, g, (int32_t)n_new, n_public ? NULL : err) : KG_OK;
  if (!status || !n_public) return status;
  status = provide(kv, g, (int32_t)(n_new - n_public), err); /* no room for copies */
  if (!status) take_back(kv, table, g, first, end);
  return status;
}

/* The new pages of [first, wanted), for which there is room. */
static void take_pages(kg_kv *kv, kg_page_table *table, int32_t g, size_t first, size_t wanted)
{
  const size_t end = wanted < table->n ? wanted : table->n;
  for (size_t i = first; i < end; i++) {
    const int32_t id = table->ids[g][i];
    if (id != KG_NO_PAGE && !is_shared(&kv->pools[g], id)) continue;
    table->ids[g][i] = take_page(kv, g);
    if (id != KG_NO_PAGE) drop_page(kv, g, id, false); /* others hold it, or it rests */
  }
  for (size_t i = end; i < wanted; i++) table->ids[g][i] = take_page(kv, g);
}

int kg_kv_reserve(kg_kv *kv, kg_page_table *table, int32_t from, int32_t n_positions, kg_error *err)
{
  const size_t wanted = (size_t)pages_for(n_positions), first = (size_t)(from / KG_PAGE);
  const int32_t kept = from % KG_PAGE; /* positions of page `first` that stay */
  int status = grow_table(kv, table, wanted, err);
  for (int32_t g = 0; g < kv->n_groups && !status; g++) status = provide_for(kv, table, g, first, wanted, err);
  /* Only the first page can hold positions that stay: its copy goes to the page that is taken first below. */
  for (int32_t g = 0; g < kv->n_groups && kept && first < table->n && !status; g++) {
    const pool *p = &kv->pools[g];
    const int32_t id = table->ids[g][first];
    assert(id != KG_NO_PAGE);
    if (is_shared(p, id))
      status = kv->backend->kv_copy(kv->exe, g, p->free_list[p->n_free - 1], id, kept, err);
  }
  if (status) return status;
  if (!table->n) table->epoch = kv->epoch;
  let_nodes_go(kv, table, first);
  for (int32_t g = 0; g < kv->n_groups; g++) take_pages(kv, table, g, first, wanted);
  if (table->n < wanted) table->n = wanted;
  return KG_OK;
}

static void cut(kg_kv *kv, kg_page_table *table, size_t n)
{
  for (; table->n > n; table->n--)
    for (int32_t g = 0; g < kv->n_groups; g++) {
      const int32_t id = table->ids[g][table->n - 1];
      if (id != KG_NO_PAGE) drop_page(kv, g, id, false);
    }
  let_nodes_go(kv, table, n);
  for (int32_t g = 0; g < kv->n_groups; g++)
    if (table->n_seen[g] > table->n) table->n_seen[g] = table->n;
}

void kg_kv_truncate(kg_kv *kv, kg_page_table *table, int32_t n_positions)
{
  cut(kv, table, (size_t)pages_for(n_positions));
}

int kg_kv_share(kg_kv *kv, const kg_page_table *table, int32_t n_positions, kg_page_table *copy, kg_error *err)
{
  const size_t n = (size_t)pages_for(n_positions);
  const size_t n_published = table->n_published < n ? table->n_published : n;
  assert(n <= table->n);
  *copy = (kg_page_table){0};
  if (!n) return KG_OK;
  int status = grow_table(kv, copy, n, err);
  if (!status && !grow_nodes(copy, n_published))
    status = kg_fail_memory(err, n_published * sizeof *copy->nodes, "a page table");
  if (status) {
    kg_kv_release(kv, copy);
    return status;
  }
  copy->n = n;
  copy->n_published = n_published;
  copy->epoch = table->epoch;
  for (size_t i = 0; i < n_published; i++) {
    copy->nodes[i] = table->nodes[i];
    kg_prefix_hold(kv->prefix, copy->nodes[i]);
  }
  copy->has_origin = table->has_origin; /* it may let all of these nodes go, and look for others */
  copy->origin = table->origin;
  if (copy->has_origin) kg_prefix_hold(kv->prefix, copy->origin);
  for (int32_t g = 0; g < kv->n_groups; g++) {
    memcpy(copy->ids[g], table->ids[g], n * sizeof *copy->ids[g]);
    for (size_t i = 0; i < n; i++)
      if (copy->ids[g][i] != KG_NO_PAGE) kv->pools[g].pages[copy->ids[g][i]].refs++;
  }
  return KG_OK;
}

static void forget_origin(kg_kv *kv, kg_page_table *table)
{
  if (table->has_origin) kg_prefix_let_go(kv->prefix, table->origin);
  table->has_origin = false;
}

void kg_kv_release(kg_kv *kv, kg_page_table *table)
{
  cut(kv, table, 0);
  forget_origin(kv, table);
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) kg_free(table->ids[g]);
  kg_free(table->nodes);
  *table = (kg_page_table){0};
}

/* ---- windows ---- */

/* The first page that a row at `pos` sees before itself; rows behind it see later ones. */
static size_t first_seen(const pool *p, int32_t pos) { return (size_t)kg_first_page(p->window, pos); }

/* Could page i of the table be had, whose nodes from `first` on are those that were found? */
static bool is_there(const kg_kv *kv, const kg_page_table *table, int32_t g, size_t first, size_t i)
{
  if (i < first) return table->ids[g][i] != KG_NO_PAGE;
  return kg_prefix_page(kv->prefix, table->nodes[i], g) != KG_NO_PAGE;
}

/* As kg_kv_resume_point, with pages that could be had. The table's own are all there where rows see everything. */
static int32_t resume_point_with(const kg_kv *kv, const kg_page_table *table, size_t first, int32_t pos)
{
  bool is_one = false;
  while (!is_one) {
    is_one = true;
    for (int32_t g = 0; g < kv->n_groups && pos; g++) {
      const pool *p = &kv->pools[g];
      const size_t seen = p->window ? first_seen(p, pos) : first;
      size_t i = (size_t)((pos - 1) / KG_PAGE) + 1;
      while (i > seen && is_there(kv, table, g, first, i - 1)) i--;
      if (i <= seen) continue;
      pos = (int32_t)(i - 1) * KG_PAGE; /* rows in front of the missing page do not see it */
      is_one = false;
    }
  }
  return pos;
}

int32_t kg_kv_resume_point(const kg_kv *kv, const kg_page_table *table, int32_t pos)
{
  return resume_point_with(kv, table, SIZE_MAX, pos);
}

/* Is page i seen by rows that go on from this point, or from just before it? */
static bool is_seen_from(const pool *p, int64_t point, size_t i)
{
  const int64_t first = (int64_t)i * KG_PAGE;
  return first < point && first + KG_PAGE > point - p->window;
}

/* Places to come back to, wherever the caller wants to: multiples of this. Those with more factors of two stay
 * longer, so that there are as many as the logarithm of the length, and going back d positions computes some 2 d
 * again at most. */
static int64_t gap_of(const pool *p) { return (int64_t)8 * p->window; }

static bool is_station(const pool *p, int64_t point, int32_t from)
{
  const int64_t n = point / gap_of(p), low_bit = n & -n;
  return from - point <= 2 * low_bit * gap_of(p);
}

static bool is_wanted(const pool *p, const kg_kv_wanted *wanted, size_t i)
{
  const int64_t first = (int64_t)i * KG_PAGE, gap = gap_of(p);
  for (int list = 0; list < 2; list++)
    for (size_t k = 0; k < wanted->n_points[list]; k++)
      if (is_seen_from(p, wanted->points[list][k], i)) return true;
  for (int64_t point = (first / gap + 1) * gap; point < first + KG_PAGE + p->window; point += gap)
    if (is_station(p, point, wanted->from)) return true;
  return false;
}

void kg_kv_forget_unseen(kg_kv *kv, kg_page_table *table, const kg_kv_wanted *wanted, bool is_less)
{
  for (int32_t g = 0; g < kv->n_groups; g++) {
    const pool *p = &kv->pools[g];
    if (!p->window || wanted->from <= p->window) continue;
    const int64_t n_gaps = wanted->from / gap_of(p);
    const bool is_again = is_less || n_gaps != table->n_gaps[g]; /* some of the stations may be too many now */
    size_t i = is_again ? 0 : table->n_seen[g], end = (size_t)((wanted->from - p->window) / KG_PAGE);
    table->n_gaps[g] = n_gaps;
    if (end > table->n) end = table->n;
    for (; i < end; i++) {
      const int32_t id = table->ids[g][i];
      if (id == KG_NO_PAGE || is_wanted(p, wanted, i)) continue;
      table->ids[g][i] = KG_NO_PAGE;
      drop_page(kv, g, id, true);
    }
    table->n_seen[g] = end;
  }
}

int32_t kg_kv_held(const kg_page_table *table, int32_t group, int32_t n_positions, int32_t *from)
{
  const int32_t *ids = table->ids[group];
  while (*from < n_positions && ids[*from / KG_PAGE] == KG_NO_PAGE) *from = (*from / KG_PAGE + 1) * KG_PAGE;
  if (*from > n_positions) *from = n_positions;
  int32_t end = *from;
  while (end < n_positions && ids[end / KG_PAGE] != KG_NO_PAGE) end = (end / KG_PAGE + 1) * KG_PAGE;
  return end < n_positions ? end : n_positions;
}

int32_t kg_kv_count_held(const kg_page_table *table)
{
  int32_t n = 0;
  for (size_t i = 0; i < table->n; i++) n += table->ids[0][i] != KG_NO_PAGE;
  return n;
}

/* Do positions [from, end) of the group lie in one of the ranges? *at is the first one that may hold them or later
 * ones. */
static bool is_in_ranges(const kg_kv_range *ranges, size_t n_ranges, size_t *at, int32_t group, int32_t from,
                         int32_t end)
{
  while (*at < n_ranges && (ranges[*at].group < group || (ranges[*at].group == group && ranges[*at].end < end))) ++*at;
  return *at < n_ranges && ranges[*at].group == group && ranges[*at].from <= from;
}

int kg_kv_restore(kg_kv *kv, kg_page_table *table, int32_t n_positions, const kg_kv_range *ranges, size_t n_ranges,
                  kg_error *err)
{
  const size_t n = (size_t)pages_for(n_positions);
  size_t at = 0;
  int status = grow_table(kv, table, n, err);
  for (int32_t g = 0; g < kv->n_groups && !status; g++) {
    int32_t n_new = 0;
    for (size_t i = 0; i < n; i++) {
      const int32_t from = (int32_t)i * KG_PAGE, end = from + KG_PAGE < n_positions ? from + KG_PAGE : n_positions;
      const bool is_there = is_in_ranges(ranges, n_ranges, &at, g, from, end);
      table->ids[g][i] = is_there ? 0 : KG_NO_PAGE;
      n_new += is_there;
    }
    status = provide(kv, g, n_new, err);
  }
  if (status) return status;
  table->epoch = kv->epoch;
  table->n = n;
  for (int32_t g = 0; g < kv->n_groups; g++)
    for (size_t i = 0; i < n; i++)
      if (table->ids[g][i] != KG_NO_PAGE) table->ids[g][i] = take_page(kv, g);
  return KG_OK;
}

/* ---- the prefix cache ---- */

static bool takes_part(const kg_kv *kv, const kg_page_table *table)
{
  return kv->prefix && (!table->n || table->epoch == kv->epoch);
}

/* The node before number i of the table. */
static int32_t parent_of(const kg_page_table *table, size_t i)
{
  return i ? table->nodes[i - 1] : table->has_origin ? table->origin : KG_NO_NODE;
}

bool kg_kv_originate(kg_kv *kv, kg_page_table *table, const int32_t *words, size_t n)
{
  enum { WORDS = KG_PAGE - 1 }; /* of a node: it begins with what is no id, so that it is not taken for one of ids */
  if (!kv->prefix || table->n_published) return true; /* it stands behind them already */
  int32_t node = KG_NO_NODE;
  for (size_t i = 0; i < n; i += WORDS) {
    int32_t own[KG_PAGE] = {-1};
    const int32_t parent = node;
    memcpy(own + 1, words + i, (n - i < WORDS ? n - i : WORDS) * sizeof *own);
    node = kg_prefix_find(kv->prefix, parent, own);
    if (node != KG_NO_NODE)
      kg_prefix_hold(kv->prefix, node);
    else
      node = kg_prefix_add(kv->prefix, parent, own);
    if (parent != KG_NO_NODE) kg_prefix_let_go(kv->prefix, parent); /* its child keeps it, if there is one */
    if (node == KG_NO_NODE) break;
  }
  forget_origin(kv, table);
  table->has_origin = node != KG_NO_NODE;
  table->origin = node;
  return !n || table->has_origin;
}

/* Is page i of the table written by this table alone? */
static bool is_own(const kg_kv *kv, const kg_page_table *table, size_t i)
{
  bool is = true;
  for (int32_t g = 0; g < kv->n_groups; g++) {
    const int32_t id = table->ids[g][i];
    is = is && (id == KG_NO_PAGE || !is_shared(&kv->pools[g], id));
  }
  return is;
}

/* Have the node and the table share page i of every group; where the node has one, that takes the place of the table's.
 * Has the node any now? */
static bool publish_pages(kg_kv *kv, kg_page_table *table, size_t i, int32_t node)
{
  bool has_page = false;
  for (int32_t g = 0; g < kv->n_groups; g++) {
    const int32_t id = table->ids[g][i], known = kg_prefix_page(kv->prefix, node, g);
    has_page = has_page || id != KG_NO_PAGE || known != KG_NO_PAGE;
    if (id == KG_NO_PAGE) continue;
    if (known == KG_NO_PAGE) {
      kg_prefix_set_page(kv->prefix, node, g, id);
      kv->pools[g].pages[id].node = node;
      continue;
    }
    hold_page(kv, g, known);
    table->ids[g][i] = known;
    drop_page(kv, g, id, false);
  }
  return has_page;
}

void kg_kv_publish(kg_kv *kv, kg_page_table *table, const kg_snapshots *snapshots, const int32_t *ids,
                   int32_t n_positions)
{
  if (!takes_part(kv, table)) return;
  for (size_t i = table->n_published; i < (size_t)(n_positions / KG_PAGE); i++) {
    if (!is_own(kv, table, i) || !grow_nodes(table, i + 1)) return;
    const int32_t parent = parent_of(table, i), *own = ids + i * KG_PAGE;
    int32_t node = kg_prefix_find(kv->prefix, parent, own);
    if (node != KG_NO_NODE)
      kg_prefix_hold(kv->prefix, node);
    else if ((node = kg_prefix_add(kv->prefix, parent, own)) == KG_NO_NODE)
      return;
    const int32_t slot = kg_snapshots_slot(snapshots, (int32_t)(i + 1) * KG_PAGE);
    /* Where there was no memory for nodes the pages may be gone meanwhile: nobody goes on from there. */
    if (publish_pages(kv, table, i, node) && slot != KG_NONE && kg_prefix_state(kv->prefix, node) == KG_NONE)
      kg_prefix_set_state(kv->prefix, node, slot);
    table->nodes[i] = node;
    table->n_published = i + 1;
  }
}

/* Nodes behind those of the table for ids [.., n), to table->nodes but held by nobody, the last one perhaps only for
 * some of its ids. How many ids the cache knows; 0 where there is no memory. */
static int32_t find_nodes(const kg_kv *kv, kg_page_table *table, size_t i, const int32_t *ids, int32_t n)
{
  for (; (i + 1) * KG_PAGE <= (size_t)n; i++) {
    const int32_t node = kg_prefix_find(kv->prefix, parent_of(table, i), ids + i * KG_PAGE);
    if (node == KG_NO_NODE) break;
    if (!grow_nodes(table, i + 1)) return 0;
    table->nodes[i] = node;
  }
  const int32_t start = (int32_t)(i * KG_PAGE);
  int32_t n_common = 0;
  const int32_t like = kg_prefix_find_like(kv->prefix, parent_of(table, i), ids + start, n - start, &n_common);
  if (like == KG_NO_NODE) return start;
  if (!grow_nodes(table, i + 1)) return 0;
  table->nodes[i] = like;
  return start + n_common;
}

/* The last position up to `pos` behind which the cache has a state; at most `least` where there is none. */
static int32_t state_before(const kg_kv *kv, const kg_page_table *table, int32_t least, int32_t pos)
{
  if (!kv->has_states) return pos;
  for (pos -= pos % KG_PAGE; pos > least; pos -= KG_PAGE)
    if (kg_prefix_state(kv->prefix, table->nodes[pos / KG_PAGE - 1]) != KG_NONE) break;
  return pos;
}

/* Have the table hold pages [first, n) of its nodes: all of those that rows from `pos` on see, and of the ones before
 * them what there is of the slack. */
static void hold_pages(kg_kv *kv, kg_page_table *table, size_t first, size_t n, int32_t pos)
{
  for (int32_t g = 0; g < kv->n_groups; g++) {
    const size_t seen = first_seen(&kv->pools[g], pos > KG_KV_SLACK ? pos - KG_KV_SLACK : 0);
    for (size_t i = first; i < n; i++) {
      const int32_t id = i < seen ? KG_NO_PAGE : kg_prefix_page(kv->prefix, table->nodes[i], g);
      if (id != KG_NO_PAGE) hold_page(kv, g, id);
      if (i < table->n && table->ids[g][i] != KG_NO_PAGE) drop_page(kv, g, table->ids[g][i], false);
      table->ids[g][i] = id;
    }
  }
  if (!table->n) table->epoch = kv->epoch;
  if (table->n < n) table->n = n;
}

int32_t kg_kv_reuse(kg_kv *kv, kg_page_table *table, const int32_t *ids, int32_t n_positions, int32_t n,
                    int32_t *n_known)
{
  const size_t first = (size_t)(n_positions / KG_PAGE);
  *n_known = 0;
  if (!takes_part(kv, table) || first > table->n_published) return n_positions;
  let_nodes_go(kv, table, first); /* of the last page, which is not whole */
  *n_known = find_nodes(kv, table, first, ids, n);
  if (*n_known == n) (*n_known)--; /* the last one's logits are wanted */
  if (*n_known <= n_positions) return n_positions;
  int32_t pos = *n_known;
  for (int32_t before = -1; before != pos && pos > n_positions;) { /* each may send the other further back */
    before = pos;
    pos = state_before(kv, table, n_positions, resume_point_with(kv, table, first, pos));
  }
  if (pos <= n_positions || grow_table(kv, table, (size_t)pages_for(pos), NULL)) return n_positions;
  hold_pages(kv, table, first, (size_t)pages_for(pos), pos);
  while (table->n_published < (size_t)(pos / KG_PAGE)) kg_prefix_hold(kv->prefix, table->nodes[table->n_published++]);
  return pos;
}

int32_t kg_kv_state(const kg_kv *kv, const kg_page_table *table, int32_t pos)
{
  return kv->has_states ? kg_prefix_state(kv->prefix, table->nodes[pos / KG_PAGE - 1]) : KG_NONE;
}

int32_t kg_kv_state_count(const kg_kv *kv) { return kv->prefix ? kg_prefix_state_count(kv->prefix) : 0; }

void kg_kv_forget(kg_kv *kv)
{
  kv->epoch++;
  if (!kv->prefix) return;
  for (int32_t g = 0; g < kv->n_groups; g++) {
    pool *p = &kv->pools[g];
    for (int32_t id = 0; id < p->n_pages; id++) {
      if (p->pages[id].node == KG_NO_NODE) continue;
      p->pages[id].node = KG_NO_NODE;
      if (p->pages[id].refs) continue;
      leave_line(p, id);
      p->free_list[p->n_free++] = id;
    }
  }
  kg_prefix_forget(kv->prefix);
}

/* ---- figures ---- */

int32_t kg_kv_group_count(const kg_kv *kv)
{
  return kv->n_groups;
}

void kg_kv_get_stats(const kg_kv *kv, int32_t group, kg_kv_stats *out)
{
  const pool *p = &kv->pools[group];
  *out = (kg_kv_stats){.window = p->window,
                       .n_pages = p->n_pages,
                       .n_used = n_used(p),
                       .n_kept = n_resting(p),
                       .page_bytes = kv->backend->page_bytes(kv->exe, group)};
}

int32_t kg_kv_page_limit(const kg_kv *kv)
{
  return kv->max_pages;
}
