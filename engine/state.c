#include "state.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

struct kg_state_pool {
  const kg_backend *backend;
  kg_executable *exe;
  int32_t *refs;      /* [n] references to the slot; 0: it is on the free list */
  int32_t *free_list; /* [n] a stack, so that giving slots back needs no memory */
  int32_t n, n_free;
  int64_t n_holders;
  int32_t every;      /* positions; 0: none */
};

int kg_states_new(const kg_backend *backend, kg_executable *exe, const kg_plan *plan, kg_state_pool **out,
                  kg_error *err)
{
  *out = NULL;
  if (!kg_plan_state_size(plan)) return KG_OK;
  if (!backend->state_reserve)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "the %s backend keeps no states of recurrent operations", backend->name);
  kg_state_pool *pool = kg_alloc_array(1, sizeof *pool);
  if (!pool) return kg_fail_memory(err, sizeof *pool, "the pool of states");
  pool->backend = backend;
  pool->exe = exe;
  pool->n_holders = 1;
  *out = pool;
  return KG_OK;
}

kg_state_pool *kg_states_hold(kg_state_pool *pool)
{
  if (pool) pool->n_holders++;
  return pool;
}

void kg_states_free(kg_state_pool *pool)
{
  if (!pool || --pool->n_holders) return;
  kg_free(pool->refs);
  kg_free(pool->free_list);
  kg_free(pool);
}

static bool resize(int32_t **items, int32_t n)
{
  int32_t *grown = kg_realloc_array(*items, (size_t)n, sizeof **items);
  if (!grown) return false;
  *items = grown;
  return true;
}

/* Make slots [0, n) exist. The arrays may be larger than the pool after a failure, which nobody sees. */
static int grow_to(kg_state_pool *pool, int32_t n, kg_error *err)
{
  if (!resize(&pool->refs, n) || !resize(&pool->free_list, n))
    return kg_fail_memory(err, (size_t)n * sizeof *pool->refs, "the pool of states");
  const int status = pool->backend->state_reserve(pool->exe, n, err);
  if (status) return status;
  for (int32_t slot = n - 1; slot >= pool->n; slot--) { /* low slots are handed out first */
    pool->refs[slot] = 0;
    pool->free_list[pool->n_free++] = slot;
  }
  pool->n = n;
  return KG_OK;
}

enum { FIRST_SLOTS = 4 };

int kg_states_take(kg_state_pool *pool, int32_t *slot, kg_error *err)
{
  if (!pool->n_free) {
    if (pool->n == INT32_MAX) return kg_fail_memory(err, SIZE_MAX, "the pool of states");
    const int32_t half = pool->n / 2, more = half > FIRST_SLOTS ? half : FIRST_SLOTS;
    const bool fits = pool->n <= INT32_MAX - more && !grow_to(pool, pool->n + more, NULL); /* bounded: just checked */
    const int status = fits ? KG_OK : grow_to(pool, pool->n + 1, err); /* bounded: below INT32_MAX */
    if (status) return status;
  }
  *slot = pool->free_list[--pool->n_free];
  pool->refs[*slot] = 1;
  return KG_OK;
}

void kg_states_ref(kg_state_pool *pool, int32_t slot)
{
  assert(pool->refs[slot] > 0);
  pool->refs[slot]++;
}

void kg_states_drop(kg_state_pool *pool, int32_t slot)
{
  if (!pool || slot == KG_NONE) return;
  assert(pool->refs[slot] > 0);
  if (!--pool->refs[slot]) pool->free_list[pool->n_free++] = slot;
}

int32_t kg_states_count(const kg_state_pool *pool) { return pool ? pool->n : 0; }
int32_t kg_states_used(const kg_state_pool *pool) { return pool ? pool->n - pool->n_free : 0; }

int32_t kg_states_every(const kg_state_pool *pool) { return pool ? pool->every : 0; }
void kg_states_want_every(kg_state_pool *pool, int32_t n_positions) { pool->every = n_positions; }

/* Before the last token, for its logits; behind it and behind each id of a draft; and at distances that double. */
bool kg_states_wants(const kg_state_pool *pool, int32_t pos, int32_t n, int32_t free)
{
  if (pos > free) return pos > n || pos % KG_SNAPSHOT_GAP == 0;
  const int32_t gaps = (n - pos) / KG_SNAPSHOT_GAP;
  if (pool->every && pos % pool->every == 0) return true;
  return pos >= n - 1 || (gaps && (n - pos) % KG_SNAPSHOT_GAP == 0 && (gaps & (gaps - 1)) == 0);
}

/* The number of those before position `pos`. */
static int32_t count_before(const kg_snapshots *snapshots, int32_t pos)
{
  int32_t n = snapshots->n;
  while (n && snapshots->at[n - 1].pos >= pos) n--;
  return n;
}

static void drop_at(kg_state_pool *pool, kg_snapshots *snapshots, int32_t i)
{
  kg_states_drop(pool, snapshots->at[i].slot);
  snapshots->n--;
  memmove(&snapshots->at[i], &snapshots->at[i + 1], (size_t)(snapshots->n - i) * sizeof snapshots->at[0]);
}

void kg_snapshots_put_take(kg_state_pool *pool, kg_snapshots *snapshots, int32_t pos, int32_t slot)
{
  int32_t i = count_before(snapshots, pos);
  if (i < snapshots->n && snapshots->at[i].pos == pos) {
    kg_states_drop(pool, snapshots->at[i].slot);
    snapshots->at[i].slot = slot;
    return;
  }
  if (snapshots->n == KG_SNAPSHOTS_MAX) { /* the one that is farthest back goes, or this one where it is */
    if (!i) {
      kg_states_drop(pool, slot);
      return;
    }
    drop_at(pool, snapshots, 0);
    i--;
  }
  memmove(&snapshots->at[i + 1], &snapshots->at[i], (size_t)(snapshots->n - i) * sizeof snapshots->at[0]);
  snapshots->at[i] = (kg_snapshot){pos, slot};
  snapshots->n++;
}

void kg_snapshots_cut(kg_state_pool *pool, kg_snapshots *snapshots, int32_t end)
{
  while (snapshots->n && snapshots->at[snapshots->n - 1].pos > end)
    kg_states_drop(pool, snapshots->at[--snapshots->n].slot);
}

/* All but regular ones of late positions, free ones, the last one, and those behind the timeline. */
static void keep_regular(kg_state_pool *pool, kg_snapshots *snapshots, int32_t n, int32_t free)
{
  const int32_t first = n - n % KG_SNAPSHOT_GAP - (KG_SNAPSHOTS_REGULAR - 1) * KG_SNAPSHOT_GAP;
  for (int32_t i = snapshots->n - 1, last = kg_snapshots_count(snapshots, n) - 1; i >= 0; i--) {
    const int32_t pos = snapshots->at[i].pos;
    if (i < last && pos > free && (pos % KG_SNAPSHOT_GAP || pos < first)) drop_at(pool, snapshots, i);
  }
}

/* One may go where its neighbours are as near to each other as they are to the end. */
void kg_snapshots_thin(kg_state_pool *pool, kg_snapshots *snapshots, int32_t n, int32_t free)
{
  if (free < INT32_MAX) {
    keep_regular(pool, snapshots, n, free);
    return;
  }
  for (int32_t i = snapshots->n - 2; i >= 0; i--) {
    const int32_t before = i ? snapshots->at[i - 1].pos : 0, after = snapshots->at[i + 1].pos;
    if (after >= n) continue;
    if (after - before <= KG_SNAPSHOT_GAP || after - before <= n - after) drop_at(pool, snapshots, i);
  }
}

void kg_snapshots_share(kg_state_pool *pool, const kg_snapshots *from, int32_t end, kg_snapshots *to)
{
  for (int32_t i = 0; i < from->n && from->at[i].pos <= end; i++) {
    kg_states_ref(pool, from->at[i].slot);
    kg_snapshots_put_take(pool, to, from->at[i].pos, from->at[i].slot);
  }
}

int32_t kg_snapshots_count(const kg_snapshots *snapshots, int32_t end)
{
  return count_before(snapshots, end + 1); /* bounded: positions are below 2^24 */
}

int32_t kg_snapshots_before(const kg_snapshots *snapshots, int32_t pos, int32_t free)
{
  int32_t n = kg_snapshots_count(snapshots, pos);
  while (n && snapshots->at[n - 1].pos > free && snapshots->at[n - 1].pos % KG_SNAPSHOT_GAP) n--;
  return n ? snapshots->at[n - 1].pos : 0;
}

int32_t kg_snapshots_slot(const kg_snapshots *snapshots, int32_t pos)
{
  const int32_t i = count_before(snapshots, pos);
  return i < snapshots->n && snapshots->at[i].pos == pos ? snapshots->at[i].slot : KG_NONE;
}
