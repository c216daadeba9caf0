/* norm.cuh - the sums of a norm, by one warp in one order: kernels that norm for themselves get the same bits. */
#pragma once

#include "common.cuh"

/* f(c, x[c]) for all columns in the order of a lane: fours where rows are aligned, eight of them loaded at once. */
template <typename F> static __device__ __forceinline__ void each_number(const float *x, int n, int lane, F f)
{
  if (n % 4 == 0) {
    for (int c0 = 4 * lane; c0 < n; c0 += 1024) {
      float4 v[8];
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (c0 + 128 * i < n) v[i] = *(const float4 *)(x + c0 + 128 * i);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int c = c0 + 128 * i;
        if (c >= n) continue;
        f(c, v[i].x);
        f(c + 1, v[i].y);
        f(c + 2, v[i].z);
        f(c + 3, v[i].w);
      }
    }
  } else {
    for (int c = lane; c < n; c += 32) f(c, x[c]);
  }
}

static __device__ __forceinline__ float norm_mean(const float *x, int n, int lane)
{
  float sum = 0;
  each_number(x, n, lane, [&](int, float v) { sum += v; });
  return warp_sum(sum) / n;
}

static __device__ __forceinline__ float norm_factor(const float *x, int n, int lane, float mean, float epsilon)
{
  float square = 0;
  each_number(x, n, lane, [&](int, float v) { square = fmaf(v - mean, v - mean, square); });
  return 1 / sqrtf(warp_sum(square) / n + epsilon);
}
