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

enum { REDUCE_THREADS = 256 };

static __device__ __forceinline__ kg_reduced nothing()
{
  kg_reduced none = {0, 0, 0, CUDART_INF_F, -CUDART_INF_F, 0};
  return none;
}

/* b stands behind a. exp_sum is of each one's own maximum. */
static __device__ __forceinline__ kg_reduced join(kg_reduced a, kg_reduced b)
{
  const float max = fmaxf(a.max, b.max);
  if (max > -CUDART_INF_F) { /* else both sums are 0, or there are NaNs, which sums keep */
    a.exp_sum *= a.max == max ? 1 : exp((double)a.max - max);
    b.exp_sum *= b.max == max ? 1 : exp((double)b.max - max);
  }
  a.exp_sum += b.exp_sum;
  a.sum += b.sum;
  a.p_log_p += b.p_log_p;
  a.min = fminf(a.min, b.min);
  a.max = max;
  a.best = b.best > a.best ? b.best : a.best;
  return a;
}

static __device__ __forceinline__ kg_reduced from_lane(kg_reduced x, int step)
{
  kg_reduced y;
  y.sum = __shfl_xor_sync(~0u, x.sum, step);
  y.p_log_p = __shfl_xor_sync(~0u, x.p_log_p, step);
  y.exp_sum = __shfl_xor_sync(~0u, x.exp_sum, step);
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

/* One thread's share of x[first, end). */
static __device__ kg_reduced reduce_share(const float *x, int64_t first, int64_t end, bool exponents)
{
  kg_reduced own = nothing();
  for (int64_t i = first + threadIdx.x; i < end; i += REDUCE_THREADS) {
    const float value = x[i];
    const kg_rank rank = kg_rank_make(value, (uint32_t)i);
    own.sum += value;
    own.p_log_p += value < 1.17549435e-38f ? 0 : (double)(value * logf(value));
    own.min = fminf(own.min, value);
    own.max = fmaxf(own.max, value);
    own.best = rank > own.best ? rank : own.best;
  }
  if (exponents)
    for (int64_t i = first + threadIdx.x; i < end; i += REDUCE_THREADS)
      own.exp_sum += x[i] == own.max && own.max < CUDART_INF_F ? 1 : (double)expf(x[i] - own.max);
  return own;
}

/* reduce_parts: grid: parts; moves 4 bytes a number. twins: host_reduce, host_argmax, host_entropy in tensor.c. */
static __global__ void __launch_bounds__(REDUCE_THREADS)
    reduce_parts(const float *x, int64_t n, bool exponents, kg_vector_room room, kg_reduced *out)
{
  __shared__ kg_reduced shared[REDUCE_THREADS / 32];
  __shared__ bool is_last;
  const int64_t part = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * part;
  kg_reduced all = join_block(reduce_share(x, first, first + part < n ? first + part : n, exponents), shared);
  if (!threadIdx.x) {
    room.parts[blockIdx.x] = all;
    __threadfence();
    is_last = atomicAdd(room.arrived, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  all = join_block(threadIdx.x < gridDim.x ? room.parts[threadIdx.x] : nothing(), shared);
  if (threadIdx.x) return;
  *out = all;
  *room.arrived = 0;
}

static_assert((int)KG_REDUCE_BLOCKS <= (int)REDUCE_THREADS, "the last block reads one part a thread");

int kg_cuda_reduce(kg_stream *s, const float *x, int64_t n, bool exponents, kg_reduced *out, const kg_vector_room *room,
                   kg_error *err)
{
  const int64_t most = KG_REDUCE_BLOCKS, wanted = (n + 4 * REDUCE_THREADS - 1) / (4 * REDUCE_THREADS);
  const unsigned blocks = wanted < 1 ? 1 : (unsigned)(wanted < most ? wanted : most);
  reduce_parts<<<blocks, REDUCE_THREADS, 0, s->handle>>>(x, n, exponents, *room, out);
  return kg_cuda_launched("reduce_parts", err);
}

/* ---- softmax ---- */

/* softmax_each: of a row whose maximum and sum are known. twin: host_softmax; tolerance: exp and log in float32. */
static __global__ void softmax_each(const float *x, int64_t n, const kg_reduced *row, bool log_wanted, float *out)
{
  const float max = row->max, factor = (float)(1 / row->exp_sum), offset = (float)log(row->exp_sum);
  EACH(i, n) out[i] = log_wanted ? x[i] - max - offset : expf(x[i] - max) * factor;
}

/* A row by itself, in one block; grid: rows. */
static __global__ void __launch_bounds__(REDUCE_THREADS) softmax_rows(const float *x, int64_t n, bool log_wanted, float *out)
{
  __shared__ kg_reduced shared[REDUCE_THREADS / 32], row;
  x += blockIdx.x * n;
  out += blockIdx.x * n;
  const kg_reduced all = join_block(reduce_share(x, 0, n, true), shared);
  if (!threadIdx.x) row = all;
  __syncthreads();
  const float max = row.max, factor = (float)(1 / row.exp_sum), offset = (float)log(row.exp_sum);
  for (int64_t i = threadIdx.x; i < n; i += REDUCE_THREADS)
    out[i] = log_wanted ? x[i] - max - offset : expf(x[i] - max) * factor;
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
  kg_reduced *row = room->parts + KG_REDUCE_BLOCKS;
  int code = KG_OK;
  for (int64_t r = 0; r < rows && !code; r++) { /* long rows are few */
    code = kg_cuda_reduce(s, x + r * n, n, true, row, room, err);
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
  kg_draw_run run = {NULL, &row, &shared, {x, NULL, NULL, n}, n, 0, 0, true};
  const kg_draw_order order = {false, true, 0, 0, 0};
  kg_draw_narrow(&run, k);
  kg_draw_fit fit = {-1, 0, ~(kg_rank)0, 0, (uint32_t)k};
  if (run.items.n > k) fit.low = kg_draw_select(&shared, &run.items, &order, 0, (uint64_t)k);
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
