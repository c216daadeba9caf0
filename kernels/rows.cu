#include "act.cuh"
#include "format.cuh"
#include "norm.cuh"
#include "rotate.cuh"

static const unsigned MAX_GRID = 1u << 20; /* of kernels that stride over their elements */

/* ---- embedding ---- */

template <int T>
static __global__ void __launch_bounds__(256) embed_rows(kg_matrix m, const int32_t *ids, bool add, float *out, float *out_max)
{
  __shared__ float shared[32];
  wait_for_previous();
  float max = 0;
  const int id = ids[blockIdx.x];
  float *row = out + (size_t)blockIdx.x * m.cols;
  for (int c = threadIdx.x; c < m.cols; c += blockDim.x) {
    const float value = T == KG_F32 ? ((const float *)m.q)[(size_t)id * m.cols + c] : weight_value<T == KG_F32 ? KG_F16 : T>(m, 0, id, c);
    row[c] = add ? row[c] + value : value;
    max = fmaxf(max, fabsf(row[c]));
  }
  if (!out_max) return;
  max = block_max(max, shared);
  if (!threadIdx.x) out_max[blockIdx.x] = max;
}

int kg_cuda_embed(kg_stream *s, const kg_matrix *table, const int32_t *ids, int32_t n, bool add, float *out, float *out_max,
                  kg_error *err)
{
  switch (table->type) {
#define CASE(T) case T: return run_kernel(s, "embed_rows", embed_rows<T>, dim3(n), 256, 0, err, *table, ids, add, out, out_max);
    CASE(KG_F32) CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1)
    CASE(KG_IQ4_NL) CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "an embedding of type %d", (int)table->type);
  }
}

/* ---- norms and the f16 form ---- */

/* The f16 form of a row; f(c): its scaled number of column c. Columns beyond the width are zero. */
template <typename F>
static __device__ __forceinline__ void write_half(const kg_norm_args &a, int row, int width, int thread, int n_threads, F f)
{
  const int n_blocks = (width + 31) / 32;
  for (int p = thread; p < 16 * n_blocks; p += n_threads) {
    const int block = p / 16, at = 2 * p % 32, c = 32 * block + column_of(at); /* two neighbours in either order */
    const __half2 pair = __floats2half2_rn(c < width ? f(c) : 0, c + 1 < width ? f(c + 1) : 0);
    if (a.panels) /* step, half of it and lane from the position 8 t + j */
      ((__half2 *)a.half)[kg_panel_at(row, block, n_blocks) / 4 + at % 8 / 2 * 32 + row % 8 * 4 + at / 8] = pair;
    else
      ((__half2 *)a.half)[(size_t)row * 16 * n_blocks + p] = pair;
  }
}

/* norm_rows: y = (x - mean) / sqrt(variance + eps) * scale + bias of each of `groups` parts of a row, as float32 and as
 * scaled f16.
 * grid: parts of all rows / 4; block: 4 warps, a part each; sums: norm.cuh.
 * moves width * 4 bytes in, width * (4 and 2) out; twin: norm in cpu/reference.c, tolerance float32 sums. */
static __global__ void __launch_bounds__(128) norm_rows(const __grid_constant__ kg_norm_args a)
{
  wait_for_previous();
  const int index = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, part = a.width / a.groups;
  if (index >= a.n * a.groups) return;
  const float *x = a.x + (size_t)index * part;
  const bool is_plain = !a.subtract_mean && !a.bias; /* products can do this themselves, to the same bits */
  float mean = 0, squares = 0, max = 0;
  for (int c = lane; c < part && a.subtract_mean; c += 32) mean += x[c];
  if (a.subtract_mean) mean = warp_sum(mean) / part;
#pragma unroll 4
  for (int c = 4 * lane; c < n_segments(part) * SEGMENT; c += SEGMENT) {
    float4 v = four_of(x, part, c);
    max = fmaxf(fmaxf(max, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    if (a.subtract_mean)
      v = make_float4(c < part ? v.x - mean : 0, c + 1 < part ? v.y - mean : 0, c + 2 < part ? v.z - mean : 0, c + 3 < part ? v.w - mean : 0);
    squares += segment_squares(v);
  }
  const float factor = norm_factor(squares, part, a.epsilon);
  auto value = [&](int c) {
    const float v = (x[c] - mean) * factor * a.scale[c];
    return a.bias ? v + a.bias[c] : v;
  };
  if (a.half && is_plain) {
    const float up = norm_half_scale(warp_max(max), a.scale_max);
    write_half(a, index, part, lane, 32, [&](int c) { return x[c] * a.scale[c] * up; });
    if (!lane) a.half_scale[index] = undo_scale(up) * factor;
  } else if (a.half) {
    max = 0;
    for (int c = lane; c < part; c += 32) max = fmaxf(max, fabsf(value(c)));
    const float up = half_scale(warp_max(max));
    write_half(a, index, part, lane, 32, [&](int c) { return value(c) * up; });
    if (!lane) a.half_scale[index] = undo_scale(up);
  }
  if (!a.out) return;
  float *out = a.out + (x - a.x);
  for (int c = lane; c < part; c += 32) out[c] = value(c);
}

/* half_rows: the f16 form of rows. grid: rows; block: 256 threads = a row. */
static __global__ void __launch_bounds__(256) half_rows(const __grid_constant__ kg_norm_args a)
{
  __shared__ float shared[32];
  wait_for_previous();
  const float *x = a.x + (size_t)blockIdx.x * a.width;
  float max = 0;
  for (int c = threadIdx.x; c < a.width; c += 256) max = fmaxf(max, fabsf(x[c]));
  const float up = half_scale(block_max(max, shared));
  write_half(a, blockIdx.x, a.width, threadIdx.x, 256, [&](int c) { return x[c] * up; });
  if (!threadIdx.x) a.half_scale[blockIdx.x] = undo_scale(up);
}

int kg_cuda_norm(kg_stream *s, const kg_norm_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->groups < 1 || a->width % a->groups || (a->half && a->groups != 1))
    return kg_fail(err, KG_ERR_ARGUMENT, "a norm of %d rows of %d in %d parts", a->n, a->width, a->groups);
  if (!a->normalize) return run_kernel(s, "half_rows", half_rows, dim3(a->n), 256, 0, err, *a);
  return run_kernel(s, "norm_rows", norm_rows, dim3((a->n * a->groups + 3) / 4), 128, 0, err, *a);
}

/* ---- column by column ---- */

static __global__ void __launch_bounds__(256) columns_each(const __grid_constant__ kg_columns_args a)
{
  wait_for_previous();
  const int64_t n = (int64_t)a.n * a.width, stride = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) switch (a.kind) {
    case KG_COLUMNS_GLU: a.out[i] = gated(a.act, a.limit, a.alpha, a.a[i], a.b[i]); break;
    case KG_COLUMNS_ACT: a.out[i] = activate(a.act, a.a[i]); break;
    case KG_COLUMNS_ADD: a.out[i] = a.a[i] + a.b[i]; break;
    case KG_COLUMNS_SCALE: a.out[i] = a.a[i] * a.scale; break;
    case KG_COLUMNS_SOFTCAP: a.out[i] = a.scale * tanhf(a.a[i] / a.scale); break;
    default: a.out[i] = a.a[i / a.width * a.a_width + a.slice + i % a.width]; break;
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

static __global__ void __launch_bounds__(256) move_rows(const float *in, const int32_t *rows, float *const *out_rows,
                                                        int32_t width, float *out, float *out_max)
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
static __global__ void __launch_bounds__(128) angles(const int32_t *positions, const float *freqs, int32_t n_freqs,
                                                     float magnitude, float2 *table)
{
  wait_for_previous();
  for (int f = threadIdx.x; f < n_freqs; f += blockDim.x) {
    double sine, cosine;
    sincos((double)positions[blockIdx.x] * (double)freqs[f], &sine, &cosine);
    table[(size_t)blockIdx.x * n_freqs + f] = make_float2((float)(cosine * magnitude), (float)(sine * magnitude));
  }
}

int kg_cuda_angles(kg_stream *s, const int32_t *positions, int32_t n, const float *freqs, int32_t n_freqs,
                   float magnitude, float *table, kg_error *err)
{
  return run_kernel(s, "angles", angles, dim3(n), 128, 0, err, positions, freqs, n_freqs, magnitude, (float2 *)table);
}

static __global__ void __launch_bounds__(128) rope_heads(const float *x, int32_t n_heads, int32_t head_dim,
                                                         kg_rotation rotation, float *out)
{
  wait_for_previous();
  const size_t at = ((size_t)blockIdx.y * n_heads + blockIdx.x) * head_dim;
  for (int c = threadIdx.x; c < head_dim; c += blockDim.x) out[at + c] = rotated(rotation, x + at, blockIdx.y, c);
}

int kg_cuda_rope(kg_stream *s, const float *x, int32_t n, int32_t n_heads, int32_t head_dim, const kg_rotation *rotation,
                 float *out, kg_error *err)
{
  return run_kernel(s, "rope_heads", rope_heads, dim3(n_heads, n), 128, 0, err, x, n_heads, head_dim, *rotation, out);
}
