#include "common.cuh"
#include "sample.h"

enum {
  PREPARE_THREADS = 256,
  PREPARE_EACH = KG_DRAW_CHUNK / PREPARE_THREADS, /* ids of a thread */
  PICK_BLOCKS = 8,                                /* on a processor */
  GROUP = 128,
  SIFT_THREADS = 512,
  SIFT_EACH = 8,
  SIFT_CHUNK = SIFT_THREADS * SIFT_EACH
};
static_assert(KG_DRAW_CHUNK % GROUP == 0 && GROUP % 32 == 0, "groups are whole in chunks, and warps in groups");

static __device__ __forceinline__ kg_rank warp_best(kg_rank x)
{
  for (int step = 16; step; step >>= 1) {
    const kg_rank other = __shfl_xor_sync(~0u, x, step);
    x = other > x ? other : x;
  }
  return x;
}

/* ids [first, first + n) of a row, in shared memory. */
struct chunk {
  float x[KG_DRAW_CHUNK];
  int counts[KG_DRAW_CHUNK];
};

static __device__ void penalize(chunk *c, const kg_draw *draw, const kg_draw_stage *stage, int first, int n)
{
  for (int i = threadIdx.x; i < n; i += PREPARE_THREADS) c->counts[i] = 0;
  __syncthreads();
  for (int h = kg_history_first(stage->last_n, draw->n_history) + threadIdx.x; h < draw->n_history;
       h += PREPARE_THREADS) {
    const int at = draw->history[h] - first;
    if (at >= 0 && at < n) atomicAdd(&c->counts[at], 1);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += PREPARE_THREADS)
    if (c->counts[i]) c->x[i] = kg_penalized(c->x[i], c->counts[i], stage->repeat, stage->frequency, stage->presence);
}

static __device__ void add_bias(chunk *c, const kg_draw *draw, const kg_draw_stage *stage, int first, int n)
{
  const kg_draw_program *program = draw->program;
  for (int b = stage->bias + threadIdx.x; b < stage->bias + stage->n_bias; b += PREPARE_THREADS) {
    const int at = program->bias_ids[b] - first; /* each id once */
    if (at >= 0 && at < n) c->x[at] = kg_biased(c->x[at], program->bias_values[b]);
  }
  __syncthreads();
  if (threadIdx.x) return;
  for (int p = stage->phrase; p < stage->phrase + stage->n_phrases; p++) { /* in order: several may be for one id */
    const kg_draw_phrase *phrase = &program->phrases[p];
    const int at = phrase->id - first;
    if (at >= 0 && at < n && kg_phrase_applies(phrase, program->phrase_ids, draw->history, draw->n_history))
      c->x[at] = kg_biased(c->x[at], phrase->value);
  }
}

/* What a thread reads of a chunk: every PREPARE_THREADS-th logit, -inf behind the end. */
struct logits_read {
  const float *logits;
  bool is_scaled;
  float factor, offset;
};

static __device__ __forceinline__ logits_read find_logits(const kg_sample_row &row)
{
  return {row.logits, row.is_scaled, row.factor, row.offset};
}

/* Is one of ids [first, first + n) none, or +inf? */
static __device__ __forceinline__ bool read_logits(const logits_read &from, int first, int n, float (&x)[PREPARE_EACH])
{
  bool is_bad = false;
#pragma unroll
  for (int j = 0; j < PREPARE_EACH; j++) {
    const int i = threadIdx.x + j * PREPARE_THREADS;
    x[j] = i < n ? from.logits[first + i] : -CUDART_INF_F;
  }
#pragma unroll
  for (int j = 0; j < PREPARE_EACH; j++) {
    if (from.is_scaled && threadIdx.x + j * PREPARE_THREADS < n) x[j] = x[j] * from.factor + from.offset;
    is_bad |= !(x[j] < CUDART_INF_F);
  }
  return is_bad;
}

/* The chain's prefix, on logits that are in the chunk. */
static __device__ __forceinline__ void apply_prefix(chunk *c, const kg_draw *draw, int first, int n)
{
  const kg_draw_program *program = draw->program;
  for (int i = 0; i < program->n_prefix; i++) {
    const kg_draw_stage *stage = &program->stages[i];
    if (stage->kind == KG_STAGE_PENALTIES)
      penalize(c, draw, stage, first, n);
    else if (stage->kind == KG_STAGE_BIAS)
      add_bias(c, draw, stage, first, n);
    else if (stage->value != 1)
      for (int j = threadIdx.x; j < n; j += PREPARE_THREADS) c->x[j] /= stage->value;
    __syncthreads();
  }
}

/* prepare_rows: x = the logits behind the chain's prefix, and the best of each group.
 * grid: (chunks of KG_DRAW_CHUNK ids, rows); shared: 8 KB. moves 8 bytes an id. twin: prepare and group in draw.c. */
static __global__ void __launch_bounds__(PREPARE_THREADS) prepare_rows(kg_sample_row *rows, int n_vocab)
{
  __shared__ chunk c;
  __shared__ unsigned long long chunk_best;
  wait_for_previous();
  kg_sample_row *row = &rows[blockIdx.y];
  const int first = blockIdx.x * KG_DRAW_CHUNK, n = min(KG_DRAW_CHUNK, n_vocab - first);
  float x[PREPARE_EACH];
  if (!threadIdx.x) chunk_best = 0;
  const bool is_bad = read_logits(find_logits(*row), first, n, x);
#pragma unroll
  for (int j = 0; j < PREPARE_EACH; j++) c.x[threadIdx.x + j * PREPARE_THREADS] = x[j];
  if (__syncthreads_or(is_bad) && !threadIdx.x) atomicAdd(&row->room.n_nan, 1);
  apply_prefix(&c, &row->draw, first, n);
  const bool small_groups = kg_draw_group(n_vocab) == GROUP;
  for (int g = threadIdx.x / 32; g * GROUP < n; g += PREPARE_THREADS / 32) {
    kg_rank best = 0;
    for (int i = g * GROUP + threadIdx.x % 32; i < min(n, (g + 1) * GROUP); i += 32) {
      const kg_rank rank = kg_rank_make(c.x[i], (uint32_t)(first + i));
      best = rank > best ? rank : best;
      row->room.x[first + i] = c.x[i];
    }
    best = warp_best(best);
    if (threadIdx.x % 32) continue;
    if (small_groups)
      row->room.best[first / GROUP + g] = best;
    else
      atomicMax(&chunk_best, best);
  }
  if (small_groups) return;
  __syncthreads();
  if (!threadIdx.x) row->room.best[blockIdx.x] = chunk_best;
}

/* What was drawn goes to the host and into the next step; the row, which `was` so before the draw, is ready for its
 * next one. Nothing here is waited for. */
static __device__ void settle(kg_sample_row *row, const kg_sample_row &was, kg_drawn drawn)
{
  const bool failed = was.failed || drawn.status < 0;
  if (failed) drawn = {0, KG_DRAW_FAILED};
  *was.drawn = drawn;
  row->drawn = was.drawn + 1;
  row->failed = failed;
  row->room.n_nan = 0;
  row->room.n_list = 0;
  row->room.moment = 0;
  row->n_picked = 0;
  row->picked = 0;
  if (failed) return;
  row->draw.pos = was.draw.pos + 1;
  row->draw.n_draws = 0;
  if (was.history) {
    was.history[was.draw.n_history] = drawn.id;
    row->draw.n_history = was.draw.n_history + 1;
  }
  for (int i = 0; i < 2; i++)
    if (was.tokens[i]) {
      *was.tokens[i] = drawn.id;
      atomicAdd(was.positions[i], 1);
    }
}

/* The best one of a chunk goes to the row's; who comes last has that of all. Called by one thread of each block. */
static __device__ void pick(kg_sample_row *row, const kg_sample_row &was, kg_rank best, bool is_bad)
{
  atomicMax((unsigned long long *)&row->picked, (unsigned long long)best);
  if (is_bad) atomicAdd(&row->room.n_nan, 1);
  __threadfence();
  if (atomicAdd(&row->n_picked, 1) + 1 < gridDim.x) return;
  __threadfence();
  best = *(volatile unsigned long long *)&row->picked;
  const float max = kg_rank_value(best);
  const bool failed = *(volatile int32_t *)&row->room.n_nan || !(max > -CUDART_INF_F && max < CUDART_INF_F);
  settle(row, was, failed ? kg_drawn{0, KG_DRAW_FAILED} : kg_drawn{(int32_t)kg_rank_index(best), 0});
}

/* pick_rows: whole draws of chains that end with the best one (kg_draw_picks). What a row is before the draw is read
 * while the pass still runs: it began when the draw before was done.
 * grid: (blocks, which take chunks in turn, rows); shared: 8 KB; moves 4 bytes an id; twin: kg_draw_alone. */
static __global__ void __launch_bounds__(PREPARE_THREADS) pick_rows(kg_sample_row *rows, int n_vocab)
{
  __shared__ chunk c;
  __shared__ kg_rank bests[PREPARE_THREADS / 32];
  let_next_start();
  kg_sample_row *row = &rows[blockIdx.y];
  const kg_sample_row was = *row;
  const bool has_prefix = was.draw.program->n_prefix > 0;
  const logits_read from = find_logits(was);
  kg_rank best = 0;
  bool is_bad = false;
  await_previous();
#pragma unroll 1
  for (int first = blockIdx.x * KG_DRAW_CHUNK; first < n_vocab; first += gridDim.x * KG_DRAW_CHUNK) {
    const int n = min(KG_DRAW_CHUNK, n_vocab - first);
    float x[PREPARE_EACH];
    is_bad |= read_logits(from, first, n, x);
    if (has_prefix) { /* of numbers that threads bring and take each for itself: one chunk cannot meet the next */
#pragma unroll
      for (int j = 0; j < PREPARE_EACH; j++) c.x[threadIdx.x + j * PREPARE_THREADS] = x[j];
      __syncthreads();
      apply_prefix(&c, &was.draw, first, n);
#pragma unroll
      for (int j = 0; j < PREPARE_EACH; j++) x[j] = c.x[threadIdx.x + j * PREPARE_THREADS];
    }
#pragma unroll
    for (int j = 0; j < PREPARE_EACH; j++) {
      const int i = threadIdx.x + j * PREPARE_THREADS;
      const kg_rank rank = i < n ? kg_rank_make(x[j], (uint32_t)(first + i)) : 0;
      best = rank > best ? rank : best;
    }
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  const bool any_bad = __syncthreads_or(is_bad);
  if (threadIdx.x) return;
#pragma unroll
  for (int i = 1; i < PREPARE_THREADS / 32; i++) best = bests[i] > best ? bests[i] : best;
  pick(row, was, best, any_bad);
}

/* What a row's first stage behind the prefix needs. */
struct sifting {
  unsigned low[KG_DRAW_BUCKETS], high[KG_DRAW_BUCKETS];
  unsigned long long best;
  unsigned n, first;
};

/* Masses by bucket: of this block, then added to the row's. */
static __device__ void weigh(sifting *s, const float *x, float max, float scale, bool sifts_mean, kg_draw_row *room)
{
  uint64_t moment = 0;
  for (int i = threadIdx.x; i < KG_DRAW_BUCKETS; i += SIFT_THREADS) s->low[i] = s->high[i] = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < SIFT_EACH; j++) {
    const uint64_t m = kg_mass(kg_draw_weight(x[j] - max), scale);
    const int at = kg_draw_bucket(x[j], max);
    if (m) kg_block_add_halves(&s->low[at], &s->high[at], m);
    if (sifts_mean) moment += kg_draw_moment_of(x[j] - max, scale);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < KG_DRAW_BUCKETS; i += SIFT_THREADS) {
    const unsigned long long m = (unsigned long long)s->high[i] << 32 | s->low[i];
    if (m) atomicAdd((unsigned long long *)&room->mass[i], m);
  }
  if (!sifts_mean) return;
  for (int step = 16; step; step >>= 1) moment += __shfl_xor_sync(~0u, moment, step);
  if (threadIdx.x % 32 == 0) atomicAdd((unsigned long long *)&room->moment, (unsigned long long)moment);
}

/* Those whose weight is at least p, to the row's first list. */
static __device__ void keep_min_p(sifting *s, const float *x, float max, float p, int first, kg_draw_row *room)
{
  unsigned n = 0;
  bool stays[SIFT_EACH];
#pragma unroll
  for (int j = 0; j < SIFT_EACH; j++) {
    stays[j] = kg_draw_weight(x[j] - max) >= p; /* p is above 0: nothing behind the vocabulary stays */
    n += stays[j];
  }
  unsigned at = n ? atomicAdd(&s->n, n) : 0;
  __syncthreads();
  if (!threadIdx.x && s->n) s->first = atomicAdd(&room->n_list, s->n);
  __syncthreads();
  at += s->first;
#pragma unroll
  for (int j = 0; j < SIFT_EACH; j++)
    if (stays[j] && at < KG_DRAW_LIST) {
      room->list_x[0][at] = x[j];
      room->list_ids[0][at++] = first + j * SIFT_THREADS;
    }
}

/* sift_rows: kg_draw_sift, for the rows that want it. grid: (chunks of SIFT_CHUNK ids, rows); moves 4 bytes an id.
 * twin: sift in draw.c. */
static __global__ void __launch_bounds__(SIFT_THREADS) sift_rows(kg_sample_row *rows, int n_vocab)
{
  __shared__ sifting s;
  wait_for_previous();
  kg_sample_row *row = &rows[blockIdx.y];
  const kg_draw_program *program = row->draw.program;
  const kg_draw_sift kind = kg_draw_sift_of(program);
  if (kind == KG_SIFT_NOTHING) return;
  if (!threadIdx.x) {
    s.best = 0;
    s.n = 0;
  }
  const int first = blockIdx.x * SIFT_CHUNK + threadIdx.x;
  float x[SIFT_EACH];
#pragma unroll
  for (int j = 0; j < SIFT_EACH; j++) {
    const int i = first + j * SIFT_THREADS;
    x[j] = i < n_vocab ? row->room.x[i] : -CUDART_INF_F;
  }
  kg_rank own = 0;
  for (int i = threadIdx.x; i < kg_draw_group_count(n_vocab); i += SIFT_THREADS)
    own = row->room.best[i] > own ? row->room.best[i] : own;
  __syncthreads();
  own = warp_best(own);
  if (threadIdx.x % 32 == 0) atomicMax(&s.best, own);
  __syncthreads();
  const float max = kg_rank_value(s.best);
  if (!(max > -CUDART_INF_F && max < CUDART_INF_F)) return; /* the block that draws sees it too */
  if (kind == KG_SIFT_WEIGH)
    weigh(&s, x, max, kg_mass_scale(n_vocab), kg_draw_sifts_mean(program), &row->room);
  else
    keep_min_p(&s, x, max, program->stages[program->n_prefix].value, first, &row->room);
}

/* What every step of a draw looks at, near by. */
struct desk {
  kg_sample_row row;
  kg_draw_program program;
};

static __device__ void copy_words(void *to, const void *from, int n_bytes)
{
  for (int i = threadIdx.x; i < n_bytes / 4; i += KG_DRAW_THREADS) ((int *)to)[i] = ((const int *)from)[i];
}

/* draw_rows: everything behind the prefix. grid: rows; one block each. twins: kg_draw_alone, kg_draw_apply_alone. */
static __global__ void __launch_bounds__(KG_DRAW_THREADS) draw_rows(kg_sample_row *rows, int n_vocab)
{
  static_assert(sizeof(kg_sample_row) % 4 == 0 && sizeof(kg_draw_program) % 4 == 0, "copied by words");
  __shared__ kg_draw_shared shared;
  __shared__ desk near;
  wait_for_previous();
  kg_sample_row *row = &rows[blockIdx.x];
  copy_words(&near.row, row, sizeof near.row);
  __syncthreads();
  copy_words(&near.program, near.row.draw.program, sizeof near.program);
  __syncthreads();
  if (!threadIdx.x) near.row.draw.program = &near.program;
  __syncthreads();
  const kg_drawn drawn = near.row.applied
                             ? kg_draw_apply_block(&near.row.draw, &near.row.room, n_vocab, &shared, near.row.applied)
                             : kg_draw_block(&near.row.draw, &near.row.room, n_vocab, &shared);
  __syncthreads();
  if (kg_draw_sift_of(&near.program) == KG_SIFT_WEIGH)
    for (int i = threadIdx.x; i < KG_DRAW_BUCKETS; i += KG_DRAW_THREADS) near.row.room.mass[i] = 0;
  if (!threadIdx.x) settle(row, near.row, drawn);
}

static int chunk_count(int32_t n_vocab, int chunk) { return (n_vocab - 1) / chunk + 1; }

/* As many blocks as the device holds at once, or fewer: of many rows each block takes several chunks. */
static int launch_pick(kg_stream *s, kg_sample_row *rows, int32_t n_rows, int32_t n_vocab, kg_error *err)
{
  const int at_once = s->n_sms * PICK_BLOCKS, n_chunks = chunk_count(n_vocab, KG_DRAW_CHUNK);
  const int each = (n_chunks * n_rows - 1) / at_once + 1;
  return run_kernel(s, "pick_rows", pick_rows, dim3((n_chunks - 1) / each + 1, n_rows), PREPARE_THREADS, 0, err, rows,
                    n_vocab);
}

int kg_cuda_sample(kg_stream *s, kg_sample_row *rows, int32_t n_rows, int32_t n_vocab, kg_sample_way way, kg_error *err)
{
  if (n_vocab < 1 || n_vocab > KG_DRAW_VOCAB_MAX || n_rows < 1 || n_rows > 65535)
    return kg_fail(err, KG_ERR_ARGUMENT, "drawing from %d rows of %d", n_rows, n_vocab);
  if (way == KG_SAMPLE_PICK) return launch_pick(s, rows, n_rows, n_vocab, err);
  const dim3 grid(chunk_count(n_vocab, KG_DRAW_CHUNK), n_rows), sift_grid(chunk_count(n_vocab, SIFT_CHUNK), n_rows);
  int code = run_kernel(s, "prepare_rows", prepare_rows, grid, PREPARE_THREADS, 0, err, rows, n_vocab);
  if (!code && way == KG_SAMPLE_SIFT)
    code = run_kernel(s, "sift_rows", sift_rows, sift_grid, SIFT_THREADS, 0, err, rows, n_vocab);
  if (code) return code;
  return run_kernel(s, "draw_rows", draw_rows, dim3((unsigned)n_rows), KG_DRAW_THREADS, 0, err, rows, n_vocab);
}
