/* linear_one.cu - products with one row of x: what decoding a single sequence consists of. The order of sums is that of
 * linear.cu; what differs is that nothing here is general, since such a step is a chain of a hundred kernels that each
 * take about as long as their instructions. */
#include "linear_stream.cuh"
#include "linear_tile.cuh"

/* linear_one: D matrices at once (2: gated), x brought to f16 by each warp for its run, after a norm or without.
 * grid: tiles of all parts, in turn; block: a warp per run; its first 16 threads store. Shared: rings of weights
 * ([warp][slots] chunks), x ([blocks][4]), sums ([2][warps][D][16]).
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T, int D, bool NORM>
static __global__ void __launch_bounds__(D == 2 ? 256 : 512, D == 2 ? 3 : 2)
    linear_one(const __grid_constant__ kg_linear_args a, int n_tiles, int run, int slots)
{
  extern __shared__ __align__(128) unsigned char ones[];
  __shared__ uint64_t ready[16 * KG_LINEAR_SLOTS];
  __shared__ float squares[KG_LINEAR_FEW_NUMBERS / SEGMENT];
  constexpr int slot_bytes = D * chunk<T>::n_bytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  const int n_blocks = a.part[0].m.n_blocks, first = warp * run, n_mine = min(run, n_blocks - first);
  read_arguments(a);
  unsigned char *ring = ones + warp * slots * slot_bytes, *x_at = ones + n_warps * slots * slot_bytes + first * 64;
  float *sums = (float *)(ones + n_warps * slots * slot_bytes + n_blocks * 64);
  uint64_t *my_ready = ready + warp * KG_LINEAR_SLOTS;

  warp_stream<T, D> stream(a, blockIdx.x, n_tiles, first, first + n_mine, slots);
  stream.open(ring, my_ready, lane);
  constexpr int AT_ONCE = NORM ? 2 : 4, BLOCKS = SEGMENT / KG_BLOCK_COLS; /* segments that are loaded together */
  const float *x_floats = a.x_floats + first * KG_BLOCK_COLS + 4 * lane;
  const float *norm_scale = NORM ? a.norm_scale + first * KG_BLOCK_COLS + 4 * lane : NULL;
  unsigned char *to = x_at + lane / 8 * 64 + lane % 4 * 16 + lane % 8 / 4 * 8;
  const int n_lane = n_mine - lane / 8; /* this lane's segments begin below */
  float4 w[AT_ONCE];
#pragma unroll
  for (int i = 0; i < AT_ONCE; i++)
    w[i] = NORM && BLOCKS * i < n_lane ? *(const float4 *)(norm_scale + i * SEGMENT) : make_float4(1, 1, 1, 1);
  await_previous();

  const float x_max = *a.x_max;
#pragma unroll 1
  for (int block = 0; block < n_mine; block += AT_ONCE * BLOCKS) {
    float4 v[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      v[i] = make_float4(0, 0, 0, 0);
      if (block + BLOCKS * i >= n_lane) continue;
      v[i] = *(const float4 *)(x_floats + (block + BLOCKS * i) * KG_BLOCK_COLS);
      if (NORM && block) w[i] = *(const float4 *)(norm_scale + (block + BLOCKS * i) * KG_BLOCK_COLS);
    }
    const float up = NORM ? norm_half_scale(x_max, a.norm_max) : known_half_scale(x_max, a.x_up);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const float4 y = NORM ? make_float4(v[i].x * w[i].x, v[i].y * w[i].y, v[i].z * w[i].z, v[i].w * w[i].w) : v[i];
      if (block + BLOCKS * i < n_lane)
        *(uint2 *)(to + (block + BLOCKS * i) * 64) =
            make_uint2(as_word(__floats2half2_rn(y.x * up, y.y * up)), as_word(__floats2half2_rn(y.z * up, y.w * up)));
      if (!NORM || block + BLOCKS * i >= n_mine) continue;
      const float square = segment_squares(v[i]);
      if (!lane) squares[(first + block) / BLOCKS + i] = square;
    }
  }
  __syncwarp();

  let_next_start(); /* not before: as in linear_tile.cuh */
  const uint4 *x = (const uint4 *)x_at + lane % 4; /* every column of the tensor cores' N computes the same row */
  float scale = 0;
  for (int index = blockIdx.x, turn = 0; index < n_tiles; index += gridDim.x, turn ^= 1) {
    int tile = index;
    const int d0 = part_of<D>(a, &tile), row = tile * 16 + threadIdx.x;
    addends add = {};
    if (threadIdx.x < 16) add = find_addends(a, d0, 0, row, 0, true);
    float acc[D][4] = {};
#pragma unroll 1
    for (int block = 0; block < n_mine; block += KG_CHUNK) {
      const unsigned char *slot = stream.next(ring, my_ready);
      auto multiply = [&](int i) {
#pragma unroll
        for (int d = 0; d < D; d++) {
          uint32_t weights[8];
          decode_chunk<T>(slot + d * chunk<T>::n_bytes, first + block, i, lane, weights);
          add_block<T>(acc[d], weights, x[(block + i) * 4]);
        }
      };
      if (block + KG_CHUNK <= n_mine) /* without branches: a block is decoded while another is multiplied */
#pragma unroll
        for (int i = 0; i < KG_CHUNK; i++) multiply(i);
      else
#pragma unroll 1
        for (int i = 0; i < n_mine - block; i++) multiply(i);
      stream.release(ring, my_ready, lane);
    }
    float *sum = sums + turn * n_warps * D * 16; /* two take turns: one barrier a tile does */
    if (lane % 4 == 0)
#pragma unroll
      for (int d = 0; d < D; d++) {
        sum[(warp * D + d) * 16 + lane / 4] = acc[d][0];
        sum[(warp * D + d) * 16 + lane / 4 + 8] = acc[d][2];
      }
    __syncthreads();
    if (threadIdx.x >= 16) continue;
    if (index == blockIdx.x) {
      scale = undo_scale(NORM ? norm_half_scale(x_max, a.norm_max) : known_half_scale(x_max, a.x_up));
      if (NORM) {
        float total = 0;
#pragma unroll 8
        for (int i = 0; i < n_segments(a.part[0].m.cols); i++) total += squares[i];
        scale *= norm_factor(total, a.part[0].m.cols, a.norm_epsilon);
      }
    }
    float value[D];
#pragma unroll
    for (int d = 0; d < D; d++) {
      value[d] = sum[d * 16 + threadIdx.x];
#pragma unroll 8
      for (int i = 1; i < n_warps; i++) value[d] += sum[(i * D + d) * 16 + threadIdx.x];
      value[d] *= scale;
    }
    float stored = 0;
    if (row < a.part[d0].m.rows) stored = fabsf(store(a, d0, row, 0, value[0], D == 2 ? value[D - 1] : 0, add));
    if (!a.out_max) continue;
    for (int step = 8; step; step >>= 1) stored = fmaxf(stored, __shfl_xor_sync(0xffff, stored, step));
    if (threadIdx.x == 0) raise_max(a.out_max, stored);
  }
}

/* Shared memory of a block of linear_tile that has n blocks of columns. */
template <int T, int D, bool NORM> static size_t tile_bytes(int n)
{
  return (size_t)n * 64 + (size_t)D * most_runs<D, NORM, false> * 64 + tile_cut_bytes<T, D>(n);
}

/* Is all of this launch on the device at once, and not in two turns? */
template <typename... P>
static int fits_at_once(kg_stream *s, void (*kernel)(P...), int n_blocks, int n_warps, int shared, bool *out,
                        kg_error *err)
{
  int each_sm = 0;
  int code = kg_cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "linear_tile", err);
  if (!code)
    code = kg_cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each_sm, kernel, 32 * n_warps, shared),
                         "linear_tile", err);
  *out = each_sm * s->n_sms >= n_blocks;
  return code;
}

/* *done: false where tiles are too large, or so many that blocks should go from one to the next. */
template <int T, int U, int D, bool NORM>
static int launch_tile(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  const kg_matrix *m = &a->part[0].m;
  const int run = kg_cuda_linear_run(m), n_runs = (m->n_blocks + run - 1) / run, bits = n_runs > 8;
  tile_args t = {.x = a->x_floats, .x_max = a->x_max, .norm_scale = a->norm_scale, .residual = a->residual,
                 .out_max = a->out_max, .x_up = a->x_up, .norm_max = a->norm_max, .norm_epsilon = a->norm_epsilon,
                 .act_limit = a->act_limit, .act_alpha = a->act_alpha, .act = a->act, .cols = m->cols,
                 .n_blocks = m->n_blocks, .run = run, .n_runs = n_runs, .cluster_bits = bits,
                 .starts_next = a->starts_next, .waits = true};
  find_parts<T>(a, t.part);
  const int n_tiles = count_tiles(a), n_blocks = n_tiles << bits, n_warps = (n_runs + bits) >> bits;
  const int n_mine = min(m->n_blocks, n_warps * run);
  const int shared = (int)max(tile_bytes<T, D, NORM>(n_mine), tile_bytes<U, D, NORM>(n_mine));
  *done = s->overlaps && !a->out_rows && n_tiles <= 4 * s->n_sms && shared <= min(100 << 10, s->shared_max - 1024) &&
          !(bits && (NORM || D == 2)) && run <= (NORM ? 4 : 12);
  if (!*done) return KG_OK;
  int code = KG_OK;
  auto kernel = linear_tile<T, U, D, NORM, D == 1 && NORM, 0>;
  if constexpr (D == 1 && !NORM && is_common(T)) { /* others, to build faster, take the kernel of long runs */
    const auto ahead = linear_tile<T, U, D, NORM, false, 2 * KG_CHUNK>; /* takes more registers */
    bool fits = false;
    if (run <= KG_CHUNK)
      kernel = linear_tile<T, U, D, NORM, true, 0>;
    else if (code = fits_at_once(s, ahead, n_blocks, n_warps, shared, &fits, err); fits)
      kernel = ahead;
  }
  if (!code)
    code = kg_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "linear_tile", err);
  return code ? code
              : run_clusters(s, "linear_tile", kernel, dim3(n_blocks), 1 << bits, 32 * n_warps, shared, err, t);
}

int kg_cuda_linear_mixed(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err)
{
  int low, high;
  *done = false;
  if (a->n != 1 || !a->x_floats || !a->norm_scale || !two_types(a, &low, &high)) return KG_OK;
  if (low == KG_Q5_0 && high == KG_Q8_0) return launch_tile<KG_Q5_0, KG_Q8_0, 1, true>(s, a, done, err);
  if (low == KG_Q4_K && high == KG_Q6_K) return launch_tile<KG_Q4_K, KG_Q6_K, 1, true>(s, a, done, err);
  if (low == KG_Q5_K && high == KG_Q6_K) return launch_tile<KG_Q5_K, KG_Q6_K, 1, true>(s, a, done, err);
  return KG_OK;
}

template <int T, int D, bool NORM> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  constexpr int each = D * (chunk<T>::n_bytes + 2 * 16 * (int)sizeof(float)), barriers = 16 * KG_LINEAR_SLOTS * 8,
                squares = KG_LINEAR_FEW_NUMBERS / SEGMENT * (int)sizeof(float);
  static_assert((D == 2 ? 8 : 16) * each + barriers + squares <= (int)KG_LINEAR_ONE_BESIDE, "x has room");
  const kg_matrix *m = &a->part[0].m;
  const size_t x = (size_t)m->n_blocks * 64, sum = (size_t)D * 16 * sizeof(float) * 2;
  kg_linear_shape shape;
  bool done;
  int code = launch_tile<T, T, D, NORM>(s, a, &done, err);
  if (code || done) return code;
  if constexpr (is_common(T) && !sizes<T>::has_heads && D == 1 && NORM) {
    code = launch_stream<T>(s, a, &done, err);
    if (code || done) return code;
  }
  kg_cuda_linear_shape(s, a, 1, D * (size_t)chunk<T>::n_bytes, x, sum, &shape);
  return run_turns(s, "linear_one", linear_one<T, D, NORM>, a, &shape, 1, err);
}

int kg_cuda_linear_one(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  const bool norm = a->norm_scale != NULL;
  switch (a->part[0].m.type) {
#define CASE(T) case T: return norm ? launch<T, 1, true>(s, a, err) : launch<T, 1, false>(s, a, err);
#define GATES(T) \
  case T: \
    if (a->gated) return norm ? launch<T, 2, true>(s, a, err) : launch<T, 2, false>(s, a, err); \
    return norm ? launch<T, 1, true>(s, a, err) : launch<T, 1, false>(s, a, err);
    GATES(KG_F16) GATES(KG_Q8_0) GATES(KG_Q4_0) GATES(KG_Q5_0) GATES(KG_Q4_K) GATES(KG_Q5_K) GATES(KG_Q6_K)
    CASE(KG_BF16) CASE(KG_Q4_1) CASE(KG_Q5_1) CASE(KG_IQ4_NL) CASE(KG_MXFP4) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef GATES
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "weights of type %d", (int)a->part[0].m.type);
  }
}
