/* attention_wide.cu - attention over an f16 cache for heads that attention.cu is not made for, on tensor cores: values
 * that are a part of the keys (latent attention) or not as wide as they are, and heads wider than 256.
 *
 * A block takes 16 M pairs of a position and a query head of one kv head through splits of 64 positions. Its warps
 * share a split: each has 8 positions of it for the scores, then 8 NV channels of the values. Splits are joined in
 * STRANDS strands: strand z has splits z, z + STRANDS, ... in order; then the strands are joined in order. So the
 * strands of few rows can have blocks of their own (SPREAD, and join_strands), and a block can take many rows through
 * all of them, with the same numbers bit for bit: a row of a product knows nothing of the other rows, and a split of
 * which a row sees nothing changes nothing. */
#include "attention.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS, STRANDS = 32, CHANNELS = 8 * WARPS /* of values, for each tile of a warp */ };

static_assert(WARPS * 8 == SPLIT, "a warp has 8 positions of a split");

/* Shared memory of a block, in units of 16 bytes. */
struct wide_layout {
  int q, tops, weights, cache, buffer, end;
};

/* Else they are a part of the keys. */
static __host__ __device__ __forceinline__ bool has_values(const kg_attention_args &a)
{
  return a.cached_dim > a.head_dim;
}

/* Of a tile of queries, [steps of 16 channels][32]: an even number of steps. */
static __host__ __device__ __forceinline__ int query_chunks(int dim) { return (dim + 31) / 32 * 2 * 32; }

static __host__ __device__ __forceinline__ int panels_of(int dim) { return (dim + 63) / 64; }

static __host__ __device__ __forceinline__ wide_layout lay_out_wide(const kg_attention_args &a, int tiles, int buffers)
{
  wide_layout l;
  l.q = 0;
  l.tops = tiles * query_chunks(a.head_dim);
  l.weights = l.tops + tiles * TILE * WARPS / 4;
  l.cache = (l.weights + tiles * 4 * 32 + 7) / 8 * 8;
  l.buffer = (panels_of(a.head_dim) + (has_values(a) ? panels_of(a.value_dim) : 0)) * PANEL; /* keys, then values */
  l.end = l.cache + buffers * l.buffer;
  return l;
}

/* Positions [64 split, last] of a split, and zeros for what is not there. */
static __device__ __forceinline__ void fetch_wide(const kg_attention_args &a, int pages, int kv_head, int split,
                                                  int last, const uint4 *buffer)
{
  const int c = threadIdx.x % 8, key_panels = panels_of(a.head_dim);
#pragma unroll
  for (int r = threadIdx.x / 8; r < SPLIT; r += THREADS / 8) {
    const int pos = split * SPLIT + r;
    const bool exists = pos <= last;
    const __half *keys = cache_row<__half>(a, pages, kv_head, 0, min(pos, last)) + 8 * c;
    const unsigned to = shared_address(buffer + r * 8 + (c ^ r % 8));
#pragma unroll 4
    for (int p = 0; p < key_panels; p++)
      copy_async(to + p * PANEL * 16, keys + 64 * p, exists && 64 * p + 8 * c < a.head_dim);
    if (!has_values(a)) continue;
    const __half *values = cache_row<__half>(a, pages, kv_head, 1, min(pos, last)) + 8 * c;
#pragma unroll 4
    for (int p = 0; p < panels_of(a.value_dim); p++)
      copy_async(to + (key_panels + p) * PANEL * 16, values + 64 * p, exists && 64 * p + 8 * c < a.value_dim);
  }
}

/* The pairs of a span of rows that a block has: [first, min(first + its rows, n)); pair i is query head i % group of
 * row row0 + i / group. */
struct pairs {
  int row0, kv_head, first, n;
};

/* Tiles of the few rows, then those of the spans. n is 0 where there is none. */
static __device__ __forceinline__ pairs find_pairs(const kg_attention_args &a, int tile, int kv_head, int rows)
{
  const int group = a.n_heads / a.n_kv_heads, parts = (group + rows - 1) / rows;
  if (tile < a.n_few * parts) return {a.few[tile / parts], kv_head, tile % parts * rows, group};
  tile -= a.n_few * parts;
  for (int s = 0; s < a.n_spans; s++) {
    const int n = a.spans[2 * s + 1] * group, n_tiles = (n + rows - 1) / rows;
    if (tile < n_tiles) return {a.spans[2 * s], kv_head, tile * rows, n};
    tile -= n_tiles;
  }
  return {0, kv_head, 0, 0};
}

/* The first split of a strand that is not before split0. */
static __device__ __forceinline__ int begin_strand(int strand, int split0)
{
  return split0 + ((strand - split0) & (STRANDS - 1));
}

struct split_of_strand {
  int strand, split;
};

/* The next split of the strand, or the first one of the next strand that has any; beyond split1: there is none. */
static __device__ __forceinline__ split_of_strand next_split(split_of_strand at, int split0, int split1)
{
  at.split += STRANDS;
  while (at.split > split1 && ++at.strand < STRANDS) at.split = begin_strand(at.strand, split0);
  return at;
}

/* Sums of the rows g and g + 8 of M tiles over some splits: channels 8 (NV warp + i) + 2 t + e of the values are
 * out[tile][i][2 h + e]. */
template <int M, int NV> struct sums {
  float top[M][2], sum[M][2], out[M][NV][4];

  __device__ __forceinline__ void clear()
  {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
      top[i / 2][i % 2] = -CUDART_INF_F;
      sum[i / 2][i % 2] = 0;
    }
#pragma unroll
    for (int i = 0; i < 4 * M * NV; i++) out[i / 4 / NV][i / 4 % NV][i % 4] = 0;
  }

  __device__ __forceinline__ void join(const sums &next)
  {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
      const int m = i / 2, h = i % 2;
      const factors f = join_factors(top[m][h], next.top[m][h]);
      top[m][h] = f.top;
      sum[m][h] = fmaf(next.sum[m][h], f.next, sum[m][h] * f.all);
#pragma unroll
      for (int j = 0; j < 2 * NV; j++) {
        float &x = out[m][j / 2][2 * h + j % 2];
        x = fmaf(next.out[m][j / 2][2 * h + j % 2], f.next, x * f.all);
      }
    }
  }
};

/* A split joins `all`. Rows g + 8 h see positions first[tile][h] to last[tile][h]. All threads of the block. */
template <int M, int NV>
static __device__ __forceinline__ void take_split(const kg_attention_args &a, int split, const uint4 *q,
                                                  const uint4 *cache, float *tops, uint4 *weights,
                                                  const int (&first)[M][2], const int (&last)[M][2], sums<M, NV> &all)
{
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int n_steps = (a.head_dim + 31) / 32; /* of 32 channels */
  const unsigned key_row = shared_address(cache) + lane % 8 * 128 + warp * 1024, chunk = (lane / 8 ^ lane % 8) * 16;
  float chains[M][4][4] = {}; /* sums of every fourth 16 channels: one would have to wait for itself */
#pragma unroll 3
  for (int j0 = 0; j0 < n_steps; j0 += 2)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (i && j0 + i >= n_steps) break;
      const uint4 k = load_keys(key_row + j0 / 2 * PANEL * 16 + (chunk ^ i * 64));
#pragma unroll
      for (int m = 0; m < M; m++) {
        const uint4 *x = q + (m * 2 * n_steps + 2 * (j0 + i)) * 32 + lane;
        mma(chains[m][2 * i], x[0], k.x, k.y);
        mma(chains[m][2 * i + 1], x[32], k.z, k.w);
      }
    }

  float s[M][4], top[M][2];
  const float unit = a.softcap > 0 ? LOG2E : a.scale * LOG2E;
  const float uncap = a.softcap > 0 ? 2 * LOG2E * a.scale / a.softcap : 0;
#pragma unroll
  for (int i = 0; i < 4 * M; i++) {
    const int m = i / 4, h = i % 4 / 2, pos = split * SPLIT + warp * 8 + 2 * t + i % 2;
    float x = (chains[m][0][i % 4] + chains[m][1][i % 4]) + (chains[m][2][i % 4] + chains[m][3][i % 4]);
    if (a.softcap > 0) x = fmaf(-2 * a.softcap, reciprocal(exp_2(x * uncap) + 1), a.softcap); /* as in attention.cu */
    s[m][i % 4] = pos < first[m][h] || pos > last[m][h] ? -CUDART_INF_F : x;
  }
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    float max = fmaxf(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
    max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
    if (!t) tops[(i * 8 + g) * WARPS + warp] = max;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    const int m = i / 2, h = i % 2;
    const float4 low = ((const float4 *)tops)[(i * 8 + g) * 2], high = ((const float4 *)tops)[(i * 8 + g) * 2 + 1];
    top[m][h] = unit * fmaxf(fmaxf(fmaxf(low.x, low.y), fmaxf(low.z, low.w)),
                             fmaxf(fmaxf(high.x, high.y), fmaxf(high.z, high.w)));
    const float base = top[m][h] == -CUDART_INF_F ? 0 : top[m][h];
    ((uint32_t *)(weights + (m * 4 + warp / 2) * 32 + lane))[warp % 2 * 2 + h] =
        half_pair(exp_2(fmaf(s[m][2 * h], unit, -base)), exp_2(fmaf(s[m][2 * h + 1], unit, -base)));
  }
  __syncthreads();

  uint4 w[M][4]; /* four steps of 16 positions */
  float sum[M][4] = {};
  factors f[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      w[m][step] = weights[(m * 4 + step) * 32 + lane];
      mma(sum[m], w[m][step], 0x3c003c00, 0x3c003c00); /* times ones */
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      f[m][h] = join_factors(all.top[m][h], top[m][h]);
      all.top[m][h] = f[m][h].top;
      all.sum[m][h] = fmaf(sum[m][2 * h], f[m][h].next, all.sum[m][h] * f[m][h].all);
    }
  }
  const unsigned values = shared_address(cache) + (has_values(a) ? panels_of(a.head_dim) * PANEL * 16 : 0);
  const unsigned value_row = values + (lane / 8 % 2 * 8 + lane % 8) * 128, value_chunk = (lane / 16 ^ lane % 8) * 16;
#pragma unroll
  for (int i = 0; i < NV; i += 2) {
    const int c = warp * NV + i; /* 8 channels, and 8 more */
    if (8 * c >= a.value_dim) break;
    float next[M][2][4] = {};
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const uint4 v = load_values(value_row + c / 8 * PANEL * 16 + step * 2048 + (value_chunk ^ c % 8 * 16));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma(next[m][0], w[m][step], v.x, v.y);
        mma(next[m][1], w[m][step], v.z, v.w);
      }
    }
#pragma unroll
    for (int j = 0; j < 8 * M; j++) {
      const int m = j / 8, n = j / 4 % 2, e = j % 4;
      all.out[m][i + n][e] = fmaf(next[m][n][e], f[m][e / 2].next, all.out[m][i + n][e] * f[m][e / 2].all);
    }
  }
}

/* What a strand of a row's head makes, in scratch: [few rows][heads][STRANDS][value_dim + 4], top and sum behind it. */
static __device__ __forceinline__ float *strand_place(const kg_attention_args &a, int few, int head, int strand)
{
  return a.scratch + (((size_t)few * a.n_heads + head) * STRANDS + strand) * (a.value_dim + 4);
}

/* The queries of a block's n pairs, turned. Loads of several channels are under way together. */
template <int M>
static __device__ __forceinline__ void bring_queries(const kg_attention_args &a, const pairs &own, int n, uint4 *q)
{
  enum { TOGETHER = 6 };
  const int group = a.n_heads / a.n_kv_heads, half_dim = a.head_dim / 2, all = n * half_dim;
  const int tile = query_chunks(a.head_dim);
  for (int i0 = threadIdx.x; i0 < all; i0 += TOGETHER * THREADS) {
    channel_pair channels[TOGETHER];
    pair_values values[TOGETHER];
#pragma unroll
    for (int u = 0; u < TOGETHER; u++) {
      const int i = min(i0 + u * THREADS, all - 1), pair = own.first + i / half_dim, row = own.row0 + pair / group;
      const float *from = a.q + ((size_t)row * a.n_heads + own.kv_head * group + pair % group) * a.head_dim;
      channels[u] = find_pair(a.q_rotation, from, a.head_dim, row, i % half_dim);
      values[u] = load_pair(channels[u]);
    }
#pragma unroll
    for (int u = 0; u < TOGETHER; u++) {
      const int i = i0 + u * THREADS, r = i / half_dim;
      if (i >= all) break;
      __half *to = (__half *)(q + r / TILE * tile) + query_at(r % TILE, 0);
      put_pair(channels[u], values[u], a.head_dim, [&](int c, float x) { store(to + query_at(0, c), x); });
    }
  }
}

/* attention_pairs: grid: tiles of 16 M pairs * kv heads, those that see most first; SPREAD: (kv heads * tiles of a few
 * row, few rows, strands), each row that has fewer strands leaving some without work. block: 8 warps; shared: q, and
 * one or two splits. moves the cache of what its pairs see. twin: attend in cpu/reference.c; tolerance: f16 rounding of
 * q and of the weights. */
template <int M, int NV, bool SPREAD>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_pairs(const __grid_constant__ kg_attention_args a, int buffers)
{
  extern __shared__ uint4 shared[];
  constexpr int ROWS = TILE * M;
  if (SPREAD) let_next_start(); /* else its blocks would upset the shares of the processors */
  await_previous();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group = a.n_heads / a.n_kv_heads, parts = (group + ROWS - 1) / ROWS;
  const pairs own = SPREAD
                        ? find_pairs(a, blockIdx.y * parts + blockIdx.x % parts, blockIdx.x / parts, ROWS)
                        : find_pairs(a, (gridDim.x - 1 - blockIdx.x) / a.n_kv_heads, blockIdx.x % a.n_kv_heads, ROWS);
  if (!own.n) return;
  const int last_pair = min(own.first + ROWS, own.n) - 1, pages = a.row_pages[own.row0];
  const int end = a.lasts[own.row0 + last_pair / group]; /* what later pairs see, earlier ones see, or it is masked */
  const int split0 = first_seen(a, a.lasts[own.row0 + own.first / group]) / SPLIT, split1 = end / SPLIT;
  split_of_strand now = {(int)blockIdx.z, begin_strand(blockIdx.z, split0)};
  if (!SPREAD) now = next_split({0, begin_strand(0, split0) - STRANDS}, split0, split1);
  if (now.split > split1) return;

  const wide_layout at = lay_out_wide(a, M, buffers);
  uint4 *const q = shared + at.q, *const cache = shared + at.cache;
  fetch_wide(a, pages, own.kv_head, now.split, end, cache);
  commit_copies();

  for (int i = threadIdx.x; i < at.tops; i += THREADS) q[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  bring_queries<M>(a, own, last_pair + 1 - own.first, q);

  int first[M][2], last[M][2];
#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    const int pair = min(own.first + 8 * i + g, last_pair); /* rows that do not exist see what the last one does */
    last[i / 2][i % 2] = a.lasts[own.row0 + pair / group];
    first[i / 2][i % 2] = first_seen(a, last[i / 2][i % 2]);
  }
  sums<M, NV> all, part;
  all.clear();
  part.clear();
  for (int buffer = 0; now.split <= split1;) {
    const split_of_strand next =
        SPREAD ? split_of_strand{now.strand, now.split + STRANDS} : next_split(now, split0, split1);
    if (buffers > 1) {
      if (next.split <= split1) fetch_wide(a, pages, own.kv_head, next.split, end, cache + (buffer ^ 1) * at.buffer);
      commit_copies();
      wait_copies<1>();
    } else
      wait_copies<0>();
    __syncthreads();
    take_split<M, NV>(a, now.split, q, cache + buffer * at.buffer, (float *)(shared + at.tops), shared + at.weights,
                      first, last, part);
    __syncthreads();
    if (buffers > 1)
      buffer ^= 1;
    else if (next.split <= split1) {
      fetch_wide(a, pages, own.kv_head, next.split, end, cache);
      commit_copies();
    }
    if (!SPREAD && next.strand != now.strand) {
      all.join(part);
      part.clear();
    }
    now = next;
  }

#pragma unroll
  for (int i = 0; i < 2 * M; i++) {
    const int m = i / 2, h = i % 2, pair = own.first + 8 * i + g, row = own.row0 + pair / group;
    const int head = own.kv_head * group + pair % group;
    float largest = 0;
    if (pair <= last_pair) {
      const sums<M, NV> &from = SPREAD ? part : all;
      float *to = SPREAD ? strand_place(a, blockIdx.y, head, blockIdx.z)
                         : a.out + ((size_t)row * a.n_heads + head) * a.value_dim;
      const float factor = SPREAD ? 1 : last_factor(from.top[m][h], from.sum[m][h], a.sinks, head);
      if (SPREAD && !warp && !t) *(float2 *)(to + a.value_dim) = make_float2(from.top[m][h], from.sum[m][h]);
#pragma unroll
      for (int j = 0; j < NV; j++) {
        const int c = (warp * NV + j) * 8 + 2 * t;
        if (c >= a.value_dim) continue;
        const float2 v = make_float2(from.out[m][j][2 * h] * factor, from.out[m][j][2 * h + 1] * factor);
        *(float2 *)(to + c) = v;
        largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
      }
    }
    if (SPREAD || !a.out_max) continue;
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    if (!t && pair <= last_pair) raise_max(a.out_max + row, largest);
  }
}

/* join_strands: as sums::join does. grid: (heads, few rows); block: 4 warps, four channels a thread. */
static __global__ void __launch_bounds__(128) join_strands(const __grid_constant__ kg_attention_args a)
{
  __shared__ float2 states[STRANDS];
  wait_for_previous();
  const int row = a.few[blockIdx.y], head = blockIdx.x, last = a.lasts[row];
  const int split0 = first_seen(a, last) / SPLIT, split1 = last / SPLIT;
  if (threadIdx.x < STRANDS && begin_strand(threadIdx.x, split0) <= split1)
    states[threadIdx.x] = *(const float2 *)(strand_place(a, blockIdx.y, head, threadIdx.x) + a.value_dim);
  __syncthreads();
  const int c = 4 * threadIdx.x;
  float top = -CUDART_INF_F, sum = 0, out[4] = {};
#pragma unroll 8
  for (int z = 0; z < STRANDS; z++) {
    if (begin_strand(z, split0) > split1) continue;
    const factors f = join_factors(top, states[z].x);
    float4 next = make_float4(0, 0, 0, 0);
    if (c < a.value_dim) next = *(const float4 *)(strand_place(a, blockIdx.y, head, z) + c);
    const float channels[4] = {next.x, next.y, next.z, next.w};
    top = f.top;
    sum = fmaf(states[z].y, f.next, sum * f.all);
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = fmaf(channels[i], f.next, out[i] * f.all);
  }
  const float factor = last_factor(top, sum, a.sinks, head);
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    out[i] *= factor;
    largest = fmaxf(largest, fabsf(out[i]));
  }
  if (c < a.value_dim)
    *(float4 *)(a.out + ((size_t)row * a.n_heads + head) * a.value_dim + c) =
        make_float4(out[0], out[1], out[2], out[3]);
  if (!a.out_max) return;
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) raise_max(a.out_max + row, largest);
}

/* ---- launching ---- */

enum { MOST_CHANNELS = 8 * CHANNELS };

static size_t shared_bytes(const kg_attention_args *a, int tiles, int buffers)
{
  return (size_t)lay_out_wide(*a, tiles, buffers).end * sizeof(uint4);
}

static bool fits(const kg_stream *s, const kg_attention_args *a, int tiles, int buffers)
{
  return shared_bytes(a, tiles, buffers) <= (size_t)s->shared_max;
}

bool kg_cuda_attention_is_wide(const kg_stream *s, const kg_attention_args *a)
{
  return a->half && a->head_dim % 8 == 0 && a->value_dim % 8 == 0 && a->value_dim <= MOST_CHANNELS && fits(s, a, 1, 1);
}

static size_t row_scratch(int32_t n_heads, int32_t value_dim) { return (size_t)n_heads * STRANDS * (value_dim + 4); }

static int64_t few_tiles(int32_t n_heads, int32_t n_kv_heads, int tiles)
{
  return (int64_t)n_kv_heads * ((n_heads / n_kv_heads + TILE * tiles - 1) / (TILE * tiles));
}

size_t kg_cuda_attention_scratch(const kg_stream *s, const kg_attention_args *a)
{
  const int64_t rows = s->n_sms / few_tiles(a->n_heads, a->n_kv_heads, 1); /* as many as leave processors idle */
  if (kg_cuda_attention_is_even(a) || !kg_cuda_attention_is_wide(s, a)) return 0;
  return row_scratch(a->n_heads, a->value_dim) * (size_t)(rows < a->n ? rows : a->n);
}

template <int M, int NV, bool SPREAD>
static int launch_pairs(kg_stream *s, const kg_attention_args *a, dim3 grid, kg_error *err)
{
  const int buffers = fits(s, a, M, 2) ? 2 : 1;
  return run_shared(s, "attention_pairs", attention_pairs<M, NV, SPREAD>, grid, 1, THREADS, shared_bytes(a, M, buffers),
                    err, *a, buffers);
}

/* Where few rows do not fill the device their strands are spread over it. That changes nothing but time. */
template <int NV> static int launch_wide(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  const int group = a->n_heads / a->n_kv_heads;
  const int64_t tiles = few_tiles(a->n_heads, a->n_kv_heads, 1);
  kg_attention_args many = *a;
  if (a->n_few && a->n_few * tiles <= s->n_sms &&
      a->n_few * row_scratch(a->n_heads, a->value_dim) <= a->scratch_floats) {
    const int strands = a->window || a->max_splits > STRANDS ? STRANDS : a->max_splits;
    int code = launch_pairs<1, NV, true>(s, a, dim3((unsigned)tiles, a->n_few, strands), err);
    if (!code) code = run_kernel(s, "join_strands", join_strands, dim3(a->n_heads, a->n_few), 128, 0, err, *a);
    if (code || !a->n_spans) return code;
    many.n_few = 0;
  }
  const int m = fits(s, a, 2, 1) ? 2 : 1;
  const int64_t most = many.n_few * few_tiles(a->n_heads, a->n_kv_heads, m) +
                       a->n_kv_heads * ((int64_t)a->span_rows * group / (TILE * m) + a->n_spans);
  const dim3 grid((unsigned)most); /* blocks that find nothing leave */
  return m == 2 ? launch_pairs<2, NV, false>(s, &many, grid, err) : launch_pairs<1, NV, false>(s, &many, grid, err);
}

int kg_cuda_attention_wide(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  if (a->value_dim <= 2 * CHANNELS) return launch_wide<2>(s, a, err);
  return a->value_dim <= 4 * CHANNELS ? launch_wide<4>(s, a, err) : launch_wide<8>(s, a, err);
}
