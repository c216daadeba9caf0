/* linear.cu - products with tensor cores: the weights are the M operand (16 rows a tile), rows of activations the N
 * operand (8 a step), so one summation order serves every number of rows.
 *
 * Order: a tile's blocks of 32 columns are cut into `splits` runs, one warp each; a run sums its blocks from left to
 * right, the runs are added from left to right. `splits` depends on the shape alone. */
#include "act.cuh"
#include "format.cuh"
#include "norm.cuh"

static __device__ __forceinline__ void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* One k16 step. A bf16 weight and an f16 activation are both tf32 numbers, exactly. */
template <int T> static __device__ __forceinline__ void product(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
  if (T != KG_BF16) {
    mma_f16(c, a, b0, b1);
    return;
  }
  const uint32_t b[2] = {b0, b1};
#pragma unroll
  for (int p = 0; p < 2; p++) {
    const float2 x = __half22float2(as_half2(b[p]));
    const uint32_t w[4] = {a[2 * p] << 16, a[2 * p + 1] << 16, a[2 * p] & 0xffff0000, a[2 * p + 1] & 0xffff0000};
    mma_tf32(c, w, __float_as_uint(x.x), __float_as_uint(x.y));
  }
}

/* acc (4 a column tile: rows g, g + 8, each columns 2 t and 2 t + 1) += a block of weights times activations. */
template <int T>
static __device__ __forceinline__ void add_block(float acc[4], const uint32_t a[8], const float scale[2][2],
                                                 const float minimum[2][2], uint4 x)
{
  typedef traits<T> t;
  const uint32_t ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
  const uint32_t b[2][2] = {{x.x, x.y}, {x.z, x.w}};
  float c[4] = {0, 0, 0, 0}, sum[4] = {0, 0, 0, 0};
#pragma unroll
  for (int step = 0; step < 2; step++) {
    product<T>(c, a + 4 * step, b[step][0], b[step][1]);
    if (t::has_min) mma_f16(sum, ones, b[step][0], b[step][1]);
    if (!t::has_16 && step == 0) continue;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      acc[i] = t::is_float ? acc[i] + c[i] : fmaf(scale[i / 2][t::has_16 ? step : 0], c[i], acc[i]);
      if (t::has_min) acc[i] = fmaf(-minimum[i / 2][t::has_16 ? step : 0], sum[i], acc[i]);
      c[i] = sum[i] = 0;
    }
  }
}

/* What is added to the product of row `row` of part `d` with row `n` of x, and where it goes. */
static __device__ __forceinline__ float store(const kg_linear_args &a, int d, int plane, int row, int n, float value,
                                              float up)
{
  const kg_linear_part &part = a.part[d];
  if (part.bias) value += part.bias[(size_t)plane * part.m.rows + row];
  if (a.gated) {
    if (a.part[1].bias) up += a.part[1].bias[(size_t)plane * part.m.rows + row];
    value = gated(a.act, a.act_limit, a.act_alpha, value, up);
  }
  const size_t at = (size_t)n * part.m.rows + row;
  if (a.residual) value += a.residual[at];
  if (a.out_rows)
    a.out_rows[n][row] = value;
  else
    part.out[at] = value;
  return value;
}

/* Bring this run's weights to the second-level cache: they never change, so this need not wait. */
template <int T>
static __device__ __forceinline__ void prefetch(const unsigned char *q, int tile, int n_blocks, int first, int end, int lane)
{
  constexpr int bytes = traits<T>::q_bits * 64; /* a tile's block */
  const unsigned char *at = q + ((size_t)tile * n_blocks + first) * bytes, *last = at + (size_t)(end - first) * bytes;
  for (at += lane * 128; at < last; at += 32 * 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

/* What brings each row to f16: the factor of its norm (or 1), and a power of two. */
struct few_rows {
  float factor[KG_LINEAR_FEW], up[KG_LINEAR_FEW];
};

static __device__ __forceinline__ void scale_rows(const kg_linear_args &a, int warp, int n_warps, int lane, few_rows &rows)
{
  const int cols = a.part[0].m.cols;
  for (int r = warp; r < a.n; r += n_warps) {
    const float *x = a.x_floats + (size_t)r * cols;
    float factor = 1, max = 0;
    if (a.norm_scale) {
      factor = norm_factor(x, cols, lane, 0, a.norm_epsilon);
      each_number(a.norm_scale, cols, lane, [&](int c, float w) { max = fmaxf(max, fabsf(x[c] * factor * w)); });
      max = warp_max(max);
    } else
      max = a.x_max[r];
    if (lane) continue;
    rows.factor[r] = factor;
    rows.up[r] = half_scale(max);
  }
}

/* A lane's part of a block of a float32 row, as f16: the same numbers as norm_rows and half_rows write. */
static __device__ __forceinline__ uint4 few_fragment(const kg_linear_args &a, const float *x, int column, float factor, float up)
{
  float4 v[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    v[i] = *(const float4 *)(x + column + 16 * i);
    if (!a.norm_scale) continue;
    const float4 w = *(const float4 *)(a.norm_scale + column + 16 * i);
    v[i] = make_float4(v[i].x * factor * w.x, v[i].y * factor * w.y, v[i].z * factor * w.z, v[i].w * factor * w.w);
  }
  return make_uint4(as_word(__floats2half2_rn(v[0].x * up, v[0].y * up)), as_word(__floats2half2_rn(v[0].z * up, v[0].w * up)),
                    as_word(__floats2half2_rn(v[1].x * up, v[1].y * up)), as_word(__floats2half2_rn(v[1].z * up, v[1].w * up)));
}

/* linear_tiles: D matrices at once (2: gated) for 8 NT rows of x.
 * grid: (tiles of all parts, columns / 8 NT; experts: rows of out); block: a warp per split; shared: few rows as f16.
 * moves each weight once per 8 NT rows; x from L2, once per tile.
 * twin: linear in cpu/reference.c; tolerance: f16 rounding of x, 2^-11 of each number. */
template <int T, int NT, int D>
static __global__ void __launch_bounds__(512) linear_tiles(const __grid_constant__ kg_linear_args a)
{
  typedef traits<T> t;
  constexpr int AT_ONCE = NT < 2 ? NT : 2; /* column tiles that are joined at a time */
  __shared__ float shared[16 * D * AT_ONCE * 128];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, slot = lane % 4, splits = blockDim.x / 32;
  int d0 = 0, tile = blockIdx.x;
  if (D == 1)
    while (tile >= a.part[d0].m.n_tiles) tile -= a.part[d0++].m.n_tiles;
  const int n_blocks = a.part[0].m.n_blocks;
  const int first = warp * n_blocks / splits, end = (warp + 1) * n_blocks / splits;
  if (!a.planes && blockIdx.y == 0)
    for (int d = 0; d < D; d++) prefetch<T>(a.part[d0 + d].m.q, tile, n_blocks, first, end, lane);
  wait_for_previous();
  const int plane = a.planes ? a.planes[blockIdx.y] : 0;
  const int n0 = a.planes ? 0 : blockIdx.y * 8 * NT;
  const uint4 *x[NT];
#pragma unroll
  for (int i = 0; i < NT; i++) {
    const int n = a.planes ? blockIdx.y / a.x_share : n0 + 8 * i + g;
    const bool exists = a.planes ? g == 0 && i == 0 : n < a.n;
    x[i] = exists ? (const uint4 *)a.x + (size_t)n * n_blocks * 4 + slot : NULL;
  }
  const unsigned char *q[D], *h[D], *s[D];
#pragma unroll
  for (int d = 0; d < D; d++) {
    const kg_matrix &m = a.part[d0 + d].m;
    q[d] = m.q + plane * m.q_plane;
    h[d] = m.h + plane * m.h_plane;
    s[d] = m.s + plane * m.s_plane;
  }

  __shared__ few_rows rows;
  extern __shared__ uint4 few_x[]; /* [n][n_blocks][4] */
  const bool is_few = NT == 1 && a.x_floats;
  if (is_few) {
    scale_rows(a, warp, splits, lane, rows);
    __syncthreads();
    for (int i = threadIdx.x; i < a.n * n_blocks * 4; i += blockDim.x) {
      const int r = a.n == 1 ? 0 : i / (n_blocks * 4), part = i - r * n_blocks * 4;
      few_x[i] = few_fragment(a, a.x_floats + (size_t)r * a.part[0].m.cols, part / 4 * 32 + part % 4 * 4, rows.factor[r], rows.up[r]);
    }
    __syncthreads();
    x[0] = g < a.n ? few_x + g * n_blocks * 4 + slot : NULL;
  }

  float acc[D][NT][4] = {};
  /* The next block's loads are under way while one is multiplied; not more, because code that runs once costs more to
   * fetch than to run, and the weights are in the second-level cache by now. */
  raw_tile raw[D], next[D];
  float scale[D][2][2] = {}, minimum[D][2][2] = {}, next_scale[D][2][2] = {}, next_minimum[D][2][2] = {};
  if (first < end)
#pragma unroll
    for (int d = 0; d < D; d++) {
      load_tile<T>(a.part[d0 + d].m, q[d], h[d], (size_t)tile * n_blocks + first, lane, next[d]);
      load_scales<T>(a.part[d0 + d].m, s[d], tile, first, g, next_scale[d], next_minimum[d]);
    }
#pragma unroll 1
  for (int block = first; block < end; block++) {
    uint4 v[NT];
#pragma unroll
    for (int d = 0; d < D; d++) {
      raw[d] = next[d];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scale[d][i / 2][i % 2] = next_scale[d][i / 2][i % 2];
        minimum[d][i / 2][i % 2] = next_minimum[d][i / 2][i % 2];
      }
      if (block + 1 >= end) continue;
      load_tile<T>(a.part[d0 + d].m, q[d], h[d], (size_t)tile * n_blocks + block + 1, lane, next[d]);
      load_scales<T>(a.part[d0 + d].m, s[d], tile, block + 1, g, next_scale[d], next_minimum[d]);
    }
#pragma unroll
    for (int i = 0; i < NT; i++) v[i] = x[i] ? x[i][block * 4] : make_uint4(0, 0, 0, 0);
    uint32_t weights[D][8];
#pragma unroll
    for (int d = 0; d < D; d++) decode_tile<T>(raw[d], weights[d]);
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
      for (int d = 0; d < D; d++) add_block<T>(acc[d][i], weights[d], scale[d], minimum[d], v[i]);
  }

  for (int i0 = 0; i0 < NT; i0 += AT_ONCE) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < NT; i++)
      if (i >= i0 && i < i0 + AT_ONCE)
#pragma unroll
        for (int d = 0; d < D; d++) {
          float *out = shared + ((warp * D + d) * AT_ONCE + i - i0) * 128;
          out[2 * slot * 16 + g] = acc[d][i][0];
          out[(2 * slot + 1) * 16 + g] = acc[d][i][1];
          out[2 * slot * 16 + g + 8] = acc[d][i][2];
          out[(2 * slot + 1) * 16 + g + 8] = acc[d][i][3];
        }
    __syncthreads();
    for (int e = threadIdx.x; e < AT_ONCE * 128; e += blockDim.x) {
      const int row = tile * 16 + e % 16, column = e / 16;
      const int n = a.planes ? blockIdx.y : n0 + 8 * i0 + column;
      float stored = 0;
      if (row < a.part[d0].m.rows && n < a.n && !(a.planes && column)) {
        float value[D];
#pragma unroll
        for (int d = 0; d < D; d++) {
          value[d] = shared[d * AT_ONCE * 128 + e];
          for (int w = 1; w < splits; w++) value[d] += shared[(w * D + d) * AT_ONCE * 128 + e];
          value[d] *= is_few ? 1 / rows.up[n] : a.x_scale[a.planes ? n / a.x_share : n];
        }
        stored = fabsf(store(a, d0, plane, row, n, value[0], D == 2 ? value[D - 1] : 0));
      }
      if (D == 2 && NT == 1 && a.out_max) { /* 16 neighbours hold rows of one column */
        stored = fmaxf(stored, 0);
        for (int step = 8; step; step >>= 1) stored = fmaxf(stored, __shfl_xor_sync(~0u, stored, step));
        if (e % 16 == 0 && n < a.n) raise_max(a.out_max + n, stored);
      }
    }
  }
}

/* linear_f32: float32 weights and activations, fused multiply-adds: for small models and as a check of the rest.
 * grid: (rows / 4, columns / 8; experts: rows of out); block: 4 warps, one row each.
 * twin: linear in cpu/reference.c; tolerance: float32 sums. */
static __global__ void __launch_bounds__(128) linear_f32(const __grid_constant__ kg_linear_args a)
{
  wait_for_previous();
  const kg_matrix &m = a.part[0].m;
  const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= m.rows) return;
  const int plane = a.planes ? a.planes[blockIdx.y] : 0;
  const int n0 = a.planes ? blockIdx.y : blockIdx.y * 8, n1 = a.planes ? n0 + 1 : min(n0 + 8, a.n);
  const float *w = (const float *)(m.q + plane * m.q_plane) + (size_t)row * m.cols;
  const float *x = (const float *)a.x;
  float sum[8] = {};
  for (int k = lane; k < m.cols; k += 32)
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (n0 + i < n1) sum[i] = fmaf(w[k], x[(size_t)(a.planes ? n0 / a.x_share : n0 + i) * m.cols + k], sum[i]);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float value = warp_sum(sum[i]);
    if (!lane && n0 + i < n1) store(a, 0, plane, row, n0 + i, value, 0);
  }
}

int kg_cuda_linear_splits(const kg_matrix *m)
{
  const int splits = m->n_blocks >= 96 ? 16 : m->n_blocks >= 16 ? 8 : m->n_blocks >= 4 ? 4 : 1;
  return m->n_tiles >= 2048 && splits > 4 ? 4 : splits; /* enough tiles to fill the device: fewer joins */
}

/* Types that one meets often have kernels for gates and for many rows; the others, to build faster, compute gates in two
 * steps and take 8 rows at a time. */
static constexpr bool is_common(int type)
{
  return type == KG_F16 || type == KG_Q8_0 || type == KG_Q4_0 || type == KG_Q5_0 || type == KG_Q4_K || type == KG_Q5_K ||
         type == KG_Q6_K;
}

bool kg_cuda_linear_gates(kg_type type) { return is_common(type); }

template <int T> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  int n_tiles = a->part[0].m.n_tiles;
  if (!a->gated)
    for (int i = 1; i < a->n_parts; i++) n_tiles += a->part[i].m.n_tiles;
  const int threads = 32 * kg_cuda_linear_splits(&a->part[0].m);
  const size_t shared = a->x_floats ? (size_t)a->n * (size_t)a->part[0].m.n_blocks * 64 : 0;
  if constexpr (is_common(T)) {
    if (!a->planes && a->n > 8) {
      const dim3 grid(n_tiles, (a->n + 63) / 64);
      return run_kernel(s, "linear_tiles", a->gated ? linear_tiles<T, 8, 2> : linear_tiles<T, 8, 1>, grid, threads, 0, err, *a);
    }
    if (a->gated)
      return run_kernel(s, "linear_tiles", linear_tiles<T, 1, 2>, dim3(n_tiles, a->planes ? a->n : 1), threads, shared, err, *a);
  }
  const dim3 grid(n_tiles, a->planes ? a->n : (a->n + 7) / 8);
  return run_kernel(s, "linear_tiles", linear_tiles<T, 1, 1>, grid, threads, shared, err, *a);
}

int kg_cuda_linear(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->n_parts < 1 || a->n_parts > KG_LINEAR_PARTS || 
      (a->gated && (a->n_parts != 2 || !kg_cuda_linear_gates(a->part[0].m.type))))
    return kg_fail(err, KG_ERR_ARGUMENT, "a product of %d matrices with %d rows", a->n_parts, a->n);
  if (a->x_floats && (!kg_cuda_linear_is_few(a->n, a->part[0].m.cols) || a->planes || a->part[0].m.cols % KG_BLOCK_COLS || a->part[0].m.type == KG_F32))
    return kg_fail(err, KG_ERR_ARGUMENT, "a product of %d rows as float32", a->n);
  switch (a->part[0].m.type) {
#define CASE(T) case T: return launch<T>(s, a, err);
    CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1) CASE(KG_IQ4_NL)
    CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
  case KG_F32:
    if (a->n_parts != 1) return kg_fail(err, KG_ERR_ARGUMENT, "float32 matrices are multiplied one by one");
    return run_kernel(s, "linear_f32", linear_f32, dim3((a->part[0].m.rows + 3) / 4, a->planes ? a->n : (a->n + 7) / 8), 128, 0,
                      err, *a);
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "weights of type %d", (int)a->part[0].m.type);
  }
}
