/* common.cuh - device helpers of all kernels. Every sum has one order: results must not depend on the batch. The
 * compiler fuses no multiply with an add by itself (-fmad=false); where fmaf stands, it is meant. */
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>
#include <stdint.h>

#include "device.h"

/* ---- dependent launch ----
 * Kernels of a step start while the one before still runs, fetch what never changes, and wait here before they touch
 * anything else. Every kernel that is launched with run_kernel calls this, first of all or after such fetching. */
static __device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

static __device__ __forceinline__ void await_previous()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Both: kernels that fetch much before they wait let the next one start before that; those whose long blocks should not
 * meet blocks of the next kernel only wait. */
static __device__ __forceinline__ void wait_for_previous()
{
  let_next_start();
  await_previous();
}

/* Arguments come from memory when they are used first, 64 bytes at a time: see to it that this is before the wait. */
template <typename A> static __device__ __forceinline__ void read_arguments(const A &a)
{
#pragma unroll
  for (size_t i = 0; i < sizeof a; i += 64) {
    int word = *(const int *)((const char *)&a + i);
    asm volatile("" : "+r"(word));
  }
}

/* Blocks in clusters of `cluster` neighbours in x; more than 1 only where steps overlap (Hopper and later). */
template <typename... P, typename... A>
static int run_clusters(kg_stream *s, const char *name, void (*kernel)(P...), dim3 grid, unsigned cluster,
                        unsigned threads, size_t shared, kg_error *err, A... arguments)
{
  /* All kernels divide a multiprocessor's memory alike: where they did not, one could not start while another runs. */
  cudaLaunchAttribute attributes[3] = {};
  attributes[0].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[0].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = s->handle;
  config.attrs = attributes;
  config.numAttrs = !s->overlaps ? 0 : cluster > 1 ? 3 : 2;
  return kg_cuda_check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), name, err);
}

template <typename... P, typename... A>
static int run_kernel(kg_stream *s, const char *name, void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared,
                      kg_error *err, A... arguments)
{
  return run_clusters(s, name, kernel, grid, 1, threads, shared, err, arguments...);
}

static __device__ __forceinline__ float warp_sum(float x)
{
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

/* NaNs are skipped. */
static __device__ __forceinline__ float warp_max(float x)
{
  for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

/* Over a block of at most 1024 threads, all of which call it; the result is everywhere. */
static __device__ __forceinline__ float block_sum(float x, float *shared /* [32] */)
{
  const int n_warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = shared[0];
  for (int w = 1; w < n_warps; w++) sum += shared[w];
  return sum;
}

static __device__ __forceinline__ float block_max(float x, float *shared /* [32] */)
{
  const int n_warps = blockDim.x / 32;
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float max = shared[0];
  for (int w = 1; w < n_warps; w++) max = fmaxf(max, shared[w]);
  return max;
}

/* The largest magnitude of a row, gathered from all blocks: bits of floats that are not negative
 * order as numbers do. */
static __device__ __forceinline__ void raise_max(float *max, float x)
{
  atomicMax((unsigned *)max, __float_as_uint(x));
}

/* Where a column of a block of 32 stands in the activations' order (format.h). */
static __device__ __forceinline__ int place_of(int column)
{
  return (column & 15) / 4 * 8 + (column & 3) + (column >> 4) * 4;
}

static constexpr int max_half_scale = 120;

/* The power of two that brings numbers of this largest magnitude to [2^13, 2^14): f16 keeps 11 bits of everything
 * above 2^-28 of the largest. Its inverse is exact. 1 for zero and for what is no number. */
static __device__ __forceinline__ float half_scale(float max)
{
  if (!(max > 0) || max == CUDART_INF_F) return 1;
  const int exponent = 13 - ((int)(__float_as_uint(max) >> 23) - 127);
  return __uint_as_float((unsigned)(127 + min(max_half_scale, exponent)) << 23);
}

/* 1 / half_scale(), exactly. */
static __device__ __forceinline__ float undo_scale(float up)
{
  return __uint_as_float((254u << 23) - __float_as_uint(up));
}
