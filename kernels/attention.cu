#include "attention.h"
#include "rotate.cuh"

enum { HEADS = 8, THREADS = 128, SPLIT = KG_ATTENTION_SPLIT };

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
    for (int c = quarter; c < head_dim; c += 4) {
      const float x = to_float(key[c]);
#pragma unroll
      for (int h = 0; h < HEADS; h++)
        if (h < n_heads) dot[h] = fmaf(q[h * head_dim + c], x, dot[h]);
    }
  } else {
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

/* attention_rows: up to 8 query heads of one kv head of one row, over one split or over all.
 * grid: (kv heads * groups of 8 query heads, rows, splits or 1); block: 4 warps, two heads each.
 * shared: q [8][head_dim]. moves the keys and values of the split once; float32 sums, positions in order.
 * twin: attend in cpu/reference.c. */
template <bool HALF, int NC>
static __global__ void __launch_bounds__(THREADS) attention_rows(const __grid_constant__ kg_attention_args a)
{
  typedef typename element<HALF>::type T;
  extern __shared__ float q[];
  __shared__ float scores[HEADS][SPLIT];
  const int group = a.n_heads / a.n_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const int kv_head = blockIdx.x / parts, head0 = kv_head * group + blockIdx.x % parts * HEADS;
  const int n_heads = min(HEADS, (kv_head + 1) * group - head0);
  const int row = blockIdx.y, pos = a.positions[row], pages = a.row_pages[row];
  const int first = a.window && pos >= a.window ? pos - a.window + 1 : 0;
  const int split0 = a.n_splits ? blockIdx.z : first / SPLIT, split1 = a.n_splits ? blockIdx.z : pos / SPLIT;
  if (split0 < first / SPLIT || split0 > pos / SPLIT) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  for (int i = threadIdx.x; i < n_heads * a.head_dim; i += THREADS) {
    const float *head = a.q + ((size_t)row * a.n_heads + head0 + i / a.head_dim) * a.head_dim;
    q[i] = rotated(a.q_rotation, head, row, i % a.head_dim);
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
#pragma unroll
    for (int j = threadIdx.x / 4; j < SPLIT; j += THREADS / 4) {
      const int p = split * SPLIT + j;
      const bool seen = p >= begin && p < end;
      float dot[HEADS] = {};
      const T *key = cache_row<HALF>(a, pages, kv_head, 0, seen ? p : begin);
      scores_of(key, q, a.head_dim, n_heads, threadIdx.x % 4, dot);
      if (threadIdx.x % 4) continue;
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        if (h >= n_heads) continue;
        float score = dot[h] * a.scale;
        if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
        scores[h][j] = seen ? score : -CUDART_INF_F;
      }
    }
    __syncthreads();
    state<NC> next[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int h = warp + 4 * i;
#pragma unroll
      for (int c = 0; c < NC; c++) next[i].out[c] = 0;
      next[i].max = next[i].sum = 0;
      if (h >= n_heads) continue;
      const float s0 = scores[h][lane], s1 = scores[h][lane + 32];
      next[i].max = warp_max(fmaxf(s0, s1));
      const float p0 = expf(s0 - next[i].max), p1 = expf(s1 - next[i].max);
      scores[h][lane] = p0;
      scores[h][lane + 32] = p1;
      next[i].sum = warp_sum(p0 + p1);
    }
    __syncwarp();
    if (warp < n_heads) {
      const int second = warp + 4 < n_heads ? warp + 4 : warp;
#pragma unroll 8
      for (int p = begin; p < end; p++) {
        const T *value = cache_row<HALF>(a, pages, kv_head, 1, p);
        const float w0 = scores[warp][p % SPLIT], w1 = scores[second][p % SPLIT];
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
        if (lane + 32 * c < a.head_dim)
          a.out[at * a.head_dim + lane + 32 * c] = finish(all[i].max, all[i].sum, all[i].out[c], a.sinks, head);
    }
  }
}

/* join_splits: the same joins as above, a thread per channel. grid: (heads, rows). */
static __global__ void __launch_bounds__(KG_ATTENTION_MAX_DIM) join_splits(const __grid_constant__ kg_attention_args a)
{
  const int head = blockIdx.x, row = blockIdx.y, pos = a.positions[row], c = threadIdx.x;
  if (c >= a.head_dim) return;
  const int first = a.window && pos >= a.window ? pos - a.window + 1 : 0;
  const size_t at = (size_t)row * a.n_heads + head;
  state<1> all = {-CUDART_INF_F, 0, {0}};
#pragma unroll 8
  for (int split = first / SPLIT; split <= pos / SPLIT; split++) {
    const float *in = a.partials + (at * a.n_splits + split) * (2 + a.head_dim);
    const state<1> next = {in[0], in[1], {in[2 + c]}};
    join(all, next);
  }
  a.out[at * a.head_dim + c] = finish(all.max, all.sum, all.out[0], a.sinks, head);
}

int kg_cuda_cache_write(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  const dim3 grid(a->n_kv_heads, a->n);
  if (a->half)
    cache_write<true><<<grid, THREADS, 0, s->handle>>>(*a);
  else
    cache_write<false><<<grid, THREADS, 0, s->handle>>>(*a);
  return kg_cuda_launched("cache_write", err);
}

template <bool HALF> static void launch(kg_stream *s, const kg_attention_args *a, dim3 grid)
{
  const size_t shared = HEADS * (size_t)a->head_dim * sizeof(float);
  if (a->head_dim <= 64)
    attention_rows<HALF, 2><<<grid, THREADS, shared, s->handle>>>(*a);
  else if (a->head_dim <= 128)
    attention_rows<HALF, 4><<<grid, THREADS, shared, s->handle>>>(*a);
  else
    attention_rows<HALF, 8><<<grid, THREADS, shared, s->handle>>>(*a);
}

int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->n_splits > 65535 || a->head_dim > KG_ATTENTION_MAX_DIM)
    return kg_fail(err, KG_ERR_ARGUMENT, "attention of %d rows, %d splits, heads of %d", a->n, a->n_splits, a->head_dim);
  const int group = a->n_heads / a->n_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const dim3 grid(a->n_kv_heads * parts, a->n, a->n_splits ? a->n_splits : 1);
  if (a->half)
    launch<true>(s, a, grid);
  else
    launch<false>(s, a, grid);
  int code = kg_cuda_launched("attention_rows", err);
  if (code || !a->n_splits) return code;
  join_splits<<<dim3(a->n_heads, a->n), (a->head_dim + 31) / 32 * 32, 0, s->handle>>>(*a);
  return kg_cuda_launched("join_splits", err);
}
