/* norm.cuh - the sums of a norm, in one order whoever makes them: segments of 128 columns, four neighbours a lane, the lanes
 * as a tree, the segments from left to right. So kernels that norm for themselves get the same bits. */
#pragma once

#include "common.cuh"

enum { SEGMENT = 128 };

static __device__ __forceinline__ int n_segments(int n) { return (n + SEGMENT - 1) / SEGMENT; }

/* f(c) of four neighbours from column c on; zero beyond the row's end. Rows of a width that is a multiple of 4 are aligned. */
static __device__ __forceinline__ float4 four_of(const float *x, int n, int c)
{
  if (n % 4 == 0) return c < n ? *(const float4 *)(x + c) : make_float4(0, 0, 0, 0);
  return make_float4(c < n ? x[c] : 0, c + 1 < n ? x[c + 1] : 0, c + 2 < n ? x[c + 2] : 0, c + 3 < n ? x[c + 3] : 0);
}

/* Of one segment: the sum of squares, and the largest magnitude after scaling; in all lanes. */
static __device__ __forceinline__ float2 segment_stats(const float *x, const float *scale, int n, int segment, int lane)
{
  const int c = segment * SEGMENT + 4 * lane;
  const float4 v = four_of(x, n, c), w = four_of(scale, n, c);
  const float square = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
  const float max = fmaxf(fmaxf(fabsf(v.x * w.x), fabsf(v.y * w.y)), fmaxf(fabsf(v.z * w.z), fabsf(v.w * w.w)));
  return make_float2(warp_sum(square), warp_max(max));
}

static __device__ __forceinline__ float norm_factor(float squares, int n, float epsilon) { return 1 / sqrtf(squares / n + epsilon); }

/* By one warp: the factor of a norm without mean and bias, and the power of two that brings its row to f16. */
static __device__ __forceinline__ void norm_stats(const float *x, const float *scale, int n, int lane, float epsilon,
                                                  float *factor, float *up)
{
  float squares = 0, max = 0;
#pragma unroll 4
  for (int segment = 0; segment < n_segments(n); segment++) {
    const float2 stats = segment_stats(x, scale, n, segment, lane);
    squares += stats.x;
    max = fmaxf(max, stats.y);
  }
  *factor = norm_factor(squares, n, epsilon);
  *up = half_scale(max * *factor);
}
