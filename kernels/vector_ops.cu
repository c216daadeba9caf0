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

static __global__ void affine_each(const float *x, int64_t n, float factor, float offset, float *out)
{
  EACH(i, n) out[i] = x[i] * factor + offset;
}
static __global__ void add_each(float *x, const float *o, int64_t n, float factor) { EACH(i, n) x[i] += factor * o[i]; }
static __global__ void mul_each(float *x, const float *o, int64_t n) { EACH(i, n) x[i] *= o[i]; }

int kg_cuda_probe_kernels(kg_error *err)
{
  cudaFuncAttributes attributes;
  return kg_cuda_check(cudaFuncGetAttributes(&attributes, fill_each), "kernels for this device", err);
}

/* What kernels were compiled for: the architecture, and whether with Hopper's own instructions. */
struct build {
  int arch, has_wgmma;
};

static __global__ void tell_build(build *out)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  *out = {__CUDA_ARCH__, 1};
#elif defined __CUDA_ARCH__
  *out = {__CUDA_ARCH__, 0};
#endif
}

int kg_cuda_find_build(kg_stream *s, kg_error *err)
{
  build there = {};
  void *out;
  int code = kg_cuda_alloc(sizeof there, "looking at the kernels", &out, err);
  if (code) return code;
  tell_build<<<1, 1, 0, s->handle>>>((build *)out);
  code = kg_cuda_launched("tell_build", err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(&there, out, sizeof there, cudaMemcpyDeviceToHost, s->handle), "tell_build",
                         err);
  if (!code) code = kg_cuda_check(cudaStreamSynchronize(s->handle), "tell_build", err);
  if (cudaFree(out)) (void)cudaGetLastError();
  s->overlaps = there.arch >= 900;
  s->has_wgmma = there.has_wgmma;
  return code;
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

int kg_cuda_affine(kg_stream *s, const float *x, int64_t n, float factor, float offset, float *out, kg_error *err)
{
  affine_each<<<blocks_for(n), 256, 0, s->handle>>>(x, n, factor, offset, out);
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

/* ---- parts ----
 * A row is looked at in parts, by PART_THREADS threads each, PARTS of them side by side in a block; the block that
 * arrives last joins them in order. Which part a number is in, and where in it, depends on n alone. */

enum {
  PART_THREADS = 256,
  PARTS = KG_DRAW_THREADS / PART_THREADS,
  PART_WARPS = PART_THREADS / 32,
  BATCH = 4,
  LONG = 4096 /* shorter rows have one part for their softmax */
};
static_assert((int)KG_REDUCE_PARTS <= (int)PART_THREADS, "the last block reads one part a thread");

/* What the threads of a block share. */
struct joining {
  kg_reduced reduced[PARTS][PART_WARPS];
  double sum[PARTS][PART_WARPS];
  float max[PARTS][PART_WARPS];
  bool is_last;
};

static __device__ __forceinline__ int own_part() { return threadIdx.x / PART_THREADS; }
static __device__ __forceinline__ int own_thread() { return threadIdx.x % PART_THREADS; }

static __host__ __device__ int part_count(int64_t n)
{
  const int64_t wanted = (n + BATCH * PART_THREADS - 1) / (BATCH * PART_THREADS), most = KG_REDUCE_PARTS;
  return wanted < 1 ? 1 : (int)(wanted < most ? wanted : most);
}

static __device__ int weighed_count(int64_t n) { return n < LONG ? 1 : part_count(n); }

/* Numbers [first, end) of a row; none of a part behind the last one. */
struct part_range {
  int64_t first, end;
};

static __device__ __forceinline__ part_range range_of(int64_t n, int n_parts, int part)
{
  const int64_t size = (n + n_parts - 1) / n_parts, first = part * size, end = first + size;
  return {first < n ? first : n, end < n ? end : n};
}

/* x of a thread by fours, so that they are on their way at the same time. */
#define EACH_BATCH(base, range)                                                                                        \
  for (int64_t base = (range).first + own_thread(); base < (range).end; base += BATCH * PART_THREADS)

static __device__ __forceinline__ void load_batch(const float *x, int64_t base, int64_t end, float beyond,
                                                  float out[BATCH])
{
#pragma unroll
  for (int j = 0; j < BATCH; j++) out[j] = base + j * PART_THREADS < end ? x[base + j * PART_THREADS] : beyond;
}

/* Is this the last block of a row to arrive? Then all parts are there to be joined. All threads of a block call it. */
static __device__ bool arrives_last(unsigned *arrived, unsigned n_blocks, joining *shared)
{
  __syncthreads();
  if (!threadIdx.x) {
    __threadfence();
    shared->is_last = atomicAdd(arrived, 1) == n_blocks - 1;
  }
  __syncthreads();
  if (shared->is_last) __threadfence();
  return shared->is_last;
}

/* Over a part; the result is in all of its threads. */
static __device__ float max_of_part(float x, joining *shared)
{
  float *warps = shared->max[own_part()];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[own_thread() / 32] = x;
  __syncthreads();
  x = warps[0];
  for (int w = 1; w < PART_WARPS; w++) x = fmaxf(x, warps[w]);
  return x;
}

static __device__ double sum_of_part(double x, joining *shared)
{
  double *warps = shared->sum[own_part()];
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[own_thread() / 32] = x;
  __syncthreads();
  x = warps[0];
  for (int w = 1; w < PART_WARPS; w++) x += warps[w];
  return x;
}

/* ---- reductions ---- */

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

/* Over a part; the result is in its first thread. */
static __device__ kg_reduced join_part(kg_reduced x, joining *shared)
{
  kg_reduced *warps = shared->reduced[own_part()];
  for (int step = 16; step; step >>= 1) x = join(x, from_lane(x, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[own_thread() / 32] = x;
  __syncthreads();
  if (own_thread()) return x;
  for (int w = 1; w < PART_WARPS; w++) x = join(x, warps[w]);
  return x;
}

/* A number as it stands, and as the softmax of its row has it. */
struct as_it_is {
  __device__ float operator()(float x) const { return x; }
};

static __device__ __forceinline__ float softmax_of(float x, const kg_exponents &row, bool log_wanted)
{
  return log_wanted ? x - row.max - row.log_sum : expf(x - row.max) * row.factor;
}

struct as_probability {
  kg_exponents row;
  __device__ float operator()(float x) const { return softmax_of(x, row, false); }
};

/* twins: host_reduce, host_argmax, host_entropy in tensor.c. */
template <typename F>
static __device__ kg_reduced reduce_part(const float *x, part_range range, F number, joining *shared)
{
  kg_reduced own = nothing();
  EACH_BATCH(base, range)
  {
    float value[BATCH];
    load_batch(x, base, range.end, 0, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int64_t i = base + j * PART_THREADS;
      if (i >= range.end) break;
      const float p = number(value[j]);
      const double p_log_p = p < 1.17549435e-38f ? 0 : (double)(p * logf(p));
      own = join(own, {p, p_log_p, p, p, kg_rank_make(p, (uint32_t)i)});
    }
  }
  return join_part(own, shared);
}

static __device__ kg_reduced join_parts(const kg_reduced *parts, int n_parts, joining *shared)
{
  return join_part((int)threadIdx.x < n_parts ? parts[threadIdx.x] : nothing(), shared);
}

/* ---- softmax ---- */

static __device__ __forceinline__ kg_exponents whole_row(double sum, float max)
{
  return {sum, max, (float)(1 / sum), (float)log(sum)};
}

/* The sum and maximum of a part by itself; in all of its threads. -inf adds nothing, a NaN or +inf makes the sum NaN.
 */
static __device__ kg_exponents weigh_part(const float *x, part_range range, joining *shared)
{
  float value[BATCH], max = -CUDART_INF_F;
  double sum = 0;
  EACH_BATCH(base, range)
  {
    load_batch(x, base, range.end, -CUDART_INF_F, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) max = fmaxf(max, value[j]);
  }
  max = max_of_part(max, shared);
  EACH_BATCH(base, range)
  {
    load_batch(x, base, range.end, -CUDART_INF_F, value);
#pragma unroll
    for (int j = 0; j < BATCH; j++) sum += value[j] == -CUDART_INF_F ? 0 : (double)expf(value[j] - max);
  }
  return {sum_of_part(sum, shared), max, 0, 0};
}

/* The result is in the first thread. */
static __device__ kg_exponents join_exponents(const kg_exponents *parts, int n_parts, joining *shared)
{
  const kg_exponents none = {0, -CUDART_INF_F, 0, 0};
  const kg_exponents part = (int)threadIdx.x < n_parts ? parts[threadIdx.x] : none;
  const float max = max_of_part(part.max, shared);
  const double factor = part.max == max || part.max == -CUDART_INF_F ? 1 : exp((double)part.max - max);
  const double sum = sum_of_part(part.sum * factor, shared);
  return threadIdx.x ? none : whole_row(sum, max);
}

/* softmax_each: of rows that were weighed. grid: (blocks of a row, rows). twin: host_softmax; tolerance: exp and log in
 * float32. */
static __global__ void softmax_each(const float *x, int64_t n, const kg_exponents *weighed, bool log_wanted, float *out)
{
  wait_for_previous();
  const kg_exponents row = weighed[(size_t)blockIdx.y * (KG_REDUCE_PARTS + 1)];
  x += blockIdx.y * n;
  out += blockIdx.y * n;
  EACH(i, n) out[i] = softmax_of(x[i], row, log_wanted);
}

/* Short rows, each by itself, PARTS in a block. */
static __global__ void __launch_bounds__(KG_DRAW_THREADS)
    softmax_rows(const float *x, int64_t rows, int64_t n, bool log_wanted, float *out)
{
  __shared__ joining shared;
  const int64_t row = (int64_t)blockIdx.x * PARTS + own_part();
  const part_range range = {0, row < rows ? n : 0};
  if (row < rows) {
    x += row * n;
    out += row * n;
  }
  const kg_exponents part = weigh_part(x, range, &shared), exponents = whole_row(part.sum, part.max);
  for (int64_t i = own_thread(); i < range.end; i += PART_THREADS) out[i] = softmax_of(x[i], exponents, log_wanted);
}

/* ---- the best ---- */

/* The best of each group of ids, a warp each, of all blocks in y. */
static __device__ void best_of_groups(const float *x, int n, kg_rank *best)
{
  const int size = kg_draw_group(n), step = gridDim.y * (KG_DRAW_THREADS / 32);
  for (int group = blockIdx.y * (KG_DRAW_THREADS / 32) + threadIdx.x / 32; group < kg_draw_group_count(n);
       group += step) {
    kg_rank own = 0;
    for (int i = group * size + threadIdx.x % 32; i < min(n, (group + 1) * size); i += 32) {
      const kg_rank rank = kg_rank_make(x[i], (uint32_t)i);
      own = rank > own ? rank : own;
    }
    for (int lane = 16; lane; lane >>= 1) {
      const kg_rank other = __shfl_xor_sync(~0u, own, lane);
      own = other > own ? other : own;
    }
    if (threadIdx.x % 32 == 0) best[group] = own;
  }
}

enum { DIGIT = 11, BINS = 1 << DIGIT, FOUND_MAX = 1024, TOP_WARPS = KG_DRAW_THREADS / 32, TOP_BATCH = 4 };
static_assert((int)KG_DRAW_GROUPS <= (int)BINS, "groups are listed where bins were");

/* What a block that looks for the best shares. */
struct selecting {
  union {
    unsigned count[BINS];
    int groups[BINS];
  };
  unsigned warps[TOP_WARPS];
  unsigned bin, above, n_in, n_groups, n_found;
  kg_rank found[FOUND_MAX];
};

/* The sum of x of the threads before this one. */
static __device__ unsigned sum_before(unsigned x, selecting *s)
{
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned sum = x;
  for (int step = 1; step < 32; step <<= 1) {
    const unsigned other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) s->warps[warp] = sum;
  __syncthreads();
  unsigned before = sum - x;
  for (int w = 0; w < warp; w++) before += s->warps[w];
  return before;
}

/* The highest bin at which the counts, from the last on, reach k. */
static __device__ void find_bin(unsigned k, selecting *s)
{
  enum { EACH_BINS = BINS / KG_DRAW_THREADS };
  const int last = BINS - 1 - threadIdx.x * EACH_BINS;
  unsigned own = 0;
  for (int i = 0; i < EACH_BINS; i++) own += s->count[last - i];
  unsigned before = sum_before(own, s);
  if (before < k && before + own >= k) {
    int bin = last;
    while (before + s->count[bin] < k) before += s->count[bin--];
    s->bin = bin;
    s->above = before;
    s->n_in = s->count[bin];
  }
  __syncthreads();
}

/* A rank such that the k best of n are at least as high, and at most `limit` (k or more) where that can be: digit by
 * digit, until the candidates are few. */
template <typename F> static __device__ kg_rank low_enough(F rank_at, int n, unsigned k, unsigned limit, selecting *s)
{
  kg_rank prefix = 0, mask = 0;
  unsigned above = 0;
  for (int shift = 64 - DIGIT;; shift = max(shift - DIGIT, 0)) {
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += KG_DRAW_THREADS) s->count[i] = 0;
    __syncthreads();
    for (int first = threadIdx.x; first < n; first += TOP_BATCH * KG_DRAW_THREADS) {
      kg_rank rank[TOP_BATCH];
#pragma unroll
      for (int j = 0; j < TOP_BATCH; j++)
        rank[j] = first + j * KG_DRAW_THREADS < n ? rank_at(first + j * KG_DRAW_THREADS) : 0;
#pragma unroll
      for (int j = 0; j < TOP_BATCH; j++)
        if (first + j * KG_DRAW_THREADS < n && (rank[j] & mask) == prefix)
          atomicAdd(&s->count[(unsigned)((rank[j] & ~mask) >> shift)], 1);
    }
    __syncthreads();
    find_bin(k - above, s);
    above += s->above;
    prefix |= (kg_rank)s->bin << shift;
    mask = ~(kg_rank)0 << shift;
    if (!shift || above + s->n_in <= limit) return prefix;
  }
}

static __device__ void note_found(kg_rank rank, kg_rank low, selecting *s)
{
  if (rank < low) return;
  const unsigned at = atomicAdd(&s->n_found, 1);
  if (at < FOUND_MAX) s->found[at] = rank;
}

/* Those of at least rank `low`, from the groups that have any. */
static __device__ void find_in_groups(const float *x, int n, const kg_rank *best, kg_rank low, selecting *s)
{
  const int size = kg_draw_group(n);
  __syncthreads();
  if (!threadIdx.x) s->n_groups = s->n_found = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < kg_draw_group_count(n); i += KG_DRAW_THREADS)
    if (best[i] >= low) s->groups[atomicAdd(&s->n_groups, 1)] = i;
  __syncthreads();
  const int n_pieces = s->n_groups * (size / 32); /* of 32 ids, a warp each */
  for (int piece = threadIdx.x / 32; piece < n_pieces; piece += 4 * TOP_BATCH * TOP_WARPS) {
    float value[4 * TOP_BATCH];
    int id[4 * TOP_BATCH];
#pragma unroll
    for (int j = 0; j < 4 * TOP_BATCH; j++) {
      const int at = piece + j * TOP_WARPS;
      id[j] = at < n_pieces ? s->groups[at / (size / 32)] * size + at % (size / 32) * 32 + threadIdx.x % 32 : n;
      value[j] = id[j] < n ? x[id[j]] : 0;
    }
#pragma unroll
    for (int j = 0; j < 4 * TOP_BATCH; j++)
      if (id[j] < n) note_found(kg_rank_make(value[j], (uint32_t)id[j]), low, s);
  }
  __syncthreads();
}

/* The k best, by one block. Where many are alike, or groups are fewer than k, all of the row is gone through.
 * twin: host_topk. */
static __device__ void top_of_row(const float *x, int n, int k, const kg_rank *best, selecting *s, kg_answer *answer)
{
  const int n_groups = kg_draw_group_count(n), spare = 32;
  bool is_found = k <= n_groups;
  if (is_found) {
    const kg_rank low = low_enough([=](int i) { return best[i]; }, n_groups, k, k + spare, s);
    find_in_groups(x, n, best, low, s);
    is_found = s->n_found <= FOUND_MAX;
  }
  if (!is_found) {
    const auto rank_at = [=](int i) { return kg_rank_make(x[i], (uint32_t)i); };
    const kg_rank low = low_enough(rank_at, n, k, FOUND_MAX, s);
    __syncthreads();
    if (!threadIdx.x) s->n_found = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += KG_DRAW_THREADS) note_found(rank_at(i), low, s);
    __syncthreads();
  }
  const int n_found = s->n_found;
  for (int i = threadIdx.x; i < n_found; i += KG_DRAW_THREADS) {
    const kg_rank rank = s->found[i];
    int above = 0;
    for (int j = 0; j < n_found; j++) above += s->found[j] > rank;
    if (above >= k) continue;
    answer->index[above] = kg_rank_index(rank);
    answer->value[above] = x[kg_rank_index(rank)];
  }
}

/* ---- questions ---- */

static __device__ kg_vector_room room_of(const kg_vector_room &all, int row)
{
  return {all.parts + (size_t)row * KG_REDUCE_PARTS, all.exponents + (size_t)row * (KG_REDUCE_PARTS + 1),
          all.arrived + row, all.best + (size_t)row * KG_DRAW_GROUPS};
}

/* look_first: what can be said of parts and groups: all about the row itself, the exponents of its softmax, the best of
 * each group. grid: (rows, parts by PARTS); moves 4 bytes a number. */
static __global__ void __launch_bounds__(KG_DRAW_THREADS)
    look_first(const __grid_constant__ kg_row_list rows, int64_t n, unsigned asked,
               const __grid_constant__ kg_vector_room all)
{
  __shared__ joining shared;
  wait_for_previous();
  const float *x = rows.x[blockIdx.x];
  const kg_vector_room room = room_of(all, blockIdx.x);
  const int part = blockIdx.y * PARTS + own_part(), n_parts = part_count(n), n_weighed = weighed_count(n);
  if (asked & KG_ASK_PROBS) {
    const kg_exponents own = weigh_part(x, range_of(n, n_weighed, part), &shared);
    if (!own_thread() && part < n_weighed) room.exponents[part] = own;
  }
  if (asked & KG_ASK_ROW) {
    const kg_reduced own = reduce_part(x, range_of(n, n_parts, part), as_it_is(), &shared);
    if (!own_thread() && part < n_parts) room.parts[part] = own;
  }
  if (asked & KG_ASK_TOP) best_of_groups(x, (int)n, room.best);
  if (!(asked & (KG_ASK_ROW | KG_ASK_PROBS)) || !arrives_last(room.arrived, gridDim.y, &shared)) return;
  if (asked & KG_ASK_PROBS) {
    const kg_exponents whole = join_exponents(room.exponents, n_weighed, &shared);
    if (!threadIdx.x) room.exponents[KG_REDUCE_PARTS] = whole;
  }
  if (asked & KG_ASK_ROW) {
    const kg_reduced whole = join_parts(room.parts, n_parts, &shared);
    if (!threadIdx.x) rows.answer[blockIdx.x]->row = whole;
  }
  if (!threadIdx.x) *room.arrived = 0;
}

/* look_again: what wants to know that first. grid: (rows, a block for the best, parts by PARTS). */
static __global__ void __launch_bounds__(KG_DRAW_THREADS, 3)
    look_again(const __grid_constant__ kg_row_list rows, int64_t n, int k, unsigned asked,
               const __grid_constant__ kg_vector_room all)
{
  __shared__ union {
    joining join;
    selecting select;
  } shared;
  wait_for_previous();
  const float *x = rows.x[blockIdx.x];
  const kg_vector_room room = room_of(all, blockIdx.x);
  kg_answer *answer = rows.answer[blockIdx.x];
  const int has_top = asked & KG_ASK_TOP ? 1 : 0;
  if (has_top && !blockIdx.y) {
    top_of_row(x, (int)n, k, room.best, &shared.select, answer);
    return;
  }
  const int part = (blockIdx.y - has_top) * PARTS + own_part(), n_parts = part_count(n);
  const as_probability number = {room.exponents[KG_REDUCE_PARTS]};
  const kg_reduced own = reduce_part(x, range_of(n, n_parts, part), number, &shared.join);
  if (!own_thread() && part < n_parts) room.parts[part] = own;
  if (!arrives_last(room.arrived, gridDim.y - has_top, &shared.join)) return;
  const kg_reduced whole = join_parts(room.parts, n_parts, &shared.join);
  if (threadIdx.x) return;
  answer->probs = whole;
  *room.arrived = 0;
}

static unsigned part_blocks(int64_t n) { return (unsigned)((part_count(n) + PARTS - 1) / PARTS); }

int kg_cuda_look(kg_stream *s, const kg_row_list *rows, int32_t n_rows, int64_t n, unsigned asked, int32_t k,
                 const kg_vector_room *room, kg_error *err)
{
  if (n_rows < 1 || n_rows > KG_LOOK_ROWS || n < 0 ||
      (asked & KG_ASK_TOP && (k < 1 || k > KG_TOP_MAX || k > n || n > KG_DRAW_VOCAB_MAX)))
    return kg_fail(err, KG_ERR_ARGUMENT, "looking at %d rows of %lld for the %d best", n_rows, (long long)n, k);
  const dim3 first((unsigned)n_rows, part_blocks(n));
  int code = run_kernel(s, "look_first", look_first, first, KG_DRAW_THREADS, 0, err, *rows, n, asked, *room);
  if (code || !(asked & (KG_ASK_PROBS | KG_ASK_TOP))) return code;
  const unsigned blocks = (asked & KG_ASK_TOP ? 1 : 0) + (asked & KG_ASK_PROBS ? part_blocks(n) : 0);
  return run_kernel(s, "look_again", look_again, dim3((unsigned)n_rows, blocks), KG_DRAW_THREADS, 0, err, *rows, n, k,
                    asked, *room);
}

int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out,
                    const kg_vector_room *room, kg_error *err)
{
  if (rows > INT32_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows", (long long)rows);
  if (n < LONG) {
    softmax_rows<<<(unsigned)((rows + PARTS - 1) / PARTS), KG_DRAW_THREADS, 0, s->handle>>>(x, rows, n, log, out);
    return kg_cuda_launched("softmax_rows", err);
  }
  int code = KG_OK;
  const int64_t most = KG_LOOK_ROWS;
  for (int64_t done = 0; done < rows && !code; done += most) {
    const int n_rows = (int)(rows - done < most ? rows - done : most);
    kg_row_list list = {};
    for (int i = 0; i < n_rows; i++) list.x[i] = x + (done + i) * n;
    code = run_kernel(s, "look_first", look_first, dim3((unsigned)n_rows, part_blocks(n)), KG_DRAW_THREADS, 0, err,
                      list, n, (unsigned)KG_ASK_PROBS, *room);
    if (!code)
      code =
          run_kernel(s, "softmax_each", softmax_each, dim3(blocks_for(n), (unsigned)n_rows), 256, 0, err, x + done * n,
                     n, (const kg_exponents *)(room->exponents + KG_REDUCE_PARTS), log, out + done * n);
  }
  return code;
}
