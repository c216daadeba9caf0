#include "common.cuh"
#include "vector_ops.h"

static unsigned blocks_for(int64_t n)
{
  const int64_t blocks = (n + 255) / 256;
  return blocks < 1 ? 1 : blocks > 4096 ? 4096 : (unsigned)blocks;
}

#define EACH(i, n) \
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

static __global__ void fill_each(float *x, int64_t n, float value) { EACH(i, n) x[i] = value; }

struct few_indices {
  int32_t at[KG_FILL_MAX];
};
static __global__ void fill_some(float *x, few_indices index, int n, float value)
{
  if ((int)threadIdx.x < n) x[index.at[threadIdx.x]] = value;
}

static __global__ void affine_each(float *x, int64_t n, float factor, float offset) { EACH(i, n) x[i] = x[i] * factor + offset; }
static __global__ void add_each(float *x, const float *o, int64_t n, float factor) { EACH(i, n) x[i] += factor * o[i]; }
static __global__ void mul_each(float *x, const float *o, int64_t n) { EACH(i, n) x[i] *= o[i]; }

int kg_cuda_probe_kernels(kg_error *err)
{
  cudaFuncAttributes attributes;
  return kg_cuda_check(cudaFuncGetAttributes(&attributes, fill_each), "kernels for this device", err);
}

int kg_cuda_fill(kg_stream *s, float *x, int64_t n, float value, kg_error *err)
{
  fill_each<<<blocks_for(n), 256, 0, s->handle>>>(x, n, value);
  return kg_cuda_launched("fill_each", err);
}

int kg_cuda_fill_at(kg_stream *s, float *x, const int32_t *index, int32_t n_index, float value, kg_error *err)
{
  few_indices few;
  if (n_index < 1 || n_index > KG_FILL_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "filling at %d indices", n_index);
  for (int i = 0; i < n_index; i++) few.at[i] = index[i];
  fill_some<<<1, KG_FILL_MAX, 0, s->handle>>>(x, few, n_index, value);
  return kg_cuda_launched("fill_some", err);
}

int kg_cuda_affine(kg_stream *s, float *x, int64_t n, float factor, float offset, kg_error *err)
{
  affine_each<<<blocks_for(n), 256, 0, s->handle>>>(x, n, factor, offset);
  return kg_cuda_launched("affine_each", err);
}

int kg_cuda_add(kg_stream *s, float *x, const float *o, int64_t n, float factor, kg_error *err)
{
  add_each<<<blocks_for(n), 256, 0, s->handle>>>(x, o, n, factor);
  return kg_cuda_launched("add_each", err);
}

int kg_cuda_mul(kg_stream *s, float *x, const float *o, int64_t n, kg_error *err)
{
  mul_each<<<blocks_for(n), 256, 0, s->handle>>>(x, o, n);
  return kg_cuda_launched("mul_each", err);
}

/* ---- reductions: parts of a row by blocks, joined in order by the block that arrives last ---- */

enum { REDUCE_THREADS = 256, BATCH = 4 };

static __device__ __forceinline__ kg_reduced nothing()
{
  kg_reduced none = {0, 0, CUDART_INF_F, -CUDART_INF_F, 0};
  return none;
}

/* b stands behind a. */
static __device__ __forceinline__ kg_reduced join(kg_reduced a, kg_reduced b)
{
  a.sum += b.sum;
  a.p_log_p += b.p_log_p;
  a.min = fminf(a.min, b.min);
  a.max = fmaxf(a.max, b.max);
  a.best = b.best > a.best ? b.best : a.best;
  return a;
}

static __device__ __forceinline__ kg_reduced from_lane(kg_reduced x, int step)
{
  kg_reduced y;
  y.sum = __shfl_xor_sync(~0u, x.sum, step);
  y.p_log_p = __shfl_xor_sync(~0u, x.p_log_p, step);
  y.min = __shfl_xor_sync(~0u, x.min, step);
  y.max = __shfl_xor_sync(~0u, x.max, step);
  y.best = __shfl_xor_sync(~0u, x.best, step);
  return y;
}

/* Over a block; the result is in thread 0. */
static __device__ kg_reduced join_block(kg_reduced x, kg_reduced *shared /* [REDUCE_THREADS / 32] */)
{
  for (int step = 16; step; step >>= 1) x = join(x, from_lane(x, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x) return x;
  for (int w = 1; w < REDUCE_THREADS / 32; w++) x = join(x, shared[w]);
  return x;
}

/* x of a thread by fours, so that they are on their way at the same time. */
#define EACH_BATCH(base, first, end) \
  for (int64_t base = (first) + threadIdx.x; base < (end); base += BATCH * REDUCE_THREADS)

static __device__ __forceinline__ void load_batch(const float *x, int64_t base, int64_t end, float beyond, float out[BATCH])
{
#pragma unroll
  for (int j = 0; j < BATCH; j++) out[j] = base + j * REDUCE_THREADS < end ? x[base + j * REDUCE_THREADS] : beyond;
}

/* The part of a row that this block takes: the same for each n. */
static __device__ __forceinline__ int64_t part_of(int64_t n, int64_t *end)
{
  const int64_t part = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * part;
  *end = first + part < n ? first + part : n;
  return first;
}

/* Is this the last block to arrive? Then all parts are there to be joined. All threads of a block call it. */
static __device__ bool arrives_last(unsigned *arrived)
{
  __shared__ bool is_last;
  if (!threadIdx.x) {
    __threadfence();
    is_last = atomicAdd(arrived, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

/* reduce_parts: grid: parts; moves 4 bytes a number. twins: host_reduce, host_argmax, host_entropy in tensor.c. */
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_parts(const float *x, int64_t n, kg_vector_room room, kg_reduced *out)
{
  __shared__ kg_reduced shared[REDUCE_THREADS / 32];
  int64_t end;
  const int64_t first = part_of(n, &end);
  kg_reduced own = nothing();
  EACH_BATCH(base, first, end)
  {
    float value[BATCH];
    load_batch(x, base, end, 0, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int64_t i = base + j * REDUCE_THREADS;
      if (i >= end) break;
      const double p_log_p = value[j] < 1.17549435e-38f ? 0 : (double)(value[j] * logf(value[j]));
      own = join(own, {value[j], p_log_p, value[j], value[j], kg_rank_make(value[j], (uint32_t)i)});
    }
  }
  own = join_block(own, shared);
  if (!threadIdx.x) room.parts[blockIdx.x] = own;
  if (!arrives_last(room.arrived)) return;
  own = join_block(threadIdx.x < gridDim.x ? room.parts[threadIdx.x] : nothing(), shared);
  if (threadIdx.x) return;
  *out = own;
  *room.arrived = 0;
}

static_assert((int)KG_REDUCE_BLOCKS <= (int)REDUCE_THREADS, "the last block reads one part a thread");

static unsigned part_count(int64_t n)
{
  const int64_t most = KG_REDUCE_BLOCKS, wanted = (n + BATCH * REDUCE_THREADS - 1) / (BATCH * REDUCE_THREADS);
  return wanted < 1 ? 1 : (unsigned)(wanted < most ? wanted : most);
}

int kg_cuda_reduce(kg_stream *s, const float *x, int64_t n, kg_reduced *out, const kg_vector_room *room, kg_error *err)
{
  reduce_parts<<<part_count(n), REDUCE_THREADS, 0, s->handle>>>(x, n, *room, out);
  return kg_cuda_launched("reduce_parts", err);
}

/* ---- softmax ---- */

static __device__ double sum_block(double x, double *shared /* [REDUCE_THREADS / 32] */)
{
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (int w = 1; w < REDUCE_THREADS / 32; w++) x += shared[w];
  return x;
}

/* Of x[first, end), by a block; in every thread. -inf adds nothing, a NaN or +inf makes the sum NaN. */
static __device__ kg_exponents weigh_part(const float *x, int64_t first, int64_t end)
{
  __shared__ float maxima[32];
  __shared__ double sums[REDUCE_THREADS / 32];
  float value[BATCH], max = -CUDART_INF_F;
  double sum = 0;
  EACH_BATCH(base, first, end)
  {
    load_batch(x, base, end, -CUDART_INF_F, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) max = fmaxf(max, value[j]);
  }
  max = block_max(max, maxima);
  EACH_BATCH(base, first, end)
  {
    load_batch(x, base, end, -CUDART_INF_F, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) sum += value[j] == -CUDART_INF_F ? 0 : (double)expf(value[j] - max);
  }
  sum = sum_block(sum, sums);
  return {sum, max, (float)(1 / sum), (float)log(sum)};
}

/* weigh_parts: the maximum of a row, and the sum of its exponentials. grid: parts; moves 4 bytes a number. */
static __global__ void __launch_bounds__(REDUCE_THREADS) weigh_parts(const float *x, int64_t n, kg_vector_room room, kg_exponents *out)
{
  __shared__ float maxima[32];
  __shared__ double sums[REDUCE_THREADS / 32];
  int64_t end;
  const int64_t first = part_of(n, &end);
  const kg_exponents own = weigh_part(x, first, end);
  if (!threadIdx.x) room.exponents[blockIdx.x] = own;
  if (!arrives_last(room.arrived)) return;
  const kg_exponents none = {0, -CUDART_INF_F, 0, 0};
  const kg_exponents part = threadIdx.x < gridDim.x ? room.exponents[threadIdx.x] : none;
  const float max = block_max(part.max, maxima);
  const double factor = part.max == max || part.max == -CUDART_INF_F ? 1 : exp((double)part.max - max);
  const double sum = sum_block(part.sum * factor, sums);
  if (threadIdx.x) return;
  *out = {sum, max, (float)(1 / sum), (float)log(sum)};
  *room.arrived = 0;
}

static __device__ __forceinline__ float softmax_of(float x, const kg_exponents &row, bool log_wanted)
{
  return log_wanted ? x - row.max - row.log_sum : expf(x - row.max) * row.factor;
}

/* softmax_each: of a row that was weighed. twin: host_softmax; tolerance: exp and log in float32. */
static __global__ void softmax_each(const float *x, int64_t n, const kg_exponents *weighed, bool log_wanted, float *out)
{
  const kg_exponents row = *weighed;
  EACH(i, n) out[i] = softmax_of(x[i], row, log_wanted);
}

/* A row by itself, in one block; grid: rows. */
static __global__ void __launch_bounds__(REDUCE_THREADS) softmax_rows(const float *x, int64_t n, bool log_wanted, float *out)
{
  x += blockIdx.x * n;
  out += blockIdx.x * n;
  const kg_exponents row = weigh_part(x, 0, n);
  for (int64_t i = threadIdx.x; i < n; i += REDUCE_THREADS) out[i] = softmax_of(x[i], row, log_wanted);
}

int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out, const kg_vector_room *room,
                    kg_error *err)
{
  enum { LONG = 4096 };
  if (rows > INT32_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows", (long long)rows);
  if (n < LONG) {
    softmax_rows<<<(unsigned)rows, REDUCE_THREADS, 0, s->handle>>>(x, n, log, out);
    return kg_cuda_launched("softmax_rows", err);
  }
  kg_exponents *row = room->exponents + KG_REDUCE_BLOCKS;
  int code = KG_OK;
  for (int64_t r = 0; r < rows && !code; r++) { /* long rows are few */
    weigh_parts<<<part_count(n), REDUCE_THREADS, 0, s->handle>>>(x + r * n, n, *room, row);
    code = kg_cuda_launched("weigh_parts", err);
    if (code) break;
    softmax_each<<<blocks_for(n), 256, 0, s->handle>>>(x + r * n, n, row, log, out + r * n);
    code = kg_cuda_launched("softmax_each", err);
  }
  return code;
}

/* ---- the best ---- */

/* group_best: the best of each group of ids. grid: groups by fours; a warp each. */
static __global__ void __launch_bounds__(128) group_best(const float *x, int n, kg_rank *best)
{
  const int group = blockIdx.x * 4 + threadIdx.x / 32, size = kg_draw_group(n);
  if (group >= kg_draw_group_count(n)) return;
  kg_rank own = 0;
  for (int i = group * size + threadIdx.x % 32; i < min(n, (group + 1) * size); i += 32) {
    const kg_rank rank = kg_rank_make(x[i], (uint32_t)i);
    own = rank > own ? rank : own;
  }
  for (int step = 16; step; step >>= 1) {
    const kg_rank other = __shfl_xor_sync(~0u, own, step);
    own = other > own ? other : own;
  }
  if (threadIdx.x % 32 == 0) best[group] = own;
}

/* top_block: the k best, by one block. twin: host_topk. */
static __global__ void __launch_bounds__(KG_DRAW_THREADS)
    top_block(float *x, int n, int k, kg_vector_room room, int32_t *index, float *value)
{
  __shared__ kg_draw_shared shared;
  const kg_draw_row row = {x, room.best, {room.list_x, NULL}, {room.list_ids, NULL}, NULL, 0, 0};
  kg_draw_run run = kg_draw_begin(NULL, &row, n, &shared);
  const kg_draw_order order = {false, true, 0, 0, 0};
  kg_draw_narrow(&run, k);
  kg_draw_fit fit = {-1, 0, ~(kg_rank)0, 0, (uint32_t)k};
  if (run.items.n > KG_DRAW_SMALL) fit.low = kg_draw_select(&shared, &run.items, &order, 0, (uint64_t)k);
  kg_draw_among_few(&shared, &run.items, &order, (uint64_t)k, &fit);
  if ((int)threadIdx.x >= k) return;
  const int at = kg_rank_index(shared.u.small.sorted[threadIdx.x]);
  index[threadIdx.x] = at;
  value[threadIdx.x] = x[at];
}

int kg_cuda_top(kg_stream *s, const float *x, int32_t n, int32_t k, int32_t *index, float *value, const kg_vector_room *room,
                kg_error *err)
{
  if (k < 1 || k > KG_TOP_MAX || k > n || n > KG_DRAW_VOCAB_MAX)
    return kg_fail(err, KG_ERR_ARGUMENT, "the %d best of %d", k, n);
  group_best<<<(unsigned)(kg_draw_group_count(n) + 3) / 4, 128, 0, s->handle>>>(x, n, room->best);
  int code = kg_cuda_launched("group_best", err);
  if (code) return code;
  top_block<<<1, KG_DRAW_THREADS, 0, s->handle>>>((float *)x, n, k, *room, index, value); /* which it only reads */
  return kg_cuda_launched("top_block", err);
}
