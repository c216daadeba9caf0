#include "act.cuh"
#include "adapt.h"
#include "norm.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, COLUMNS = 4 * THREADS /* that a block takes at once */, STEP = 32 /* ranks */ };

/* ---- A x ---- */

/* The adapter that these ranks (a multiple of KG_ADAPT_RANKS) of a tile's rows belong to; *first: the first of them within
 * it. False: they have none. */
static __device__ __forceinline__ bool find_ranks(const kg_adapt_args &a, const kg_adapt_tile &tile, int op, int at,
                                                  kg_adapt_part *part, int *first)
{
  for (int i = 0; i < tile.n; i++) {
    *part = a.entries[tile.first + i].parts[op];
    const int n = (part->rank + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS * KG_ADAPT_RANKS;
    *first = at;
    if (at < n) return true;
    at -= n;
  }
  return false;
}

/* Dot products of ROWS rows at most with KG_ADAPT_RANKS rows of A. Each thread sums every 1024th four columns, then the lanes
 * as a tree, then the warps from left to right: a row's sums know nothing of the other rows. */
template <int ROWS>
static __device__ __forceinline__ void dot_rows(const kg_adapt_args &a, const kg_adapt_tile &tile, const kg_adapt_part &part,
                                                int first, float *down)
{
  __shared__ float sums[WARPS][KG_ADAPT_RANKS * ROWS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum[KG_ADAPT_RANKS][ROWS] = {};
  for (int c = 4 * threadIdx.x; c < a.cols; c += COLUMNS) {
    float4 w[KG_ADAPT_RANKS];
#pragma unroll
    for (int k = 0; k < KG_ADAPT_RANKS; k++)
      w[k] = first + k < part.rank ? four_of(part.a + (size_t)(first + k) * a.cols, a.cols, c) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r >= tile.n_rows) break;
      const float4 x = four_of(a.x + (size_t)(tile.row + r) * a.cols, a.cols, c);
#pragma unroll
      for (int k = 0; k < KG_ADAPT_RANKS; k++)
        sum[k][r] = fmaf(w[k].w, x.w, fmaf(w[k].z, x.z, fmaf(w[k].y, x.y, fmaf(w[k].x, x.x, sum[k][r]))));
    }
  }
#pragma unroll
  for (int k = 0; k < KG_ADAPT_RANKS; k++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r >= tile.n_rows) break;
      const float s = warp_sum(sum[k][r]);
      if (!lane) sums[warp][k * ROWS + r] = s;
    }
  __syncthreads();
  const int k = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
  if (k >= KG_ADAPT_RANKS || r >= tile.n_rows) return;
  float s = sums[0][threadIdx.x];
  for (int w = 1; w < WARPS; w++) s += sums[w][threadIdx.x];
  down[(size_t)r * a.stride + k] = s;
}

/* adapt_in: down = A x, of a table A's row of the token, for the adapters of each row.
 * grid: groups of KG_ADAPT_RANKS ranks, tiles, parts; block: a tile's rows.
 * moves A once for a tile, x once for KG_ADAPT_RANKS ranks; twin: run_adapt_in in cpu/stages.c, tolerance float32 sums. */
static __global__ void __launch_bounds__(THREADS, 2) adapt_in(const __grid_constant__ kg_adapt_args a)
{
  wait_for_previous();
  const kg_adapt_tile tile = a.tiles[blockIdx.y];
  const int at = blockIdx.x * KG_ADAPT_RANKS;
  kg_adapt_part part;
  int first;
  if (!find_ranks(a, tile, a.op[blockIdx.z], at, &part, &first)) return;
  float *down = a.down + ((size_t)blockIdx.z * a.n_rows + tile.row) * a.stride + at;
  if (a.ids) {
    const int k = threadIdx.x % KG_ADAPT_RANKS, r = threadIdx.x / KG_ADAPT_RANKS;
    if (r < tile.n_rows && first + k < part.rank)
      down[(size_t)r * a.stride + k] = part.a[(size_t)a.ids[tile.row + r] * part.rank + first + k];
  } else if (tile.n_rows == 1)
    dot_rows<1>(a, tile, part, first, down);
  else
    dot_rows<KG_ADAPT_ROWS>(a, tile, part, first, down);
}

/* ---- y += B (A x) ---- */

/* Column c of a tile's rows, after all adapters; a column beyond the width: anything. All threads of a block call this. */
template <int ROWS>
static __device__ __forceinline__ void add_adapters(const kg_adapt_args &a, const kg_adapt_tile &tile, int p, int c,
                                                    float y[ROWS])
{
  __shared__ float factors[ROWS][STEP];
  const bool exists = c < a.width[p];
  const float *down = a.down + ((size_t)p * a.n_rows + tile.row) * a.stride;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    y[r] = exists && r < tile.n_rows ? a.y[p][(size_t)(tile.row + r) * a.width[p] + c] : 0;
  for (int i = 0; i < tile.n; i++) {
    const kg_adapt_entry entry = a.entries[tile.first + i];
    const kg_adapt_part part = entry.parts[a.op[p]];
    const float factor = entry.scale * part.factor;
    for (int k0 = 0; k0 < part.rank; k0 += STEP) {
      const int n = min(STEP, part.rank - k0), row = threadIdx.x / STEP, rank = threadIdx.x % STEP;
      __syncthreads();
      if (row < ROWS && row < tile.n_rows && rank < n)
        factors[row][rank] = factor * down[(size_t)row * a.stride + k0 + rank];
      __syncthreads();
      if (!exists) continue;
      const float *b = part.b + (size_t)k0 * a.width[p] + c;
#pragma unroll 8
      for (int k = 0; k < n; k++) {
        const float w = b[(size_t)k * a.width[p]];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
          if (r < tile.n_rows) y[r] = fmaf(w, factors[r][k], y[r]);
      }
    }
    down += (part.rank + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS * KG_ADAPT_RANKS;
  }
}

template <int ROWS> static __device__ __forceinline__ void add_to_tile(const kg_adapt_args &a, const kg_adapt_tile &tile)
{
  __shared__ float maxima[32];
  const int p = blockIdx.z, c = blockIdx.x * THREADS + threadIdx.x, width = a.width[p];
  float y[ROWS], other[ROWS];
  add_adapters<ROWS>(a, tile, p, c, y);
  if (a.gated) add_adapters<ROWS>(a, tile, 1, c, other);
  float *out = p ? a.y[p] : a.out;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (r >= tile.n_rows) break;
    const size_t at = (size_t)(tile.row + r) * width + c;
    if (c < width) {
      if (a.gated) y[r] = gated(a.act, a.act_limit, a.act_alpha, y[r], other[r]);
      if (a.residual) y[r] = y[r] + a.residual[at];
      out[at] = y[r];
    }
    if (!a.out_max) continue;
    const float max = block_max(c < width ? fabsf(y[r]) : 0, maxima);
    if (!threadIdx.x) raise_max(&a.out_max[tile.row + r], max);
  }
}

/* adapt_out: y += scale * factor * B down, rank after rank, for the adapters of each row; then a gate, or a residual.
 * grid: blocks of 256 columns, tiles, parts (gated: 1); block: a column a thread, for all rows of a tile.
 * moves B once for a tile, y in and out; twin: run_adapt_out in cpu/stages.c, the same sums in the same order. */
static __global__ void __launch_bounds__(THREADS) adapt_out(const __grid_constant__ kg_adapt_args a)
{
  wait_for_previous();
  const kg_adapt_tile tile = a.tiles[blockIdx.y];
  const bool is_unchanged = !tile.n && !a.gated && !a.residual && !a.out_max;
  if (is_unchanged || blockIdx.x * THREADS >= a.width[blockIdx.z]) return;
  if (tile.n_rows == 1)
    add_to_tile<1>(a, tile);
  else
    add_to_tile<KG_ADAPT_ROWS>(a, tile);
}

int kg_cuda_adapt(kg_stream *s, const kg_adapt_args *a, kg_error *err)
{
  static_assert(KG_ADAPT_ROWS * STEP <= THREADS && KG_ADAPT_ROWS * KG_ADAPT_RANKS <= THREADS, "a thread for each");
  int width = 0;
  for (int i = 0; i < a->n_parts; i++) width = a->width[i] > width ? a->width[i] : width;
  const bool is_one = a->n_parts == 1 || (a->gated && a->n_parts == 2);
  if (a->n_parts < 1 || a->n_parts > KG_LINEAR_PARTS || a->n_tiles < 1 || a->n_tiles > 65535 || a->stride < 1 || width < 1 ||
      (a->gated && a->n_parts != 2) || (a->residual && !is_one) || (!is_one && a->out != a->y[0]) || (!a->ids && !a->x))
    return kg_fail(err, KG_ERR_ARGUMENT, "adapters of %d products, of %d columns at most, for %d tiles", a->n_parts, width,
                   a->n_tiles);
  const dim3 in((a->stride + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS, a->n_tiles, a->n_parts);
  const int code = run_kernel(s, "adapt_in", adapt_in, in, THREADS, 0, err, *a);
  const dim3 out((width + THREADS - 1) / THREADS, a->n_tiles, a->gated ? 1 : a->n_parts);
  return code ? code : run_kernel(s, "adapt_out", adapt_out, out, THREADS, 0, err, *a);
}
