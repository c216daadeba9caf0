/* norm.cuh - the sums of a norm, by one warp in one order: kernels that norm for themselves get the same bits. */
#pragma once

#include "common.cuh"

/* f(c) for all columns in the order of a lane: fours where rows are aligned. */
template <typename F> static __device__ __forceinline__ void each_column(int n, int lane, F f)
{
  if (n % 4 == 0) {
    for (int c = 4 * lane; c < n; c += 128)
#pragma unroll
      for (int i = 0; i < 4; i++) f(c + i);
  } else {
    for (int c = lane; c < n; c += 32) f(c);
  }
}

static __device__ __forceinline__ float norm_mean(const float *x, int n, int lane)
{
  float sum = 0;
  each_column(n, lane, [&](int c) { sum += x[c]; });
  return warp_sum(sum) / n;
}

static __device__ __forceinline__ float norm_factor(const float *x, int n, int lane, float mean, float epsilon)
{
  float square = 0;
  each_column(n, lane, [&](int c) { square = fmaf(x[c] - mean, x[c] - mean, square); });
  return 1 / sqrtf(warp_sum(square) / n + epsilon);
}
