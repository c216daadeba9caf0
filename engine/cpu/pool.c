#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "error.h"
#include "system.h"

enum {
  LINE = 64,
  MAX_THREADS = 1024,
  SPINS_PER_LOOK = 64,       /* at the clock */
  SPIN_NS = 50 * 1000,       /* of waiting, before the first yield */
  PATIENCE_NS = 1000 * 1000, /* of waiting, before a worker sleeps */
  LINES_PER_LOOK = 8         /* fetched ahead between two looks at the barrier */
};

/* What one worker writes, on cache lines of its own. */
typedef struct worker_state {
  alignas(LINE) atomic_llong taken[2]; /* items taken of this worker's part, by parity of the phase */
  alignas(LINE) unsigned sense;        /* of the barrier; private to the worker */
  int32_t n_phases;                    /* barriers passed in this job; private to the worker */
  int32_t index;
  pthread_t thread;
  kg_pool *pool;
} worker_state;

struct kg_pool {
  int32_t n;
  int64_t spin_ns; /* of waiting before the first yield: none with more workers than cores */
  int32_t n_started; /* workers 1 .. n_started have a thread */
  pid_t process;     /* whose threads they are */
  worker_state *workers;
  kg_pool_job job;
  void *arg;
  alignas(LINE) atomic_uint epoch;    /* counts jobs; a worker waits for the next number */
  alignas(LINE) atomic_uint arrived;  /* barrier: workers there */
  alignas(LINE) atomic_uint sense;    /* barrier: flips when all are there */
  alignas(LINE) atomic_uint running;  /* workers 1.. that have not finished the job */
  alignas(LINE) atomic_uint n_parked; /* asleep until epoch, sense or running changes */
  atomic_bool stop;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
};

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Wait until *value is not `old`: spin, then yield, then sleep. With more threads than cores, or with other programs on
 * them, the worker that is waited for may need this core. */
static void wait_change(kg_pool *pool, const atomic_uint *value, unsigned old)
{
  int64_t start = 0, waited = 0;
  while (waited < PATIENCE_NS) {
    for (int i = 0; i < SPINS_PER_LOOK; i++) {
      if (atomic_load_explicit(value, memory_order_acquire) != old) return;
      pause_cpu();
    }
    const int64_t now = now_ns();
    if (!start) start = now;
    waited = now - start;
    if (waited >= pool->spin_ns) sched_yield();
  }
  pthread_mutex_lock(&pool->mutex);
  atomic_fetch_add(&pool->n_parked, 1); /* before the look at the value: wake_parked looks in the other order */
  while (atomic_load(value) == old) pthread_cond_wait(&pool->wake, &pool->mutex);
  atomic_fetch_sub(&pool->n_parked, 1);
  pthread_mutex_unlock(&pool->mutex);
}

/* After every change that somebody may wait for. They stand before it, sequentially consistent, for the reason above. */
static void wake_parked(kg_pool *pool)
{
  if (!atomic_load(&pool->n_parked)) return;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *arg)
{
  worker_state *self = arg;
  kg_pool *pool = self->pool;
  for (unsigned seen = 0;; seen++) {
    wait_change(pool, &pool->epoch, seen);
    if (atomic_load(&pool->stop)) return NULL;
    pool->job(pool->arg, self->index);
    atomic_fetch_sub(&pool->running, 1);
    wake_parked(pool);
  }
}

/* ---- life ---- */

int32_t kg_pool_default_size(void)
{
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set)) return 1;
  const int n = CPU_COUNT(&set);
  return n < 1 ? 1 : n;
}

/* Pin worker i to the i-th allowed core, when every worker can have one. A refusal only costs speed. */
static void pin(const kg_pool *pool, const worker_state *worker)
{
  cpu_set_t allowed, one;
  CPU_ZERO(&allowed);
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < pool->n) return;
  int32_t left = worker->index;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && left-- == 0) {
      CPU_SET(cpu, &one);
      pthread_setaffinity_np(worker->thread, sizeof one, &one);
      return;
    }
}

int kg_pool_new(int32_t n_threads, kg_pool **out, kg_error *err)
{
  if (n_threads < 0 || n_threads > MAX_THREADS)
    return kg_fail(err, KG_ERR_ARGUMENT, "threads: %d is outside 0 to %d", (int)n_threads, (int)MAX_THREADS);
  const int32_t n = n_threads ? n_threads : kg_pool_default_size();
  kg_pool *pool = kg_alloc_aligned(sizeof *pool, LINE);
  worker_state *workers = kg_alloc_aligned((size_t)n * sizeof *workers, LINE);
  if (!pool || !workers) {
    kg_free(pool);
    kg_free(workers);
    return kg_fail_memory(err, sizeof *pool + (size_t)n * sizeof *workers, "the thread pool");
  }
  memset(pool, 0, sizeof *pool);
  memset(workers, 0, (size_t)n * sizeof *workers);
  pool->n = n;
  pool->process = getpid();
  pool->spin_ns = n > kg_pool_default_size() ? 0 : SPIN_NS;
  pool->workers = workers;
  pthread_mutex_init(&pool->mutex, NULL);
  pthread_cond_init(&pool->wake, NULL);
  workers[0].pool = pool;
  for (int32_t i = 1; i < n; i++) {
    workers[i].index = i;
    workers[i].pool = pool;
    const int failed = kg_sys_pthread_create(&workers[i].thread, worker_main, &workers[i]);
    if (failed) {
      kg_pool_free(pool);
      return kg_fail(err, failed == ENOMEM ? KG_ERR_MEMORY : KG_ERR_IO, "thread %d of %d: pthread_create failed: %s",
                     (int)i + 1, (int)n, strerror(failed));
    }
    pool->n_started = i;
    pin(pool, &workers[i]);
  }
  *out = pool;
  return KG_OK;
}

void kg_pool_free(kg_pool *pool)
{
  if (!pool) return;
  if (kg_pool_is_here(pool)) { /* else there is nobody to wait for */
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->epoch, 1);
    wake_parked(pool);
    for (int32_t i = 1; i <= pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
  }
  kg_free(pool->workers);
  kg_free(pool);
}

int32_t kg_pool_size(const kg_pool *pool) { return pool->n; }

bool kg_pool_is_here(const kg_pool *pool) { return pool->n == 1 || pool->process == getpid(); }

/* ---- jobs ---- */

void kg_pool_run(kg_pool *pool, kg_pool_job job, void *arg)
{
  pool->job = job;
  pool->arg = arg;
  for (int32_t i = 0; i < pool->n; i++) {
    worker_state *worker = &pool->workers[i];
    worker->n_phases = 0;
    atomic_store_explicit(&worker->taken[0], 0, memory_order_relaxed);
    atomic_store_explicit(&worker->taken[1], 0, memory_order_relaxed);
  }
  atomic_store(&pool->running, (unsigned)pool->n - 1);
  atomic_fetch_add(&pool->epoch, 1);
  wake_parked(pool);
  job(arg, 0);
  for (unsigned left; (left = atomic_load_explicit(&pool->running, memory_order_acquire)) != 0;)
    wait_change(pool, &pool->running, left);
}

/* As wait_change, but fetch what is ahead first. */
static void wait_fetching(kg_pool *pool, const atomic_uint *value, unsigned old, kg_ahead *ahead)
{
  while (ahead->at < ahead->end) {
    if (atomic_load_explicit(value, memory_order_acquire) != old) return;
    for (int i = 0; i < LINES_PER_LOOK; i++) __builtin_prefetch(ahead->at + i * LINE, 0, 2);
    ahead->at += LINES_PER_LOOK * LINE;
  }
  wait_change(pool, value, old);
}

void kg_pool_barrier(kg_pool *pool, int32_t index, kg_ahead *ahead)
{
  worker_state *worker = &pool->workers[index];
  const int32_t parity = worker->n_phases++ & 1;
  if (pool->n > 1) {
    const unsigned sense = worker->sense;
    worker->sense = !sense;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == (unsigned)pool->n - 1) {
      atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
      atomic_store(&pool->sense, !sense);
      wake_parked(pool);
    } else {
      wait_fetching(pool, &pool->sense, sense, ahead);
    }
  }
  /* Everybody has left the phase before the barrier; its counters are used again two phases later. */
  atomic_store_explicit(&worker->taken[parity], 0, memory_order_relaxed);
}

kg_phase kg_phase_begin(kg_pool *pool, int32_t worker, int64_t n_items, int64_t grain)
{
  return (kg_phase){.pool = pool,
                    .worker = worker,
                    .victim = worker,
                    .n_items = n_items,
                    .grain = grain < 1 ? 1 : grain,
                    .parity = pool->workers[worker].n_phases & 1};
}

bool kg_phase_next(kg_phase *phase, int64_t *item0, int64_t *item1)
{
  const int32_t n = phase->pool->n;
  for (;;) {
    const int64_t first = phase->n_items * phase->victim / n, end = phase->n_items * (phase->victim + 1) / n;
    atomic_llong *taken = &phase->pool->workers[phase->victim].taken[phase->parity];
    if (atomic_load_explicit(taken, memory_order_relaxed) < end - first) {
      const int64_t at = first + atomic_fetch_add_explicit(taken, phase->grain, memory_order_relaxed);
      if (at < end) {
        *item0 = at;
        *item1 = at + phase->grain < end ? at + phase->grain : end;
        return true;
      }
    }
    phase->victim = phase->victim + 1 == n ? 0 : phase->victim + 1;
    if (phase->victim == phase->worker) return false;
  }
}

/* ---- the read probe ---- */

typedef struct probe {
  kg_pool *pool;
  const uint64_t *words;
  size_t n_words;
  bool fill;
  atomic_ullong sum; /* keeps the reads */
} probe;

typedef uint64_t words8 __attribute__((vector_size(64), may_alias));

enum { PROBE_AHEAD = 64 }; /* cache lines */

static void probe_job(void *arg, int32_t index)
{
  probe *p = arg;
  const size_t n = (size_t)kg_pool_size(p->pool), lines = p->n_words / 32; /* 256 bytes at a time */
  const size_t first = lines * (size_t)index / n, end = lines * ((size_t)index + 1) / n;
  if (p->fill) {
    memset((uint64_t *)p->words + first * 32, 1, (end - first) * 256);
    return;
  }
  const words8 *at = (const words8 *)p->words;
  words8 a = {0}, b = {0}, c = {0}, d = {0};
  for (size_t i = first; i < end; i++) {
    for (size_t line = 0; line < 4; line++) __builtin_prefetch(&at[4 * i + line + PROBE_AHEAD]); /* as the kernels do */
    a ^= at[4 * i];
    b ^= at[4 * i + 1];
    c ^= at[4 * i + 2];
    d ^= at[4 * i + 3];
  }
  a ^= b ^ c ^ d;
  atomic_fetch_add_explicit(&p->sum, a[0] ^ a[3] ^ a[7], memory_order_relaxed);
}

int kg_pool_read_bandwidth(kg_pool *pool, size_t n_bytes, double *out, kg_error *err)
{
  enum { PASSES = 6 };
  const size_t n_words = n_bytes / 256 * 32;
  if (!n_words) return kg_fail(err, KG_ERR_ARGUMENT, "bandwidth: %zu bytes are too few", n_bytes);
  uint64_t *words = kg_alloc_aligned(n_words * sizeof *words, LINE);
  if (!words) return kg_fail_memory(err, n_words * sizeof *words, "the read probe");
  probe p = {.pool = pool, .words = words, .n_words = n_words, .fill = true};
  kg_pool_run(pool, probe_job, &p);
  p.fill = false;
  int64_t best = INT64_MAX;
  for (int i = 0; i < PASSES; i++) {
    const int64_t start = now_ns();
    kg_pool_run(pool, probe_job, &p);
    const int64_t took = now_ns() - start;
    if (took < best) best = took;
  }
  kg_free(words);
  *out = (double)(n_words * sizeof *words) / (1e-9 * (double)(best > 0 ? best : 1));
  return KG_OK;
}
