#include "common.cuh"
#include "vector_ops.h"

static unsigned blocks_for(int64_t n)
{
  const int64_t blocks = (n + 255) / 256;
  return blocks < 1 ? 1 : blocks > 4096 ? 4096 : (unsigned)blocks;
}

#define EACH(i, n) \
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

static __global__ void fill_each(float *x, int64_t n, float value) { EACH(i, n) x[i] = value; }
static __global__ void fill_some(float *x, const int32_t *index, int64_t n, float value) { EACH(i, n) x[index[i]] = value; }
static __global__ void affine_each(float *x, int64_t n, float factor, float offset) { EACH(i, n) x[i] = x[i] * factor + offset; }
static __global__ void add_each(float *x, const float *o, int64_t n, float factor) { EACH(i, n) x[i] += factor * o[i]; }
static __global__ void mul_each(float *x, const float *o, int64_t n) { EACH(i, n) x[i] *= o[i]; }

int kg_cuda_probe_kernels(kg_error *err)
{
  cudaFuncAttributes attributes;
  return kg_cuda_check(cudaFuncGetAttributes(&attributes, fill_each), "kernels for this device", err);
}

int kg_cuda_fill(kg_stream *s, float *x, int64_t n, float value, kg_error *err)
{
  fill_each<<<blocks_for(n), 256, 0, s->handle>>>(x, n, value);
  return kg_cuda_launched("fill_each", err);
}

int kg_cuda_fill_at(kg_stream *s, float *x, const int32_t *index, int64_t n_index, float value, kg_error *err)
{
  fill_some<<<blocks_for(n_index), 256, 0, s->handle>>>(x, index, n_index, value);
  return kg_cuda_launched("fill_some", err);
}

int kg_cuda_affine(kg_stream *s, float *x, int64_t n, float factor, float offset, kg_error *err)
{
  affine_each<<<blocks_for(n), 256, 0, s->handle>>>(x, n, factor, offset);
  return kg_cuda_launched("affine_each", err);
}

int kg_cuda_add(kg_stream *s, float *x, const float *o, int64_t n, float factor, kg_error *err)
{
  add_each<<<blocks_for(n), 256, 0, s->handle>>>(x, o, n, factor);
  return kg_cuda_launched("add_each", err);
}

int kg_cuda_mul(kg_stream *s, float *x, const float *o, int64_t n, kg_error *err)
{
  mul_each<<<blocks_for(n), 256, 0, s->handle>>>(x, o, n);
  return kg_cuda_launched("mul_each", err);
}

/* Sums of 1024 threads in double: a fixed tree. */
static __device__ double block_sum_double(double x, double *shared /* [32] */)
{
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < 32; w++) sum += shared[w];
  return sum;
}

/* softmax_rows: grid (rows), one block a row. twin: host_softmax in tensor.c; tolerance: exp in float32. */
static __global__ void __launch_bounds__(1024) softmax_rows(const float *x, int64_t n, bool log_wanted, float *out)
{
  __shared__ float shared[32];
  __shared__ double sums[32];
  x += blockIdx.x * n;
  out += blockIdx.x * n;
  float max = -CUDART_INF_F;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 1024) max = fmaxf(max, x[i]);
  max = block_max(max, shared);
  for (int64_t i = threadIdx.x; i < n; i += 1024) sum += (double)expf(x[i] - max);
  sum = block_sum_double(sum, sums);
  const float factor = (float)(1 / sum), offset = (float)log(sum);
  for (int64_t i = threadIdx.x; i < n; i += 1024) out[i] = log_wanted ? x[i] - max - offset : expf(x[i] - max) * factor;
}

int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out, kg_error *err)
{
  if (rows > INT32_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows", (long long)rows);
  softmax_rows<<<(unsigned)rows, 1024, 0, s->handle>>>(x, n, log, out);
  return kg_cuda_launched("softmax_rows", err);
}

/* Grows with the number, and for equal ones falls with the index; no number: below everything. */
static __device__ __forceinline__ unsigned long long argmax_key(float x, int64_t i)
{
  uint32_t bits = x == 0 ? 0 : __float_as_uint(x);
  bits = x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000;
  return (unsigned long long)bits << 32 | (uint32_t)~i;
}

static __global__ void __launch_bounds__(256) argmax_each(const float *x, int64_t n, unsigned long long *out)
{
  unsigned long long best = 0;
  EACH(i, n)
  {
    const unsigned long long key = argmax_key(x[i], i);
    best = key > best ? key : best;
  }
  for (int step = 16; step; step >>= 1) {
    const unsigned long long other = __shfl_xor_sync(~0u, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) atomicMax(out, best); /* a maximum does not depend on the order */
}

int kg_cuda_argmax(kg_stream *s, const float *x, int64_t n, unsigned long long *out, kg_error *err)
{
  int code = kg_cuda_check(cudaMemsetAsync(out, 0, sizeof *out, s->handle), "argmax", err);
  if (code) return code;
  argmax_each<<<blocks_for(n) < 132 ? blocks_for(n) : 132, 256, 0, s->handle>>>(x, n, out);
  return kg_cuda_launched("argmax_each", err);
}

static __global__ void __launch_bounds__(1024) reduce_all(const float *x, int64_t n, kg_reduced *out)
{
  __shared__ float shared[32];
  __shared__ double sums[32];
  float min = CUDART_INF_F, max = -CUDART_INF_F;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 1024) {
    min = fminf(min, x[i]);
    max = fmaxf(max, x[i]);
    sum += x[i];
  }
  min = -block_max(-min, shared);
  max = block_max(max, shared);
  sum = block_sum_double(sum, sums);
  if (!threadIdx.x) *out = {sum, min, max};
}

int kg_cuda_reduce(kg_stream *s, const float *x, int64_t n, kg_reduced *out, kg_error *err)
{
  reduce_all<<<1, 1024, 0, s->handle>>>(x, n, out);
  return kg_cuda_launched("reduce_all", err);
}
