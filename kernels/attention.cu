#include "attention.h"
#include "rotate.cuh"

enum { HEADS = 8, THREADS = 128, SPLIT = KG_ATTENTION_SPLIT,
       JOIN_INSIDE = 16, /* up to so many splits the last block to arrive joins them; more are joined by a kernel */
       SHARED_MAX = 96 << 10 };

template <bool HALF> struct element;
template <> struct element<true> { typedef __half type; };
template <> struct element<false> { typedef float type; };

static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
static __device__ __forceinline__ float to_float(float x) { return x; }

/* Keys (plane 0) or values (plane 1) of a kv head at a position. */
template <bool HALF>
static __device__ __forceinline__ typename element<HALF>::type *cache_row(const kg_attention_args &a, int pages, int head,
                                                                          int plane, int pos)
{
  typedef typename element<HALF>::type T;
  T *page = (T *)(a.pages[pages + pos / KG_PAGE] + a.layer_offset);
  return page + ((size_t)(2 * head + plane) * KG_PAGE + pos % KG_PAGE) * a.head_dim;
}

/* cache_write: grid (kv heads, rows). twin: attention in cpu/reference.c; f16 rounding where the cache is f16. */
template <bool HALF> static __global__ void __launch_bounds__(THREADS) cache_write(const __grid_constant__ kg_attention_args a)
{
  typedef typename element<HALF>::type T;
  wait_for_previous();
  const int head = blockIdx.x, row = blockIdx.y, pos = a.positions[row];
  const size_t at = ((size_t)row * a.n_kv_heads + head) * a.head_dim;
  T *k = cache_row<HALF>(a, a.row_pages[row], head, 0, pos), *v = cache_row<HALF>(a, a.row_pages[row], head, 1, pos);
  for (int c = threadIdx.x; c < a.head_dim; c += blockDim.x) {
    k[c] = (T)rotated(a.k_rotation, a.k + at, row, c);
    v[c] = (T)a.v[at + c];
  }
}

/* The softmax over some positions: sum of exp(score - max), and of those times the values (NC channels of a lane). */
template <int NC> struct state {
  float max, sum, out[NC];
};

template <int NC> static __device__ __forceinline__ void join(state<NC> &all, const state<NC> &next)
{
  const float max = fmaxf(all.max, next.max), a = expf(all.max - max), b = expf(next.max - max);
  all.max = max;
  all.sum = fmaf(next.sum, b, all.sum * a);
#pragma unroll
  for (int i = 0; i < NC; i++) all.out[i] = fmaf(next.out[i], b, all.out[i] * a);
}

/* A sink takes its share of the softmax and gives nothing. */
static __device__ __forceinline__ float finish(float max, float sum, float out, const float *sinks, int head)
{
  if (!sinks) return out / sum;
  const float top = fmaxf(max, sinks[head]), share = expf(max - top);
  return out * share / fmaf(sum, share, expf(sinks[head] - top));
}

/* Dot products of a key with the queries of n_heads heads: 4 neighbouring threads share a key, 8 channels at a time. */
template <typename T>
static __device__ __forceinline__ void scores_of(const T *key, const float *q, int head_dim, int n_heads, int quarter,
                                                 float dot[HEADS])
{
  if (head_dim % 8) {
#pragma unroll 1
    for (int c = quarter; c < head_dim; c += 4) {
      const float x = to_float(key[c]);
#pragma unroll
      for (int h = 0; h < HEADS; h++)
        if (h < n_heads) dot[h] = fmaf(q[h * head_dim + c], x, dot[h]);
    }
  } else {
#pragma unroll 1
    for (int c = 8 * quarter; c < head_dim; c += 32) {
      T part[8];
      if (sizeof(T) == 2)
        *(uint4 *)part = *(const uint4 *)(key + c);
      else {
        *(float4 *)part = *(const float4 *)(key + c);
        *((float4 *)part + 1) = *((const float4 *)(key + c) + 1);
      }
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = to_float(part[i]);
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        if (h >= n_heads) continue;
        const float4 low = *(const float4 *)(q + h * head_dim + c), high = *(const float4 *)(q + h * head_dim + c + 4);
        dot[h] = fmaf(low.x, x[0], dot[h]);
        dot[h] = fmaf(low.y, x[1], dot[h]);
        dot[h] = fmaf(low.z, x[2], dot[h]);
        dot[h] = fmaf(low.w, x[3], dot[h]);
        dot[h] = fmaf(high.x, x[4], dot[h]);
        dot[h] = fmaf(high.y, x[5], dot[h]);
        dot[h] = fmaf(high.z, x[6], dot[h]);
        dot[h] = fmaf(high.w, x[7], dot[h]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    dot[h] += __shfl_xor_sync(~0u, dot[h], 1);
    dot[h] += __shfl_xor_sync(~0u, dot[h], 2);
  }
}

/* Keys or values of positions [begin, end) of a split to shared memory, four loads of a thread at once. */
template <bool HALF>
static __device__ __forceinline__ void stage_split(const kg_attention_args &a, int pages, int kv_head, int plane, int split,
                                                   int begin, int end, typename element<HALF>::type *out)
{
  typedef typename element<HALF>::type T;
  constexpr int EACH = 16 / sizeof(T), AHEAD = 4;
  const T *base = cache_row<HALF>(a, pages, kv_head, plane, split * SPLIT); /* of the split's first page */
  auto row_at = [&](int j) {
    return KG_PAGE % SPLIT == 0 ? base + (size_t)j * a.head_dim : cache_row<HALF>(a, pages, kv_head, plane, split * SPLIT + j);
  };
  const int first = begin - split * SPLIT, last = end - split * SPLIT;
  if (a.head_dim % EACH == 0) {
    const int chunks = a.head_dim / EACH, end_chunk = last * chunks;
    for (int i0 = first * chunks + threadIdx.x; i0 < end_chunk; i0 += AHEAD * THREADS) {
      uint4 v[AHEAD];
#pragma unroll
      for (int u = 0; u < AHEAD; u++) {
        const int i = i0 + u * THREADS;
        if (i < end_chunk) v[u] = *(const uint4 *)(row_at(i / chunks) + i % chunks * EACH);
      }
#pragma unroll
      for (int u = 0; u < AHEAD; u++)
        if (i0 + u * THREADS < end_chunk) *((uint4 *)out + i0 + u * THREADS) = v[u];
    }
  } else {
    for (int i = first * a.head_dim + threadIdx.x; i < last * a.head_dim; i += THREADS)
      out[i] = row_at(i / a.head_dim)[i % a.head_dim];
  }
}

/* Write a channel of the result, and raise the row's largest magnitude; all lanes of a warp call it. */
static __device__ __forceinline__ void emit(const kg_attention_args &a, int row, size_t at, bool exists, float value)
{
  if (exists) a.out[at] = value;
  if (!a.out_max) return;
  const float max = warp_max(exists ? fmaxf(fabsf(value), 0) : 0);
  if (threadIdx.x % 32 == 0) raise_max(a.out_max + row, max);
}

/* Channel c of a head: the joins of attention_rows, one after the other. */
static __device__ __forceinline__ float join_splits_of(const kg_attention_args &a, int row, int head, int first, int last, int c)
{
  const size_t at = (size_t)row * a.n_heads + head;
  state<1> all = {-CUDART_INF_F, 0, {0}};
#pragma unroll 4
  for (int split = first; split <= last; split++) {
    const float *in = a.partials + (at * a.n_splits + split) * (2 + a.head_dim);
    const state<1> next = {__ldcg(in), __ldcg(in + 1), {__ldcg(in + 2 + c)}};
    join(all, next);
  }
  return finish(all.max, all.sum, all.out[0], a.sinks, head);
}

/* attention_rows: up to 8 query heads of one kv head of one row, over one split or over all.
 * grid: (kv heads * groups of 8 query heads, rows, splits or 1); block: 4 warps, two heads each.
 * shared: q [8][head_dim], keys and values of a split. moves the keys and values of the split once; float32 sums,
 * positions in order. twin: attend in cpu/reference.c. */
template <bool HALF, int NC>
static __global__ void __launch_bounds__(THREADS) attention_rows(const __grid_constant__ kg_attention_args a, bool one_tile)
{
  typedef typename element<HALF>::type T;
  extern __shared__ __align__(16) float q[];
  __shared__ float scores[HEADS][SPLIT];
  __shared__ bool is_last;
  T *keys = (T *)(q + HEADS * a.head_dim), *values = one_tile ? keys : keys + SPLIT * a.head_dim;
  wait_for_previous();
  const int group = a.n_heads / a.n_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const int kv_head = blockIdx.x / parts, head0 = kv_head * group + blockIdx.x % parts * HEADS;
  const int n_heads = min(HEADS, (kv_head + 1) * group - head0);
  const int row = blockIdx.y, pos = a.positions[row], pages = a.row_pages[row];
  const int first = a.window && pos >= a.window ? pos - a.window + 1 : 0;
  const int split0 = a.n_splits ? blockIdx.z : first / SPLIT, split1 = a.n_splits ? blockIdx.z : pos / SPLIT;
  if (split0 < first / SPLIT || split0 > pos / SPLIT) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll 2
  for (int i = threadIdx.x; i < n_heads * a.head_dim; i += THREADS) {
    const int h = i / a.head_dim, c = i - h * a.head_dim;
    q[i] = rotated(a.q_rotation, a.q + ((size_t)row * a.n_heads + head0 + h) * a.head_dim, row, c);
  }
  if (a.writes && split1 == pos / SPLIT) { /* blocks of other groups of this kv head write the same */
    const size_t at = ((size_t)row * a.n_kv_heads + kv_head) * a.head_dim;
    T *k = cache_row<HALF>(a, pages, kv_head, 0, pos), *v = cache_row<HALF>(a, pages, kv_head, 1, pos);
#pragma unroll 1
    for (int c = threadIdx.x; c < a.head_dim; c += THREADS) {
      k[c] = (T)rotated(a.k_rotation, a.k + at, row, c);
      v[c] = (T)a.v[at + c];
    }
  }
  state<NC> all[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    all[i].max = -CUDART_INF_F;
    all[i].sum = 0;
#pragma unroll
    for (int c = 0; c < NC; c++) all[i].out[c] = 0;
  }
  for (int split = split0; split <= split1; split++) {
    const int begin = max(first, split * SPLIT), end = min(pos + 1, (split + 1) * SPLIT);
    __syncthreads();
    stage_split<HALF>(a, pages, kv_head, 0, split, begin, end, keys);
    if (!one_tile) stage_split<HALF>(a, pages, kv_head, 1, split, begin, end, values);
    __syncthreads();
#pragma unroll 1 /* code that runs once costs more to fetch than to run: keep it short */
    for (int j = threadIdx.x / 4; j < SPLIT; j += THREADS / 4) {
      const int p = split * SPLIT + j;
      const bool seen = p >= begin && p < end;
      float dot[HEADS] = {};
      scores_of<T>(keys + (seen ? j : begin % SPLIT) * a.head_dim, q, a.head_dim, n_heads, threadIdx.x % 4, dot);
      if (threadIdx.x % 4) continue;
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        if (h >= n_heads) continue;
        scores[h][j] = seen ? dot[h] * a.scale : -CUDART_INF_F;
      }
    }
    __syncthreads();
    if (one_tile) {
      stage_split<HALF>(a, pages, kv_head, 1, split, begin, end, values);
      __syncthreads();
    }
    state<NC> next[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int h = warp + 4 * i;
#pragma unroll
      for (int c = 0; c < NC; c++) next[i].out[c] = 0;
      next[i].max = next[i].sum = 0;
      if (h >= n_heads) continue;
      float s0 = scores[h][lane], s1 = scores[h][lane + 32];
      if (a.softcap > 0) {
        s0 = a.softcap * tanhf(s0 / a.softcap);
        s1 = a.softcap * tanhf(s1 / a.softcap);
        if (scores[h][lane] == -CUDART_INF_F) s0 = -CUDART_INF_F; /* not seen, and no score of -softcap */
        if (scores[h][lane + 32] == -CUDART_INF_F) s1 = -CUDART_INF_F;
      }
      next[i].max = warp_max(fmaxf(s0, s1));
      const float p0 = expf(s0 - next[i].max), p1 = expf(s1 - next[i].max);
      scores[h][lane] = p0;
      scores[h][lane + 32] = p1;
      next[i].sum = warp_sum(p0 + p1);
    }
    __syncwarp();
    if (warp < n_heads) {
      const int second = warp + 4 < n_heads ? warp + 4 : warp;
#pragma unroll 4
      for (int j = begin % SPLIT; j < begin % SPLIT + end - begin; j++) {
        const T *value = values + j * a.head_dim;
        const float w0 = scores[warp][j], w1 = scores[second][j];
#pragma unroll
        for (int c = 0; c < NC; c++) {
          const float x = lane + 32 * c < a.head_dim ? to_float(value[lane + 32 * c]) : 0;
          next[0].out[c] = fmaf(w0, x, next[0].out[c]);
          next[1].out[c] = fmaf(w1, x, next[1].out[c]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) join(all[i], next[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int h = warp + 4 * i, head = head0 + h;
    if (h >= n_heads) continue;
    const size_t at = (size_t)row * a.n_heads + head;
    if (a.n_splits) {
      float *out = a.partials + (at * a.n_splits + blockIdx.z) * (2 + a.head_dim);
      if (!lane) {
        out[0] = all[i].max;
        out[1] = all[i].sum;
      }
#pragma unroll
      for (int c = 0; c < NC; c++)
        if (lane + 32 * c < a.head_dim) out[2 + lane + 32 * c] = all[i].out[c];
    } else {
#pragma unroll
      for (int c = 0; c < NC; c++)
        emit(a, row, at * a.head_dim + lane + 32 * c, lane + 32 * c < a.head_dim,
             finish(all[i].max, all[i].sum, all[i].out[c], a.sinks, head));
    }
  }
  if (!a.n_splits || a.n_splits > JOIN_INSIDE) return;

  /* The last block of this row and these heads joins the splits. */
  __threadfence();
  __syncthreads();
  if (!threadIdx.x) {
    unsigned *arrived = a.arrived + (size_t)row * a.n_heads + head0;
    is_last = atomicAdd(arrived, 1) == (unsigned)(pos / SPLIT - first / SPLIT);
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
#pragma unroll 1
  for (int i = threadIdx.x; i < (n_heads * a.head_dim + 31) / 32 * 32; i += THREADS) {
    const bool exists = i < n_heads * a.head_dim;
    const int h = exists ? i / a.head_dim : 0, c = exists ? i - h * a.head_dim : 0;
    emit(a, row, ((size_t)row * a.n_heads + head0 + h) * a.head_dim + c, exists,
         join_splits_of(a, row, head0 + h, first / SPLIT, pos / SPLIT, c));
  }
}

/* join_splits: where there are many. grid: (heads, rows); a thread per channel. */
static __global__ void __launch_bounds__(KG_ATTENTION_MAX_DIM) join_splits(const __grid_constant__ kg_attention_args a)
{
  wait_for_previous();
  const int head = blockIdx.x, row = blockIdx.y, pos = a.positions[row], c = threadIdx.x;
  const bool exists = c < a.head_dim;
  const int first = a.window && pos >= a.window ? pos - a.window + 1 : 0;
  emit(a, row, ((size_t)row * a.n_heads + head) * a.head_dim + c, exists,
       join_splits_of(a, row, head, first / SPLIT, pos / SPLIT, exists ? c : 0));
}

int kg_cuda_cache_write(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  const dim3 grid(a->n_kv_heads, a->n);
  if (a->half) return run_kernel(s, "cache_write", cache_write<true>, grid, THREADS, 0, err, *a);
  return run_kernel(s, "cache_write", cache_write<false>, grid, THREADS, 0, err, *a);
}

template <bool HALF, int NC> static int launch(kg_stream *s, const kg_attention_args *a, dim3 grid, kg_error *err)
{
  const size_t tile = (size_t)SPLIT * (size_t)a->head_dim * sizeof(typename element<HALF>::type);
  const size_t queries = HEADS * (size_t)a->head_dim * sizeof(float);
  const bool one_tile = queries + 2 * tile > SHARED_MAX - (4 << 10); /* keys and values take turns */
  const size_t shared = queries + (one_tile ? tile : 2 * tile);
  const int code = shared <= (44 << 10)
                       ? KG_OK
                       : kg_cuda_check(cudaFuncSetAttribute(attention_rows<HALF, NC>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                            (int)shared),
                                       "attention_rows", err);
  return code ? code : run_kernel(s, "attention_rows", attention_rows<HALF, NC>, grid, THREADS, shared, err, *a, one_tile);
}

template <bool HALF> static int launch_for(kg_stream *s, const kg_attention_args *a, dim3 grid, kg_error *err)
{
  if (a->head_dim <= 64) return launch<HALF, 2>(s, a, grid, err);
  if (a->head_dim <= 128) return launch<HALF, 4>(s, a, grid, err);
  return launch<HALF, 8>(s, a, grid, err);
}

int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->n_splits > 65535 || a->head_dim > KG_ATTENTION_MAX_DIM)
    return kg_fail(err, KG_ERR_ARGUMENT, "attention of %d rows, %d splits, heads of %d", a->n, a->n_splits, a->head_dim);
  const int group = a->n_heads / a->n_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const dim3 grid(a->n_kv_heads * parts, a->n, a->n_splits ? a->n_splits : 1);
  const int code = a->half ? launch_for<true>(s, a, grid, err) : launch_for<false>(s, a, grid, err);
  if (code || a->n_splits <= JOIN_INSIDE) return code;
  return run_kernel(s, "join_splits", join_splits, dim3(a->n_heads, a->n), (a->head_dim + 31) / 32 * 32, 0, err, *a);
}
