/* linear_stream.cuh - products with one normed row of x of so many rows of weights that blocks go from tile to tile: a
 * tile is brought whole, by few large copies. */
#pragma once

#include "linear.cuh"
#include "norm.cuh"

enum { STREAM_SLOTS = 4, STREAM_RUNS = 8, STREAM_SUMS = STREAM_RUNS * 16 };

/* Shared memory of linear_stream in bytes: x, of a row of n blocks; a slot. */
static __host__ __device__ constexpr uint32_t stream_x_bytes(int n) { return (n * 64 + 127) / 128 * 128; }

template <int T> static __host__ __device__ constexpr uint32_t stream_tile_bytes(int n)
{
  return (n * (sizes<T>::q + sizes<T>::h + sizes<T>::s) + 127) / 128 * 128;
}

/* linear_stream: one matrix whose scales stand by blocks of 32.
 * grid: blocks that go round the tiles; block: a warp per run, which is a chunk; 16 threads store. Shared: x
 * ([blocks][4]), sums ([2][runs][16]), tiles ([slots]).
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T>
static __global__ void __launch_bounds__(32 * STREAM_RUNS, 4)
    linear_stream(const __grid_constant__ kg_linear_args a, int n_tiles, int slots)
{
  extern __shared__ __align__(128) unsigned char stream_memory[];
  __shared__ uint64_t ready[STREAM_SLOTS];
  __shared__ float squares[STREAM_RUNS];
  static_assert(!sizes<T>::has_heads, "scales stand by blocks of 32");
  const kg_matrix &m = a.part[0].m;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_blocks = m.n_blocks, first = warp * KG_CHUNK;
  const int n_mine = min(KG_CHUNK, n_blocks - first), n_lane = n_mine - lane / 8; /* this lane's segment begins below */
  const uint32_t q_bytes = n_blocks * sizes<T>::q, h_bytes = n_blocks * sizes<T>::h, s_bytes = n_blocks * sizes<T>::s;
  const uint32_t each = stream_tile_bytes<T>(n_blocks);
  unsigned char *x_at = stream_memory + first * 64, *ring = stream_memory + stream_x_bytes(n_blocks) + 8 * STREAM_SUMS;
  float *sums = (float *)(stream_memory + stream_x_bytes(n_blocks));
  read_arguments(a);
  auto fetch = [&](int tile, int slot) {
    if (tile >= n_tiles) return;
    unsigned char *to = ring + slot * each;
    const size_t at = (size_t)tile * n_blocks;
    barrier_expect(ready + slot, q_bytes + h_bytes + s_bytes);
    bulk_copy(to, m.q + at * sizes<T>::q, q_bytes, ready + slot);
    if (sizes<T>::h) bulk_copy(to + q_bytes, m.h + at * sizes<T>::h, h_bytes, ready + slot);
    if (sizes<T>::s) bulk_copy(to + q_bytes + h_bytes, m.s + at * sizes<T>::s, s_bytes, ready + slot);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < slots; i++) barrier_init(ready + i, 1);
    barriers_ready();
    for (int i = 0; i < slots; i++) fetch(blockIdx.x + i * gridDim.x, i);
  }
  for (int i = threadIdx.x; i < 2 * STREAM_SUMS; i += blockDim.x) sums[i] = -0.0f; /* see linear_tile.cuh */
  if (threadIdx.x < STREAM_RUNS) squares[threadIdx.x] = 0;
  float4 w = make_float4(1, 1, 1, 1), v = make_float4(0, 0, 0, 0);
  if (n_lane > 0) w = *(const float4 *)(a.norm_scale + first * KG_BLOCK_COLS + 4 * lane);
  __syncthreads();
  await_previous();

  const float x_max = *a.x_max;
  if (n_lane > 0) v = *(const float4 *)(a.x_floats + first * KG_BLOCK_COLS + 4 * lane);
  float *out = a.out_rows ? a.out_rows[0] : a.part[0].out;
  const float up = norm_half_scale(x_max, a.norm_max);
  const float4 y = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
  if (n_lane > 0)
    *(uint2 *)(x_at + lane / 8 * 64 + lane % 4 * 16 + lane % 8 / 4 * 8) =
        make_uint2(as_word(__floats2half2_rn(y.x * up, y.y * up)), as_word(__floats2half2_rn(y.z * up, y.w * up)));
  const float square = segment_squares(v);
  if (!lane) squares[warp] = square;
  __syncwarp();
  let_next_start(); /* not before: as in linear_tile.cuh */

  const uint4 *x = (const uint4 *)x_at + lane % 4; /* every column of the N operand is this row */
  const unsigned char *q = ring + first * sizes<T>::q, *h = ring + q_bytes + first * sizes<T>::h;
  const unsigned char *scales_at = ring + q_bytes + h_bytes + first * sizes<T>::s;
  float scale = 0;
  int slot = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int tile = blockIdx.x, turn = 0; tile < n_tiles; tile += gridDim.x, turn ^= 1) {
    const int row = tile * 16 + threadIdx.x;
    float bias = 0;
    if (a.part[0].bias && threadIdx.x < 16 && row < m.rows) bias = a.part[0].bias[row];
    barrier_wait(ready + slot, parity);
    const uint32_t away = slot * each;
    float acc[4] = {};
    auto multiply = [&](int i) {
      raw_tile raw;
      tile_scales scales;
      uint32_t codes[8];
      load_tile<T>(q + away + i * sizes<T>::q, h + away + i * sizes<T>::h, lane, raw);
      load_scales<T>(scales_at + away + i * sizes<T>::s, first + i, lane / 4, scales);
      decode_tile<T>(raw, scales, codes);
      add_block<T>(acc, codes, x[i * 4]);
    };
    if (n_mine == KG_CHUNK)
#pragma unroll
      for (int i = 0; i < KG_CHUNK; i++) multiply(i);
    else
#pragma unroll 1
      for (int i = 0; i < n_mine; i++) multiply(i);
    float *sum = sums + turn * STREAM_SUMS; /* two take turns: one barrier a tile does */
    if (lane % 4 == 0) {
      sum[warp * 16 + lane / 4] = acc[0];
      sum[warp * 16 + lane / 4 + 8] = acc[2];
    }
    __syncthreads(); /* sums are there, and nobody reads the slot any more */
    if (threadIdx.x == blockDim.x - 1) fetch(tile + slots * gridDim.x, slot);
    if (++slot == slots) {
      slot = 0;
      parity ^= 1;
    }
    if (threadIdx.x >= 16) continue;
    if (tile == blockIdx.x) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < STREAM_RUNS; i++) total += squares[i];
      scale = undo_scale(up) * norm_factor(total, m.cols, a.norm_epsilon);
    }
    float parts[STREAM_RUNS];
#pragma unroll
    for (int i = 0; i < STREAM_RUNS; i++) parts[i] = sum[i * 16 + threadIdx.x];
    float value = parts[0];
#pragma unroll
    for (int i = 1; i < STREAM_RUNS; i++) value += parts[i];
    value *= scale;
    if (a.part[0].bias) value += bias;
    if (row < m.rows) out[row] = value;
  }
}

/* *done: false where tiles are few, or so large that there is no room for two where several blocks fit. */
template <int T> static int launch_stream(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  const kg_matrix *m = &a->part[0].m;
  const size_t fixed = stream_x_bytes(m->n_blocks) + 8 * STREAM_SUMS, tile = stream_tile_bytes<T>(m->n_blocks);
  const size_t room = (size_t)s->shared_max / 4 - (2 << 10);
  int slots = STREAM_SLOTS, each_sm = 0;
  while (slots > 1 && fixed + slots * tile > room) slots--;
  *done = s->overlaps && a->n_parts == 1 && !a->residual && !a->out_max && m->n_tiles > 4 * s->n_sms && slots > 1 &&
          m->n_blocks <= STREAM_RUNS * KG_CHUNK && kg_cuda_linear_run(m) == KG_CHUNK;
  if (!*done) return KG_OK;
  const size_t shared = fixed + slots * tile;
  const unsigned threads = 32 * (unsigned)((m->n_blocks + KG_CHUNK - 1) / KG_CHUNK);
  const auto kernel = linear_stream<T>;
  int code = kg_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                           "linear_stream", err);
  if (!code)
    code = kg_cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each_sm, kernel, threads, shared),
                         "linear_stream", err);
  if (code) return code;
  const int n_blocks = min(m->n_tiles, max(1, each_sm) * s->n_sms);
  return run_kernel(s, "linear_stream", kernel, dim3(n_blocks), threads, shared, err, *a, m->n_tiles, slots);
}
