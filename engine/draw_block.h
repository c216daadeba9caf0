/* draw_block.h - a chain behind its prefix, run by one block of threads that all call the same functions: on a device
 * by KG_DRAW_THREADS threads (kernels/sample.cu), on the host by one (draw.c), which is how it is tested without a
 * device.
 *
 * Nothing is sorted but a few: what a stage keeps is everything that ranks at least as high as some candidate, and that
 * one is found from histograms of counts or masses, each over the bucket that the one before leaves. Dropped candidates
 * leave no trace but -inf, or are left behind when the rest moves to a list. All sums are of whole numbers, so the
 * order of threads does not show.
 *
 * Before, many blocks prepare a row: its prefix, the best of each group of ids, and what the first stage behind the
 * prefix needs of all candidates (kg_draw_sift). */
#ifndef KG_DRAW_BLOCK_H
#define KG_DRAW_BLOCK_H

#include "draw.h"

enum {
  KG_DRAW_THREADS = 512,
  KG_DRAW_SMALL = KG_DRAW_THREADS / 2, /* so few are sorted: two threads count who is above one of them */
  KG_DRAW_BUCKETS = 1 << 11,
  KG_DRAW_LIST = 1 << 15,   /* candidates that fit a list */
  KG_DRAW_GROUPS = 1 << 11, /* of ids, of which the best is known */
  KG_DRAW_CHUNK = 1024,     /* ids that are prepared together; whole groups */
  KG_DRAW_VOCAB_MAX = KG_DRAW_GROUPS * KG_DRAW_CHUNK
};

/* What the first stage behind the prefix needs of all candidates. */
typedef enum kg_draw_sift {
  KG_SIFT_NOTHING,
  KG_SIFT_WEIGH, /* masses by bucket of their distance to the best */
  KG_SIFT_MIN_P  /* those who stay, in list 0 */
} kg_draw_sift;

KG_SHARED kg_draw_sift kg_draw_sift_of(const kg_draw_program *program)
{
  if (program->n_prefix == program->n_stages) return KG_SIFT_WEIGH;
  const kg_draw_stage *stage = &program->stages[program->n_prefix];
  if (stage->kind == KG_STAGE_MIN_P && stage->value > 0) return KG_SIFT_MIN_P;
  if (stage->kind == KG_STAGE_XTC || stage->kind == KG_STAGE_DYNAMIC_TEMPERATURE) return KG_SIFT_WEIGH;
  const bool weighs = stage->kind == KG_STAGE_TOP_P || stage->kind == KG_STAGE_TYPICAL;
  return weighs && stage->value < 1 ? KG_SIFT_WEIGH : KG_SIFT_NOTHING;
}

/* Does it want the mean too? */
KG_SHARED bool kg_draw_sifts_mean(const kg_draw_program *program)
{
  if (program->n_prefix == program->n_stages) return false;
  const int32_t kind = program->stages[program->n_prefix].kind;
  return kind == KG_STAGE_TYPICAL || kind == KG_STAGE_DYNAMIC_TEMPERATURE;
}

/* Does the chain, behind its prefix, do nothing but take the best one? */
KG_SHARED bool kg_draw_picks(const kg_draw_program *program)
{
  if (program->n_stages != program->n_prefix + 1) return false;
  const kg_draw_stage *stage = &program->stages[program->n_prefix];
  return stage->kind == KG_STAGE_GREEDY || (stage->kind == KG_STAGE_TEMPERATURE && stage->value == 0);
}

/* Memory of one row. The last four are zero when a row is prepared. */
typedef struct kg_draw_row {
  float *x;           /* [n_vocab] the logits behind the prefix */
  kg_rank *best;      /* [groups] the highest rank of each group; -inf where there is none */
  float *list_x[2];   /* [KG_DRAW_LIST] */
  int32_t *list_ids[2];
  uint64_t *mass;     /* [KG_DRAW_BUCKETS] KG_SIFT_WEIGH; see kg_draw_bucket */
  uint64_t moment;    /* KG_SIFT_WEIGH, where the mean is wanted: see kg_draw_moment_of */
  uint32_t n_list;    /* KG_SIFT_MIN_P: those who stay; more than KG_DRAW_LIST: not all of them are in the list */
  int32_t n_nan;      /* chunks with logits that are none, or +inf: the host's business */
} kg_draw_row;

/* The bucket of a logit, by its distance to the best; masses end at a distance of 32. */
KG_SHARED int kg_draw_bucket(float x, float max)
{
  const float at = (max - x) * (KG_DRAW_BUCKETS / 32);
  return at < KG_DRAW_BUCKETS - 1 ? (int)at : KG_DRAW_BUCKETS - 1;
}

/* Ids in a group. */
KG_SHARED int32_t kg_draw_group(int32_t n_vocab)
{
  return n_vocab <= 128 * KG_DRAW_GROUPS ? 128 : KG_DRAW_CHUNK;
}

KG_SHARED int32_t kg_draw_group_count(int32_t n_vocab)
{
  return (n_vocab - 1) / kg_draw_group(n_vocab) + 1;
}

/* ---- a block ---- */

/* What the threads of a block share. */
typedef struct kg_draw_shared {
  union {
    struct {
      uint32_t low[KG_DRAW_BUCKETS], high[KG_DRAW_BUCKETS]; /* halves of masses; the best bucket first */
      uint32_t count[KG_DRAW_BUCKETS];
    } bucket;
    struct {
      kg_rank ranks[KG_DRAW_SMALL], sorted[KG_DRAW_SMALL];
      uint64_t mass[KG_DRAW_SMALL], sorted_mass[KG_DRAW_SMALL];
    } small;
    int32_t groups[KG_DRAW_GROUPS];
  } u;
  uint64_t warps[KG_DRAW_THREADS / 32];
  uint64_t before; /* mass above `at` */
  uint32_t at, n;
} kg_draw_shared;

#ifdef __CUDACC__

#define KG_BLOCK static __device__
#define KG_BLOCK_SYNC() __syncthreads()
#define KG_BLOCK_THREAD ((int)threadIdx.x)
#define KG_BLOCK_THREADS KG_DRAW_THREADS
#define KG_BLOCK_LANES 32
#define KG_BLOCK_WARPS (KG_DRAW_THREADS / 32)

KG_BLOCK uint64_t kg_block_sum(kg_draw_shared *s, uint64_t x)
{
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s->warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < KG_BLOCK_WARPS ? s->warps[threadIdx.x % 32] : 0;
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

KG_BLOCK uint64_t kg_block_max(kg_draw_shared *s, uint64_t x)
{
  for (int step = 16; step; step >>= 1) {
    const uint64_t other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s->warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < KG_BLOCK_WARPS ? s->warps[threadIdx.x % 32] : 0;
  for (int step = 16; step; step >>= 1) {
    const uint64_t other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  return x;
}

/* The sum of x of the threads before this one. */
KG_BLOCK uint64_t kg_block_sum_before(kg_draw_shared *s, uint64_t x)
{
  const int lane = threadIdx.x % 32;
  uint64_t sum = x;
  for (int step = 1; step < 32; step <<= 1) {
    const uint64_t other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == 31) s->warps[threadIdx.x / 32] = sum;
  __syncthreads();
  uint64_t warps = lane < KG_BLOCK_WARPS ? s->warps[lane] : 0;
  for (int step = 1; step < 32; step <<= 1) {
    const uint64_t other = __shfl_up_sync(~0u, warps, step);
    if (lane >= step) warps += other;
  }
  const int warp = threadIdx.x / 32;
  warps = __shfl_sync(~0u, warps, warp ? warp - 1 : 0);
  return sum - x + (warp ? warps : 0);
}

KG_BLOCK uint32_t kg_block_add(uint32_t *sum, uint32_t x) { return atomicAdd(sum, x); }

/* How many of the n ranks are above `rank`: asked by two neighbouring threads for the same one. */
KG_BLOCK uint32_t kg_block_above(const kg_rank *ranks, int n, kg_rank rank)
{
  uint32_t above = 0;
  for (int i = threadIdx.x % 2; i < n; i += 2) above += ranks[i] > rank;
  return above + __shfl_xor_sync(~0u, above, 1);
}
#define KG_BLOCK_ASKING 2

#else

#define KG_BLOCK static inline
#define KG_BLOCK_SYNC() ((void)0)
#define KG_BLOCK_THREAD 0
#define KG_BLOCK_THREADS 1
#define KG_BLOCK_LANES 1
#define KG_BLOCK_ASKING 1

KG_BLOCK uint64_t kg_block_sum(const kg_draw_shared *s, uint64_t x)
{
  (void)s;
  return x;
}

KG_BLOCK uint64_t kg_block_max(const kg_draw_shared *s, uint64_t x)
{
  (void)s;
  return x;
}

KG_BLOCK uint64_t kg_block_sum_before(const kg_draw_shared *s, uint64_t x)
{
  (void)s;
  (void)x;
  return 0;
}

KG_BLOCK uint32_t kg_block_add(uint32_t *sum, uint32_t x)
{
  const uint32_t before = *sum;
  *sum += x;
  return before;
}

KG_BLOCK uint32_t kg_block_above(const kg_rank *ranks, int n, kg_rank rank)
{
  uint32_t above = 0;
  for (int i = 0; i < n; i++) above += ranks[i] > rank;
  return above;
}

#endif

/* Add to a sum in two halves: shared memory has no fast atomic sums of 64 bits. */
KG_BLOCK void kg_block_add_halves(uint32_t *low, uint32_t *high, uint64_t x)
{
  const uint32_t x_low = (uint32_t)x, carry = kg_block_add(low, x_low) + x_low < x_low;
  const uint32_t x_high = (uint32_t)(x >> 32) + carry;
  if (x_high) kg_block_add(high, x_high);
}

#define KG_BLOCK_EACH(i, n) for (int i = KG_BLOCK_THREAD; i < (n); i += KG_BLOCK_THREADS)

/* The same by fours, so that what is read of them is on its way at the same time. */
enum { KG_BLOCK_BATCH = 4 };
#define KG_BLOCK_EACH_BATCH(first, n) \
  for (int first = KG_BLOCK_THREAD; first < (n); first += KG_BLOCK_BATCH * KG_BLOCK_THREADS)
#ifdef __CUDACC__
#define KG_BLOCK_UNROLL _Pragma("unroll")
#else
#define KG_BLOCK_UNROLL
#endif
#define KG_BLOCK_OF_BATCH(j) KG_BLOCK_UNROLL for (int j = 0; j < KG_BLOCK_BATCH; j++)

/* ---- candidates ---- */

/* Candidates, or just ranks. */
typedef struct kg_draw_items {
  float *x;
  const int32_t *ids;    /* NULL: position i is id i */
  const kg_rank *ranks;  /* NULL, or all there is */
  int32_t n;
} kg_draw_items;

/* What to rank by, and what one weighs. */
typedef struct kg_draw_order {
  bool by_typicality, by_count;
  float max, mean, scale;
} kg_draw_order;

/* The state of a run; the same in every thread. */
typedef struct kg_draw_run {
  const kg_draw *draw;
  const kg_draw_row *row;
  kg_draw_shared *s;
  kg_draw_items items;
  int32_t n_vocab;
  float scale;
  int32_t n_drawn; /* random numbers */
  int list;       /* where a next list goes */
  bool is_fresh;  /* items are the row's x, as it was prepared */
} kg_draw_run;

KG_BLOCK kg_rank kg_draw_rank_at(const kg_draw_items *items, const kg_draw_order *order, int i)
{
  if (items->ranks) return items->ranks[i];
  const float x = items->x[i];
  const float by = order->by_typicality ? kg_typicality(x, order->max, order->mean) : x;
  return kg_rank_make(by, (uint32_t)(items->ids ? items->ids[i] : i));
}

/* What counts in a sum; 0: not among the candidates. */
KG_BLOCK uint64_t kg_draw_mass_at(const kg_draw_items *items, const kg_draw_order *order, int i)
{
  return order->by_count ? 1 : kg_mass(kg_draw_weight(items->x[i] - order->max), order->scale);
}

/* ---- finding the one at which a sum reaches a goal ---- */

/* In w[0..n), which follow on `before`: s->at, and s->before of it. The sum of all must reach the goal. A w is given as
 * one array, or as two of halves. */
KG_BLOCK uint64_t kg_draw_whole(const uint64_t *w, const uint32_t *low, const uint32_t *high, int i)
{
  return w ? w[i] : (uint64_t)high[i] << 32 | low[i];
}

KG_BLOCK void kg_draw_cross(kg_draw_shared *s, const uint64_t *w, const uint32_t *low, const uint32_t *high, int n,
                            uint64_t before, uint64_t goal)
{
  const int per = (n + KG_BLOCK_THREADS - 1) / KG_BLOCK_THREADS, first = KG_BLOCK_THREAD * per;
  const int end = first + per < n ? first + per : n;
  uint64_t own = 0;
  for (int i = first; i < end; i++) own += kg_draw_whole(w, low, high, i);
  uint64_t sum = before + kg_block_sum_before(s, own);
  if (sum < goal && sum + own >= goal) {
    int i = first;
    for (uint64_t next; (next = sum + kg_draw_whole(w, low, high, i)) < goal; i++) sum = next;
    s->at = (uint32_t)i;
    s->before = sum;
  }
  KG_BLOCK_SYNC();
}

/* Those who are in question yet: in a bucket, and between two ranks. */
typedef struct kg_draw_fit {
  int bucket;         /* of kg_draw_bucket; -1: any */
  kg_rank low, high;
  uint64_t before;    /* mass above them */
  uint32_t n;
} kg_draw_fit;

KG_BLOCK bool kg_draw_fits(const kg_draw_items *items, const kg_draw_order *order, const kg_draw_fit *fit, int i,
                           kg_rank *rank)
{
  if (fit->bucket >= 0 && kg_draw_bucket(items->x[i], order->max) != fit->bucket) return false;
  *rank = kg_draw_rank_at(items, order, i);
  return *rank >= fit->low && *rank <= fit->high;
}

/* The lowest and the highest rank of those who fit and weigh something. */
KG_BLOCK void kg_draw_close_in(kg_draw_shared *s, const kg_draw_items *items, const kg_draw_order *order,
                               kg_draw_fit *fit)
{
  kg_rank low_not = 0, high = 0, rank; /* the complement of the lowest */
  KG_BLOCK_EACH(i, items->n)
  {
    if (!kg_draw_fits(items, order, fit, i, &rank) || !kg_draw_mass_at(items, order, i)) continue;
    low_not = ~rank > low_not ? ~rank : low_not;
    high = rank > high ? rank : high;
  }
  fit->low = ~kg_block_max(s, low_not);
  fit->high = kg_block_max(s, high);
}

/* Look into the bucket, of the distance to the best or else of ranks, in which the goal is. */
KG_BLOCK void kg_draw_look_into(kg_draw_shared *s, const kg_draw_items *items, const kg_draw_order *order,
                                uint64_t goal, bool by_distance, kg_draw_fit *fit)
{
  int shift = 0;
  while (!by_distance && (fit->high - fit->low) >> shift >= KG_DRAW_BUCKETS) shift++;
  KG_BLOCK_SYNC();
  KG_BLOCK_EACH(i, KG_DRAW_BUCKETS) s->u.bucket.low[i] = s->u.bucket.high[i] = s->u.bucket.count[i] = 0;
  KG_BLOCK_SYNC();
  KG_BLOCK_EACH_BATCH(first, items->n)
  {
    uint64_t mass[KG_BLOCK_BATCH];
    int at[KG_BLOCK_BATCH];
    KG_BLOCK_OF_BATCH(j)
    {
      const int i = first + j * KG_BLOCK_THREADS;
      kg_rank rank;
      at[j] = 0;
      mass[j] = i < items->n && kg_draw_fits(items, order, fit, i, &rank) ? kg_draw_mass_at(items, order, i) : 0;
      if (mass[j]) at[j] = by_distance ? kg_draw_bucket(items->x[i], order->max) : (int)((fit->high - rank) >> shift);
    }
    KG_BLOCK_OF_BATCH(j)
    {
      if (!mass[j]) continue;
      kg_block_add(&s->u.bucket.count[at[j]], 1);
      kg_block_add_halves(&s->u.bucket.low[at[j]], &s->u.bucket.high[at[j]], mass[j]);
    }
  }
  KG_BLOCK_SYNC();
  kg_draw_cross(s, NULL, s->u.bucket.low, s->u.bucket.high, KG_DRAW_BUCKETS, fit->before, goal);
  fit->before = s->before;
  fit->n = s->u.bucket.count[s->at];
  if (by_distance)
    fit->bucket = (int)s->at;
  else {
    fit->high -= (kg_rank)s->at << shift;
    const kg_rank width = ((kg_rank)1 << shift) - 1;
    fit->low = fit->high - fit->low > width ? fit->high - width : fit->low;
  }
  KG_BLOCK_SYNC();
}

/* Sort those that fit, and walk down. */
KG_BLOCK kg_rank kg_draw_among_few(kg_draw_shared *s, const kg_draw_items *items, const kg_draw_order *order,
                                   uint64_t goal, const kg_draw_fit *fit)
{
  KG_BLOCK_SYNC();
  s->n = 0;
  KG_BLOCK_SYNC();
  KG_BLOCK_EACH_BATCH(first, items->n)
  {
    uint64_t mass[KG_BLOCK_BATCH];
    kg_rank rank[KG_BLOCK_BATCH];
    KG_BLOCK_OF_BATCH(j)
    {
      const int i = first + j * KG_BLOCK_THREADS;
      mass[j] = i < items->n && kg_draw_fits(items, order, fit, i, &rank[j]) ? kg_draw_mass_at(items, order, i) : 0;
    }
    KG_BLOCK_OF_BATCH(j)
    {
      if (!mass[j]) continue;
      const uint32_t at = kg_block_add(&s->n, 1);
      s->u.small.ranks[at] = rank[j];
      s->u.small.mass[at] = mass[j];
    }
  }
  KG_BLOCK_SYNC();
  const int n = (int)s->n;
  for (int i = KG_BLOCK_THREAD / KG_BLOCK_ASKING; i < KG_DRAW_SMALL; i += KG_BLOCK_THREADS / KG_BLOCK_ASKING) {
    const kg_rank rank = i < n ? s->u.small.ranks[i] : 0;
    const uint32_t above = kg_block_above(s->u.small.ranks, n, rank);
    if (i < n && KG_BLOCK_THREAD % KG_BLOCK_ASKING == 0) {
      s->u.small.sorted[above] = rank;
      s->u.small.sorted_mass[above] = s->u.small.mass[i];
    }
  }
  KG_BLOCK_SYNC();
  kg_draw_cross(s, s->u.small.sorted_mass, NULL, NULL, n, fit->before, goal);
  const kg_rank found = s->u.small.sorted[s->at];
  KG_BLOCK_SYNC();
  return found;
}

/* The rank at which the sum of masses (or counts), from the highest on, reaches the goal; `before` is above all
 * items. */
KG_BLOCK kg_rank kg_draw_select(kg_draw_shared *s, const kg_draw_items *items, const kg_draw_order *order,
                                uint64_t before, uint64_t goal)
{
  kg_draw_fit fit = {-1, 0, ~(kg_rank)0, before, (uint32_t)items->n};
  if (fit.n > KG_DRAW_SMALL && !order->by_count && !order->by_typicality)
    kg_draw_look_into(s, items, order, goal, true, &fit);
  while (fit.n > KG_DRAW_SMALL) {
    kg_draw_close_in(s, items, order, &fit);
    kg_draw_look_into(s, items, order, goal, false, &fit);
  }
  return kg_draw_among_few(s, items, order, goal, &fit);
}

/* ---- the best, and masses ---- */

KG_BLOCK kg_rank kg_draw_best(const kg_draw_run *run)
{
  const kg_draw_order by_logit = {0};
  kg_draw_items items = run->items;
  if (run->is_fresh) {
    items.ranks = run->row->best;
    items.n = kg_draw_group_count(run->n_vocab);
  }
  kg_rank best = 0;
  KG_BLOCK_EACH_BATCH(first, items.n) KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * KG_BLOCK_THREADS;
    const kg_rank rank = i < items.n ? kg_draw_rank_at(&items, &by_logit, i) : 0;
    best = rank > best ? rank : best;
  }
  return kg_block_max(run->s, best);
}

/* The best logit; false where there is none, or it is infinite. */
KG_BLOCK bool kg_draw_max(const kg_draw_run *run, float *max)
{
  *max = kg_rank_value(kg_draw_best(run));
  return *max > -INFINITY && *max < INFINITY;
}

/* Have masses been summed by buckets already? */
KG_BLOCK bool kg_draw_is_weighed(const kg_draw_run *run)
{
  return run->is_fresh && kg_draw_sift_of(run->draw->program) == KG_SIFT_WEIGH;
}

KG_BLOCK uint64_t kg_draw_total(const kg_draw_run *run, const kg_draw_order *order)
{
  const bool is_weighed = kg_draw_is_weighed(run);
  const int n = is_weighed ? KG_DRAW_BUCKETS : run->items.n;
  uint64_t total = 0;
  KG_BLOCK_EACH_BATCH(first, n) KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * KG_BLOCK_THREADS;
    if (i < n) total += is_weighed ? run->row->mass[i] : kg_draw_mass_at(&run->items, order, i);
  }
  return kg_block_sum(run->s, total);
}

/* What a candidate at distance d <= 0 from the best adds to the mean. */
KG_SHARED uint64_t kg_draw_moment_of(float d, float scale)
{
  const float e = kg_draw_weight(d);
  return e > 0 ? kg_mass(e * -d, scale) : 0;
}

KG_BLOCK float kg_draw_mean(const kg_draw_run *run, const kg_draw_order *order, uint64_t total)
{
  if (kg_draw_is_weighed(run) && kg_draw_sifts_mean(run->draw->program)) return kg_mean_of(run->row->moment, total);
  uint64_t moment = 0;
  KG_BLOCK_EACH(i, run->items.n) moment += kg_draw_moment_of(run->items.x[i] - order->max, order->scale);
  return kg_mean_of(kg_block_sum(run->s, moment), total);
}

/* ---- dropping ---- */

/* What stays: ranks from `last` on, logits, weights or typicalities from `least` on, or a bucket. */
typedef enum kg_draw_cut_kind {
  KG_CUT_RANK, KG_CUT_LOGIT, KG_CUT_WEIGHT, KG_CUT_BUCKET, KG_CUT_TYPICALITY
} kg_draw_cut_kind;

typedef struct kg_draw_cut {
  kg_draw_order order;
  kg_draw_cut_kind kind;
  kg_rank last;
  float least;
  int bucket;
} kg_draw_cut;

KG_BLOCK bool kg_draw_stays(const kg_draw_items *items, const kg_draw_cut *cut, int i)
{
  switch (cut->kind) {
  case KG_CUT_LOGIT: return items->x[i] >= cut->least;
  case KG_CUT_WEIGHT: return kg_draw_weight(items->x[i] - cut->order.max) >= cut->least;
  case KG_CUT_BUCKET: return kg_draw_bucket(items->x[i], cut->order.max) == cut->bucket;
  case KG_CUT_TYPICALITY: return kg_typicality(items->x[i], cut->order.max, cut->order.mean) >= cut->least;
  default: return kg_draw_rank_at(items, &cut->order, i) >= cut->last;
  }
}

/* Can anything of a group with this best one stay? */
KG_BLOCK bool kg_draw_group_stays(const kg_draw_cut *cut, kg_rank best)
{
  const float x = kg_rank_value(best);
  switch (cut->kind) {
  case KG_CUT_LOGIT: return x >= cut->least;
  case KG_CUT_WEIGHT: /* a hair below: rounding may give a lower logit the higher weight */
    return kg_draw_weight(x - cut->order.max) >= 0.999f * cut->least;
  case KG_CUT_BUCKET: return kg_draw_bucket(x, cut->order.max) <= cut->bucket;
  case KG_CUT_TYPICALITY: return x - cut->order.max - cut->order.mean >= cut->least - 1e-3f; /* a hair below */
  default: return best >= cut->last;
  }
}

/* Positions first, first + step, ... below end. */
KG_BLOCK void kg_draw_take(const kg_draw_run *run, const kg_draw_cut *cut, int first, int step, int end)
{
  float x[KG_BLOCK_BATCH];
  bool stays[KG_BLOCK_BATCH];
  KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * step;
    stays[j] = i < end && kg_draw_stays(&run->items, cut, i);
    x[j] = stays[j] ? run->items.x[i] : 0;
  }
  KG_BLOCK_OF_BATCH(j)
  {
    if (!stays[j]) continue;
    const int i = first + j * step;
    const uint32_t at = kg_block_add(&run->s->n, 1);
    if (at >= KG_DRAW_LIST) continue;
    run->row->list_x[run->list][at] = x[j];
    run->row->list_ids[run->list][at] = run->items.ids ? run->items.ids[i] : i;
  }
}

/* The fresh row's groups in which anything can stay. */
KG_BLOCK void kg_draw_take_groups(const kg_draw_run *run, const kg_draw_cut *cut)
{
  kg_draw_shared *s = run->s;
  const int n_groups = kg_draw_group_count(run->n_vocab), size = kg_draw_group(run->n_vocab);
  s->at = 0;
  KG_BLOCK_SYNC();
  KG_BLOCK_EACH(i, n_groups) if (kg_draw_group_stays(cut, run->row->best[i])) s->u.groups[kg_block_add(&s->at, 1)] = i;
  KG_BLOCK_SYNC();
  const int n = (int)s->at, lane = KG_BLOCK_THREAD % KG_BLOCK_LANES;
  for (int g = KG_BLOCK_THREAD / KG_BLOCK_LANES; g < n; g += KG_BLOCK_THREADS / KG_BLOCK_LANES) {
    const int first = s->u.groups[g] * size, end = first + size < run->n_vocab ? first + size : run->n_vocab;
    for (int i = first + lane; i < end; i += KG_BLOCK_BATCH * KG_BLOCK_LANES)
      kg_draw_take(run, cut, i, KG_BLOCK_LANES, end);
  }
}

KG_BLOCK void kg_draw_use_list(kg_draw_run *run, int32_t n)
{
  const kg_draw_items list = {run->row->list_x[run->list], run->row->list_ids[run->list], NULL, n};
  run->items = list;
  run->list = 1 - run->list;
  run->is_fresh = false;
}

/* Move what stays to a list; false, and nothing has changed, where it does not fit. */
KG_BLOCK bool kg_draw_to_list(kg_draw_run *run, const kg_draw_cut *cut)
{
  KG_BLOCK_SYNC();
  run->s->n = 0;
  KG_BLOCK_SYNC();
  if (run->is_fresh && !cut->order.by_typicality)
    kg_draw_take_groups(run, cut);
  else
    KG_BLOCK_EACH_BATCH(i, run->items.n) kg_draw_take(run, cut, i, KG_BLOCK_THREADS, run->items.n);
  KG_BLOCK_SYNC();
  const uint32_t n = run->s->n;
  if (n > KG_DRAW_LIST) return false;
  kg_draw_use_list(run, (int32_t)n);
  return true;
}

KG_BLOCK void kg_draw_keep(kg_draw_run *run, const kg_draw_cut *cut)
{
  if (kg_draw_to_list(run, cut)) return;
  KG_BLOCK_EACH(i, run->items.n) if (!kg_draw_stays(&run->items, cut, i)) run->items.x[i] = -INFINITY;
  run->is_fresh = false;
  KG_BLOCK_SYNC();
}

/* The k best of a fresh row, and maybe some more, to a list. */
KG_BLOCK void kg_draw_narrow(kg_draw_run *run, int32_t k)
{
  const int32_t n_groups = kg_draw_group_count(run->n_vocab);
  if (!run->is_fresh || k > n_groups) return;
  const kg_draw_items best = {NULL, NULL, run->row->best, n_groups};
  kg_draw_cut cut = {{false, true, 0, 0, 0}, KG_CUT_RANK, 0, 0, 0};
  cut.last = kg_draw_select(run->s, &best, &cut.order, 0, (uint64_t)k); /* k groups have one that is as high */
  kg_draw_to_list(run, &cut);
}

/* ---- stages ---- */

KG_BLOCK bool kg_draw_keep_best(kg_draw_run *run)
{
  const kg_rank best = kg_draw_best(run);
  const float max = kg_rank_value(best);
  if (!(max > -INFINITY && max < INFINITY)) return false;
  KG_BLOCK_SYNC();
  if (KG_BLOCK_THREAD == 0) {
    run->row->list_x[run->list][0] = max;
    run->row->list_ids[run->list][0] = kg_rank_index(best);
  }
  KG_BLOCK_SYNC();
  kg_draw_use_list(run, 1);
  return true;
}

KG_BLOCK void kg_draw_top_k(kg_draw_run *run, int32_t k)
{
  if (k <= 0 || k >= run->items.n) return;
  kg_draw_narrow(run, k);
  if (k >= run->items.n) return;
  kg_draw_cut cut = {{false, true, 0, 0, 0}, KG_CUT_RANK, 0, 0, 0};
  cut.last = kg_draw_select(run->s, &run->items, &cut.order, 0, (uint64_t)k);
  kg_draw_keep(run, &cut);
}

/* The rank at which the mass, from the best on, reaches the goal. */
KG_BLOCK kg_rank kg_draw_reach(const kg_draw_run *run, const kg_draw_order *order, uint64_t goal)
{
  if (kg_draw_is_weighed(run)) {
    KG_BLOCK_SYNC();
    kg_draw_cross(run->s, run->row->mass, NULL, NULL, KG_DRAW_BUCKETS, 0, goal);
    const uint64_t before = run->s->before;
    const kg_draw_cut cut = {*order, KG_CUT_BUCKET, 0, 0, (int)run->s->at};
    kg_draw_run bucket = *run;
    if (kg_draw_to_list(&bucket, &cut)) return kg_draw_select(run->s, &bucket.items, order, before, goal);
  }
  return kg_draw_select(run->s, &run->items, order, 0, goal);
}

KG_BLOCK bool kg_draw_top_p(kg_draw_run *run, float p)
{
  if (p == 1) return true;
  kg_draw_cut cut = {{false, false, 0, 0, run->scale}, KG_CUT_RANK, 0, 0, 0};
  if (!kg_draw_max(run, &cut.order.max)) return false;
  cut.last = kg_draw_reach(run, &cut.order, kg_goal_of_share(p, kg_draw_total(run, &cut.order)));
  kg_draw_keep(run, &cut);
  return true;
}

/* A typicality such that the mass from there on reaches the goal, from the masses of buckets: a little more than it
 * takes. */
KG_BLOCK float kg_draw_typical_enough(const kg_draw_run *run, const kg_draw_order *order, uint64_t goal)
{
  enum { STEPS = 14 };
  float enough = 2 * 32, short_of = 0; /* distances from the mean */
  for (int step = 0; step < STEPS; step++) {
    const float middle = 0.5f * (enough + short_of);
    uint64_t mass = 0;
    KG_BLOCK_EACH(i, KG_DRAW_BUCKETS)
    {
      const float near = (float)i * (32.0f / KG_DRAW_BUCKETS) + order->mean, far = near + 32.0f / KG_DRAW_BUCKETS;
      const float farthest = fmaxf(fabsf(near), fabsf(far)) + 1e-3f; /* of the bucket's candidates, and a hair */
      if (farthest <= middle) mass += run->row->mass[i];
    }
    if (kg_block_sum(run->s, mass) >= goal)
      enough = middle;
    else
      short_of = middle;
  }
  return -enough;
}

KG_BLOCK bool kg_draw_typical(kg_draw_run *run, float p)
{
  if (p == 1) return true;
  kg_draw_cut cut = {{false, false, 0, 0, run->scale}, KG_CUT_RANK, 0, 0, 0};
  if (!kg_draw_max(run, &cut.order.max)) return false;
  const uint64_t total = kg_draw_total(run, &cut.order);
  cut.order.mean = kg_draw_mean(run, &cut.order, total);
  const uint64_t goal = kg_goal_of_share(p, total);
  if (kg_draw_is_weighed(run)) {
    kg_draw_cut enough = {cut.order, KG_CUT_TYPICALITY, 0, kg_draw_typical_enough(run, &cut.order, goal), 0};
    kg_draw_to_list(run, &enough);
  }
  cut.order.by_typicality = true;
  cut.last = kg_draw_select(run->s, &run->items, &cut.order, 0, goal);
  kg_draw_keep(run, &cut);
  return true;
}

KG_BLOCK bool kg_draw_min_p(kg_draw_run *run, float p)
{
  kg_draw_cut cut = {{false, false, 0, 0, run->scale}, KG_CUT_WEIGHT, 0, p, 0};
  if (!kg_draw_max(run, &cut.order.max)) return false;
  if (p == 0) return true;
  const bool is_sifted = run->is_fresh && kg_draw_sift_of(run->draw->program) == KG_SIFT_MIN_P;
  if (is_sifted && run->row->n_list <= KG_DRAW_LIST)
    kg_draw_use_list(run, (int32_t)run->row->n_list);
  else
    kg_draw_keep(run, &cut);
  return true;
}

/* How many are left, and the lowest of their logits. */
KG_BLOCK int32_t kg_draw_count(const kg_draw_run *run, float *min)
{
  const kg_draw_items *items = &run->items;
  uint64_t n = 0, lowest_not = 0; /* the complement of its rank */
  KG_BLOCK_EACH_BATCH(first, items->n) KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * KG_BLOCK_THREADS;
    const float x = i < items->n ? items->x[i] : -INFINITY;
    if (x == -INFINITY) continue;
    const uint64_t not_rank = ~kg_rank_make(x, 0);
    lowest_not = not_rank > lowest_not ? not_rank : lowest_not;
    n++;
  }
  *min = kg_rank_value(~kg_block_max(run->s, lowest_not));
  return (int32_t)kg_block_sum(run->s, n);
}

KG_BLOCK bool kg_draw_top_n_sigma(kg_draw_run *run, float value)
{
  kg_draw_cut cut = {{false, false, 0, 0, run->scale}, KG_CUT_LOGIT, 0, 0, 0};
  float min;
  if (!kg_draw_max(run, &cut.order.max)) return false;
  if (value == 0) return true;
  const int32_t n = kg_draw_count(run, &min);
  const double range = (double)cut.order.max - (double)min;
  if (range == 0) return true;
  const double scale = kg_spread_scale(range, run->n_vocab);
  uint64_t sum = 0, squares = 0;
  KG_BLOCK_EACH_BATCH(first, run->items.n) KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * KG_BLOCK_THREADS;
    const float x = i < run->items.n ? run->items.x[i] : -INFINITY;
    if (x == -INFINITY) continue;
    const uint64_t distance = kg_spread_of(x, cut.order.max, scale);
    sum += distance;
    squares += distance * distance;
  }
  sum = kg_block_sum(run->s, sum);
  cut.least = kg_sigma_cut(value, cut.order.max, sum, kg_block_sum(run->s, squares), n, scale);
  kg_draw_keep(run, &cut);
  return true;
}

/* The next random number of this draw. */
KG_BLOCK double kg_draw_uniform(kg_draw_run *run)
{
  return kg_uniform(run->draw->seed, (uint64_t)run->draw->pos, run->draw->n_draws + (uint64_t)run->n_drawn++);
}

/* Drop those that rank above the worst one whose mass reaches the goal. */
KG_BLOCK void kg_draw_drop_top(kg_draw_run *run, const kg_draw_order *order, uint64_t goal)
{
  kg_rank worst_not = 0; /* the complement of its rank */
  KG_BLOCK_EACH_BATCH(first, run->items.n) KG_BLOCK_OF_BATCH(j)
  {
    const int i = first + j * KG_BLOCK_THREADS;
    if (i >= run->items.n || kg_draw_mass_at(&run->items, order, i) < goal) continue;
    const kg_rank not_rank = ~kg_draw_rank_at(&run->items, order, i);
    worst_not = not_rank > worst_not ? not_rank : worst_not;
  }
  if (!(worst_not = kg_block_max(run->s, worst_not))) return;
  KG_BLOCK_EACH(i, run->items.n) if (kg_draw_rank_at(&run->items, order, i) > ~worst_not) run->items.x[i] = -INFINITY;
  run->is_fresh = false;
  KG_BLOCK_SYNC();
}

KG_BLOCK bool kg_draw_xtc(kg_draw_run *run, const kg_draw_stage *stage)
{
  kg_draw_order order = {false, false, 0, 0, run->scale};
  if (!kg_draw_max(run, &order.max)) return false;
  if (!kg_xtc_may_drop(stage->value, stage->threshold)) return true;
  if (stage->value < 1 && kg_draw_uniform(run) >= (double)stage->value) return true;
  kg_draw_drop_top(run, &order, kg_goal_of_share(stage->threshold, kg_draw_total(run, &order)));
  return true;
}

KG_BLOCK int32_t kg_draw_id_at(const kg_draw_items *items, int i) { return items->ids ? items->ids[i] : i; }

KG_BLOCK void kg_draw_penalize(kg_draw_run *run, const kg_draw_stage *stage)
{
  const kg_draw *draw = run->draw;
  const int32_t first = kg_history_first(stage->last_n, draw->n_history);
  KG_BLOCK_EACH(i, run->items.n)
  {
    const int32_t id = kg_draw_id_at(&run->items, i);
    int32_t count = 0;
    for (int32_t h = first; h < draw->n_history; h++) count += draw->history[h] == id;
    if (count)
      run->items.x[i] = kg_penalized(run->items.x[i], count, stage->repeat, stage->frequency, stage->presence);
  }
}

/* Where id is in ascending ids[0..n), or -1. */
KG_SHARED int32_t kg_draw_find(const int32_t *ids, int32_t n, int32_t id)
{
  int32_t low = 0, high = n;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (ids[middle] < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low < n && ids[low] == id ? low : -1;
}

KG_BLOCK void kg_draw_bias(kg_draw_run *run, const kg_draw_stage *stage)
{
  const kg_draw_program *program = run->draw->program;
  KG_BLOCK_EACH(i, run->items.n)
  {
    const int32_t id = kg_draw_id_at(&run->items, i);
    const int32_t at = kg_draw_find(program->bias_ids + stage->bias, stage->n_bias, id);
    if (at >= 0) run->items.x[i] = kg_biased(run->items.x[i], program->bias_values[stage->bias + at]);
    for (int32_t p = stage->phrase; p < stage->phrase + stage->n_phrases; p++) {
      const kg_draw_phrase *phrase = &program->phrases[p];
      if (phrase->id == id && kg_phrase_applies(phrase, program->phrase_ids, run->draw->history, run->draw->n_history))
        run->items.x[i] = kg_biased(run->items.x[i], phrase->value);
    }
  }
}

KG_BLOCK void kg_draw_divide(kg_draw_run *run, float divisor)
{
  if (divisor == 1) return;
  KG_BLOCK_EACH_BATCH(first, run->items.n)
  {
    float x[KG_BLOCK_BATCH];
    KG_BLOCK_OF_BATCH(j)
    {
      const int i = first + j * KG_BLOCK_THREADS;
      x[j] = i < run->items.n ? run->items.x[i] / divisor : 0;
    }
    KG_BLOCK_OF_BATCH(j)
    {
      const int i = first + j * KG_BLOCK_THREADS;
      if (i < run->items.n) run->items.x[i] = x[j];
    }
  }
}

KG_BLOCK bool kg_draw_dynamic_temperature(kg_draw_run *run, const kg_draw_stage *stage)
{
  kg_draw_order order = {false, false, 0, 0, run->scale};
  float min;
  if (!kg_draw_max(run, &order.max)) return false;
  const int32_t n = kg_draw_count(run, &min);
  const uint64_t total = kg_draw_total(run, &order);
  const float mean = kg_draw_mean(run, &order, total);
  const float value = kg_dynamic_temperature(stage->value, stage->high, stage->exponent, total, mean, n, run->scale);
  if (value < KG_TEMPERATURE_MIN) return kg_draw_keep_best(run);
  KG_BLOCK_SYNC();
  kg_draw_divide(run, value);
  run->is_fresh = false;
  KG_BLOCK_SYNC();
  return true;
}

/* False: the host's chain must say what is wrong. */
KG_BLOCK bool kg_draw_apply(kg_draw_run *run, const kg_draw_stage *stage)
{
  switch (stage->kind) {
  case KG_STAGE_GREEDY: return kg_draw_keep_best(run);
  case KG_STAGE_TOP_K: kg_draw_top_k(run, stage->k); return true;
  case KG_STAGE_TOP_P: return kg_draw_top_p(run, stage->value);
  case KG_STAGE_MIN_P: return kg_draw_min_p(run, stage->value);
  case KG_STAGE_TYPICAL: return kg_draw_typical(run, stage->value);
  case KG_STAGE_TOP_N_SIGMA: return kg_draw_top_n_sigma(run, stage->value);
  case KG_STAGE_XTC: return kg_draw_xtc(run, stage);
  case KG_STAGE_DYNAMIC_TEMPERATURE: return kg_draw_dynamic_temperature(run, stage);
  default: break;
  }
  if (stage->kind == KG_STAGE_TEMPERATURE && stage->value == 0) return kg_draw_keep_best(run);
  KG_BLOCK_SYNC();
  if (stage->kind == KG_STAGE_TEMPERATURE)
    kg_draw_divide(run, stage->value);
  else if (stage->kind == KG_STAGE_PENALTIES)
    kg_draw_penalize(run, stage);
  else
    kg_draw_bias(run, stage);
  run->is_fresh = false;
  KG_BLOCK_SYNC();
  return true;
}

/* The stages behind the prefix. */
KG_BLOCK bool kg_draw_stages(kg_draw_run *run)
{
  const kg_draw_program *program = run->draw->program;
  if (run->row->n_nan) return false;
  for (int i = program->n_prefix; i < program->n_stages; i++)
    if (!kg_draw_apply(run, &program->stages[i])) return false;
  return true;
}

KG_BLOCK kg_draw_run kg_draw_begin(const kg_draw *draw, const kg_draw_row *row, int32_t n_vocab, kg_draw_shared *s)
{
  const kg_draw_run run = {draw, row, s, {row->x, NULL, NULL, n_vocab}, n_vocab, kg_mass_scale(n_vocab), 0, 0, true};
  return run;
}

/* Everything behind the prefix. The result is the same in every thread. */
KG_BLOCK kg_drawn kg_draw_block(const kg_draw *draw, const kg_draw_row *row, int32_t n_vocab, kg_draw_shared *s)
{
  const kg_drawn failed = {0, KG_DRAW_FAILED};
  kg_draw_run run = kg_draw_begin(draw, row, n_vocab, s);
  kg_draw_order order = {false, false, 0, 0, run.scale};
  if (!kg_draw_stages(&run)) return failed;
  if (run.items.ids && run.items.n == 1) { /* the only one, and no number decides */
    const kg_drawn only = {run.items.ids[0], run.n_drawn};
    return run.items.x[0] > -INFINITY && run.items.x[0] < INFINITY ? only : failed;
  }
  if (!kg_draw_max(&run, &order.max)) return failed;
  const uint64_t total = kg_draw_total(&run, &order);
  const double u = total > kg_mass(1, run.scale) ? kg_draw_uniform(&run) : 0;
  kg_drawn drawn = {0, run.n_drawn};
  drawn.id = kg_rank_index(kg_draw_reach(&run, &order, kg_goal_of_draw(u, total)));
  return drawn;
}

/* The same without the draw: what the stages leave, to out[n_vocab], which may be the logits. */
KG_BLOCK kg_drawn kg_draw_apply_block(const kg_draw *draw, const kg_draw_row *row, int32_t n_vocab, kg_draw_shared *s,
                                      float *out)
{
  const kg_drawn failed = {0, KG_DRAW_FAILED};
  kg_draw_run run = kg_draw_begin(draw, row, n_vocab, s);
  if (!kg_draw_stages(&run)) return failed;
  KG_BLOCK_EACH(i, n_vocab) out[i] = run.items.ids ? -INFINITY : run.items.x[i];
  KG_BLOCK_SYNC();
  if (run.items.ids) KG_BLOCK_EACH(i, run.items.n) out[run.items.ids[i]] = run.items.x[i];
  const kg_drawn applied = {0, run.n_drawn};
  return applied;
}

#endif
