/* linear.cu - products with tensor cores: the weights are the M operand (16 rows a tile), rows of activations the N
 * operand (8 a step), so one summation order serves every number of rows.
 *
 * Order: a tile's blocks of 32 columns are cut into runs of a whole number of chunks; a run is one chain of tensor-core
 * steps from left to right, the runs are added from left to right. How long a run is depends on the shape alone. */
#include "linear.cuh"
#include "norm.cuh"

/* ---- rows of x ---- */

/* Squares of the segments of few rows, [n][segments], for the factors of their norms. */
typedef float few_squares[KG_LINEAR_FEW_NUMBERS / SEGMENT + KG_LINEAR_FEW];

static __device__ __forceinline__ float few_up(const kg_linear_args &a, float x_max)
{
  return a.norm_scale ? norm_half_scale(x_max, a.norm_max) : known_half_scale(x_max, a.x_up);
}

/* Blocks [first, end) of all rows as f16, the same numbers as norm_rows and half_rows write, by the warp that reads
 * them. w: of the first segment of norm_scale. Widths are multiples of 32 here. */
static __device__ __forceinline__ void bring_rows(const kg_linear_args &a, int first, int end, int lane, float4 w,
                                                  float *squares, uint4 *out /* [n][n_blocks][4] */)
{
  const int cols = a.part[0].m.cols, n_blocks = a.part[0].m.n_blocks;
#pragma unroll 1
  for (int r = 0; r < a.n; r++) {
    const float *x = a.x_floats + (size_t)r * cols + 4 * lane;
    const float x_max = a.x_max[r];
#pragma unroll 1
    for (int block = first; block < end; block += SEGMENT / KG_BLOCK_COLS) {
      const bool exists = block + lane / 8 < n_blocks;
      float4 v = make_float4(0, 0, 0, 0);
      if (exists) v = *(const float4 *)(x + block * KG_BLOCK_COLS);
      if (a.norm_scale && (block > first || (r && end - first > SEGMENT / KG_BLOCK_COLS)) && exists)
        w = *(const float4 *)(a.norm_scale + block * KG_BLOCK_COLS + 4 * lane);
      const float up = few_up(a, x_max);
      const float4 y = a.norm_scale ? make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w) : v;
      uint2 *to = (uint2 *)(out + (r * n_blocks + block + lane / 8) * 4 + lane % 4) + lane % 8 / 4;
      if (exists)
        *to = make_uint2(as_word(__floats2half2_rn(y.x * up, y.y * up)),
                         as_word(__floats2half2_rn(y.z * up, y.w * up)));
      if (!a.norm_scale) continue;
      const float square = segment_squares(v);
      if (!lane) squares[r * n_segments(cols) + block / (SEGMENT / KG_BLOCK_COLS)] = square;
    }
  }
}

/* What undoes the scale of few row r, and its norm's factor. */
static __device__ __forceinline__ float few_scale(const kg_linear_args &a, int r, const float *squares)
{
  float scale = undo_scale(few_up(a, a.x_max[r])), sum = 0;
  if (!a.norm_scale) return scale;
  const int cols = a.part[0].m.cols, n = n_segments(cols);
#pragma unroll 4
  for (int i = 0; i < n; i++) sum += squares[r * n + i];
  return scale * norm_factor(sum, cols, a.norm_epsilon);
}

/* A lane's part of a block of row n: slots 0 to 7 of columns 4 t.. (format.h). */
static __device__ __forceinline__ uint4 load_x(const kg_linear_args &a, int n, int block, int slot)
{
  const int n_blocks = a.part[0].m.n_blocks;
  if (!a.x_panels) return ((const uint4 *)a.x)[((size_t)n * n_blocks + block) * 4 + slot];
  const uint32_t *x = (const uint32_t *)((const char *)a.x + kg_panel_at(n, block, n_blocks)) + n % 8 * 4 + slot;
  return make_uint4(x[0], x[32], x[64], x[96]);
}

/* ---- the kernel ---- */

/* linear_rows: D matrices at once (2: gated) for up to 8 NT rows of x; with PLANES rows that have one plane.
 * grid: (tiles of all parts, in turn; rows / 8 NT; PLANES: rows of out, or groups of them); block: a warp per run, at
 * least 4. Weights go to a ring of `slots` chunks of each warp, as many as there are before the kernel before is done.
 * Shared: rings, sums, few rows. moves each weight once per 8 NT rows; twin: linear in cpu/reference.c; tolerance: f16
 * rounding of x and w, 2^-11. */
template <int T, int NT, int D, bool PLANES>
static __global__ void __launch_bounds__(D == 2 ? 256 : 512, NT == 1 ? (D == 2 ? 4 : 2) : 1)
    linear_rows(const __grid_constant__ kg_linear_args a, int n_tiles, int run, int slots)
{
  extern __shared__ uint4 shared[];
  __shared__ uint64_t ready[16 * KG_LINEAR_SLOTS];
  __shared__ few_squares squares;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, slot = lane % 4, n_warps = blockDim.x / 32;
  const int n_blocks = a.part[0].m.n_blocks, first = warp * run, end = min(first + run, n_blocks);
  constexpr int slot_bytes = D * chunk<T>::n_bytes, sum_floats = D * NT * 128;
  unsigned char *ring = (unsigned char *)shared + warp * slots * slot_bytes;
  float *sums =
      (float *)((unsigned char *)shared + n_warps * slots * slot_bytes); /* [2][warps][D][NT][8 columns][16] */
  uint4 *few_x = (uint4 *)(sums + (NT == 1 ? 2 : 1) * n_warps * sum_floats);
  uint64_t *my_ready = ready + warp * KG_LINEAR_SLOTS;

  warp_stream<T, D> stream(a, blockIdx.x, n_tiles, first, end, slots);
  int n0 = PLANES ? 0 : blockIdx.y * 8 * NT, n_rows = PLANES ? 1 : min(8 * NT, a.n - n0);
  if (PLANES) { /* which experts there are is not known before */
    wait_for_previous();
    if (a.groups.list) {
      const kg_linear_group group = a.groups.list[blockIdx.y];
      if (!group.n) return;
      stream.plane = group.plane;
      n0 = group.first;
      n_rows = group.n;
    } else
      stream.plane = a.planes[blockIdx.y];
  }
  stream.open(ring, my_ready, lane);

  const bool is_few = NT == 1 && !PLANES && a.x_floats;
  float4 w = {};
  if (is_few && a.norm_scale && first < end)
    w = four_of(a.norm_scale, a.part[0].m.cols, first * KG_BLOCK_COLS + 4 * lane);
  if (!PLANES) {
    await_previous();
    let_next_start(); /* not before: as in linear_tile.cuh */
  }
  if (is_few) {
    bring_rows(a, first, end, lane, w, squares, few_x);
    __syncwarp();
  }

  /* Row r of this block as a row of out, and of x. */
  auto out_row = [&](int r) { return !PLANES ? n0 + r : a.groups.list ? a.groups.order[n0 + r] : (int)blockIdx.y; };
  auto x_row = [&](int r) { return PLANES ? out_row(r) / a.x_share + a.x_first : n0 + r; };
  int own_rows[NT]; /* of x, with PLANES: they take time to find */
#pragma unroll
  for (int j = 0; j < NT && PLANES; j++) own_rows[j] = x_row(min(8 * j + g, n_rows - 1));
  int turn = 0;
  float scale = 0; /* of the only row that this thread stores, where NT is 1 */
  for (int index = blockIdx.x; index < n_tiles; index += gridDim.x, turn++) {
    int tile = index;
    const int d0 = part_of<D>(a, &tile), row = tile * 16 + threadIdx.x % 16;
    addends add = {};
    if (NT == 1) {
      const int r = threadIdx.x / 16;
      add = find_addends(a, d0, stream.plane, row, out_row(PLANES ? min(r, n_rows - 1) : r), r < n_rows);
    }
    float acc[D][NT][4] = {};
#pragma unroll 1 /* code that runs once costs more to fetch than to run: keep it short */
    for (int block0 = first; block0 < end; block0 += KG_CHUNK) {
      const unsigned char *slot_memory = stream.next(ring, my_ready);
#pragma unroll
      for (int i = 0; i < KG_CHUNK; i++) {
        if (block0 + i >= end) break;
        uint32_t weights[D][8];
#pragma unroll
        for (int d = 0; d < D; d++) decode_chunk<T>(slot_memory + d * chunk<T>::n_bytes, block0, i, lane, weights[d]);
#pragma unroll
        for (int j = 0; j < NT; j++) {
          if (NT > 1 && 8 * j >= n_rows) break;
          const int r = min(8 * j + g, n_rows - 1); /* what has no row of its own computes one that nobody stores */
          const uint4 x = is_few ? few_x[(r * n_blocks + block0 + i) * 4 + slot]
                                 : load_x(a, PLANES ? own_rows[j] : n0 + r, block0 + i, slot);
#pragma unroll
          for (int d = 0; d < D; d++) add_block<T>(acc[d][j], weights[d], x);
        }
      }
      stream.release(ring, my_ready, lane);
    }

    float *sum = sums + (NT == 1 ? turn % 2 * n_warps * sum_floats : 0); /* two take turns: one barrier a tile does */
    if (NT > 1 && turn) __syncthreads();
    if (first < end)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int d = 0; d < D; d++) {
          float *out = sum + warp * sum_floats + (d * NT + j) * 128 + 2 * slot * 16 + g;
          out[0] = acc[d][j][0];
          out[16] = acc[d][j][1];
          out[8] = acc[d][j][2];
          out[24] = acc[d][j][3];
        }
    __syncthreads();
    const int n_runs = (n_blocks + run - 1) / run; /* warps beyond only help to store */
    if (is_few && !turn && (int)threadIdx.x / 16 < n_rows) scale = few_scale(a, threadIdx.x / 16, squares);
#pragma unroll 2
    for (int e = threadIdx.x; e < n_rows * 16; e += blockDim.x) {
      const int r = e / 16;
      float value[D];
#pragma unroll
      for (int d = 0; d < D; d++) {
        value[d] = sum[d * NT * 128 + e];
#pragma unroll 8
        for (int i = 1; i < n_runs; i++) value[d] += sum[i * sum_floats + d * NT * 128 + e];
        value[d] *= is_few ? scale : a.x_scale[x_row(r)];
      }
      if (NT > 1) add = find_addends(a, d0, stream.plane, tile * 16 + e % 16, out_row(r), true);
      float stored = 0;
      if (tile * 16 + e % 16 < a.part[d0].m.rows)
        stored = fabsf(store(a, d0, tile * 16 + e % 16, out_row(r), value[0], D == 2 ? value[D - 1] : 0, add));
      if (!a.out_max) continue;
      for (int step = 8; step; step >>= 1)
        stored = fmaxf(stored, __shfl_xor_sync(0xffffu << threadIdx.x % 32 / 16 * 16, stored, step));
      if (e % 16 == 0) raise_max(a.out_max + out_row(r), stored); /* of 16 neighbours in one row of out */
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
#pragma unroll 4
  for (int k = 4 * lane; k < m.cols; k += 128) {
    const float4 v = four_of(w, m.cols, k);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (n0 + i >= n1) break;
      const float4 y = four_of(x + (size_t)(a.planes ? n0 / a.x_share + a.x_first : n0 + i) * m.cols, m.cols, k);
      sum[i] = fmaf(v.w, y.w, fmaf(v.z, y.z, fmaf(v.y, y.y, fmaf(v.x, y.x, sum[i]))));
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float value = warp_sum(sum[i]);
    if (!lane && n0 + i < n1) store(a, 0, row, n0 + i, value, 0, find_addends(a, 0, plane, row, n0 + i, true));
  }
}

/* ---- launching ---- */

int kg_cuda_linear_run(const kg_matrix *m)
{
  const int runs = m->n_blocks >= 96 && m->n_tiles < 512 ? 16 : 8; /* few tiles of many columns: more warps each */
  return (m->n_blocks + runs * KG_CHUNK - 1) / (runs * KG_CHUNK) * KG_CHUNK;
}

static int runs_of(const kg_matrix *m) { return (m->n_blocks + kg_cuda_linear_run(m) - 1) / kg_cuda_linear_run(m); }

int32_t kg_cuda_linear_many_tiles(const kg_matrix *m)
{
  return is_common(m->type) && m->rows % 4 == 0 ? m->n_tiles : 0;
}

bool kg_cuda_linear_gates(const kg_matrix *m) { return is_common(m->type) && runs_of(m) <= 8; }

/* linear_rows: a warp's sums of 8 rows of x; barriers; its least number of warps. */
enum { SUM_BYTES = 8 * 16 * sizeof(float), BARRIER_BYTES = 16 * KG_LINEAR_SLOTS * sizeof(uint64_t), WARPS_MIN = 4 };

/* Does a block of linear_rows have room for the sums of 64 rows of x, of d matrices at once, beside rings of one
 * chunk? */
static bool fits_many(const kg_stream *s, const kg_matrix *m, int d)
{
  kg_format f = {};
  (void)kg_format_find(m->type, &f);
  const int slot = KG_CHUNK * (f.q_bytes + f.h_bytes) + (f.s_blocks > 1 ? 2 : KG_CHUNK) * f.s_bytes;
  return max(runs_of(m), (int)WARPS_MIN) * d * (slot + 8 * (int)SUM_BYTES) + BARRIER_BYTES <= s->shared_max;
}

int32_t kg_cuda_linear_group_rows(const kg_stream *s, const kg_matrix *m)
{
  if (m->type == KG_F32) return 64;
  return is_common(m->type) && fits_many(s, m, kg_cuda_linear_gates(m) ? 2 : 1) ? 64 : 8;
}

void kg_cuda_linear_shape(const kg_stream *s, const kg_linear_args *a, int min_warps, size_t slot_bytes, size_t x_bytes,
                          size_t sum_bytes, kg_linear_shape *out)
{
  const kg_matrix *m = &a->part[0].m;
  const int n_chunks = kg_cuda_linear_run(m) / KG_CHUNK;
  out->run = kg_cuda_linear_run(m);
  out->n_warps = runs_of(m) < min_warps ? min_warps : runs_of(m);
  out->n_tiles = count_tiles(a);
  const size_t each = (size_t)out->n_warps * slot_bytes, fixed = x_bytes + (size_t)out->n_warps * sum_bytes + (8 << 10);
  const size_t room = fixed < (size_t)s->shared_max ? (size_t)s->shared_max - fixed : 0;
  out->in_turns = out->n_tiles > 4 * s->n_sms;
  out->slots = out->in_turns && n_chunks < 4 ? 4 : n_chunks;
  const size_t budget = out->in_turns ? room / 4 : room / 2; /* so that several blocks, or the next kernel's, fit */
  while (out->slots > 1 && (out->slots > KG_LINEAR_SLOTS || (size_t)out->slots * each > budget)) out->slots--;
  out->shared = (size_t)out->slots * each + x_bytes + (size_t)out->n_warps * sum_bytes;
}

template <int T, int NT, int D, bool PLANES>
static int launch_rows(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  static_assert(NT > 1 || (D == 2 ? 8 : 16) * D * (chunk<T>::n_bytes + 2 * (int)SUM_BYTES) + (int)BARRIER_BYTES +
                                  (int)sizeof(few_squares) <= (int)KG_LINEAR_FEW_BESIDE, "x of few rows has room");
  const size_t few = NT == 1 && !PLANES && a->x_floats ? (size_t)a->n * (size_t)a->part[0].m.n_blocks * 64 : 0;
  kg_linear_shape shape;
  kg_cuda_linear_shape(s, a, WARPS_MIN, D * (size_t)chunk<T>::n_bytes, few,
                       (size_t)(NT == 1 ? 2 : 1) * D * NT * SUM_BYTES, &shape);
  return run_turns(s, "linear_rows", linear_rows<T, NT, D, PLANES>, a, &shape,
                   a->groups.list ? a->groups.n
                   : PLANES       ? a->n
                                  : (a->n + 8 * NT - 1) / (8 * NT),
                   err);
}

template <int T, bool PLANES> static int launch_few_or_many(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  if constexpr (is_common(T)) {
    if (PLANES ? a->groups.rows > 8 : a->n > 8 && fits_many(s, &a->part[0].m, a->gated ? 2 : 1))
      return a->gated ? launch_rows<T, 8, 2, PLANES>(s, a, err) : launch_rows<T, 8, 1, PLANES>(s, a, err);
    if (a->gated) return launch_rows<T, 1, 2, PLANES>(s, a, err);
  }
  return launch_rows<T, 1, 1, PLANES>(s, a, err);
}

static bool suits_many(const kg_linear_args *a)
{
  for (int i = 0; i < a->n_parts; i++)
    if (!kg_cuda_linear_many_tiles(&a->part[i].m)) return false;
  return true;
}

template <int T> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  if (a->n == 1 && a->x_floats) return kg_cuda_linear_one(s, a, err);
  if (is_common(T) && a->x_panels && !a->planes && suits_many(a)) return kg_cuda_linear_many(s, a, err);
  return a->planes ? launch_few_or_many<T, true>(s, a, err) : launch_few_or_many<T, false>(s, a, err);
}

/* Of matrices of one type. */
static int launch_type(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  switch (a->part[0].m.type) {
#define CASE(T) case T: return launch<T>(s, a, err);
    CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1)
    CASE(KG_IQ4_NL) CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
  case KG_F32:
    if (a->n_parts != 1) return kg_fail(err, KG_ERR_ARGUMENT, "float32 matrices are multiplied one by one");
    return run_kernel(s, "linear_f32", linear_f32, dim3((a->part[0].m.rows + 3) / 4, a->planes ? a->n : (a->n + 7) / 8),
                      128, 0, err, *a);
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "weights of type %d", (int)a->part[0].m.type);
  }
}

/* Matrices of several types, each type by itself. */
static int launch_mixed(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  bool done;
  int code = kg_cuda_linear_mixed(s, a, &done, err);
  if (!code && !done && s->has_wgmma) code = kg_cuda_linear_few(s, a, &done, err);
  for (int i = 0; i < a->n_parts && !done && !code; i++) {
    kg_linear_args of_type = *a;
    bool was_before = false;
    for (int k = 0; k < i; k++) was_before = was_before || a->part[k].m.type == a->part[i].m.type;
    if (was_before) continue;
    of_type.n_parts = 0;
    for (int k = i; k < a->n_parts; k++)
      if (a->part[k].m.type == a->part[i].m.type) of_type.part[of_type.n_parts++] = a->part[k];
    code = launch_type(s, &of_type, err);
  }
  return code;
}

static bool is_gate(const kg_linear_args *a)
{
  const kg_matrix *gate = &a->part[0].m, *up = &a->part[1].m;
  return a->n_parts == 2 && !a->residual && gate->type == up->type && gate->rows == up->rows &&
         kg_cuda_linear_gates(gate);
}

int kg_cuda_linear(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  const bool is_one = a->n_parts == 1 || a->gated;
  if (a->n < 1 || a->n > 65535 || a->n_parts < 1 || a->n_parts > KG_LINEAR_PARTS || (a->gated && !is_gate(a)) ||
      (!is_one && (a->residual || a->out_rows || a->out_max)))
    return kg_fail(err, KG_ERR_ARGUMENT, "a product of %d matrices with %d rows", a->n_parts, a->n);
  if (a->x_floats && (!kg_cuda_linear_is_few(s, a->n, a->part[0].m.cols) || a->planes ||
                      a->part[0].m.cols % KG_BLOCK_COLS || a->part[0].m.type == KG_F32))
    return kg_fail(err, KG_ERR_ARGUMENT, "a product of %d rows as float32", a->n);
  bool is_mixed = false;
  for (int i = 1; i < a->n_parts; i++) is_mixed = is_mixed || a->part[i].m.type != a->part[0].m.type;
  return is_mixed ? launch_mixed(s, a, err) : launch_type(s, a, err);
}
