/* linear_few.cu - products with two to eight rows of x in panels, which the tensor cores take at once: hardly more time
 * than with one. As in linear_one.cu there is a kernel for tiles that fit in shared memory, and one with rings for
 * those that do not. */
#include "tile.cuh"

enum { FEW_ROWS = KG_LINEAR_FEW, FEW_STRIDE = 20 /* floats of a row of x's sums, apart for the banks' sake */ };

/* Sums of a run: [D][FEW_ROWS][FEW_STRIDE]. */
template <int D> static constexpr int few_run_floats = D * FEW_ROWS * FEW_STRIDE;

/* What linear_few needs of kg_linear_args. */
struct few_args {
  tile_part part[KG_LINEAR_PARTS];
  const void *x;
  const float *x_scale, *residual;
  kg_half_out half;
  float act_limit, act_alpha;
  int32_t act, n, n_blocks, run, n_runs, cluster_bits;
  bool starts_next;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL /* where rows come in panels */

/* A lane's words of a block of x, of which there are 128: its four are as far apart as lanes are many. */
static __device__ __forceinline__ uint4 few_block(const uint32_t *x)
{
  return make_uint4(__ldcg(x), __ldcg(x + 32), __ldcg(x + 64), __ldcg(x + 96));
}

/* The same of a chunk. */
struct few_words {
  uint4 of[KG_CHUNK];

  __device__ __forceinline__ void load(const uint32_t *x)
  {
#pragma unroll
    for (int i = 0; i < KG_CHUNK; i++) of[i] = few_block(x + i * 128);
  }
};

/* From a chunk of x to the next, in words. */
enum { FEW_CHUNK = KG_PANEL_ROWS / 8 * KG_CHUNK * 128 };

/* Where a lane finds its words of a block: of row g, or of the last row, whose product nobody stores then. */
static __device__ __forceinline__ const uint32_t *few_lane(const void *x, int block, int n_blocks, int n)
{
  const int lane = threadIdx.x % 32;
  return (const uint32_t *)((const char *)x + kg_panel_at(0, block, n_blocks)) + min(lane / 4, n - 1) * 4 + lane % 4;
}

/* Where a lane's sums of a run go: of rows g and g + 8 of the tile and rows 2 t and 2 t + 1 of x. */
static __device__ __forceinline__ float *few_place(float *sums, int d, int i)
{
  return sums + (d * FEW_ROWS + 2 * (threadIdx.x % 4) + i % 2) * FEW_STRIDE + threadIdx.x % 32 / 4 + i / 2 * 8;
}

/* Tile `tile` of part d0, of type T; see linear_few. */
template <int T, int D, bool SHORT>
static __device__ __forceinline__ void multiply_few(const few_args &a, int tile, int d0)
{
  extern __shared__ __align__(128) unsigned char few_memory[];
  __shared__ uint64_t ready, counter;
  const bool starts_next = a.starts_next; /* see linear_tile.cuh */
  if (starts_next) let_next_start();
  constexpr int RUNS = D == 2 ? 8 : 16, CHUNKS = SHORT ? 1 : 3; /* of which x is loaded together */
  constexpr bool AHEAD = SHORT && D == 1; /* all is unpacked before the wait */
  const int lane = threadIdx.x % 32, n_warps = blockDim.x / 32, n_blocks = a.n_blocks, n_runs = a.n_runs, n = a.n;
  const int cluster_bits = RUNS == 8 ? 0 : a.cluster_bits;
  const tile_cut<T, D> cut(n_blocks, a.run, cluster_bits);
  const int rank = cut.rank, n_mine = cut.n_mine;
  float *sums = (float *)few_memory, *my_sums = sums + cut.my_run * few_run_floats<D>;
  unsigned char *weights_at = few_memory + n_runs * few_run_floats<D> * sizeof(float);
  uint2 *scales_at = (uint2 *)(weights_at + D * cut.each); /* of heads, unpacked: [D][blocks][8] */
  if (threadIdx.x == 0) {
    barrier_init(&ready, 1);
    barrier_init(&counter, 1);
    barriers_ready();
    cut.bring(a.part + d0, tile, n_blocks, weights_at, &ready);
    if (cluster_bits && !rank) barrier_expect(&counter, (n_runs - n_warps) * D * ((n + 1) / 2 * 2) * 64);
  }
  if (cluster_bits) cluster_arrive();
  const int r = threadIdx.x / 16, row = tile * 16 + threadIdx.x % 16, n_rows = a.part[d0].rows; /* to store */
  const bool stores = r < n && !rank && row < n_rows;
  const size_t out_at = (size_t)r * n_rows + row;
  float *out = a.part[d0].out;
  const float *residual = a.residual && stores ? a.residual + out_at : NULL;
  const float *x_scale = a.x_scale + (stores ? r : 0);
  const uint32_t *x = few_lane(a.x, n_mine > 0 ? cut.first : 0, n_blocks, n);
  kg_half_out half = a.half;
  int act = a.act;
  float limit = a.act_limit, alpha = a.act_alpha, bias = 0, up_bias = 0;
  if (stores && a.part[d0].bias) bias = a.part[d0].bias[row];
  if (D == 2 && stores && a.part[D - 1].bias) up_bias = a.part[D - 1].bias[row];
  const bool has_bias = a.part[d0].bias, has_up_bias = D == 2 && a.part[D - 1].bias;
  read_now(out), read_now(residual), read_now(x_scale), read_now(x), read_now(half.undo), read_now(half.up);
  read_now(act), read_now(limit), read_now(alpha);
  const tile_run<T, D, true> mine(cut, weights_at, scales_at);
  __syncthreads();
  if (unpacks_scales<T>) {
    barrier_wait(&ready, 0);
    cut.unpack_scales(weights_at, scales_at);
  }
  uint32_t ahead[AHEAD ? KG_CHUNK : 1][8];
  const bool is_whole = !SHORT && n_mine % KG_CHUNK == 0, is_ahead = AHEAD && n_mine == KG_CHUNK;
  if (AHEAD && !unpacks_scales<T>) barrier_wait(&ready, 0);
  if (is_ahead) {
#pragma unroll
    for (int i = 0; i < KG_CHUNK; i++) mine.unpack(i, 0, ahead[i]);
    settle_here(ahead, (uint32_t *)my_sums + lane); /* where its sums come to stand */
  }
  await_previous();
  if (!starts_next) let_next_start();

  few_words words[CHUNKS];
  auto load = [&](int c0) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int i = 0; i < KG_CHUNK; i++)
        if (SHORT ? i < n_mine : (c0 + c) * KG_CHUNK < n_mine)
          words[c].of[i] = few_block(x + (c0 + c) * FEW_CHUNK + i * 128);
  };
  if (SHORT || is_whole) load(0);
  float added = 0, scale = 1;
  if (residual) added = *residual;
  if (stores) scale = *x_scale;
  if (!unpacks_scales<T> && !AHEAD) barrier_wait(&ready, 0);
  float acc[D][4] = {};
  auto multiply = [&](int i, uint4 values) {
#pragma unroll
    for (int d = 0; d < D; d++) {
      uint32_t codes[8];
      mine.unpack(i, d, codes);
      add_block<T>(acc[d], codes, values);
    }
  };
  if (is_ahead)
#pragma unroll
    for (int i = 0; i < KG_CHUNK; i++) add_block<T>(acc[0], ahead[i], words[0].of[i]);
  else if (SHORT)
#pragma unroll
    for (int i = 0; i < KG_CHUNK; i++) {
      if (i >= n_mine) break;
      multiply(i, words[0].of[i]);
    }
  else if (is_whole) /* without branches: a block is unpacked while another is multiplied */
#pragma unroll 1
    for (int c0 = 0; c0 * KG_CHUNK < n_mine; c0 += CHUNKS) {
      if (c0) load(c0);
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        if ((c0 + c) * KG_CHUNK >= n_mine) break;
#pragma unroll
        for (int i = 0; i < KG_CHUNK; i++) multiply((c0 + c) * KG_CHUNK + i, words[c].of[i]);
      }
    }
  else
#pragma unroll 1
    for (int i = 0; i < n_mine; i++) multiply(i, few_block(x + i / KG_CHUNK * FEW_CHUNK + i % KG_CHUNK * 128));
  if (cluster_bits) cluster_wait();
  if (2 * (lane % 4) < n && n_mine > 0)
#pragma unroll
    for (int d = 0; d < D; d++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (rank)
          send_first(few_place(my_sums, d, i), acc[d][i], &counter);
        else
          *few_place(my_sums, d, i) = acc[d][i];
  if (rank) return;
  __syncthreads();
  if (r >= n) return;
  if (cluster_bits) barrier_wait(&counter, 0);
  float value[D];
#pragma unroll
  for (int i = 0; i < RUNS; i++)
#pragma unroll
    for (int d = 0; d < D; d++) { /* -0 changes no number that it is added to */
      const float part =
          i < n_runs ? sums[i * few_run_floats<D> + (d * FEW_ROWS + r) * FEW_STRIDE + threadIdx.x % 16] : -0.0f;
      value[d] = i ? value[d] + part : part;
    }
#pragma unroll
  for (int d = 0; d < D; d++) value[d] *= scale;
  if (has_bias) value[0] += bias;
  if (D == 2) {
    if (has_up_bias) value[D - 1] += up_bias;
    value[0] = __builtin_expect(act == KG_CUDA_SILU, 1) ? activate(KG_CUDA_SILU, value[0]) * value[D - 1]
                                                        : gated(act, limit, alpha, value[0], value[D - 1]);
  }
  if (residual) value[0] += added;
  if (!stores) return;
  if (D == 2 && half.panels) put_half(half, n_rows, r, row, value[0]);
  if (D == 1 || out) out[out_at] = value[0];
}

#endif

/* linear_few: D matrices at once (2: gated); parts are of type T, or of U. SHORT: runs of a chunk at most.
 * grid: tiles of all parts, each by a cluster of blocks that share its columns; block: a warp per run, at least 4; 16
 * threads of a cluster's first block store a row of x's. Shared: sums of all runs, weights, unpacked scales.
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T, int U, int D, bool SHORT>
static __global__ void __maxnreg__((SHORT && D == 2 ? 64 : 96)) linear_few(const __grid_constant__ few_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  int tile = D == 2 ? blockIdx.x : blockIdx.x >> a.cluster_bits, d0 = 0;
  if (D == 1)
    while (tile >= a.part[d0].n_tiles) tile -= a.part[d0++].n_tiles;
  if (T != U && a.part[d0].is_other)
    multiply_few<U, D, SHORT>(a, tile, d0);
  else
    multiply_few<T, D, SHORT>(a, tile, d0);
#endif
}

/* Shared memory of a block of linear_few that has n blocks of columns and sums of n_runs. */
template <int T, int D> static size_t few_bytes(int n, int n_runs)
{
  return (size_t)n_runs * few_run_floats<D> * sizeof(float) + tile_cut_bytes<T, D>(n);
}

/* *done: false where tiles are too large, or too many. */
template <int T, int U, int D> static int launch_tiles(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  const kg_matrix *m = &a->part[0].m;
  const int run = kg_cuda_linear_run(m), n_runs = (m->n_blocks + run - 1) / run, bits = n_runs > 8;
  few_args f = {.x = a->x, .x_scale = a->x_scale, .residual = a->residual, .half = a->half,
                .act_limit = a->act_limit, .act_alpha = a->act_alpha, .act = a->act, .n = a->n,
                .n_blocks = m->n_blocks, .run = run, .n_runs = n_runs, .cluster_bits = bits,
                .starts_next = a->starts_next};
  find_parts<T>(a, f.part);
  const int n_tiles = count_tiles(a), n_warps = max((n_runs + bits) >> bits, FEW_ROWS * 16 / 32);
  const int n_mine = min(m->n_blocks, n_warps * run);
  const int shared = (int)max(few_bytes<T, D>(n_mine, n_runs), few_bytes<U, D>(n_mine, n_runs));
  *done = s->overlaps && !a->out_rows && n_tiles <= 4 * s->n_sms && n_runs <= 16 && !(bits && D == 2) &&
          shared <= min(100 << 10, s->shared_max - 1024);
  if (!*done) return KG_OK;
  const auto kernel = run <= KG_CHUNK ? linear_few<T, U, D, true> : linear_few<T, U, D, false>;
  const int code = kg_cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "linear_few", err);
  return code ? code
              : run_clusters(s, "linear_few", kernel, dim3(n_tiles << bits), 1 << bits, 32 * n_warps, shared, err, f);
}

/* linear_ring: D matrices at once (2: gated).
 * grid: tiles of all parts, in turn; block: a warp per run, at least 4; 16 threads store a row of x's. Shared: rings of
 * weights ([warp][slots] chunks), sums ([2][warps]).
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T, int D>
static __global__ void __launch_bounds__(D == 2 ? 256 : 512, D == 2 ? 3 : 2)
    linear_ring(const __grid_constant__ kg_linear_args a, int n_tiles, int run, int slots)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char rings[];
  __shared__ uint64_t ready[16 * KG_LINEAR_SLOTS];
  constexpr int slot_bytes = D * chunk<T>::n_bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  const int n_blocks = a.part[0].m.n_blocks, first = min(warp * run, n_blocks), n_mine = min(run, n_blocks - first);
  const int n_runs = (n_blocks + run - 1) / run, n_chunks = (n_mine + KG_CHUNK - 1) / KG_CHUNK;
  unsigned char *ring = rings + warp * slots * slot_bytes;
  float *sums = (float *)(rings + n_warps * slots * slot_bytes);
  uint64_t *my_ready = ready + warp * KG_LINEAR_SLOTS;
  read_arguments(a);
  warp_stream<T, D> stream(a, blockIdx.x, n_tiles, first, first + n_mine, slots);
  stream.open(ring, my_ready, lane);
  const uint32_t *x = few_lane(a.x, n_mine ? first : 0, n_blocks, a.n);
  const int r = threadIdx.x / 16;
  await_previous();
  let_next_start(); /* not before: as in linear_tile.cuh */

  const float scale = r < a.n ? a.x_scale[r] : 1;
  for (int index = blockIdx.x, turn = 0; index < n_tiles; index += gridDim.x, turn ^= 1) {
    int tile = index;
    const int d0 = part_of<D>(a, &tile), row = tile * 16 + threadIdx.x % 16;
    const addends add = find_addends(a, d0, 0, row, r, r < a.n);
    float acc[D][4] = {};
#pragma unroll 1
    for (int c = 0; c < n_chunks; c++) {
      const int n = n_mine - c * KG_CHUNK;
      auto multiply = [&](const unsigned char *slot, int i, uint4 values) {
#pragma unroll
        for (int d = 0; d < D; d++) {
          uint32_t weights[8];
          decode_chunk<T>(slot + d * chunk<T>::n_bytes, first + c * KG_CHUNK, i, lane, weights);
          add_block<T>(acc[d], weights, values);
        }
      };
      if (n >= KG_CHUNK) {
        few_words words;
        words.load(x + c * FEW_CHUNK);
        const unsigned char *slot = stream.next(ring, my_ready);
#pragma unroll
        for (int i = 0; i < KG_CHUNK; i++) multiply(slot, i, words.of[i]);
      } else {
        const unsigned char *slot = stream.next(ring, my_ready);
#pragma unroll 1
        for (int i = 0; i < n; i++) multiply(slot, i, few_block(x + c * FEW_CHUNK + i * 128));
      }
      stream.release(ring, my_ready, lane);
    }
    float *sum = sums + turn * n_warps * few_run_floats<D>; /* two take turns: one barrier a tile does */
#pragma unroll
    for (int d = 0; d < D; d++)
#pragma unroll
      for (int i = 0; i < 4; i++) *few_place(sum + warp * few_run_floats<D>, d, i) = acc[d][i];
    __syncthreads();
    if (r >= a.n || row >= a.part[d0].m.rows) continue;
    float value[D];
#pragma unroll
    for (int d = 0; d < D; d++) {
      const float *from = sum + (d * FEW_ROWS + r) * FEW_STRIDE + threadIdx.x % 16;
      value[d] = from[0];
#pragma unroll 8
      for (int i = 1; i < n_runs; i++) value[d] += from[i * few_run_floats<D>];
      value[d] *= scale;
    }
    const float done = finish(a, d0, value[0], D == 2 ? value[D - 1] : 0, add);
    if (D == 2 && a.half.panels) put_half(a.half, a.part[0].m.rows, r, row, done);
    if (D == 1 || a.part[0].out) put(a, d0, row, r, done);
  }
#endif
}

template <int T, int D> static int launch_ring(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  kg_linear_shape shape;
  kg_cuda_linear_shape(s, a, FEW_ROWS * 16 / 32, D * (size_t)chunk<T>::n_bytes, 0,
                       2 * few_run_floats<D> * sizeof(float), &shape);
  return run_turns(s, "linear_ring", linear_ring<T, D>, a, &shape, 1, err);
}

template <int T, int D> static int launch(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  const int code = launch_tiles<T, T, D>(s, a, done, err);
  /* Of many tiles linear_columns takes several at a time, which brings x less often. */
  if (code || *done || a->out_rows || (D == 1 && count_tiles(a) > 4 * s->n_sms)) return code;
  *done = true;
  return launch_ring<T, D>(s, a, err);
}

int kg_cuda_linear_few(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  int low, high;
  *done = false;
  if (a->n > FEW_ROWS || !a->x_panels || a->planes || !two_types(a, &low, &high)) return KG_OK;
  if (low == KG_Q5_0 && high == KG_Q8_0) return launch_tiles<KG_Q5_0, KG_Q8_0, 1>(s, a, done, err);
  if (low == KG_Q4_K && high == KG_Q6_K) return launch_tiles<KG_Q4_K, KG_Q6_K, 1>(s, a, done, err);
  if (low == KG_Q5_K && high == KG_Q6_K) return launch_tiles<KG_Q5_K, KG_Q6_K, 1>(s, a, done, err);
  if (low != high) return KG_OK;
  switch (low) {
#define CASE(T) \
  case T: return a->gated ? launch<T, 2>(s, a, done, err) : launch<T, 1>(s, a, done, err);
    CASE(KG_F16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q5_0) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K)
#undef CASE
  default: return KG_OK;
  }
}
