/* kernel_bench.c - speed of the CPU kernels: packed bytes per second with one activation row, products per second with
 * many, beside the read bandwidth measured on the spot. Not part of the product: make kernel_bench.
 *
 *   kernel_bench [variant|best [threads [type [rows of activations ...]]]] */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "alloc.h"
#include "kernels.h"

enum { MAX_THREADS = 16, REPEATS = 7, COLS = 4864 };

static double now(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t); /* processor time would hide that threads wait for the same memory */
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- all threads at once ---- */

typedef struct crew {
  void (*work)(void *context, int thread, int n_threads);
  void *context;
  int n_threads;
  atomic_int waiting;
} crew;

typedef struct member {
  crew *crew;
  int thread;
  double seconds;
} member;

static void *run_member(void *argument)
{
  member *m = argument;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(m->thread, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
  atomic_fetch_sub(&m->crew->waiting, 1);
  while (atomic_load(&m->crew->waiting) > 0) {}
  const double start = now();
  m->crew->work(m->crew->context, m->thread, m->crew->n_threads);
  m->seconds = now() - start;
  return NULL;
}

/* The best time of several; of one run, that of the slowest thread. */
static double best_seconds(void (*work)(void *, int, int), void *context, int n_threads)
{
  double best = 1e9;
  for (int i = 0; i < REPEATS; i++) {
    crew c = {work, context, n_threads, n_threads};
    member members[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    double slowest = 0;
    for (int t = 0; t < n_threads; t++) {
      members[t] = (member){&c, t, 0};
      pthread_create(&threads[t], NULL, run_member, &members[t]);
    }
    for (int t = 0; t < n_threads; t++) {
      pthread_join(threads[t], NULL);
      if (members[t].seconds > slowest) slowest = members[t].seconds;
    }
    if (slowest < best) best = slowest;
  }
  return best;
}

/* ---- what is measured ---- */

typedef struct stream {
  const uint64_t *words;
  size_t n;
  uint64_t sums[MAX_THREADS][8];
} stream;

static void read_stream(void *context, int thread, int n_threads)
{
  stream *s = context;
  const size_t part = s->n / (size_t)n_threads / 8 * 8;
  const uint64_t *words = s->words + part * (size_t)thread;
  uint64_t sums[8] = {0};
  for (size_t i = 0; i < part; i += 8, __builtin_prefetch(words + i + 512)) /* 4 KiB ahead, as the kernels do */
    for (int k = 0; k < 8; k++) sums[k] += words[i + (size_t)k];
  memcpy(s->sums[thread], sums, sizeof sums);
}

typedef struct job {
  const kg_kernels *kernels;
  kg_matmul matmul;
  const void *file_blocks;
} job;

static void multiply(void *context, int thread, int n_threads)
{
  job *j = context;
  const int64_t n = j->matmul.weight->n_groups;
  j->kernels->matmul(&j->matmul, n * thread / n_threads, n * (thread + 1) / n_threads);
}

typedef struct conversion {
  const kg_kernels *kernels;
  kg_activation_format format;
  const float *x;
  int64_t n_rows;
  void *out;
} conversion;

static void convert(void *context, int thread, int n_threads)
{
  const conversion *c = context;
  c->kernels->quantize(c->format, c->x, COLS, c->n_rows, COLS, c->n_rows * thread / n_threads,
                       c->n_rows * (thread + 1) / n_threads, c->out);
}

static void pack(void *context, int thread, int n_threads)
{
  job *j = context;
  const int64_t n = j->matmul.weight->n_groups;
  kg_pack(j->matmul.weight, 0, n * thread / n_threads, n * (thread + 1) / n_threads, j->file_blocks);
}

static void fill_random(void *memory, size_t n_bytes)
{
  uint64_t state = 88172645463325252u, *words = memory;
  for (size_t i = 0; i < n_bytes / 8; i++) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    words[i] = state & 0xbfffbfffbfffbfff; /* halves that are finite, whatever these bytes are */
  }
}

static float *random_floats(int64_t n)
{
  float *x = kg_alloc_aligned((size_t)n * 4, 64);
  for (int64_t i = 0; x && i < n; i++) x[i] = (float)((i * 2654435761u) % 2000u) / 1000.0f - 1.0f;
  return x;
}

static double read_bandwidth(int n_threads)
{
  const size_t n_bytes = (size_t)512 << 20;
  stream s = {.words = kg_packed_memory(n_bytes), .n = n_bytes / 8};
  if (!s.words) return 0;
  fill_random((void *)(uintptr_t)s.words, n_bytes);
  const double seconds = best_seconds(read_stream, &s, n_threads);
  kg_free((void *)(uintptr_t)s.words);
  return (double)n_bytes / seconds;
}

/* One type: packing, then products with each number of rows. */
static int measure(const kg_kernels *kernels, kg_type type, int n_threads, const int *rows, int n_sizes, double bandwidth)
{
  const kg_type_info *info = kg_type_find((uint32_t)type);
  kg_packed weight;
  kg_error err;
  const size_t row_bytes = (size_t)(COLS / info->block_size * info->block_bytes);
  const int64_t n_rows = (int64_t)(((size_t)160 << 20) / row_bytes) / 32 * 32;
  if (kg_packed_init(&weight, type, COLS, n_rows, 1, &err)) return fprintf(stderr, "%s\n", err.message), 1;
  void *file = kg_packed_memory(row_bytes * (size_t)n_rows);
  weight.data = kg_packed_memory(weight.n_bytes);
  if (!file || !weight.data) return fprintf(stderr, "out of memory\n"), 1;
  fill_random(file, row_bytes * (size_t)n_rows);
  if (type == KG_MXFP4) /* powers of two from 1/256 on */
    for (size_t i = 0; i < row_bytes * (size_t)n_rows; i += 17) ((uint8_t *)file)[i] = (uint8_t)(119 + i % 8);
  job j = {kernels, {.weight = &weight}, file};
  const double pack_seconds = best_seconds(pack, &j, n_threads);
  printf("%-7s +%4.1f%%  pack %5.2f GB/s", info->name,
         100.0 * ((double)weight.n_bytes / (double)(row_bytes * (size_t)n_rows) - 1),
         1e-9 * (double)weight.n_bytes / pack_seconds);
  kg_free(file);
  for (int i = 0; i < n_sizes; i++) {
    kg_packed part = weight;
    if (rows[i] > 16) { /* fewer groups, for patience */
      part.rows = 2048;
      part.n_groups = 2048 / KG_GROUP;
    }
    const kg_activation_format format = kernels->format(type);
    float *x = random_floats(rows[i] * (int64_t)COLS), *out = kg_alloc((size_t)(rows[i] * part.rows) * 4);
    void *activations = kg_alloc_aligned(kg_activation_bytes(format, rows[i], COLS), 64);
    if (!x || !out || !activations) return fprintf(stderr, "out of memory\n"), 1;
    conversion c = {kernels, format, x, rows[i], activations};
    const double convert_seconds = best_seconds(convert, &c, n_threads);
    j.matmul = (kg_matmul){.weight = &part, .x = activations, .n_rows = rows[i], .out = out, .out_stride = part.rows};
    const double seconds = best_seconds(multiply, &j, n_threads);
    const double bytes = (double)part.group_bytes * (double)part.n_groups;
    printf(" | n=%d %6.1f GMAC/s", rows[i], 1e-9 * (double)part.rows * COLS * rows[i] / seconds);
    if (rows[i] <= 16) printf(" %5.1f GB/s %3.0f%%", 1e-9 * bytes / seconds, 100 * bytes / seconds / bandwidth);
    if (rows[i] > 16) printf(", x %.2f G/s", 1e-9 * rows[i] * COLS / convert_seconds);
    kg_free(x);
    kg_free(out);
    kg_free(activations);
  }
  kg_free(weight.data);
  printf("\n");
  fflush(stdout);
  return 0;
}

int main(int argc, char **argv)
{
  kg_error err;
  const kg_kernels *kernels;
  int rows[8] = {1, 4, 16, 512}, n_sizes = 4;
  const int n_threads = argc > 2 ? atoi(argv[2]) : 2;
  const char *only = argc > 3 ? argv[3] : NULL;
  if (n_threads < 1 || n_threads > MAX_THREADS) return fprintf(stderr, "threads: 1 to %d\n", MAX_THREADS), 1;
  if (kg_kernels_find(argc > 1 && strcmp(argv[1], "best") ? argv[1] : NULL, &kernels, &err))
    return fprintf(stderr, "%s\n", err.message), 1;
  if (argc > 4)
    for (n_sizes = 0; n_sizes < 8 && argv[4 + n_sizes]; n_sizes++) rows[n_sizes] = atoi(argv[4 + n_sizes]);
  const double bandwidth = read_bandwidth(n_threads);
  printf("%s, %d threads, read %.1f GB/s\n", kernels->name, n_threads, 1e-9 * bandwidth);
  for (uint32_t number = 0; number < 64; number++) {
    const kg_type_info *info = kg_type_find(number);
    if (!info || !kg_type_is_computable((kg_type)number) || (only && strcmp(only, "all") && strcmp(only, info->name)))
      continue;
    if (measure(kernels, (kg_type)number, n_threads, rows, n_sizes, bandwidth)) return 1;
  }
  return 0;
}
