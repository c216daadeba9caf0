#include "act.cuh"
#include "format.cuh"
#include "half.cuh"
#include "norm.cuh"
#include "rotate.cuh"

static const unsigned MAX_GRID = 1u << 20; /* of kernels that stride over their elements */

/* ---- embedding ---- */

/* embed_rows: out = rows of a table, or with them added. It begins a pass, and lets nothing start before it has waited:
 * what came before the pass is done when other kernels of it start, and they may read that before they wait.
 * grid: rows; each block clears what will be measured of its row. */
template <int T>
static __global__ void __launch_bounds__(256) embed_rows(const __grid_constant__ kg_embed_args a)
{
  __shared__ float shared[32];
  const kg_matrix &m = a.table;
  await_previous();
  let_next_start();
  float max = 0;
  if (blockIdx.x < KG_LINEAR_FEW)
    for (int i = threadIdx.x; i < a.n_cleared; i += blockDim.x) a.cleared[i * KG_LINEAR_FEW + blockIdx.x] = 0;
  const int id = a.ids ? a.ids[blockIdx.x] : 0;
  float *row = a.out + (size_t)blockIdx.x * m.cols;
  constexpr int AT_ONCE = 4; /* so that what is read is on its way together */
  for (int c0 = threadIdx.x; c0 < m.cols; c0 += AT_ONCE * blockDim.x) {
    float value[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int c = min(c0 + i * (int)blockDim.x, m.cols - 1);
      value[i] = T == KG_F32                  ? ((const float *)m.q)[(size_t)id * m.cols + c]
                 : weight_value < T == KG_F32 ? KG_F16
                                              : T > (m, 0, id, c);
      if (a.add) value[i] = row[c] + value[i];
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int c = c0 + i * blockDim.x;
      if (c >= m.cols) continue;
      row[c] = value[i];
      max = fmaxf(max, fabsf(value[i]));
    }
  }
  if (!a.out_max) return;
  max = block_max(max, shared); /* behind a barrier: cleared before */
  if (!threadIdx.x) a.out_max[blockIdx.x] = max;
}

int kg_cuda_embed(kg_stream *s, const kg_embed_args *a, kg_error *err)
{
  switch (a->table.type) {
#define CASE(T) case T: return run_kernel(s, "embed_rows", embed_rows<T>, dim3(a->n), 256, 0, err, *a);
    CASE(KG_F32) CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1)
    CASE(KG_IQ4_NL) CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "an embedding of type %d", (int)a->table.type);
  }
}

/* ---- norms and the f16 form ---- */

/* Four neighbours of a row, from column c on, to its f16 form; columns up to the next multiple of 32 are zero. */
static __device__ __forceinline__ void write_half(const kg_norm_args &a, int row, int c, float4 v)
{
  const int n_blocks = (a.width + 31) / 32, block = c / 32, slot = c % 16 / 4, step = c % 32 / 16;
  const __half2 low = __floats2half2_rn(v.x, v.y), high = __floats2half2_rn(v.z, v.w);
  if (block >= n_blocks) return;
  if (a.panels) {
    __half2 *out = panel_pair(a.half, n_blocks, row, c);
    out[0] = low;
    out[32] = high;
  } else
    ((uint2 *)a.half)[(((size_t)row * n_blocks + block) * 4 + slot) * 2 + step] =
        make_uint2(as_word(low), as_word(high));
}

/* Sums over the segments of a row by all warps of a block, or by one warp. */
template <int WARPS, typename F> static __device__ __forceinline__ float sum_segments(int n, int warp, F f)
{
  __shared__ float sums[WARPS == 1 ? 1 : KG_NORM_MAX / SEGMENT];
  float sum = 0;
  if (WARPS == 1) {
#pragma unroll 4
    for (int i = 0; i < n_segments(n); i++) sum += f(i);
    return sum;
  }
  __syncthreads();
  for (int i = warp; i < n_segments(n); i += WARPS) sums[i] = f(i);
  __syncthreads();
#pragma unroll 8
  for (int i = 0; i < n_segments(n); i++) sum += sums[i];
  return sum;
}

static __device__ __forceinline__ const float *part_of(const kg_norm_args &a, int index, int width)
{
  if (!a.x_parts) return a.x + (size_t)index * width;
  return a.x + (size_t)(index / a.x_parts) * a.x_width + index % a.x_parts * a.x_step;
}

/* norm_rows: y = (x - mean) / sqrt(variance + eps) * scale + bias of each of `groups` parts of a row, as float32 and as
 * scaled f16.
 * grid: parts of all rows, WARPS 1: / 4; block: WARPS warps a part; sums: norm.cuh.
 * moves width * 4 bytes in, width * (4 and 2) out; twin: norm in cpu/reference.c, tolerance float32 sums. */
template <int WARPS>
static __global__ void __launch_bounds__(WARPS == 1 ? 128 : 32 * WARPS)
    norm_rows(const __grid_constant__ kg_norm_args a)
{
  __shared__ float maxima[32];
  wait_for_previous();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = a.width / a.groups;
  const int index = WARPS == 1 ? blockIdx.x * 4 + warp : blockIdx.x;
  if (index >= a.n * a.groups) return;
  const float *x = part_of(a, index, part);
  const int weights = a.is_wide ? index % a.groups * part : 0; /* where those of the part begin */
  float mean = 0, max = 0;
  auto deviation = [&](int i) { /* of a lane's four, zero beyond the row */
    const int c = i * SEGMENT + 4 * lane;
    float4 v = four_of(x, part, c);
    if (a.subtract_mean)
      v = make_float4(c < part ? v.x - mean : 0, c + 1 < part ? v.y - mean : 0, c + 2 < part ? v.z - mean : 0,
                      c + 3 < part ? v.w - mean : 0);
    return v;
  };
  auto sum_of_four = [&](int i) {
    const float4 v = four_of(x, part, i * SEGMENT + 4 * lane);
    return warp_sum(v.x + v.y + v.z + v.w);
  };
  if (a.subtract_mean) mean = sum_segments<WARPS>(part, warp, sum_of_four) / part;
  const float squares = sum_segments<WARPS>(part, warp, [&](int i) {
    const float4 v = deviation(i);
    max = fmaxf(fmaxf(max, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    return segment_squares(v);
  });
  const float factor = norm_factor(squares, part, a.epsilon);
  auto scaled = [&](int c, float4 v, float by) {
    const float4 w = four_of(a.scale + weights, part, c);
    return make_float4(v.x * w.x * by, v.y * w.y * by, v.z * w.z * by, v.w * w.w * by);
  };
  auto value = [&](int i) {
    const int c = i * SEGMENT + 4 * lane;
    float4 v = scaled(c, deviation(i), factor);
    if (!a.bias) return v;
    const float4 b = four_of(a.bias + weights, part, c);
    return make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
  };
  const bool is_plain = !a.subtract_mean && !a.bias; /* products can do this themselves, to the same bits */
  float up = 1;
  if (a.half) {
    if (!is_plain) {
      max = 0;
      for (int i = WARPS == 1 ? 0 : warp; i < n_segments(part); i += WARPS) {
        const float4 v = value(i);
        max = fmaxf(fmaxf(max, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
      }
    }
    max = WARPS == 1 ? warp_max(max) : block_max(max, maxima);
    up = is_plain ? norm_half_scale(max, a.scale_max) : half_scale(max);
    if (lane == 0 && (WARPS == 1 || warp == 0))
      a.half_scale[index] = is_plain ? undo_scale(up) * factor : undo_scale(up);
  }
  for (int i = WARPS == 1 ? 0 : warp; i < n_segments(part); i += WARPS) {
    const int c = i * SEGMENT + 4 * lane;
    if (a.half) {
      const float4 v = is_plain ? scaled(c, four_of(x, part, c), 1) : value(i);
      write_half(a, index, c, make_float4(v.x * up, v.y * up, v.z * up, v.w * up));
    }
    if (!a.out) continue;
    const float4 v = value(i);
    float *out = a.out + (size_t)index * part + c;
    if (part % 4 == 0) {
      if (c < part) *(float4 *)out = v;
      continue;
    }
    if (c < part) out[0] = v.x;
    if (c + 1 < part) out[1] = v.y;
    if (c + 2 < part) out[2] = v.z;
    if (c + 3 < part) out[3] = v.w;
  }
}

/* norm_plain: norm_rows without mean, bias and parts, to the same bits, of rows that WARPS warps keep in registers,
 * EACH segments each: what the plans of most models consist of. grid: rows, WARPS 1: / 4; block: WARPS warps a row. */
template <int WARPS, int EACH>
static __global__ void __launch_bounds__(WARPS == 1 ? 128 : 32 * WARPS)
    norm_plain(const __grid_constant__ kg_norm_args a)
{
  __shared__ float squares[WARPS == 1 ? 1 : WARPS * EACH], maxima[32];
  const int warp = WARPS == 1 ? 0 : threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = WARPS == 1 ? blockIdx.x * 4 + threadIdx.x / 32 : blockIdx.x;
  const int first = warp * EACH * SEGMENT + 4 * lane;
  float4 w[EACH], v[EACH];
  let_next_start();
#pragma unroll
  for (int i = 0; i < EACH; i++) w[i] = four_of(a.scale, a.width, first + i * SEGMENT);
  await_previous();
  if (row >= a.n) return;
  const float *x = part_of(a, row, a.width);
  float square[EACH], max = 0, sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) v[i] = four_of(x, a.width, first + i * SEGMENT);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    square[i] = fmaf(v[i].w, v[i].w, fmaf(v[i].z, v[i].z, fmaf(v[i].y, v[i].y, v[i].x * v[i].x)));
    max = fmaxf(fmaxf(max, fmaxf(fabsf(v[i].x), fabsf(v[i].y))), fmaxf(fabsf(v[i].z), fabsf(v[i].w)));
  }
#pragma unroll
  for (int step = 16; step; step >>= 1)
#pragma unroll
    for (int i = 0; i < EACH; i++) square[i] += __shfl_xor_sync(~0u, square[i], step);
  if (WARPS == 1) {
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (i * SEGMENT < a.width) sum += square[i];
    max = warp_max(max);
  } else {
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (!lane) squares[warp * EACH + i] = square[i];
    max = block_max(max, maxima); /* and the squares are there */
    for (int i = 0; i < n_segments(a.width); i++) sum += squares[i];
  }
  const float factor = norm_factor(sum, a.width, a.epsilon), up = norm_half_scale(max, a.scale_max);
  if (a.half && !lane && !warp) a.half_scale[row] = undo_scale(up) * factor;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int c = first + i * SEGMENT;
    const float4 y = make_float4(v[i].x * w[i].x, v[i].y * w[i].y, v[i].z * w[i].z, v[i].w * w[i].w);
    if (a.half) write_half(a, row, c, make_float4(y.x * up, y.y * up, y.z * up, y.w * up));
    if (a.out && c < a.width)
      *(float4 *)(a.out + (size_t)row * a.width + c) =
          make_float4(y.x * factor, y.y * factor, y.z * factor, y.w * factor);
  }
}

/* norm_segments: norm_plain for the rows of a step, whose f16 form stands in panels: a warp for each segment of a row,
 * and little code, because code that runs once takes longer to fetch than to run. grid: rows; block: a warp a
 * segment. */
static __global__ void __launch_bounds__(1024) norm_segments(const __grid_constant__ kg_norm_args a)
{
  __shared__ float squares[32], maxima[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = blockDim.x / 32;
  const int row = blockIdx.x, c = 4 * threadIdx.x;
  const bool inside = c < a.width;
  let_next_start();
  read_arguments(a);
  float4 w = make_float4(0, 0, 0, 0), v = w;
  if (inside) w = *(const float4 *)(a.scale + c);
  const float *x = a.x + (size_t)row * a.width + c;
  __half2 *to = panel_pair(a.half, a.width / KG_BLOCK_COLS, row, c);
  await_previous();
  if (inside) v = *(const float4 *)x;
  float square = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x))), sum = 0;
  float max = fmaxf(fmaxf(0, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    square += __shfl_xor_sync(~0u, square, step);
    max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  }
  if (!lane) {
    squares[warp] = square;
    maxima[warp] = max;
  }
  __syncthreads();
  const float up = norm_half_scale(warp_max(maxima[min(lane, n - 1)]), a.scale_max);
  const float4 y = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
  if (inside) {
    to[0] = __floats2half2_rn(y.x * up, y.y * up);
    to[32] = __floats2half2_rn(y.z * up, y.w * up);
  }
  if (!a.out && threadIdx.x) return;
#pragma unroll 8
  for (int i = 0; i < n; i++) sum += squares[i];
  const float factor = norm_factor(sum, a.width, a.epsilon);
  if (!threadIdx.x) a.half_scale[row] = undo_scale(up) * factor;
  if (a.out && inside)
    *(float4 *)(a.out + (size_t)row * a.width + c) =
        make_float4(y.x * factor, y.y * factor, y.z * factor, y.w * factor);
}

/* half_rows: the f16 form of rows. grid: pairs of rows; block: 8 warps, each half of a warp a row, so that two rows of
 * a panel are written together. */
static __global__ void __launch_bounds__(256) half_rows(const __grid_constant__ kg_norm_args a)
{
  __shared__ float maxima[2][8];
  wait_for_previous();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, second = lane / 16, row = 2 * blockIdx.x + second;
  const int first = warp * 64 + lane % 16 * 4, padded = (a.width + 31) / 32 * 32;
  const bool exists = row < a.n;
  const float *x = part_of(a, row, a.width);
  float max = 0;
#pragma unroll 4
  for (int c = first; c < a.width && exists; c += 512) {
    const float4 v = four_of(x, a.width, c);
    max = fmaxf(fmaxf(max, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
  }
  for (int step = 8; step; step >>= 1) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  if (lane % 16 == 0) maxima[second][warp] = max;
  __syncthreads();
  for (int w = 0; w < 8; w++) max = fmaxf(max, maxima[second][w]);
  const float up = known_half_scale(max, a.half_up);
  if (!exists) return;
#pragma unroll 4
  for (int c = first; c < padded; c += 512) {
    const float4 v = four_of(x, a.width, c);
    write_half(a, row, c, make_float4(v.x * up, v.y * up, v.z * up, v.w * up));
  }
  if (first == 0) a.half_scale[row] = undo_scale(up);
}

enum {
  ENOUGH_PARTS = 1024, /* to fill the device with a warp each */
  STEP_ROWS = 64       /* so many and fewer leave it mostly idle */
};

static bool suits_segments(const kg_norm_args *a)
{
  return a->n <= STEP_ROWS && a->half && a->panels && !a->x_parts && a->width % KG_BLOCK_COLS == 0 &&
         a->width <= 32 * SEGMENT;
}

/* A norm without mean, bias and parts. */
static int launch_plain(kg_stream *s, const kg_norm_args *a, kg_error *err)
{
  if (suits_segments(a))
    return run_kernel(s, "norm_segments", norm_segments, dim3(a->n), 32 * ((a->width + SEGMENT - 1) / SEGMENT), 0, err,
                      *a);
  if (a->width <= 8 * SEGMENT)
    return run_kernel(s, "norm_plain", norm_plain<1, 8>, dim3((a->n + 3) / 4), 128, 0, err, *a);
  if (a->width <= 4 * 8 * SEGMENT)
    return run_kernel(s, "norm_plain", norm_plain<4, 8>, dim3(a->n), 128, 0, err, *a);
  return run_kernel(s, "norm_plain", norm_plain<8, 8>, dim3(a->n), 256, 0, err, *a);
}

int kg_cuda_norm(kg_stream *s, const kg_norm_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->groups < 1 || (int64_t)a->n * a->groups > INT32_MAX ||
      a->width % a->groups || (a->half && a->groups != 1) ||
      (a->normalize && a->width / a->groups > KG_NORM_MAX))
    return kg_fail(err, KG_ERR_ARGUMENT, "a norm of %d rows of %d in %d parts", a->n, a->width, a->groups);
  if (!a->normalize) return run_kernel(s, "half_rows", half_rows, dim3((a->n + 1) / 2), 256, 0, err, *a);
  const int parts = a->n * a->groups;
  if (!a->subtract_mean && !a->bias && a->groups == 1 && !a->is_wide && a->width % 4 == 0 &&
      a->width <= 8 * 8 * SEGMENT)
    return launch_plain(s, a, err);
  if (parts < ENOUGH_PARTS && a->width / a->groups > 4 * SEGMENT)
    return run_kernel(s, "norm_rows", norm_rows<8>, dim3(parts), 256, 0, err, *a);
  return run_kernel(s, "norm_rows", norm_rows<1>, dim3((parts + 3) / 4), 128, 0, err, *a);
}

/* ---- column by column ---- */

/* Column c of what parts make of a row. */
static __device__ __forceinline__ float column_of_parts(const kg_columns_args &a, int row, int c)
{
  const int width = a.width / a.groups, group = c / width, at = c - group * width;
  const bool second = at >= a.part[0].dim;
  const kg_columns_part &part = a.part[second];
  const float *from = part.x + (size_t)row * part.width + group * part.step + part.first;
  return turned_channel(part.rotation, from, row, second ? at - a.part[0].dim : at);
}

static __global__ void __launch_bounds__(256) columns_each(const __grid_constant__ kg_columns_args a)
{
  wait_for_previous();
  const int64_t n = (int64_t)a.n * a.width, stride = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) switch (a.kind) {
    case KG_COLUMNS_GLU:
      a.out[i] = gated(a.act, a.limit, a.alpha, a.a[i], a.b[i]);
      break;
    case KG_COLUMNS_ACT:
      a.out[i] = activate(a.act, a.a[i]);
      break;
    case KG_COLUMNS_ADD:
      a.out[i] = a.a[i] + a.b[i];
      break;
    case KG_COLUMNS_SCALE:
      a.out[i] = a.a[i] * a.scale;
      break;
    case KG_COLUMNS_SOFTCAP:
      a.out[i] = a.scale * tanhf(a.a[i] / a.scale);
      break;
    default:
      a.out[i] = column_of_parts(a, (int)(i / a.width), (int)(i % a.width));
      break;
    }
}

static unsigned blocks_for(int64_t n)
{
  const int64_t blocks = (n + 255) / 256;
  return blocks < 1 ? 1 : blocks > MAX_GRID ? MAX_GRID : (unsigned)blocks;
}

int kg_cuda_columns(kg_stream *s, const kg_columns_args *a, kg_error *err)
{
  return run_kernel(s, "columns_each", columns_each, dim3(blocks_for((int64_t)a->n * a->width)), 256, 0, err, *a);
}

static __global__ void __launch_bounds__(256)
    move_rows(const float *in, const int32_t *rows, float *const *out_rows, int32_t width, float *out, float *out_max)
{
  __shared__ float shared[32];
  wait_for_previous();
  float max = 0;
  const float *from = in + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * width;
  float *to = out_rows ? out_rows[blockIdx.x] : out + (size_t)blockIdx.x * width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    to[c] = from[c];
    max = fmaxf(max, fabsf(from[c]));
  }
  if (!out_max) return;
  max = block_max(max, shared);
  if (!threadIdx.x) out_max[blockIdx.x] = max;
}

int kg_cuda_gather(kg_stream *s, const float *in, const int32_t *rows, int32_t n, int32_t width, float *out,
                   float *out_max, kg_error *err)
{
  return run_kernel(s, "move_rows", move_rows, dim3(n), 256, 0, err, in, rows, nullptr, width, out, out_max);
}

int kg_cuda_scatter(kg_stream *s, const float *in, const int32_t *rows, float *const *out, int32_t n, int32_t width,
                    kg_error *err)
{
  return run_kernel(s, "move_rows", move_rows, dim3(n), 256, 0, err, in, rows, out, width, nullptr, nullptr);
}

/* ---- rotation ---- */

/* In double: at a position of 100,000 a float32 angle is off by 0.004. */
static __global__ void __launch_bounds__(128)
    angles(const int32_t *positions, const float *freqs, int32_t n_freqs, kg_growing growing, float2 *table)
{
  wait_for_previous();
  double magnitude = growing.magnitude;
  if (growing.growth > 0)
    magnitude *= 1 + (double)growing.growth * log1p((double)(positions[blockIdx.x] / growing.length));
  for (int f = threadIdx.x; f < n_freqs; f += blockDim.x) {
    double sine, cosine;
    sincos((double)positions[blockIdx.x] * (double)freqs[f], &sine, &cosine);
    table[(size_t)blockIdx.x * n_freqs + f] = make_float2((float)(cosine * magnitude), (float)(sine * magnitude));
  }
}

int kg_cuda_angles(kg_stream *s, const int32_t *positions, int32_t n, const float *freqs, int32_t n_freqs,
                   kg_growing growing, float *table, kg_error *err)
{
  return run_kernel(s, "angles", angles, dim3(n), 128, 0, err, positions, freqs, n_freqs, growing, (float2 *)table);
}

static __global__ void __launch_bounds__(128)
    rope_heads(const float *x, int32_t n_heads, int32_t head_dim, kg_rotation rotation, float *out)
{
  wait_for_previous();
  const size_t at = ((size_t)blockIdx.y * n_heads + blockIdx.x) * head_dim;
  for (int i = threadIdx.x; i < (head_dim + 1) / 2; i += blockDim.x)
    rotate_pair(find_pair(rotation, x + at, head_dim, blockIdx.y, i), head_dim,
                [&](int c, float value) { out[at + c] = value; });
}

int kg_cuda_rope(kg_stream *s, const float *x, int32_t n, int32_t n_heads, int32_t head_dim,
                 const kg_rotation *rotation, float *out, kg_error *err)
{
  return run_kernel(s, "rope_heads", rope_heads, dim3(n_heads, n), 128, 0, err, x, n_heads, head_dim, *rotation, out);
}
