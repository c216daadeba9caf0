/* linear_tile.cuh - products with one row of x where the weights of a tile fit in shared memory: what follows the end
 * of the kernel before is as short as it can be. */
#pragma once

#include "norm.cuh"
#include "tile.cuh"

/* What linear_tile needs of kg_linear_args. */
struct tile_args {
  tile_part part[KG_LINEAR_PARTS];
  const float *x, *x_max, *norm_scale, *residual;
  float *out_max;
  float x_up, norm_max, norm_epsilon, act_limit, act_alpha;
  int32_t act, cols, n_blocks, run, n_runs, cluster_bits;
  bool starts_next;
  bool waits; /* always, but the compiler does not know it: see multiply_tile */
};

/* Runs of a product at most, each with a warp: of one block, or of two. */
template <int D, bool NORM, bool SHORT> static constexpr int most_runs = SHORT || NORM || D == 2 ? 8 : 16;

/* Tile `tile` of part d0, of type T; see linear_tile. */
template <int T, int D, bool NORM, bool SHORT, int AHEAD>
static __device__ __forceinline__ void multiply_tile(const tile_args &a, int tile, int d0)
{
  extern __shared__ __align__(128) unsigned char tile_memory[];
  __shared__ uint64_t ready, counter;
  __shared__ __align__(16) float squares[8];
  /* Blocks of the next kernel take room and time from those that this one waits for: worth it where they fetch much. */
  const bool starts_next = a.starts_next;
  if (starts_next) let_next_start();
  constexpr int BLOCKS = SEGMENT / KG_BLOCK_COLS, SEGMENTS = NORM || SHORT ? 1 : 3;
  constexpr int RUNS = most_runs<D, NORM, SHORT>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  int n_blocks = a.n_blocks, run = a.run, n_runs = a.n_runs;
  const int cluster_bits = RUNS == 8 ? 0 : a.cluster_bits;
  const tile_cut<T, D> cut(n_blocks, run, cluster_bits);
  const int rank = cut.rank, first = cut.first, b0 = cut.b0;
  int n_mine = cut.n_mine;
  float *sums = (float *)tile_memory;
  unsigned char *weights_at = tile_memory + RUNS * D * 64, *x_at = weights_at + D * cut.each;
  uint2 *scales_at = (uint2 *)(x_at + (cut.b1 - b0) * 64); /* of heads, unpacked: [D][blocks][8] */
  if (threadIdx.x == 0) {
    barrier_init(&ready, 1);
    barrier_init(&counter, 1);
    barriers_ready();
    cut.bring(a.part + d0, tile, n_blocks, weights_at, &ready);
    if (cluster_bits && !rank) barrier_expect(&counter, (n_runs - n_warps) * D * 64);
  }
  if (cluster_bits) cluster_arrive();
  if (!rank) /* -0 changes no number that it is added to */
    for (int i = n_runs * D * 16 + threadIdx.x; i < RUNS * D * 16; i += blockDim.x) sums[i] = -0.0f;
  if (threadIdx.x < 8) squares[threadIdx.x] = 0;
  const int row = tile * 16 + threadIdx.x;
  const bool stores = threadIdx.x < 16 && !rank && row < a.part[d0].rows;
  float *out = a.part[d0].out + (stores ? row : 0), *out_max = a.out_max;
  const int n_lane = n_mine - lane / 8; /* this lane's segments begin below */
  const float *x_from = a.x + first * KG_BLOCK_COLS + 4 * lane, *x_max_from = a.x_max;
  const float *residual = a.residual ? a.residual + (stores ? row : 0) : NULL;
  float x_up = a.x_up, norm_max = a.norm_max, epsilon = a.norm_epsilon, limit = a.act_limit, alpha = a.act_alpha;
  float bias = 0, up_bias = 0;
  int act = a.act, cols = a.cols;
  float4 w = make_float4(1, 1, 1, 1);
  if (NORM && n_lane > 0) w = *(const float4 *)(a.norm_scale + first * KG_BLOCK_COLS + 4 * lane);
  if (stores && a.part[d0].bias) bias = a.part[d0].bias[row];
  if (D == 2 && stores && a.part[D - 1].bias) up_bias = a.part[D - 1].bias[row];
  const bool has_bias = a.part[d0].bias, has_up_bias = D == 2 && a.part[D - 1].bias;
  read_now(out), read_now(out_max), read_now(x_from), read_now(x_max_from), read_now(residual);
  read_now(x_up), read_now(norm_max), read_now(epsilon), read_now(limit), read_now(alpha);
  read_now(act), read_now(cols);
  unsigned char *run_x = x_at + (first - b0) * 64 + lane % 4 * 16;
  unsigned char *to = x_at + (first - b0) * 64 + lane / 8 * 64 + lane % 4 * 16 + lane % 8 / 4 * 8;
  unsigned char *my_sums = tile_memory + cut.my_run * D * 64 + lane / 4 * 4, *all_sums = tile_memory + threadIdx.x * 4;
  /* Longer runs have no registers for addresses that are held. */
  const tile_run<T, D, SHORT> mine(cut, weights_at, scales_at);
  if (SHORT) hold(run_x), hold(to), hold(my_sums), hold(all_sums), read_now(n_mine);
  __syncthreads();
  if (unpacks_scales<T>) {
    barrier_wait(&ready, 0);
    cut.unpack_scales(weights_at, scales_at);
  }
  const uint4 *x = (const uint4 *)run_x; /* every column of the N operand is this row */
  uint32_t ahead[AHEAD ? AHEAD : 1][8];
  const bool is_ahead = AHEAD && n_mine >= AHEAD;
  if (AHEAD && !unpacks_scales<T>) barrier_wait(&ready, 0);
  if (is_ahead) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) mine.unpack(i, 0, ahead[i]);
    settle_here(ahead, (uint32_t *)(x_at + (first - b0) * 64) + lane); /* where its x comes to stand */
  }
  if (!SHORT || a.waits) { /* what is held before a branch is not made again behind it */
    await_previous();
    if (!starts_next) let_next_start();
  }

  const float x_max = *x_max_from;
  float4 v[SEGMENTS];
#pragma unroll
  for (int i = 0; i < SEGMENTS; i++)
    v[i] = BLOCKS * i < n_lane ? *(const float4 *)(x_from + i * SEGMENT) : make_float4(0, 0, 0, 0);
  float added = 0;
  if (stores && residual) added = *residual;
  const float up = NORM ? norm_half_scale(x_max, norm_max) : known_half_scale(x_max, x_up);
#pragma unroll
  for (int i = 0; i < SEGMENTS; i++) {
    const float4 y = NORM ? make_float4(v[i].x * w.x, v[i].y * w.y, v[i].z * w.z, v[i].w * w.w) : v[i];
    if (BLOCKS * i < n_lane)
      *(uint2 *)(to + BLOCKS * i * 64) =
          make_uint2(as_word(__floats2half2_rn(y.x * up, y.y * up)), as_word(__floats2half2_rn(y.z * up, y.w * up)));
  }
  float square = NORM ? fmaf(v[0].w, v[0].w, fmaf(v[0].z, v[0].z, fmaf(v[0].y, v[0].y, v[0].x * v[0].x))) : 0;
  __syncwarp();
  if (!unpacks_scales<T> && !AHEAD) barrier_wait(&ready, 0);

  float acc[D][4] = {};
  auto multiply = [&](int i) {
    const uint4 values = x[i * 4];
#pragma unroll
    for (int d = 0; d < D; d++) {
      uint32_t codes[8];
      mine.unpack(i, d, codes);
      add_block<T>(acc[d], codes, values);
    }
  };
  if (is_ahead) {
    uint4 values[KG_CHUNK]; /* loaded together */
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (i % KG_CHUNK == 0)
#pragma unroll
        for (int k = 0; k < KG_CHUNK; k++) values[k] = x[(i + k) * 4];
      add_block<T>(acc[0], ahead[i], values[i % KG_CHUNK]);
    }
  }
#pragma unroll 1
  for (int done = is_ahead ? AHEAD : 0; done < n_mine; done += KG_CHUNK) {
    if (done + KG_CHUNK <= n_mine) /* without branches: a block is unpacked while another is multiplied */
#pragma unroll
      for (int i = 0; i < KG_CHUNK; i++) {
        multiply(done + i);
        if (NORM) square += __shfl_xor_sync(~0u, square, 16 >> i); /* the first steps of a sum over the warp */
      }
    else {
#pragma unroll 1
      for (int i = done; i < n_mine; i++) multiply(i);
      for (int i = 0; i < KG_CHUNK && NORM; i++) square += __shfl_xor_sync(~0u, square, 16 >> i);
    }
    if (SHORT) break;
  }
  if (NORM) {
    square += __shfl_xor_sync(~0u, square, 1);
    if (!lane) squares[warp] = square;
  }
  if (cluster_bits) cluster_wait();
  if (lane % 4 == 0 && n_mine > 0)
#pragma unroll
    for (int i = 0; i < 2 * D; i++) {
      float *at = (float *)(my_sums + i / 2 * 64 + i % 2 * 32);
      if (rank)
        send_first(at, acc[i / 2][i % 2 * 2], &counter);
      else
        *at = acc[i / 2][i % 2 * 2];
    }
  if (rank) return;
  __syncthreads();
  if (threadIdx.x >= 16) return;
  if (cluster_bits) barrier_wait(&counter, 0);
  float scale = undo_scale(up), value[D];
  if (NORM) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) total += squares[i];
    scale *= norm_factor(total, cols, epsilon);
  }
  constexpr int TOGETHER = 8 / D; /* sums that are loaded together */
#pragma unroll
  for (int i0 = 0; i0 < RUNS; i0 += TOGETHER) {
    float parts[TOGETHER][D];
#pragma unroll
    for (int i = 0; i < TOGETHER; i++)
#pragma unroll
      for (int d = 0; d < D; d++) parts[i][d] = *(const float *)(all_sums + ((i0 + i) * D + d) * 64);
#pragma unroll
    for (int i = 0; i < TOGETHER; i++)
#pragma unroll
      for (int d = 0; d < D; d++) value[d] = i0 + i ? value[d] + parts[i][d] : parts[i][d];
  }
#pragma unroll
  for (int d = 0; d < D; d++) value[d] *= scale;
  if (has_bias) value[0] += bias;
  if (D == 2) {
    if (has_up_bias) value[D - 1] += up_bias;
    value[0] = __builtin_expect(act == KG_CUDA_SILU, 1) /* the code of the others stands out of its way */
                   ? activate(KG_CUDA_SILU, value[0]) * value[D - 1]
                   : gated(act, limit, alpha, value[0], value[D - 1]);
  }
  if (residual) value[0] += added;
  if (stores) *out = value[0];
  if (out_max) {
    const unsigned most = __reduce_max_sync(0xffff, stores ? __float_as_uint(fabsf(value[0])) : 0);
    if (threadIdx.x == 0) atomicMax((unsigned *)out_max, most);
  }
}

/* linear_tile: D matrices at once (2: gated), x after a norm or without; parts are of type T, or of U. SHORT: of one
 * matrix, runs of a chunk at most. Of longer runs of one matrix the first AHEAD blocks are unpacked to registers before
 * the wait.
 * grid: tiles of all parts, each by a cluster of blocks that share its columns; block: a warp per run; 16 threads of a
 * cluster's first block store. Shared: sums ([most runs][D][16]), weights, x ([blocks][4]), unpacked scales.
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T, int U, int D, bool NORM, bool SHORT, int AHEAD>
static __global__ void __maxnreg__((AHEAD ? 96 : 64))
    linear_tile(const __grid_constant__ tile_args a)
{
  static_assert(D == 2 ? !SHORT : SHORT || !NORM, "runs before which x is normed are short");
  static_assert(AHEAD % KG_CHUNK == 0 && (!AHEAD || (D == 1 && !SHORT)), "of long runs of one matrix");
#if __CUDA_ARCH__ >= 900 /* where steps overlap */
  int tile = most_runs<D, NORM, SHORT> == 8 ? blockIdx.x : blockIdx.x >> a.cluster_bits, d0 = 0;
  if (D == 1)
    while (tile >= a.part[d0].n_tiles) tile -= a.part[d0++].n_tiles;
  if (T != U && a.part[d0].is_other)
    multiply_tile<U, D, NORM, SHORT, AHEAD>(a, tile, d0);
  else
    multiply_tile<T, D, NORM, SHORT, AHEAD>(a, tile, d0);
#endif
}
