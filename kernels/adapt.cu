#include "act.cuh"
#include "adapt.h"
#include "norm.cuh"

enum {
  THREADS = 256,
  WARPS = THREADS / 32,
  COLUMNS = 4 * THREADS /* that a block takes at once */,
  STEP = 32 /* ranks */
};

/* Ranks in `down`. */
static __device__ __forceinline__ int padded(int rank)
{
  return (rank + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS * KG_ADAPT_RANKS;
}

/* ---- A x ---- */

/* The adapter that these ranks (a multiple of KG_ADAPT_RANKS) of a tile's rows belong to; *first: the first of them
 * within it. False: they have none. */
static __device__ __forceinline__ bool find_ranks(const kg_adapt_args &a, const kg_adapt_tile &tile, int op, int at,
                                                  kg_adapt_part *part, int *first)
{
  for (int i = 0; i < tile.n; i++) {
    *part = a.entries[tile.first + i].parts[op];
    const int n = padded(part->rank);
    *first = at;
    if (at < n) return true;
    at -= n;
  }
  return false;
}

static __device__ __forceinline__ void prefetch(const void *line)
{
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

/* Four columns from c on of KG_ADAPT_RANKS rows of A; zero where there are none. */
static __device__ __forceinline__ void load_ranks(const kg_adapt_part &part, int first, int cols, int c,
                                                  float4 w[KG_ADAPT_RANKS])
{
#pragma unroll
  for (int k = 0; k < KG_ADAPT_RANKS; k++)
    w[k] = first + k < part.rank ? four_of(part.a + (size_t)(first + k) * cols, cols, c) : make_float4(0, 0, 0, 0);
}

/* The factor of a row's norm, as norm_rows in rows.cu finds it. All threads of a block call this. */
static __device__ __forceinline__ float factor_of(const kg_adapt_args &a, int row)
{
  __shared__ float squares[KG_LINEAR_FEW_NUMBERS / SEGMENT];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
  for (int i = warp; i < n_segments(a.cols); i += WARPS)
    squares[i] = segment_squares(four_of(a.x + (size_t)row * a.cols, a.cols, i * SEGMENT + 4 * lane));
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < n_segments(a.cols); i++) sum += squares[i];
  return norm_factor(sum, a.cols, a.norm_epsilon);
}

/* Of N sums of each lane those over all lanes, in the order of warp_sum: N / 32 at each lane (its number times that
 * on), or, of fewer than 32, one at every 32 / N lanes. */
template <int N> static __device__ __forceinline__ void sum_lanes(float v[N], int lane)
{
  int n = N;
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    const bool is_upper = lane & step;
    if (n == 1) {
      v[0] += __shfl_xor_sync(~0u, v[0], step);
      continue;
    }
    n /= 2;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      if (i >= n) break;
      const float other = __shfl_xor_sync(~0u, is_upper ? v[i] : v[i + n], step);
      v[i] = (is_upper ? v[i + n] : v[i]) + other;
    }
  }
}

/* Dot products of ROWS rows at most with KG_ADAPT_RANKS rows of A. Each thread sums every 1024th four columns, then the
 * lanes as a tree, then the warps from left to right: a row's sums know nothing of the other rows. */
template <int ROWS>
static __device__ __forceinline__ void dot_rows(const kg_adapt_args &a, const kg_adapt_tile &tile,
                                                const kg_adapt_part &part, int first, float *down)
{
  enum { SUMS = KG_ADAPT_RANKS * ROWS, EACH = SUMS / 32, LANES = EACH ? 1 : 32 / SUMS };
  __shared__ __align__(16) float sums[WARPS][SUMS], factors[ROWS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum[SUMS] = {}; /* [ranks][ROWS] */
  float4 w[KG_ADAPT_RANKS];
  load_ranks(part, first, a.cols, 4 * threadIdx.x, w);
  for (int k = 0; k < KG_ADAPT_RANKS && first + k < part.rank; k++)
    for (int c = 32 * (threadIdx.x + THREADS / 8); c < a.cols; c += 32 * THREADS) /* by lines of 32 numbers */
      prefetch(part.a + (size_t)(first + k) * a.cols + c);
  await_previous();
  for (int r = 0; a.norm_scale && r < tile.n_rows; r++) {
    const float factor = factor_of(a, tile.row + r);
    if (!threadIdx.x) factors[r] = factor;
  }
  __syncthreads();
  for (int c = 4 * threadIdx.x; c < a.cols; c += COLUMNS) {
    if (c >= COLUMNS) load_ranks(part, first, a.cols, c, w);
    const float4 scale = a.norm_scale ? four_of(a.norm_scale, a.cols, c) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r >= tile.n_rows) break;
      float4 x = four_of(a.x + (size_t)(tile.row + r) * a.cols, a.cols, c);
      if (a.norm_scale)
        x = make_float4(x.x * scale.x * factors[r], x.y * scale.y * factors[r], x.z * scale.z * factors[r],
                        x.w * scale.w * factors[r]);
#pragma unroll
      for (int k = 0; k < KG_ADAPT_RANKS; k++) {
        float &s = sum[k * ROWS + r];
        s = fmaf(w[k].w, x.w, fmaf(w[k].z, x.z, fmaf(w[k].y, x.y, fmaf(w[k].x, x.x, s))));
      }
    }
  }
  sum_lanes<SUMS>(sum, lane);
#pragma unroll
  for (int i = 0; i < (EACH ? EACH : 1); i++)
    if (lane % LANES == 0) sums[warp][lane * SUMS / 32 + i] = sum[i];
  __syncthreads();
  const int k = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
  if (k >= KG_ADAPT_RANKS || r >= tile.n_rows) return;
  float s = sums[0][threadIdx.x];
  for (int w = 1; w < WARPS; w++) s += sums[w][threadIdx.x];
  down[(size_t)r * a.stride + k] = s;
}

/* adapt_in: down = A x, of a table A's row of the token, for the adapters of each row. Who has which adapters and their
 * numbers are there before the pass begins: they are fetched while the kernel before still runs.
 * grid: groups of KG_ADAPT_RANKS ranks, tiles, parts; block: a tile's rows.
 * moves A once for a tile, x once for KG_ADAPT_RANKS ranks; twin: run_adapt_in in cpu/stages.c; tolerance: float32. */
static __global__ void __launch_bounds__(THREADS, 2) adapt_in(const __grid_constant__ kg_adapt_args a)
{
  let_next_start();
  const kg_adapt_tile tile = a.tiles[blockIdx.y];
  const int at = blockIdx.x * KG_ADAPT_RANKS;
  kg_adapt_part part;
  int first;
  const bool has_any = find_ranks(a, tile, a.op[blockIdx.z], at, &part, &first);
  float *down = a.down + ((size_t)blockIdx.z * a.n_rows + tile.row) * a.stride + at;
  if (has_any && !a.ids) {
    if (tile.n_rows == 1)
      dot_rows<1>(a, tile, part, first, down);
    else
      dot_rows<KG_ADAPT_ROWS>(a, tile, part, first, down);
    return;
  }
  await_previous(); /* also where there is nothing to do: the next kernel knows only that this one is done */
  const int k = threadIdx.x % KG_ADAPT_RANKS, r = threadIdx.x / KG_ADAPT_RANKS;
  if (has_any && r < tile.n_rows && first + k < part.rank)
    down[(size_t)r * a.stride + k] = part.a[(size_t)a.ids[tile.row + r] * part.rank + first + k];
}

/* ---- y += B (A x) ---- */

enum { AHEAD = 16 /* ranks */ };

/* Column c of AHEAD rows of B from `first` on; zero where there are none. */
static __device__ __forceinline__ void load_column(const kg_adapt_part &part, int first, int width, int c,
                                                   float w[AHEAD])
{
#pragma unroll
  for (int k = 0; k < AHEAD; k++)
    w[k] = first + k < part.rank && c < width ? part.b[(size_t)(first + k) * width + c] : 0;
}

/* A tile of one row: column c of y after all adapters. `w` has that column of the first, as load_column brings it. */
static __device__ __forceinline__ float add_to_row(const kg_adapt_args &a, const kg_adapt_tile &tile, int p, int c,
                                                   float w[AHEAD])
{
  const int width = a.width[p];
  const float *down = a.down + ((size_t)p * a.n_rows + tile.row) * a.stride;
  float y = c < width ? a.y[p][(size_t)tile.row * width + c] : 0;
  for (int i = 0; i < tile.n; i++) {
    const kg_adapt_entry entry = a.entries[tile.first + i];
    const kg_adapt_part part = entry.parts[a.op[p]];
    const float factor = entry.scale * part.factor;
    for (int first = 0; first < part.rank; first += AHEAD) {
      if (i || first) load_column(part, first, width, c, w);
      float4 d[AHEAD / 4];
#pragma unroll
      for (int k = 0; k < AHEAD; k += 4)
        d[k / 4] = first + k < part.rank ? *(const float4 *)(down + first + k) : make_float4(0, 0, 0, 0);
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        const float4 four = d[k / 4];
        const float by = factor * (k % 4 == 0 ? four.x : k % 4 == 1 ? four.y : k % 4 == 2 ? four.z : four.w);
        if (first + k < part.rank) y = fmaf(w[k], by, y);
      }
    }
    down += padded(part.rank);
  }
  return y;
}

/* What follows: what a gate lets through, or a residual. */
static __device__ __forceinline__ float finish(const kg_adapt_args &a, float y, float other, float residual)
{
  if (a.gated) y = gated(a.act, a.act_limit, a.act_alpha, y, other);
  return a.residual ? y + residual : y;
}

static __device__ __forceinline__ void raise_row(const kg_adapt_args &a, int row, float max)
{
  __shared__ float maxima[32];
  if (!a.out_max) return;
  max = block_max(max, maxima);
  if (!threadIdx.x) raise_max(&a.out_max[row], max);
}

/* adapt_row: y += scale * factor * B down, rank after rank, for the adapters of each row; then a gate, or a residual.
 * For tiles of one row.
 * grid: blocks of 256 columns, rows, parts (gated: 1); block: a column a thread.
 * moves B once for a row, y in and out; twin: run_adapt_out in cpu/stages.c, the same sums in the same order. */
static __global__ void __launch_bounds__(THREADS) adapt_row(const __grid_constant__ kg_adapt_args a)
{
  let_next_start();
  const kg_adapt_tile tile = a.tiles[blockIdx.y];
  const int p = blockIdx.z, c = blockIdx.x * THREADS + threadIdx.x, width = a.width[p];
  const bool is_unchanged = !tile.n && !a.gated && !a.residual && !a.out_max;
  float w[AHEAD], up[AHEAD], other = 0;
  if (tile.n) load_column(a.entries[tile.first].parts[a.op[p]], 0, width, c, w);
  if (tile.n && a.gated) load_column(a.entries[tile.first].parts[a.op[1]], 0, width, c, up);
  await_previous();
  if (is_unchanged || blockIdx.x * THREADS >= width) return;
  float y = add_to_row(a, tile, p, c, w);
  if (a.gated) other = add_to_row(a, tile, 1, c, up);
  const size_t at = (size_t)tile.row * width + c;
  y = finish(a, y, other, a.residual && c < width ? a.residual[at] : 0);
  if (c < width) (p ? a.y[p] : a.out)[at] = y;
  raise_row(a, tile.row, c < width ? fabsf(y) : 0);
}

enum { WIDE = 4 /* columns of a thread */ };

/* WIDE columns from c on of a tile's rows, after all adapters; beyond the width: anything. All threads of a block call
 * this. */
static __device__ __forceinline__ void add_to_rows(const kg_adapt_args &a, const kg_adapt_tile &tile, int p, int c,
                                                   float4 y[KG_ADAPT_ROWS])
{
  __shared__ __align__(16) float factors[STEP][KG_ADAPT_ROWS];
  const int width = a.width[p];
  const float *down = a.down + ((size_t)p * a.n_rows + tile.row) * a.stride;
#pragma unroll
  for (int r = 0; r < KG_ADAPT_ROWS; r++)
    if (r < tile.n_rows) y[r] = four_of(a.y[p] + (size_t)(tile.row + r) * width, width, c);
  for (int i = 0; i < tile.n; i++) {
    const kg_adapt_entry entry = a.entries[tile.first + i];
    const kg_adapt_part part = entry.parts[a.op[p]];
    const float factor = entry.scale * part.factor;
    for (int first = 0; first < part.rank; first += STEP) {
      const int n = min(STEP, part.rank - first), row = threadIdx.x / STEP, rank = threadIdx.x % STEP;
      __syncthreads();
      if (rank < n)
        factors[rank][row] = row < tile.n_rows ? factor * down[(size_t)row * a.stride + first + rank] : 0;
      __syncthreads();
      if (c >= width) continue;
#pragma unroll 4
      for (int k = 0; k < n; k++) {
        const float4 w = four_of(part.b + (size_t)(first + k) * width, width, c);
#pragma unroll
        for (int r = 0; r < KG_ADAPT_ROWS; r++) {
          const float by = factors[k][r];
          y[r] =
              make_float4(fmaf(w.x, by, y[r].x), fmaf(w.y, by, y[r].y), fmaf(w.z, by, y[r].z), fmaf(w.w, by, y[r].w));
        }
      }
    }
    down += padded(part.rank);
  }
}

/* What there is of four neighbours; returns the largest magnitude. */
static __device__ __forceinline__ float store_four(float *row, int width, int c, float4 v)
{
  if (width % 4 == 0) {
    if (c < width) *(float4 *)(row + c) = v;
  } else {
    if (c < width) row[c] = v.x;
    if (c + 1 < width) row[c + 1] = v.y;
    if (c + 2 < width) row[c + 2] = v.z;
    if (c + 3 < width) row[c + 3] = v.w;
  }
  return fmaxf(fmaxf(c < width ? fabsf(v.x) : 0, c + 1 < width ? fabsf(v.y) : 0),
               fmaxf(c + 2 < width ? fabsf(v.z) : 0, c + 3 < width ? fabsf(v.w) : 0));
}

/* adapt_rows: the same for tiles of any number of rows, to the same bits.
 * grid: blocks of 1024 columns, tiles, parts (gated: 1); block: WIDE columns a thread, for all rows of a tile.
 * moves B once for a tile, y in and out. */
static __global__ void __launch_bounds__(THREADS, 2) adapt_rows(const __grid_constant__ kg_adapt_args a)
{
  let_next_start();
  const kg_adapt_tile tile = a.tiles[blockIdx.y];
  const int p = blockIdx.z, c = WIDE * (blockIdx.x * THREADS + threadIdx.x), width = a.width[p];
  const bool is_unchanged = !tile.n && !a.gated && !a.residual && !a.out_max;
  await_previous();
  if (is_unchanged || WIDE * blockIdx.x * THREADS >= width) return;
  float4 y[KG_ADAPT_ROWS] = {}, other[KG_ADAPT_ROWS] = {};
  add_to_rows(a, tile, p, c, y);
  if (a.gated) add_to_rows(a, tile, 1, c, other);
#pragma unroll
  for (int r = 0; r < KG_ADAPT_ROWS; r++) {
    if (r >= tile.n_rows) break;
    const size_t at = (size_t)(tile.row + r) * width;
    const float4 residual = a.residual ? four_of(a.residual + at, width, c) : make_float4(0, 0, 0, 0);
    const float4 v = make_float4(finish(a, y[r].x, other[r].x, residual.x), finish(a, y[r].y, other[r].y, residual.y),
                                 finish(a, y[r].z, other[r].z, residual.z), finish(a, y[r].w, other[r].w, residual.w));
    const float max = store_four((p ? a.y[p] : a.out) + at, width, c, v);
    raise_row(a, tile.row + r, max);
  }
}

static int check(const kg_adapt_args *a, kg_error *err)
{
  static_assert(KG_ADAPT_ROWS * STEP == THREADS && KG_ADAPT_ROWS * KG_ADAPT_RANKS <= THREADS, "a thread for each");
  if (a->n_parts >= 1 && a->n_parts <= KG_LINEAR_PARTS && a->n_tiles >= 1 && a->n_tiles <= 65535 &&
      a->n_ranks <= a->stride)
    return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "adapters of %d products for %d tiles, of %d ranks of %d", a->n_parts,
                 a->n_tiles, a->n_ranks, a->stride);
}

int kg_cuda_adapt_in(kg_stream *s, const kg_adapt_args *a, kg_error *err)
{
  const bool is_norm = a->norm_scale != NULL;
  if (!a->ids && (!a->x || a->cols < 1 || (is_norm && !kg_cuda_linear_is_few(s, a->n_rows, a->cols))))
    return kg_fail(err, KG_ERR_ARGUMENT, "adapters of %d rows of %d", a->n_rows, a->cols);
  const int code = check(a, err);
  const dim3 grid((a->n_ranks + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS, a->n_tiles, a->n_parts);
  return code || !a->n_ranks ? code : run_kernel(s, "adapt_in", adapt_in, grid, THREADS, 0, err, *a);
}

int kg_cuda_adapt_out(kg_stream *s, const kg_adapt_args *a, kg_error *err)
{
  int width = 0;
  for (int i = 0; i < a->n_parts; i++) width = a->width[i] > width ? a->width[i] : width;
  const bool is_one = a->n_parts == 1 || (a->gated && a->n_parts == 2);
  if (width < 1 || (a->gated && a->n_parts != 2) || (a->residual && !is_one) || (!is_one && a->out != a->y[0]))
    return kg_fail(err, KG_ERR_ARGUMENT, "adapters of %d products, of %d columns at most", a->n_parts, width);
  const int code = check(a, err);
  const bool is_alone = a->n_tiles == a->n_rows; /* every row is a tile */
  const int columns = is_alone ? THREADS : WIDE * THREADS;
  const dim3 grid((width + columns - 1) / columns, a->n_tiles, a->gated ? 1 : a->n_parts);
  if (code) return code;
  return is_alone ? run_kernel(s, "adapt_row", adapt_row, grid, THREADS, 0, err, *a)
                  : run_kernel(s, "adapt_rows", adapt_rows, grid, THREADS, 0, err, *a);
}
