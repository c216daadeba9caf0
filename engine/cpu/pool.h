/* pool.h - the threads that execute a model. They are made once; the caller of kg_pool_run is worker 0 and is never
 * pinned, the others stay on one core each while there are enough. Who waits, for a job or at a barrier, spins (where
 * there are cores for all), then yields, and after about a millisecond sleeps. One job at a time. */
#ifndef KG_CPU_POOL_H
#define KG_CPU_POOL_H

#include "kigo.h"

typedef struct kg_pool kg_pool;

/* Called once per worker; workers in [0, kg_pool_size). */
typedef void (*kg_pool_job)(void *arg, int32_t worker);

int32_t kg_pool_default_size(void); /* cores this process may use */

/* n_threads workers (the caller included); 0: kg_pool_default_size. */
int kg_pool_new(int32_t n_threads, kg_pool **out, kg_error *err);
void kg_pool_free(kg_pool *pool);
int32_t kg_pool_size(const kg_pool *pool);
/* Does the calling process have the threads? After a fork the child does not: it may free the pool, but not run jobs. */
bool kg_pool_is_here(const kg_pool *pool);

/* Run job(arg, worker) on every worker and wait for all of them. */
void kg_pool_run(kg_pool *pool, kg_pool_job job, void *arg);

/* Memory that a worker reads soon: fetched into its cache while it waits, so that memory does not idle with it. */
typedef struct kg_ahead {
  const char *at, *end;
} kg_ahead;

/* Inside a job: wait until every worker has come here. What was fetched meanwhile is taken off *ahead. */
void kg_pool_barrier(kg_pool *pool, int32_t worker, kg_ahead *ahead);

/* Inside a job: share items [0, n_items) of one phase. Each worker owns a contiguous part, takes it in pieces of
 * `grain` items and afterwards helps the others. Between two phases of a job stands a kg_pool_barrier. Usage:
 *   kg_phase phase = kg_phase_begin(pool, worker, n_items, grain);
 *   while (kg_phase_next(&phase, &item0, &item1)) ... */
typedef struct kg_phase {
  kg_pool *pool;
  int32_t worker, victim; /* whose part is being taken */
  int64_t n_items, grain;
  int32_t parity;
} kg_phase;
kg_phase kg_phase_begin(kg_pool *pool, int32_t worker, int64_t n_items, int64_t grain);
bool kg_phase_next(kg_phase *phase, int64_t *item0, int64_t *item1);

/* Bytes per second that all workers together read from memory: best of several passes over n_bytes (split evenly). */
int kg_pool_read_bandwidth(kg_pool *pool, size_t n_bytes, double *out, kg_error *err);

#endif
